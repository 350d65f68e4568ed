//! Asking a server what it offers, in a throw-away child and folder.

use std::sync::Arc;

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::{
    artifacts,
    child::{Child, ChildError, ChildRequest, Children, End, HelloParts, Profile},
    config::ServerSpec,
    model::{Principal, RawJson, Tool},
    store::{Job, NewJob, PrincipalHash, Store, StoreError},
};

/// Pages of `tools/list` that are read; a server with more is not honest.
const MAX_PAGES: usize = 1000;

/// What a server said of itself, without the name of the folder in which it said so.
#[derive(Debug)]
pub struct Learnt {
    /// Its answer to `initialize`.
    pub hello: HelloParts,
    /// All its tools, in its order.
    pub tools: Vec<Tool>,
    /// Proportional set size of the child and all below it, in bytes.
    pub memory: u64,
    /// The call-less files that it wrote at start: a `shared` server should write none.
    pub wrote_files: bool,
}

/// Why a server could not be learnt.
#[derive(Debug, thiserror::Error)]
pub enum LearnError {
    /// The process failed.
    #[error(transparent)]
    Child(#[from] ChildError),
    /// The folder failed.
    #[error("no folder for it: {0}")]
    Store(#[from] StoreError),
    /// It answered `tools/list` with an error.
    #[error("it answered tools/list with the error {0}")]
    Refused(String),
    /// It answered `tools/list` with something else.
    #[error("its answer to tools/list is no ListToolsResult: {0}")]
    BadList(serde_json::Error),
}

impl LearnError {
    /// Without the server's own words, which may hold what not everybody should read.
    pub fn brief(&self) -> String {
        match self {
            Self::Child(error) => error.brief(),
            Self::Refused(_) => "it answered tools/list with an error".to_owned(),
            Self::Store(_) | Self::BadList(_) => self.to_string(),
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ToolPage {
    #[serde(default)]
    tools: Vec<Value>,
    #[serde(default)]
    next_cursor: Option<String>,
}

/// Starts the server, asks, and leaves nothing behind.
pub async fn learn(
    spec: &Arc<ServerSpec>,
    children: &Children,
    store: &Arc<Store>,
    deadline: Instant,
) -> Result<Learnt, LearnError> {
    let job = throw_away_job(spec, store).await?;
    let learnt = ask(spec, children, &job, deadline).await;
    let store = store.clone();
    // A folder that cannot be removed now is garbage that the collector gets later.
    let _ = tokio::task::spawn_blocking(move || store.remove_job(&job)).await;
    learnt
}

async fn throw_away_job(spec: &ServerSpec, store: &Arc<Store>) -> Result<Job, StoreError> {
    let (store, server) = (store.clone(), spec.name.clone());
    let made = tokio::task::spawn_blocking(move || {
        let principal = PrincipalHash::from(&Principal::Anonymous);
        let new = NewJob {
            principal,
            key: None,
            servers: &[server],
        };
        store.create_job(&new, Timestamp::now())
    });
    made.await.expect("making a folder does not panic")
}

async fn ask(
    spec: &Arc<ServerSpec>,
    children: &Children,
    job: &Job,
    deadline: Instant,
) -> Result<Learnt, LearnError> {
    let request = ChildRequest {
        spec: spec.clone(),
        job: job.clone(),
        profile: Profile::silent(),
        overlay: Vec::new(),
        deadline,
        listener: Arc::new(|_, _| {}),
    };
    let child = children.ready(request).await?;
    let tools = tokio::time::timeout_at(deadline, list_tools(&child, job)).await;
    let memory = child.memory();
    let hello = artifacts::relative(child.hello().0.clone(), &job.paths());
    child.end(End::Kill).await;
    let tools = tools.unwrap_or(Err(ChildError::Timeout.into()))?;
    let hello = hello.read().unwrap_or_default();
    let wrote_files = std::fs::read_dir(job.work()).is_ok_and(|mut files| files.next().is_some());
    Ok(Learnt {
        hello,
        tools,
        memory,
        wrote_files,
    })
}

async fn list_tools(child: &Child, job: &Job) -> Result<Vec<Tool>, LearnError> {
    let mut tools: Vec<Tool> = Vec::new();
    let mut cursor: Option<String> = None;
    for _ in 0..MAX_PAGES {
        let params = cursor
            .as_ref()
            .map_or_else(|| json!({}), |next| json!({"cursor": next}));
        let answer = child
            .request("tools/list", Some(&RawJson::of(&params)))
            .await?;
        let page = answer.map_err(|error| LearnError::Refused(error.as_str().to_owned()))?;
        let page = artifacts::relative(page, &job.paths());
        let page: ToolPage = page.read().map_err(LearnError::BadList)?;
        for tool in page.tools.into_iter().filter_map(Tool::read) {
            if !tools.iter().any(|known| known.name == tool.name) {
                tools.push(tool);
            }
        }
        // A cursor that stays the same would go on for ever.
        if page.next_cursor.is_none() || page.next_cursor == cursor {
            break;
        }
        cursor = page.next_cursor;
    }
    Ok(tools)
}
