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
mod offer;

use std::{collections::HashMap, sync::Arc, time::Duration};

use bridge_model::ServerName;
use bridge_process::ChildError;
use bridge_protocol::RawJson;
use bridge_state::{ChatStore, StoreError};
use learner::Learner;
use parking_lot::Mutex;
use tokio::sync::{broadcast, watch};
use tokio_util::task::TaskTracker;

use crate::{child::Children, config::ServerSpec};

pub use disk::kept;
pub use learn::{Learnt, learn};
pub use listed::{Item, completion};
pub use offer::Offer;

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
        self.entries.lock().get(server).map(Learner::known)
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
        let _ = tokio::time::timeout(PATIENCE, known).await;
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
            let _ = tokio::time::timeout_at(until, known).await;
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

type Watch = watch::Receiver<Knowledge>;

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
