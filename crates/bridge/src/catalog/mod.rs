//! The catalogue of each server's tools, prompts and resources, read once and kept: documents and lists are
//! answered from memory.
//!
//! ```text
//! Learning ──read, or valid on disk──▶ Ready ◀──read── (refresh; the old answer is kept meanwhile)
//!     └──failed──▶ Failed ──backoff──▶ Learning
//! ```
//! An entry on disk is served at once after a restart, and read from the server again; if that fails, it is
//! no longer served.
//! Each server has its own task: a failing server is retried independently of the others.

mod disk;
mod learn;
mod learner;
mod listed;

use std::{
    collections::{HashMap, HashSet},
    num::NonZeroUsize,
    panic::resume_unwind,
    sync::{Arc, LazyLock, OnceLock},
    time::Duration,
};

use bridge_model::ServerName;
use bridge_openapi::{
    ArgumentRules, ArgumentsError, BRIEF_BYTES, DocumentInput, Documents, Effort, Patience,
    Stopped, document, name_of_dots,
};
use bridge_process::ChildError;
use bridge_protocol::{RawJson, Tool};
use bridge_state::{ChatStore, StoreError};
use bytes::Bytes;
use indexmap::IndexMap;
use learner::Learner;
use listed::Listed;
use parking_lot::Mutex;
use tokio::{
    sync::{Semaphore, broadcast, watch},
    task::spawn_blocking,
    time::{Instant, timeout, timeout_at},
};
use tokio_util::task::TaskTracker;

use crate::{
    child::Children,
    config::{Mode, ServerSpec},
};

pub use disk::kept;
pub use learn::{Learnt, learn};
pub use listed::{Item, completion};

/// How long a request waits while a server's lists are being read.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// The state of one server.
#[derive(Clone)]
pub enum Knowledge {
    /// The lists have not been read yet.
    Learning,
    /// The lists are known.
    Ready(Arc<Offer>),
    /// The lists could not be read; there will be a retry.
    Failed {
        /// The error for callers with the key, including the server's last output.
        why: Arc<str>,
        /// The error for all callers.
        brief: Arc<str>,
    },
}

/// The catalogue of all servers.
pub struct Catalog {
    entries: Mutex<HashMap<ServerName, Learner>>,
    children: Arc<Children>,
    store: Arc<ChatStore>,
    learning: TaskTracker,
    news: broadcast::Sender<News>,
    changes: watch::Sender<()>,
}

/// A change of a server's list.
#[derive(Debug, Clone)]
pub struct News {
    /// The server.
    pub server: ServerName,
    /// The method of the list-changed notification.
    pub method: &'static str,
}

type Watch = watch::Receiver<Knowledge>;

/// Capacity of the channel, per receiver.
const NEWS: usize = 64;

impl Catalog {
    /// An empty catalogue; [`Catalog::follow`] fills it.
    pub fn new(children: Arc<Children>, store: Arc<ChatStore>) -> Self {
        Self {
            entries: Mutex::default(),
            children,
            store,
            learning: TaskTracker::new(),
            news: broadcast::channel(NEWS).0,
            changes: watch::Sender::new(()),
        }
    }

    /// Subscribes to changes of lists.
    pub fn news(&self) -> broadcast::Receiver<News> {
        self.news.subscribe()
    }

