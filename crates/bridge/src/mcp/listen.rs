//! `subscriptions/listen`: the notifications of the caller's child that the client subscribed to, as a stream.

use std::sync::Arc;

use axum::response::Response;
use bridge_model::ServerName;
use bridge_process::{Child, Profile};
use bridge_protocol::{
    ClientMessage, RawJson, era::Era, jsonrpc::Said, meta::SUBSCRIPTION_ID, method, sse,
};
use bytes::Bytes;
use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::Map;
use tokio::sync::{broadcast, mpsc};

use super::{
    RpcError,
    lists::notification,
    request::{McpExit, ServerRequest, relayed},
    session,
};

/// The notifications that a client subscribes to.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct SubscriptionFilter {
    tools_list_changed: bool,
    prompts_list_changed: bool,
    resources_list_changed: bool,
    pub resource_subscriptions: Vec<String>,
}

impl SubscriptionFilter {
    /// Reads `params.notifications`; without it the client subscribes to nothing.
    pub fn read(filter: Option<&RawJson>) -> Result<Self, RpcError> {
        let read = filter.map_or_else(|| Ok(Self::default()), RawJson::read);
        read.map_err(|error| RpcError::params(&format!("params.notifications: {error}")))
    }

    /// Whether the client subscribed to the notification of this changed list.
    pub fn has_change(&self, method: &str) -> bool {
        match method {
            method::TOOLS_CHANGED => self.tools_list_changed,
            method::PROMPTS_CHANGED => self.prompts_list_changed,
            method::RESOURCES_CHANGED => self.resources_list_changed,
            _ => false,
        }
    }

    fn has(&self, said: &Said) -> bool {
        match &*said.method {
            method::RESOURCE_UPDATED => {
                let uri = said.param(&["uri"]).and_then(|uri| uri.read().ok());
                let uri: String = uri.unwrap_or_default();
                self.resource_subscriptions.contains(&uri)
            }
            method => self.has_change(method),
        }
    }
}

/// Opens the stream. Starts the caller's child if it does not run: notifications have no other source.
pub async fn listen(to: ServerRequest<'_>, message: &ClientMessage) -> Result<Response, McpExit> {
    let (endpoint, caller) = (to.request.endpoint, to.request.caller);
    let filter = message.params.notifications.as_ref();
    let wanted = SubscriptionFilter::read(filter)?;
    // Changes that the catalogue detects are sent, too.
    let (server, mut lists) = (to.offer.spec.name.clone(), endpoint.core.catalog.news());
    let mut news = subscribe(&to, message, &wanted).await?;
    let (sender, events) = mpsc::channel(64);
    let id = message.answer_id();
    let acknowledged = acknowledged(&id, filter);
    let stopping = endpoint.core.engine.stopping.clone();
    let (endpoint, caller) = (Arc::downgrade(endpoint), caller.clone());
    let may_hear = move |server: &ServerName| {
        let endpoint = endpoint.upgrade()?;
        endpoint.core.directory.server_for(server.as_str(), &caller)
    };
    tokio::spawn(async move {
        let mut next = acknowledged;
        loop {
            // The caller may have lost access to the server meanwhile.
            if may_hear(&server).is_none() || sender.send(next).await.is_err() {
                return;
            }
            next = loop {
                let said = tokio::select! {
                    said = next_of(&mut news) => said,
                    Ok(changed) = lists.recv() => {
                        if changed.server == server && wanted.has_change(changed.method) {
                            break sse::event(None, &notification(changed.method, Some(&id)));
                        }
                        continue;
                    }
                    () = sender.closed() => return,
                    () = stopping.cancelled() => return,
                    () = tokio::time::sleep(session::PING_EVERY) => break session::PING,
                };
                match said {
                    Ok(said) if wanted.has(&said) => break marked(&said, &id),
                    Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => return,
                }
            };
        }
    });
    Ok(session::response(events))
}

