//! `subscriptions/listen`: the news of the caller's child as a stream, the ones he asked for.

use std::sync::{Arc, Mutex, PoisonError};

use axum::{http::StatusCode, response::Response};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json, value::RawValue};
use tokio::sync::{broadcast, mpsc};

use super::{ClientMessage, RpcError, asking::Asking, stream};
use crate::{
    call::Relayed,
    child::{Child, Era, Profile, Said, splice},
    model::RawJson,
};

/// The member of `_meta` that says which subscription a note is for.
const SUBSCRIPTION: &str = "io.modelcontextprotocol/subscriptionId";

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
    let mut news = subscribe(&asking, &wanted).await?;
    let (sender, events) = mpsc::channel(64);
    let id = message.answer_id();
    let filter = filter.as_ref().map_or("{}", RawJson::as_str);
    let acknowledged = format!(
        r#"{{"jsonrpc":"2.0","method":"notifications/subscriptions/acknowledged","params":{{"_meta":{{"{SUBSCRIPTION}":{}}},"notifications":{filter}}}}}"#,
        id.as_str()
    );
    let stopping = asking.app.engine.stopping.clone();
    tokio::spawn(async move {
        let mut next = stream::event(None, acknowledged.as_bytes());
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

/// The news with the subscription that it is for; every other byte stays.
fn marked(said: &Said, id: &RawJson) -> Bytes {
    let mark = format!(r#""{SUBSCRIPTION}":{}"#, id.as_str());
    let Some(params) = &said.params else {
        let line = said.line.strip_suffix(b"}").unwrap_or(&said.line);
        let end = format!(r#","params":{{"_meta":{{{mark}}}}}}}"#);
        return stream::event(None, &[line, end.as_bytes()].concat());
    };
    let bytes = params.clone().into_bytes();
    let has: Result<HasMeta<'_>, _> = serde_json::from_slice(&bytes);
    let meta = has
        .ok()
        .and_then(|has| has.meta)
        .map(|meta| RawJson::within(&bytes, meta));
    let (place, first) = match meta {
        Some(meta) => (meta, mark),
        None => (params.clone(), format!(r#""_meta":{{{mark}}}"#)),
    };
    let inside = place.as_str().strip_prefix('{').unwrap_or("}");
    let comma = if inside.trim_start().starts_with('}') {
        ""
    } else {
        ","
    };
    let longer = format!("{{{first}{comma}{inside}");
    stream::event(None, &splice(&said.line, &[(&place, longer.as_bytes())]))
}

#[derive(Deserialize)]
struct HasMeta<'a> {
    #[serde(rename = "_meta", borrow, default)]
    meta: Option<&'a RawValue>,
}

type News = broadcast::Receiver<Said>;

/// Finds the caller's child by asking it something harmless, and subscribes to what was named.
async fn subscribe(asking: &Asking<'_>, wanted: &Wanted) -> Result<News, RpcError> {
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
    let mut failure = None;
    for ask in asks {
        let place = asking.enter(asking.place()?).await?;
        let line = RawJson::of(&ask).into_bytes();
        let asked = ClientMessage::read(&line)?;
        let relayed = Relayed {
            line: asked.line.clone(),
            id: asked.answer_id(),
            token: None,
            era: Era::Legacy,
            method: "subscriptions/listen".into(),
            tool: None,
            name: None,
            arguments: None,
        };
        let mut call = asking.call(relayed, place, Profile::able());
        call.on_child = Some(on_child.clone());
        // A server without subscriptions still has news of its lists.
        let asked = asking.app.engine.run(call).await;
        failure = failure.or(asked.err());
    }
    let news = found.lock().unwrap_or_else(PoisonError::into_inner).take();
    news.ok_or_else(|| {
        if let Some(error) = failure {
            return RpcError::of_call(&error);
        }
        let status = StatusCode::BAD_GATEWAY;
        RpcError::new(status, -32603, "not_started", "the server did not start")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marked_line(line: &'static str) -> String {
        let line = Bytes::from_static(line.as_bytes());
        let parts: std::collections::HashMap<String, &RawValue> =
            serde_json::from_slice(&line).expect("an object");
        let params = parts.get("params").map(|raw| RawJson::within(&line, raw));
        let said = Said {
            line: line.clone(),
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
                r#"{"method":"n","params":{"_meta":{"io.modelcontextprotocol/subscriptionId":"s 1"}}}"#,
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
