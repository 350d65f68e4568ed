//! `subscriptions/listen`: the news of the caller's child as a stream, the ones he asked for.

use std::sync::{Arc, Mutex, PoisonError};

use axum::{http::StatusCode, response::Response};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::{broadcast, mpsc, watch};

use super::{ClientMessage, Kind, RpcError, asking::Asking, modern::without_envelope, stream};
use crate::{
    call::{Ask, Call, Relayed},
    child::{Child, Profile, Said},
    model::RawJson,
    session::Place,
};

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Wanted {
    tools_list_changed: bool,
    prompts_list_changed: bool,
    resources_list_changed: bool,
    resource_subscriptions: Vec<String>,
}

impl Wanted {
    fn has(&self, said: &Said) -> bool {
        match &*said.method {
            "notifications/tools/list_changed" => self.tools_list_changed,
            "notifications/prompts/list_changed" => self.prompts_list_changed,
            "notifications/resources/list_changed" => self.resources_list_changed,
            "notifications/resources/updated" => {
                let params: Value = said
                    .params
                    .as_ref()
                    .and_then(|raw| raw.read().ok())
                    .unwrap_or_default();
                let uri = params["uri"].as_str().unwrap_or_default();
                self.resource_subscriptions
                    .iter()
                    .any(|wanted| wanted == uri)
            }
            _ => false,
        }
    }
}

/// Opens the stream. The caller's child is started where it does not run: nothing else has news.
pub async fn listen(asking: Asking<'_>, message: &ClientMessage) -> Result<Response, RpcError> {
    let filter = message.params.notifications.clone();
    let wanted: Wanted = match &filter {
        Some(filter) => filter
            .read()
            .map_err(|error| RpcError::params(&format!("params.notifications: {error}")))?,
        None => Wanted::default(),
    };
    let mut news = subscribe(&asking, message, &wanted).await?;
    let (sender, events) = mpsc::channel(64);
    let id = message.answer_id();
    let acknowledged = json!({
        "jsonrpc": "2.0",
        "method": "notifications/subscriptions/acknowledged",
        "params": {
            "_meta": {"io.modelcontextprotocol/subscriptionId": raw_value(&id)},
            "notifications": filter.map_or_else(|| json!({}), |filter| raw_value(&filter)),
        },
    });
    let stopping = asking.app.engine.stopping.clone();
    tokio::spawn(async move {
        let mut next = stream::event(None, acknowledged.to_string().as_bytes());
        loop {
            if sender.send(next).await.is_err() {
                return;
            }
            next = loop {
                let said = tokio::select! {
                    said = news.recv() => said,
                    () = sender.closed() => return,
                    () = stopping.cancelled() => return,
                    () = tokio::time::sleep(stream::PING_EVERY) => break stream::PING,
                };
                match said {
                    Ok(said) if wanted.has(&said) => break marked(&said, &id),
                    Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => return,
                }
            };
        }
    });
    Ok(stream::response(events))
}

fn raw_value(raw: &RawJson) -> Value {
    raw.read().unwrap_or_default()
}

/// The news with the subscription that it is for.
fn marked(said: &Said, id: &RawJson) -> Bytes {
    let mut message: Value = serde_json::from_slice(&said.line).unwrap_or_default();
    message["params"]["_meta"]["io.modelcontextprotocol/subscriptionId"] = raw_value(id);
    stream::event(None, message.to_string().as_bytes())
}

type News = broadcast::Receiver<Said>;

/// Finds the caller's child by asking it something harmless, and subscribes to what was named.
async fn subscribe(
    asking: &Asking<'_>,
    message: &ClientMessage,
    wanted: &Wanted,
) -> Result<News, RpcError> {
    let found: Arc<Mutex<Option<News>>> = Arc::default();
    let keep = found.clone();
    let on_child = Arc::new(move |child: &Child| {
        let mut kept = keep.lock().unwrap_or_else(PoisonError::into_inner);
        kept.get_or_insert_with(|| child.news());
    });
    let mut asks = vec![json!({"jsonrpc": "2.0", "id": 1, "method": "ping"})];
    for uri in &wanted.resource_subscriptions {
        let params = json!({"uri": uri});
        asks.push(
            json!({"jsonrpc": "2.0", "id": 1, "method": "resources/subscribe", "params": params}),
        );
    }
    let bare = without_envelope(message)?;
    debug_assert!(matches!(bare.kind, Kind::Request(_)));
    for ask in asks {
        let place = Place::of(&asking.caller, &asking.offer.spec).ok_or_else(|| {
            RpcError::new(
                StatusCode::NOT_FOUND,
                -32600,
                "unknown_session",
                "no such session",
            )
        })?;
        let line = RawJson::of(&ask).into_bytes();
        let asked = ClientMessage::read(&line)?;
        let call = Call {
            caller: asking.caller.clone(),
            spec: asking.offer.spec.clone(),
            place,
            ask: Ask::Relay(Relayed {
                line: asked.line.clone(),
                id: asked.answer_id(),
                token: None,
                method: "subscriptions/listen".into(),
                tool: None,
                name: None,
                arguments: None,
            }),
            profile: Profile::able(),
            hearing: None,
            on_child: Some(on_child.clone()),
            parked: watch::channel(false).1,
            request_id: asking.request_id.clone(),
        };
        // A server without subscriptions still has news of its lists.
        let _ = asking.app.engine.run(call).await;
    }
    let news = found.lock().unwrap_or_else(PoisonError::into_inner).take();
    news.ok_or_else(|| {
        let status = StatusCode::BAD_GATEWAY;
        RpcError::new(status, -32603, "not_started", "the server did not start")
    })
}
