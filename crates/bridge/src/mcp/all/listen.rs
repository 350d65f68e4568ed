//! `subscriptions/listen` to all servers as one stream. News of lists come from the catalogue and
//! start no process; for resources, each server that was named is listened to as at its own
//! endpoint.

use std::sync::Arc;

use axum::{
    http::{StatusCode, header},
    response::Response,
};
use bridge_openapi::path_segment;
use bridge_protocol::{
    ClientMessage, RawJson,
    jsonrpc::{Said, splice},
    meta::SUBSCRIPTION_ID,
    method, sse,
};
use bytes::Bytes;
use indexmap::IndexMap;
use serde_json::json;
use tokio::sync::mpsc;

use super::{
    changes::{differences, note},
    route::find_resource,
};
use crate::{
    mcp::{
        RpcError,
        aggregate::{Shown, View},
        listen::Wanted,
        modern,
        request::{McpExit, McpRequest},
        stream::{self, Messages},
    },
    replicas::Exit,
};

/// One server's part of a subscription.
struct Part {
    messages: Messages,
    /// The URIs as the client asked for them, by what they are at the server.
    asked: IndexMap<String, String>,
    shown: Shown,
}

/// Opens the stream.
pub async fn listen(
    request: &McpRequest<'_>,
    view: &Arc<View>,
    message: &ClientMessage,
) -> Result<Response, McpExit> {
    let filter = message.params.notifications.clone();
    let filter = filter.unwrap_or_else(RawJson::empty_object);
    let wanted = Wanted::read(Some(&filter))?;
    let mut by_server: IndexMap<usize, IndexMap<String, String>> = IndexMap::new();
    for uri in &wanted.resource_subscriptions {
        let (server, own) = find_resource(view, uri)?;
        let asked = by_server.entry(server).or_default();
        asked.insert(own, uri.clone());
    }
    let opening = by_server
        .into_iter()
        .map(|(server, asked)| part(request, view, message, server, asked));
    let mut parts = Vec::new();
    for opened in futures_util::future::join_all(opening).await {
        match opened? {
            Ok(part) => parts.push(part),
            // The server's own refusal.
            Err(refusal) => return Ok(*refusal),
        }
    }
    let id = message.answer_id();
    let acknowledged = format!(
        r#"{{"jsonrpc":"2.0","method":"notifications/subscriptions/acknowledged","params":{{"_meta":{{"{SUBSCRIPTION_ID}":{}}},"notifications":{}}}}}"#,
        id.as_str(),
        filter.as_str()
    );
    let (sender, events) = mpsc::channel(64);
    let _ = sender.try_send(sse::event(None, acknowledged.as_bytes()));
    let lists = news_of_lists(request, view, wanted, id, sender.clone());
    let stopping = request.endpoint.engine.stopping.clone();
    tokio::spawn(async move {
        let served = parts.into_iter().map(|part| Box::pin(part.send(&sender)));
        let mut served: Vec<_> = served.collect();
        let one_ended = async {
            if served.is_empty() {
                std::future::pending::<()>().await;
            } else {
                futures_util::future::select_all(&mut served).await;
            }
        };
        // A client whose server went away learns it by the stream's end, and may come again.
        tokio::select! {
            () = lists => {}
            () = one_ended => {}
            () = sender.closed() => {}
            () = stopping.cancelled() => {}
        }
    });
    Ok(stream::response(events))
}

/// Listens to one server; the inner error is its refusal.
async fn part(
    request: &McpRequest<'_>,
    view: &Arc<View>,
    message: &ClientMessage,
    server: usize,
    asked: IndexMap<String, String>,
) -> Result<Result<Part, Box<Response>>, McpExit> {
    let uris: Vec<&String> = asked.keys().collect();
    let filter = RawJson::of(&json!({"resourceSubscriptions": uris}));
    let place = message.params.notifications.as_ref();
    let edits: Vec<_> = place
        .map(|place| (place, filter.as_bytes()))
        .into_iter()
        .collect();
    let own = ClientMessage::read(&splice(&message.line, &edits)).map_err(RpcError::from)?;
    // Each chat's folder may be on another replica, and so each part goes its own way.
    let path = request.target.split('?').next().unwrap_or_default();
    let name = &view.offers[server].spec.name;
    let target = format!(
        "{}/{}",
        path.trim_end_matches('/'),
        path_segment(name.as_str())
    );
    let request = &McpRequest {
        method: request.method.clone(),
        target: &target,
        body: own.line.clone(),
        id: request.id.clone(),
        ..*request
    };
    let answered = modern::request(super::to(request, view, server), own, method::LISTEN).await;
    let response = match answered {
        Ok(response) => response,
        Err(Exit::Answered(response)) => *response,
        Err(exit) => return Err(exit),
    };
    let kind = response.headers().get(header::CONTENT_TYPE);
    let is_stream = kind.is_some_and(|kind| kind == "text/event-stream");
    if response.status() != StatusCode::OK || !is_stream {
        return Ok(Err(Box::new(response)));
    }
    Ok(Ok(Part {
        messages: Messages::of(response, request.endpoint.settings.limits.max_message()),
        asked,
        shown: Shown::new(view.clone(), server),
    }))
}

impl Part {
    /// Passes on what the server says, until it says no more.
    async fn send(mut self, sender: &mpsc::Sender<Bytes>) {
        while let Some(line) = self.messages.next().await {
            if let Some(line) = self.line(&line)
                && sender.send(sse::event(None, &line)).await.is_err()
            {
                return;
            }
        }
    }

    /// A line as the client is to read it; `None` for the server's own acknowledgement.
    fn line(&self, line: &Bytes) -> Option<Bytes> {
        let whole = RawJson::parse(line.clone()).ok()?;
        let method = whole
            .member("method")
            .and_then(|method| method.read::<String>().ok());
        let said = Said {
            line: line.clone(),
            id: whole.member("id"),
            method: method.unwrap_or_default().into(),
            params: whole.member("params"),
        };
        if &*said.method == method::ACKNOWLEDGED {
            return None;
        }
        let place = said.params.as_ref().and_then(|params| params.member("uri"));
        let own = place.as_ref().and_then(|place| place.read::<String>().ok());
        match (place, own.and_then(|own| self.asked.get(&own))) {
            (Some(place), Some(asked)) => {
                let asked = RawJson::of(&asked.as_str().into());
                Some(splice(line, &[(&place, asked.as_bytes())]))
            }
            _ => Some(self.shown.note(&said)),
        }
    }
}

/// Tells what changes in the joined lists, as far as it is wanted.
fn news_of_lists(
    request: &McpRequest<'_>,
    view: &View,
    wanted: Wanted,
    id: RawJson,
    sender: mpsc::Sender<Bytes>,
) -> impl Future<Output = ()> + Send + use<> {
    let (endpoint, caller) = (Arc::downgrade(request.endpoint), request.caller.clone());
    let mut changes = request.endpoint.catalog.changes();
    let mut before = view.marks();
    async move {
        loop {
            let Some(now) = endpoint
                .upgrade()
                .map(|endpoint| super::view(&endpoint, &caller).marks())
            else {
                return;
            };
            for list in differences(&before, &now) {
                let event = sse::event(None, &note(list, Some(&id)));
                if wanted.has_list(list) && sender.send(event).await.is_err() {
                    return;
                }
            }
            before = now;
            let event = tokio::select! {
                changed = changes.changed() => match changed {
                    Ok(()) => continue,
                    Err(_) => return,
                },
                () = tokio::time::sleep(stream::PING_EVERY) => stream::PING,
            };
            if sender.send(event).await.is_err() {
                return;
            }
        }
    }
}