    /// Reads the lists of new and changed servers, forgets removed ones and keeps the others. Does nothing
    /// after [`Catalog::close`], because a reload may finish late.
    pub fn follow<'a>(&self, specs: impl Iterator<Item = &'a Arc<ServerSpec>>) {
        let mut entries = self.entries.lock();
        if self.learning.is_closed() {
            return;
        }
        let mut before = std::mem::take(&mut *entries);
        for spec in specs {
            let learner = match before.remove(&spec.name) {
                Some(learner) if learner.spec().version() == spec.version() => {
                    learner.update(spec.clone());
                    learner
                }
                _ => Learner::start(
                    spec.clone(),
                    self.children.clone(),
                    self.store.clone(),
                    self.news.clone(),
                    &self.learning,
                    self.changes.clone(),
                ),
            };
            entries.insert(spec.name.clone(), learner);
        }
        drop(entries);
        self.changes.send_replace(());
    }

    /// Forgets all servers and ends their current attempts. The children and their folders are removed
    /// before this returns.
    pub async fn close(&self) {
        {
            let mut entries = self.entries.lock();
            entries.clear();
            self.learning.close();
        }
        self.learning.wait().await;
    }

    /// Reads the lists of a server again, after it sent a list-changed notification.
    pub fn refresh(&self, server: &ServerName) {
        if let Some(learner) = self.entries.lock().get(server) {
            learner.refresh();
        }
    }

    /// The current state.
    pub fn peek(&self, server: &ServerName) -> Option<Knowledge> {
        let entries = self.entries.lock();
        entries
            .get(server)
            .map(|learner| learner.watch.borrow().clone())
    }

    /// The input schema of a tool, by the server's name for it.
    pub fn tool_schema(&self, server: &ServerName, tool: &str) -> Option<RawJson> {
        let offer = self.ready(server)?;
        let tool = offer.tool(tool)?;
        Some(RawJson::from_json(tool.tool.input_schema()))
    }

    /// What the server offers. Waits up to [`PATIENCE`] for the first answer.
    pub async fn offer(&self, server: &ServerName) -> Option<Knowledge> {
        let now = self.peek(server)?;
        if !matches!(now, Knowledge::Learning) {
            return Some(now);
        }
        let mut knowledge = self.entries.lock().get(server)?.watch.clone();
        let known = knowledge.wait_for(|state| !matches!(state, Knowledge::Learning));
        let _ = timeout(PATIENCE, known).await;
        Some(knowledge.borrow().clone())
    }

    /// Waits until each of these servers is known or has failed, or has been read for [`PATIENCE`], so that
    /// only new servers cause a wait.
    pub async fn settled<'a>(&self, servers: impl Iterator<Item = &'a ServerName>) {
        let waits: Vec<_> = {
            let entries = self.entries.lock();
            let learners = servers.filter_map(|server| entries.get(server));
            learners
                .map(|learner| (learner.began + PATIENCE, learner.watch.clone()))
                .collect()
        };
        for (until, mut knowledge) in waits {
            let known = knowledge.wait_for(|state| !matches!(state, Knowledge::Learning));
            let _ = timeout_at(until, known).await;
        }
    }

    /// Notifies about changes of any server's entry.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }

    /// Warnings for the administrator.
    pub fn warnings(&self, server: &ServerName) -> Vec<String> {
        let offer = self.ready(server);
        offer.map_or_else(Vec::new, |offer| offer.warnings())
    }

    fn ready(&self, server: &ServerName) -> Option<Arc<Offer>> {
        match self.peek(server)? {
            Knowledge::Ready(offer) => Some(offer),
            Knowledge::Learning | Knowledge::Failed { .. } => None,
        }
    }

    /// The largest memory use of a child so far, in bytes; 0 before any server was read.
    pub fn largest_child(&self) -> u64 {
        let entries = self.entries.lock();
        let sizes = entries
            .values()
            .map(|learner| match &*learner.watch.borrow() {
                Knowledge::Ready(offer) => offer.learnt.memory,
                _ => 0,
            });
        sizes.max().unwrap_or(0)
    }
}

// A server as offered to callers: its lists, filtered by the config.

/// What a server offers under one version of its config.
pub struct Offer {
    /// The config whose filters apply.
    pub spec: Arc<ServerSpec>,
    /// The answers of the server.
    pub learnt: Arc<Learnt>,
    tools: IndexMap<Box<str>, OfferedTool>,
    listed: OnceLock<Listed>,
    documents: Mutex<HashMap<String, Bytes>>,
}

/// Permits for checks that may take long, for all servers.
static CHECKS: LazyLock<Semaphore> = LazyLock::new(|| {
    let processors = std::thread::available_parallelism();
    Semaphore::new(processors.map_or(1, NonZeroUsize::get))
});

/// A tool that callers may use.
pub struct OfferedTool {
    /// As the server described it.
    pub tool: Tool,
    rules: OnceLock<ArgumentRules>,
}

impl OfferedTool {
    /// The rules for its arguments, compiled on first use.
    pub fn rules(&self) -> &ArgumentRules {
        self.rules.get_or_init(|| {
            let rules = ArgumentRules::compile(self.tool.input_schema());
            if let Some(warning) = rules.warning() {
                tracing::warn!(tool = %self.tool.name, "{warning}");
            }
            rules
        })
    }
}

impl Offer {
    /// Filters by `enabledTools` and `disabledTools`.
    pub fn new(spec: Arc<ServerSpec>, learnt: Arc<Learnt>) -> Self {
        let offered = learnt.tools.iter().filter(|tool| spec.offers(&tool.name));
        let tools = offered.map(|tool| {
            let (tool, rules) = (tool.clone(), OnceLock::new());
            (tool.name.clone(), OfferedTool { tool, rules })
        });
        Self {
            tools: tools.collect(),
            spec,
            learnt,
            listed: OnceLock::new(),
            documents: Mutex::default(),
        }
    }