/// The first message of a subscription, as an event.
pub(super) fn acknowledged(id: &RawJson, filter: Option<&RawJson>) -> Bytes {
    let (id, filter) = (id.as_str(), filter.map_or("{}", RawJson::as_str));
    let line = format!(
        r#"{{"jsonrpc":"2.0","method":"notifications/subscriptions/acknowledged","params":{{"_meta":{{"{SUBSCRIPTION_ID}":{id}}},"notifications":{filter}}}}}"#,
    );
    sse::event(None, line.as_bytes())
}

async fn next_of(news: &mut News) -> Result<Said, broadcast::error::RecvError> {
    match news {
        Some(news) => news.recv().await,
        None => std::future::pending().await,
    }
}

/// The notification with the id of its subscription; all other bytes stay.
fn marked(said: &Said, id: &RawJson) -> Bytes {
    let object = |found: Option<RawJson>| found.unwrap_or_else(RawJson::empty_object);
    let params = object(said.params.clone());
    let keys = object(params.member("_meta")).with_member(SUBSCRIPTION_ID, id);
    let params = params.with_member("_meta", &keys);
    let marked = RawJson::parse(said.line.clone()).map(|line| line.with_member("params", &params));
    sse::event(None, marked.as_ref().map_or(&*said.line, RawJson::as_bytes))
}

/// Notifications of a child; `None` if every call has a child of its own.
type News = Option<broadcast::Receiver<Said>>;

/// Attaches to the caller's child, and subscribes to the requested notifications.
async fn subscribe(
    to: &ServerRequest<'_>,
    message: &ClientMessage,
    wanted: &SubscriptionFilter,
) -> Result<News, McpExit> {
    let found: Arc<Mutex<News>> = Arc::default();
    let keep = found.clone();
    let relayed = relayed(&to.offer, message, Era::Modern)?;
    let address = to.enter(to.address()?, None).await?;
    let able = message.params.meta.client_capabilities.as_ref();
    let mut call = to.call(relayed, address, Profile::able(able.unwrap_or(&Map::new())));
    call.on_child = Some(Arc::new(move |child: &Child| {
        *keep.lock() = Some(child.news());
    }));
    let resources = wanted.resource_subscriptions.clone();
    let engine = &to.request.endpoint.core.engine;
    let attached = engine.attach(call, resources).await;
    attached.map_err(|error| RpcError::of_call(&error))?;
    let news = found.lock().take();
    Ok(news)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marked_line(line: &'static str) -> String {
        let line = RawJson::parse(Bytes::from_static(line.as_bytes())).expect("JSON");
        let params = line.member("params");
        let said = Said {
            line: line.into_bytes(),
            id: None,
            method: "n".into(),
            params,
        };
        let id = RawJson::parse(Bytes::from_static(b"\"s 1\"")).expect("json");
        let event = marked(&said, &id);
        let text = String::from_utf8(event.to_vec()).expect("text");
        text.lines()
            .nth(1)
            .expect("data")
            .trim_start_matches("data: ")
            .to_owned()
    }

    #[test]
    fn news_are_marked_and_keep_their_bytes() {
        for (line, expected) in [
            (
                r#"{"method":"n"}"#,
                r#"{"params":{"_meta":{"io.modelcontextprotocol/subscriptionId":"s 1"}},"method":"n"}"#,
            ),
            (
                r#"{"params":{ "x":1e400},"y":1.0}"#,
                r#"{"params":{"_meta":{"io.modelcontextprotocol/subscriptionId":"s 1"}, "x":1e400},"y":1.0}"#,
            ),
            (
                r#"{"params":{"_meta":{"a":1.0}}}"#,
                r#"{"params":{"_meta":{"io.modelcontextprotocol/subscriptionId":"s 1","a":1.0}}}"#,
            ),
        ] {
            assert_eq!(marked_line(line), expected);
        }
    }
}
