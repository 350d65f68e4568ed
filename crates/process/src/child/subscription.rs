//! Notifications of a child of 2026-07-28: it sends them only in response to
//! `subscriptions/listen`, a request that is answered when the child ends the subscription. All
//! other code gets them in the same form as from older children.

use std::{collections::HashMap, time::Duration};

use bridge_protocol::{RawJson, jsonrpc, jsonrpc::Said, method};
use parking_lot::Mutex;
use serde_json::{Map, Value, json};
use tokio::sync::{mpsc, oneshot};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use super::{
    Cancellation, ChildError, HelloParts,
    connection::{Connection, Outcome},
    hello,
};
use crate::{
    child::connection::{BACKLOG, LONG_LIVED, Listener, MessageSink, ServerMessage},
    spec::Profile,
};

/// The time for a child to acknowledge a subscription.
const ACKNOWLEDGE: Duration = Duration::from_secs(10);
/// The pause between the end of a subscription to lists and the next.
const PAUSE: Duration = Duration::from_secs(5);

/// The active subscriptions. Dropping it ends all of them.
pub struct Subscriptions {
    connection: Connection,
    listener: Listener,
    _lists: Option<AbortOnDropHandle<()>>,
    resources: Mutex<HashMap<Box<str>, AbortOnDropHandle<()>>>,
}

impl Subscriptions {
    /// Subscribes to the lists for which the child declares `listChanged`.
    pub fn open(connection: Connection, hello: &HelloParts, listener: Listener) -> Self {
        let may = |name: &str| hello.capabilities.get(name)?.get("listChanged")?.as_bool();
        let filter: Map<String, Value> = ["tools", "prompts", "resources"]
            .into_iter()
            .filter(|name| may(name) == Some(true))
            .map(|name| (format!("{name}ListChanged"), true.into()))
            .collect();
        let lists = (!filter.is_empty()).then(|| {
            let (connection, listener) = (connection.clone(), listener.clone());
            let listening = tokio::spawn(async move {
                let filter = Value::Object(filter);
                while connection.is_open() {
                    let ended = listen(&connection, &filter, &listener, || {}).await;
                    if matches!(ended, Some(Err(_))) {
                        // It does not support what it declared; a retry would not help.
                        return;
                    }
                    tokio::time::sleep(PAUSE).await;
                }
            });
            AbortOnDropHandle::new(listening)
        });
        Self {
            connection,
            listener,
            _lists: lists,
            resources: Mutex::default(),
        }
    }

    /// Subscribes to a resource. Returns once the child has acknowledged it.
    pub async fn to_resource(&self, uri: &str) -> Result<(), ChildError> {
        if self.resources.lock().contains_key(uri) {
            return Ok(());
        }
        let (acknowledge, acknowledged) = oneshot::channel();
        let (connection, listener) = (self.connection.clone(), self.listener.clone());
        let filter = json!({"resourceSubscriptions": [uri]});
        let listening = AbortOnDropHandle::new(tokio::spawn(async move {
            let mut acknowledge = Some(acknowledge);
            let told = || {
                if let Some(tell) = acknowledge.take() {
                    let _ = tell.send(());
                }
            };
            listen(&connection, &filter, &listener, told).await;
        }));
        match tokio::time::timeout(ACKNOWLEDGE, acknowledged).await {
            Ok(Ok(())) => {
                self.resources.lock().insert(uri.into(), listening);
                Ok(())
            }
            Ok(Err(_)) => Err(ChildError::Unsubscribed),
            Err(_) => Err(ChildError::Timeout),
        }
    }

    /// Ends the subscription to a resource.
    pub fn end_resource(&self, uri: &str) {
        self.resources.lock().remove(uri);
    }
}

/// One subscription, until the child ends it. Returns the child's response, if there was one.
async fn listen(
    connection: &Connection,
    filter: &Value,
    listener: &Listener,
    mut acknowledged: impl FnMut(),
) -> Option<Outcome> {
    let (sender, mut messages) = mpsc::channel(BACKLOG);
    let sink = MessageSink {
        owner: LONG_LIVED,
        messages: sender,
        cancellation: Cancellation::default(),
        witness: None,
    };
    let params = RawJson::from_json(&json!({"notifications": filter}));
    let params = hello::modern_params(Some(&params), &Profile::modern());
    let ask = |number: u64| {
        let number = number.to_string();
        jsonrpc::line(Some(&number), method::LISTEN, Some(params.as_bytes()))
    };
    let never = CancellationToken::new();
    let mut answer = std::pin::pin!(connection.exchange(ask, true, &never, Some(sink)));
    loop {
        tokio::select! {
            biased;
            Some(ServerMessage::Notification(said)) = messages.recv() => {
                if &*said.method == method::ACKNOWLEDGED {
                    acknowledged();
                } else {
                    listener(&unmarked(&said));
                }
            }
            reply = &mut answer => return reply.ok().map(|reply| reply.outcome),
        }
    }
}

/// The notification without the bridge's subscription id, which no other code knows.
fn unmarked(said: &Said) -> Said {
    let line = hello::unfold(&said.line);
    Said::read(&line).unwrap_or_else(|| said.clone())
}