    /// A tool that callers may use, by the server's name for it.
    pub fn tool(&self, name: &str) -> Option<&OfferedTool> {
        self.tools.get(name)
    }

    /// The name of the tool for the last segment of a URL, decoded.
    pub fn name_at<'a>(&self, segment: &'a str) -> &'a str {
        let known = |name: &&str| self.tools.contains_key(*name);
        let dots = || name_of_dots(segment).filter(known);
        // A trailing slash is ignored, as in every address.
        let bare = || Some(segment.trim_end_matches('/')).filter(known);
        let named = Some(segment).filter(known).or_else(dots);
        named.or_else(bare).unwrap_or(segment)
    }

    /// Whether callers may call a tool: a known tool or, if tools depend on the session, any that the config
    /// does not hide.
    pub fn may_call(&self, name: &str) -> bool {
        self.tools.contains_key(name) || (self.spec.session_lists && self.spec.offers(name))
    }

    /// Validates and corrects the arguments of a call. If the session may have another schema, arguments that
    /// do not fit this one are passed to the server. May take seconds, so call it on a blocking thread.
    pub fn check(
        &self,
        tool: &str,
        arguments: RawJson,
        effort: &Effort,
    ) -> Result<RawJson, ArgumentsError> {
        let Some(known) = self.tools.get(tool) else {
            return Ok(match arguments.as_bytes() {
                b"null" => RawJson::empty_object(),
                _ => arguments,
            });
        };
        let checked = known.rules().check(&arguments, effort);
        checked.or_else(|error| match error {
            ArgumentsError::Faults(_) if self.spec.session_lists => Ok(arguments),
            error => Err(error),
        })
    }

    /// The same for a runtime thread, until `deadline`. Small arguments, by far the most frequent, are
    /// checked at once; others on a blocking thread, with at most as many concurrent checks as there are
    /// processors. The check stops when the returned future is dropped.
    pub async fn check_until(
        self: &Arc<Self>,
        tool: &str,
        arguments: RawJson,
        deadline: Instant,
    ) -> Result<RawJson, ArgumentsError> {
        let known = self.tools.get(tool);
        let compiled = known.is_none_or(|known| known.rules.get().is_some());
        if compiled && arguments.as_bytes().len() <= BRIEF_BYTES {
            let brief = self.check(tool, arguments.clone(), &Effort::brief());
            if brief != Err(ArgumentsError::Stopped(Stopped::Work)) {
                return brief;
            }
        }
        let late = ArgumentsError::Stopped(Stopped::Time);
        let Ok(place) = timeout_at(deadline, CHECKS.acquire()).await else {
            return Err(late);
        };
        let waiting = Arc::new(());
        let effort = Effort::whole(Patience {
            until: Some(deadline.into_std()),
            caller: Some(Arc::downgrade(&waiting)),
        });
        let (offer, tool) = (self.clone(), tool.to_owned());
        let checked = spawn_blocking(move || {
            // Released when the check stops, even if the caller no longer waits.
            let _place = place;
            offer.check(&tool, arguments, &effort)
        });
        match checked.await {
            Ok(checked) => checked,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => resume_unwind(panic),
                // The runtime is shutting down.
                Err(_) => Err(ArgumentsError::Stopped(Stopped::Left)),
            },
        }
    }

    /// All of these tools, in the server's order.
    pub fn tools(&self) -> impl ExactSizeIterator<Item = &Tool> {
        self.tools.values().map(|offered| &offered.tool)
    }

    /// The server's part of the lists of all servers.
    pub fn listed(&self) -> &Listed {
        self.listed.get_or_init(|| {
            let learnt = &self.learnt;
            let (prompts, resources) = (&learnt.prompts, &learnt.resources);
            Listed::inspect(self.tools(), prompts, resources, &learnt.templates)
        })
    }

    /// Names in `enabledTools` that the server does not have: misspelled, or of another version.
    pub fn missing_tools(&self) -> Vec<&str> {
        let enabled = self.spec.enabled_tools.iter().flatten();
        // Another session may have these tools.
        let wanted = enabled
            .map(String::as_str)
            .filter(|_| !self.spec.session_lists);
        let tools = self.learnt.tools.iter();
        let has: HashSet<&str> = tools.map(|tool| &*tool.name).collect();
        wanted.filter(|name| !has.contains(name)).collect()
    }

    /// Warnings for the administrator.
    pub fn warnings(&self) -> Vec<String> {
        let name = &self.spec.name;
        let mut warnings = Vec::new();
        let missing = self.missing_tools();
        if !missing.is_empty() {
            let missing = missing.join(", ");
            warnings.push(format!(
                "server '{name}': enabledTools contains unknown tools: {missing}"
            ));
        }
        let tasks = self.tools().filter(|tool| tool.needs_task());
        let tasks: Vec<&str> = tasks.map(|tool| &*tool.name).collect();
        if !tasks.is_empty() {
            let tasks = tasks.join(", ");
            warnings.push(format!(
                "server '{name}': tools that require MCP tasks are not available over OpenAPI: \
                 {tasks}"
            ));
        }
        if self.spec.mode == Mode::Shared && self.learnt.wrote_files {
            warnings.push(format!(
                "server '{name}': it is shared but writes files, and files of shared servers get \
                 no links: use \"mode\": \"stateful\" or \"stateless\""
            ));
        }
        if let Some(odd) = &self.learnt.odd {
            warnings.push(format!(
                "server '{name}': its responses violate the MCP schema: {odd}"
            ));
        }
        warnings.extend(self.listed().warnings(name));
        warnings
    }

    /// Display name of the server.
    pub fn title(&self) -> &str {
        let info = &self.learnt.hello.server_info;
        let said = info.title.as_deref().unwrap_or(&info.name);
        if said.is_empty() {
            self.spec.name.as_str()
        } else {
            said
        }
    }

    /// The OpenAPI document for operations below `server_url`; generated once, then served from memory.
    /// Title, description and version in `said` override the server's own.
    pub fn document(&self, server_url: &str, said: &Documents, secured: bool) -> Bytes {
        let mut documents = self.documents.lock();
        if let Some(known) = documents.get(server_url) {
            return known.clone();
        }
        let callable = self.tools().filter(|tool| !tool.needs_task());
        let tools: Vec<Tool> = callable.cloned().collect();
        let instructions = self.learnt.hello.instructions.as_deref();
        let made = document(&DocumentInput {
            title: said.name.as_deref().unwrap_or(self.title()),
            version: (said.version.as_deref()).unwrap_or(&self.learnt.hello.server_info.version),
            description: said.description.as_deref().or(instructions),
            server_url,
            tools: &tools,
            usage_guide: self.spec.usage_guide.as_deref(),
            secured,
            operation_ids: said.operation_ids,
        });
        let made = Bytes::from(made.to_string());
        documents.insert(server_url.to_owned(), made.clone());
        made
    }
}

