//! What each server offers, learnt once and kept: documents and lists are answered from memory.
//!
//! ```text
//! Learning ──learnt──▶ Ready ◀──learnt── (refresh; the old answer stays meanwhile)
//!     └──failed──▶ Failed ──backoff──▶ Learning
//! ```
//! One task for each server: a failing one is retried on its own clock and delays nobody.

mod learn;
mod learner;
mod offer;
mod pages;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::sync::watch;
use tokio_util::task::TaskTracker;

use crate::{
    child::Children,
    config::ServerSpec,
    model::{RawJson, ServerName},
    store::Store,
};

pub use learn::{Learnt, learn};
pub use offer::Offer;

use learner::Learner;

/// How long a request waits for a server that is still being learnt.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// What is known of one server.
#[derive(Clone)]
pub enum Knowledge {
    /// Nothing yet.
    Learning,
    /// Everything.
    Ready(Arc<Offer>),
    /// Nothing, and why. It is tried again.
    Failed {
        /// For callers with the key: names the fault and quotes the server's last words.
        why: Arc<str>,
        /// For everybody: names the fault.
        brief: Arc<str>,
    },
}

/// The catalogue of all servers.
pub struct Catalog {
    entries: Mutex<HashMap<ServerName, Learner>>,
    children: Arc<Children>,
    store: Arc<Store>,
    learning: TaskTracker,
}

impl Catalog {
    /// Empty; [`Catalog::follow`] fills it.
    pub fn new(children: Arc<Children>, store: Arc<Store>) -> Self {
        Self {
            entries: Mutex::default(),
            children,
            store,
            learning: TaskTracker::new(),
        }
    }

    /// Learns new and changed servers, forgets removed ones, keeps the others.
    pub fn follow<'a>(&self, specs: impl Iterator<Item = &'a Arc<ServerSpec>>) {
        let mut entries = self.lock();
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
                    &self.learning,
                ),
            };
            entries.insert(spec.name.clone(), learner);
        }
    }

    /// Forgets all servers. Those that are just being asked are ended, and when this returns
    /// nothing of them is left, nor of their folders.
    pub async fn close(&self) {
        self.lock().clear();
        self.learning.close();
        self.learning.wait().await;
    }

    /// Asks the server again what it offers: it said that its lists changed.
    pub fn refresh(&self, server: &ServerName) {
        if let Some(learner) = self.lock().get(server) {
            learner.refresh();
        }
    }

    /// What is known now.
    pub fn peek(&self, server: &ServerName) -> Option<Knowledge> {
        self.lock()
            .get(server)
            .map(|learner| learner.watch().borrow().clone())
    }

    /// The input schema of a tool, by the name that the server gave it.
    pub fn tool_schema(&self, server: &ServerName, tool: &str) -> Option<RawJson> {
        let Some(Knowledge::Ready(offer)) = self.peek(server) else {
            return None;
        };
        let tool = offer.tool(tool)?;
        Some(RawJson::of(tool.tool.input_schema()))
    }

    /// What the server offers. Waits up to [`PATIENCE`] for the first answer.
    pub async fn offer(&self, server: &ServerName) -> Option<Knowledge> {
        let mut knowledge = self.lock().get(server).map(Learner::watch)?;
        let known = knowledge.wait_for(|state| !matches!(state, Knowledge::Learning));
        let known = match tokio::time::timeout(PATIENCE, known).await {
            Ok(Ok(state)) => state.clone(),
            Ok(Err(_)) | Err(_) => Knowledge::Learning,
        };
        Some(known)
    }

    /// What its operator should look at.
    pub fn warnings(&self, server: &ServerName) -> Vec<String> {
        match self.peek(server) {
            Some(Knowledge::Ready(offer)) => offer.warnings(),
            _ => Vec::new(),
        }
    }

    /// The largest memory that a child was seen to take, in bytes; 0 before any was learnt.
    pub fn largest_child(&self) -> u64 {
        let entries = self.lock();
        let sizes = entries
            .values()
            .map(|learner| match &*learner.watch().borrow() {
                Knowledge::Ready(offer) => offer.learnt.memory,
                _ => 0,
            });
        sizes.max().unwrap_or(0)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<ServerName, Learner>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

type Watch = watch::Receiver<Knowledge>;
