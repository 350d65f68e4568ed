//! Clients of 2026-07-28 of all servers.

use axum::{
    http::StatusCode,
    response::{IntoResponse as _, Response},
};
use bridge_protocol::{ClientMessage, Kind, Tool, method, method::REMOVED};

use super::{AskingAll, hello, listen::listen, route::route};
use crate::mcp::{
    RpcError, headers, lists,
    modern::{called, request},
    relay::json,
};

/// One message of a client's.
pub async fn post(asking: AskingAll<'_>, message: ClientMessage) -> Result<Response, RpcError> {
    let method = match &message.kind {
        Kind::Request(method) => method.clone(),
        // As at the endpoint of one server.
        Kind::Notification(_) => return Ok(StatusCode::ACCEPTED.into_response()),
        Kind::Response => {
            let text = "clients of this revision send no responses";
            return Err(RpcError::invalid(text));
        }
    };
    let view = asking.view().await;
    let routed = route(&asking, view.clone(), &message).await;
    // The headers repeat what the client wrote; the schema is that of the tool which it means.
    let target = routed.as_ref().ok().and_then(Option::as_ref);
    let tool = target.and_then(|routed| called(&routed.asking.offer, &routed.message));
    let schema = tool.map(Tool::input_schema);
    headers::check(asking.headers, &message, &method, schema)?;
    if REMOVED.contains(&&*method) {
        return Err(RpcError::method(&method));
    }
    if &*method == method::DISCOVER {
        return Ok(json(lists::answer(&message, &hello::discover(&view))));
    }
    if &*method == method::LISTEN {
        return listen(&asking, &view, &message).await;
    }
    if let Some(list) = view.list(&method) {
        let list = lists::complete(&list, true);
        return Ok(json(lists::answer(&message, &list)));
    }
    match routed? {
        Some(routed) => request(routed.asking, routed.message, &method).await,
        None => Err(RpcError::method(&method)),
    }
}