// Errors of reading a server's lists.

/// Why a server's lists could not be read.
#[derive(Debug, thiserror::Error)]
pub enum LearnError {
    /// The process failed.
    #[error(transparent)]
    Child(#[from] ChildError),
    /// The folder failed.
    #[error("cannot create its directory: {0}")]
    Store(#[from] StoreError),
    /// The server answered `tools/list` with an error.
    #[error("tools/list returned the error {0}")]
    Refused(String),
    /// The server answered `tools/list` with an invalid result.
    #[error("the result of tools/list is not a ListToolsResult")]
    BadList,
}

impl LearnError {
    /// The error without the server's own text, which may contain confidential data.
    pub fn brief(&self) -> String {
        match self {
            Self::Child(error) => error.brief(),
            Self::Refused(_) => "tools/list returned an error".to_owned(),
            Self::BadList | Self::Store(_) => self.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use bridge_state::testing::Folder;

    use super::*;
    use crate::{
        child::ChildSettings,
        config::{SettingsArgs, load},
        telemetry::Metrics,
    };

    #[tokio::test]
    async fn a_reload_after_the_end_learns_nothing_and_holds_up_no_stop() {
        let folder = Folder::new();
        let second = Duration::from_secs(1);
        let children = ChildSettings {
            tools_dir: folder.outside().to_owned(),
            scratch: folder.outside().to_owned(),
            start_timeout: second,
            max_message: 1024,
            max_starts: 1,
            input_timeout: second,
            kill_grace: second,
        };
        let children = Children::new(children, Arc::new(Metrics::new()));
        let catalog = Catalog::new(Arc::new(children), Arc::new(folder.open()));
        let file = folder.outside().join("servers.json");
        let text = r#"{"mcpServers": {"late": {"command": "no-such-program"}}}"#;
        fs::write(&file, text).unwrap();
        let settings = SettingsArgs::default().resolve().unwrap();
        let config = load(&file, &settings).unwrap();
        catalog.close().await;
        catalog.follow(config.servers.values());
        assert!(catalog.peek(&"late".parse().unwrap()).is_none());
        catalog.close().await;
    }
}
