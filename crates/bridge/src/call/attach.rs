//! A subscription's way to its child. Nothing is asked of the child that touches the folder, so no
//! turn is taken, and no place among the running calls: a long call of the chat holds up nobody who
//! only wants to hear.

use std::sync::Arc;

use bridge_process::Child;
use bridge_protocol::{RawJson, jsonrpc::Reply, method};
use bridge_state::Lease;
use bytes::Bytes;
use serde_json::json;
use tracing::Instrument as _;

use super::{Answer, Call, CallEngine, CallError, Published, Running, record};
use crate::config::Mode;

impl CallEngine {
    /// Finds or starts the call's child, shows it to `on_child` and subscribes to `resources`,
    /// whether the child knows how to or not. A `stateless` server has no child to listen to.
    pub async fn attach(
        self: &Arc<Self>,
        call: Box<Call>,
        resources: Vec<String>,
    ) -> Result<(), CallError> {
        let (running, _hang_up) = self.begin(call)?;
        let attaching = async move {
            let began = record::Began::now();
            let (outcome, lease) = running.attached(resources).await;
            let answer = outcome.map(|()| nothing());
            record::record(&running, &began, &answer, lease.as_ref()).await;
            answer.map(drop)
        };
        let task = self.running.spawn(attaching.in_current_span());
        task.await
            .unwrap_or_else(|error| Err(CallError::Internal(error.to_string())))
    }
}

impl Running {
    async fn attached(&self, resources: Vec<String>) -> (Result<(), CallError>, Option<Lease>) {
        match self.call.spec.mode {
            Mode::Stateful => self.attached_in_chat(resources).await,
            Mode::Stateless => (Ok(()), None),
            Mode::Shared => {
                let found = self.find_shared().await;
                let attached = found.map(|found| self.show(resources, found, |found| &found.child));
                (attached, None)
            }
        }
    }

    async fn attached_in_chat(
        &self,
        resources: Vec<String>,
    ) -> (Result<(), CallError>, Option<Lease>) {
        let workspace = match self.open().await {
            Ok(workspace) => workspace,
            Err(error) => return (Err(error), None),
        };
        let lease = workspace.lease.clone();
        let found = self.find(&self.call.place, &workspace, None).await;
        let held = self.check_lease(&workspace).await;
        let attached = held.and(found).map(|found| {
            let kept = (found.session, workspace);
            self.show(resources, kept, |(session, _)| &session.child);
        });
        self.engine.sessions.call_ended(self.call.place.key);
        let ours = !matches!(attached, Err(CallError::Fenced | CallError::TakenOver));
        (attached, ours.then_some(lease))
    }

    /// Shows the child, and subscribes behind the caller's back: a child that is busy answers late.
    /// `kept` keeps the child until it has answered.
    fn show<K: Send + Sync + 'static>(
        &self,
        resources: Vec<String>,
        kept: K,
        child: fn(&K) -> &Child,
    ) {
        if let Some(on_child) = &self.call.on_child {
            on_child(child(&kept));
        }
        if resources.is_empty() {
            return;
        }
        let (engine, patience) = (self.engine.clone(), self.call.spec.timeout);
        let key = self.call.place.key;
        self.engine.running.spawn(async move {
            let asking = async {
                for uri in resources {
                    let params = RawJson::of(&json!({"uri": uri}));
                    let asked = child(&kept).request(method::RESOURCES_SUBSCRIBE, Some(&params));
                    // A server without subscriptions still has news of its lists.
                    let _ = asked.await;
                }
            };
            let asking = tokio::time::timeout(patience, asking);
            engine.stopping.run_until_cancelled(asking).await;
            drop(kept);
            engine.sessions.call_ended(key);
        });
    }
}

/// What is recorded of it: nobody was asked, and nothing was answered.
fn nothing() -> Answer {
    let outcome = RawJson::empty_object();
    Answer {
        reply: Reply {
            line: Bytes::from_static(b"{}"),
            id: outcome.clone(),
            outcome: Ok(outcome.clone()),
        },
        outcome,
        files: Published::default(),
        notices: Vec::new(),
    }
}
