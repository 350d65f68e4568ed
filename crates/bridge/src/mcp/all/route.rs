//! Which server a request is for, and the request as that server reads it.

use std::sync::Arc;

use axum::http::StatusCode;
use bridge_model::ServerName;
use bridge_protocol::{ClientMessage, Kind, RawJson, code, jsonrpc::splice, method};
use serde_json::json;

use super::servers;
use crate::{
    mcp::{
        RpcError, abroad,
        aggregate::{
            View, names,
            uris::{self, Owner},
        },
        request::{McpExit, McpRequest, ServerRequest, locate_offer},
        session::McpSession,
    },
    replicas::Located,
};

/// A request of one server.
pub struct Routed<'a> {
    /// To whom.
    pub to: ServerRequest<'a>,
    /// With the name or URI that the server knows; every other byte as it came.
    pub message: ClientMessage,
}

/// What a request names its server by.
enum Reference {
    Tool(String),
    Prompt(String),
    Resource(String),
}

/// Finds the server; `None` where the method does not say which it is for. Where another replica has to find it,
/// the session is a guest there.
pub async fn route<'a>(
    request: &'a McpRequest<'a>,
    view: Arc<View>,
    message: &ClientMessage,
    session: Option<&Arc<McpSession>>,
) -> Result<Option<Routed<'a>>, McpExit> {
    let Some((reference, place)) = reference(message)? else {
        return Ok(None);
    };
    let found = match find(&view, &reference) {
        Ok(found) => (view, found),
        Err(unknown) => late(request, &reference, session, unknown).await?,
    };
    let (view, (server, own)) = found;
    let own = RawJson::of(&own.into());
    let line = splice(&message.line, &[(&place, own.as_bytes())]);
    Ok(Some(Routed {
        to: super::to(request, &view, server),
        message: ClientMessage::read(&line).map_err(RpcError::from)?,
    }))
}

/// What the request names, and where in its line.
fn reference(message: &ClientMessage) -> Result<Option<(Reference, RawJson)>, RpcError> {
    let Kind::Request(method) = &message.kind else {
        return Ok(None);
    };
    let whole = || RawJson::parse(message.line.clone()).ok();
    let params = || whole()?.member("params");
    let text = |object: RawJson, key: &str| {
        let place = object.member(key)?;
        Some((place.read::<String>().ok()?, place))
    };
    let (found, missing) = match &**method {
        method::TOOLS_CALL => {
            let name = message.params.name.clone();
            let tool = name.map(|(name, place)| (Reference::Tool(name), place));
            (tool, "params.name is missing: the tool's name")
        }
        method::PROMPTS_GET => {
            let name = message.params.name.clone();
            let prompt = name.map(|(name, place)| (Reference::Prompt(name), place));
            (prompt, "params.name is missing: the prompt's name")
        }
        method::RESOURCES_READ | method::RESOURCES_SUBSCRIBE | method::RESOURCES_UNSUBSCRIBE => {
            let uri = params().and_then(|params| text(params, "uri"));
            let resource = uri.map(|(uri, place)| (Reference::Resource(uri), place));
            (resource, "params.uri is missing")
        }
        method::COMPLETE => {
            let target = params().and_then(|params| params.member("ref"));
            let prompt = || text(target.clone()?, "name");
            let found = match target.clone().and_then(|target| text(target, "uri")) {
                Some((uri, place)) => Some((Reference::Resource(uri), place)),
                None => prompt().map(|(name, place)| (Reference::Prompt(name), place)),
            };
            (found, "params.ref names neither a prompt nor a resource")
        }
        _ => return Ok(None),
    };
    let missing = || {
        RpcError::new(
            StatusCode::OK,
            code::INVALID_PARAMS,
            "bad_arguments",
            missing,
        )
    };
    found.ok_or_else(missing).map(Some)
}

fn find(view: &View, reference: &Reference) -> Result<(usize, String), RpcError> {
    let unknown = |what: &str, name: &str| {
        let text = format!("Unknown {what}: {name}");
        let kind = if what == "tool" {
            "unknown_tool"
        } else {
            "bad_arguments"
        };
        RpcError::new(StatusCode::OK, code::INVALID_PARAMS, kind, &text)
    };
    match reference {
        Reference::Tool(name) => {
            let tool = view.tool(name);
            tool.ok_or_else(|| unknown("tool", name))
        }
        Reference::Prompt(name) => {
            let prompt = view.prompt(name);
            prompt.ok_or_else(|| unknown("prompt", name))
        }
        Reference::Resource(uri) => find_resource(view, uri),
    }
}

/// The server of a resource, and the resource's URI there.
pub fn find_resource(view: &View, uri: &str) -> Result<(usize, String), RpcError> {
    let unknown = || {
        let text = format!("Resource not found: {uri}");
        RpcError::new(StatusCode::OK, code::INVALID_PARAMS, "bad_arguments", &text)
    };
    if let Some((server, own)) = uris::read_named(uri) {
        let server = view.place(&server).ok_or_else(unknown)?;
        return Ok((server, own.to_owned()));
    }
    let servers = match view.owner(uri) {
        Owner::One(server) => return Ok((server, uri.to_owned())),
        Owner::Unclear(servers) if servers.is_empty() => return Err(unknown()),
        Owner::Unclear(servers) => servers,
    };
    let named: Vec<String> = view
        .names(&servers)
        .map(|server| uris::named(server, uri))
        .collect();
    let text = format!(
        "it is not clear which server has {uri}: ask for it as {}",
        named.join(" or ")
    );
    let error = RpcError::new(StatusCode::OK, code::INVALID_PARAMS, "bad_arguments", &text);
    Err(error.with(json!({"uris": named})))
}

/// Looks again when the servers are known whose it may be and that are not known yet: a client
/// may have its list of names from before the bridge was restarted.
async fn late(
    request: &McpRequest<'_>,
    reference: &Reference,
    session: Option<&Arc<McpSession>>,
    unknown: RpcError,
) -> Result<(Arc<View>, (usize, String)), McpExit> {
    let McpRequest {
        endpoint, caller, ..
    } = request;
    let before = super::view(endpoint, caller);
    let config = endpoint.directory.config();
    let mut failure = None;
    for server in servers(&config, caller).filter(|server| before.place(server.as_str()).is_none())
    {
        let may_be = match reference {
            Reference::Tool(name) | Reference::Prompt(name) => names::may_be_of(server, name),
            Reference::Resource(uri) => {
                uris::read_named(uri).is_some_and(|(named, _)| named == server.as_str())
            }
        };
        if may_be {
            let learnt = learn(request, server, session).await;
            failure = failure.or(learnt.err());
        }
    }
    let now = super::view(endpoint, caller);
    match find(&now, reference) {
        Ok(found) => Ok((now, found)),
        Err(_) => Err(failure.unwrap_or(unknown.into())),
    }
}

/// Waits until it is known what a server offers; where another replica knows, it answers the request.
async fn learn(
    request: &McpRequest<'_>,
    server: &ServerName,
    session: Option<&Arc<McpSession>>,
) -> Result<(), McpExit> {
    let mut forwarding = request.forwarding();
    loop {
        let located = locate_offer(request.endpoint, server.as_str(), request.caller).await?;
        let Located::Elsewhere(mut other) = located else {
            return Ok(());
        };
        if let Some(session) = session {
            other = abroad::with_guest(request, session, other).await;
        }
        forwarding.to(&other).await?;
    }
}
