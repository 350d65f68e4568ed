//! `/mcp`: one endpoint for all servers, for clients of every era.
//!
//! A request is routed to one server: by its tool's or prompt's name, or by its URI. From there on
//! it is a request at `/mcp/{server}`: the same child and folder, the same bytes. Requests that concern all
//! servers (initialization, lists, notifications of changed lists) are answered here, from the catalogue.

use std::sync::{Arc, Weak};

use axum::{
    http::{StatusCode, header},
    response::Response,
};
use bridge_model::{Caller, ServerName, link_text};
use bridge_openapi::path_segment;
use bridge_protocol::{
    ClientMessage, Kind, RawJson,
    jsonrpc::{Said, splice},
    method, sse,
};
use bytes::Bytes;
use futures_util::{StreamExt as _, stream::BoxStream};
use indexmap::IndexMap;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};

use super::{
    Endpoint, RpcError, aggregate,
    aggregate::{LISTS, ListHashes, UriMapping, View},
    listen::{SubscriptionFilter, acknowledged},
    lists::{discovered, notification},
    modern, remote,
    request::{McpExit, McpRequest, ServerRequest, locate_offer},
    session,
    session::McpSession,
};
use crate::{
    catalog::Knowledge,
    config::{Loaded, ServerAccess, ServerSpec},
    error_table::ErrorKind,
    replicas::Exit,
};

/// The servers that a caller may see. All functions of this endpoint use only these.
fn servers<'a>(config: &'a Loaded, caller: &Caller) -> impl Iterator<Item = &'a ServerName> {
    let seen = |spec: &ServerSpec| spec.access(caller) != ServerAccess::None;
    let servers = config.servers.iter();
    servers.filter_map(move |(name, spec)| seen(spec).then_some(name))
}

/// The offers of these servers that are known now.
fn known_view(endpoint: &Endpoint, caller: &Caller) -> Arc<View> {
    let config = endpoint.core.directory.config();
    let known =
        servers(&config, caller).filter_map(|name| match endpoint.core.catalog.peek(name)? {
            Knowledge::Ready(offer) => Some(offer),
            Knowledge::Learning | Knowledge::Failed { .. } => None,
        });
    let known: Vec<_> = known.collect();
    endpoint.views.view(&config, &known)
}

/// The offers of the caller's servers. Waits for a short time for servers whose offer is being read.
pub async fn settled_view(request: &McpRequest<'_>) -> Arc<View> {
    let config = request.endpoint.core.directory.config();
    let names = servers(&config, request.caller);
    request.endpoint.core.catalog.settled(names).await;
    known_view(request.endpoint, request.caller)
}

/// The same request at one of the servers.
fn request_to<'a>(
    request: &'a McpRequest<'a>,
    view: &Arc<View>,
    server: usize,
    session: Option<&'a Arc<McpSession>>,
) -> ServerRequest<'a> {
    ServerRequest {
        request,
        offer: view.offers[server].clone(),
        session,
        uris: Some(UriMapping::new(view.clone(), server)),
    }
}

// Changes of the joined lists: a server was added or removed, or its offer has changed.

/// The joined lists of a caller's servers, watched for changes.
struct ListChanges {
    endpoint: Weak<Endpoint>,
    caller: Caller,
    /// Signals that the offer of any server has changed.
    catalog: watch::Receiver<()>,
    before: ListHashes,
}

impl ListChanges {
    fn since(view: &View, endpoint: &Arc<Endpoint>, caller: &Caller) -> Self {
        Self {
            endpoint: Arc::downgrade(endpoint),
            caller: caller.clone(),
            catalog: endpoint.core.catalog.changes(),
            before: view.hashes,
        }
    }

    /// The notifications of the lists that changed since the last call; `None` once the bridge ends.
    fn look(&mut self) -> Option<Vec<&'static str>> {
        let now = known_view(&*self.endpoint.upgrade()?, &self.caller).hashes;
        let before = std::mem::replace(&mut self.before, now);
        let lists = LISTS.into_iter().zip(before.into_iter().zip(now));
        Some(
            lists
                .filter_map(|(list, (before, now))| (before != now).then_some(list))
                .collect(),
        )
    }
}

/// Notifies the session's client of changes from now on, until the session ends.
pub fn forward(endpoint: &Arc<Endpoint>, caller: &Caller, view: &View, session: &Arc<McpSession>) {
    let mut changes = ListChanges::since(view, endpoint, caller);
    let (ended, session) = (session.ended.clone(), Arc::downgrade(session));
    let stopping = endpoint.core.engine.stopping.clone();
    let forwarding = async move {
        // Changes since the view was built count, too.
        while let Some(lists) = changes.look()
            && let Some(session) = session.upgrade()
        {
            for list in lists {
                session.outbox.push(&notification(list, None));
            }
            drop(session);
            if changes.catalog.changed().await.is_err() {
                return;
            }
        }
    };
    tokio::spawn(async move {
        let forwarding = ended.run_until_cancelled(forwarding);
        stopping.run_until_cancelled(forwarding).await;
    });
}

// The bridge's own server information at the endpoint of all servers.

/// The answer to `initialize`, for the agreed revision.
pub fn initialize(view: &View, version: &str) -> RawJson {
    let mut result = json!({
        "protocolVersion": version,
        "capabilities": capabilities(view),
        "serverInfo": server_info(),
    });
    if let Some(text) = instructions(view) {
        result["instructions"] = text.into();
    }
    RawJson::from_json(&result)
}

/// The answer to `server/discover`.
pub fn discover(view: &View) -> RawJson {
    discovered(&capabilities(view), &server_info(), instructions(view))
}

fn server_info() -> Value {
    json!({
        "name": "mcpo-bridge",
        "title": "MCPO On-Demand Bridge",
        "version": env!("CARGO_PKG_VERSION"),
    })
}

/// Lists are always included, since servers are added and removed. A capability of only some servers is
/// included; one whose requests could not be routed to the right server, such as tasks, is not.
fn capabilities(view: &View) -> Value {
    let of = |name: &'static str| {
        let offers = view.offers.iter();
        offers.filter_map(move |offer| offer.learnt.hello.capabilities.get(name))
    };
    let subscribes = of("resources").any(|resources| resources["subscribe"] == true);
    let mut capabilities = json!({
        "tools": {"listChanged": true},
        "prompts": {"listChanged": true},
        "resources": {"listChanged": true, "subscribe": subscribes},
    });
    for name in ["completions", "logging"] {
        if of(name).next().is_some() {
            capabilities[name] = json!({});
        }
    }
    // The extension consists of tools and resources, which are routed.
    let ui = "io.modelcontextprotocol/ui";
    let mut extensions = of("extensions").filter_map(|extensions| extensions.get(ui));
    if let Some(first) = extensions.find(|ui| ui.is_object()) {
        capabilities["extensions"] = json!({ui: first});
    }
    capabilities
}

/// The instructions of all servers that have some, each below its server's name.
fn instructions(view: &View) -> Option<String> {
    let texts = view.offers.iter().filter_map(|offer| {
        let text = offer.learnt.hello.instructions.as_deref()?.trim();
        let name = link_text(offer.spec.name.as_str());
        let begin = aggregate::beginning(&offer.spec.name);
        (!text.is_empty()).then(|| format!("# {name} (tool names start with {begin})\n\n{text}"))
    });
    let texts: Vec<String> = texts.collect();
    (!texts.is_empty()).then(|| texts.join("\n\n"))
}

// `subscriptions/listen` to all servers as one stream. Notifications of changed lists are sent from the
// catalogue and start no process; for resources, each named server gets a subscription as at its own
// endpoint.

/// One server's part of a subscription.
struct Part {
    messages: BoxStream<'static, Bytes>,
    /// The URIs as the client spelled them, by the URIs at the server.
    asked: IndexMap<String, String>,
    uris: UriMapping,
}

/// Opens the stream.
pub async fn listen(
    request: &McpRequest<'_>,
    view: &Arc<View>,
    message: &ClientMessage,
) -> Result<Response, McpExit> {
    let filter = message.params.notifications.as_ref();
    let wanted = SubscriptionFilter::read(filter)?;
    let mut by_server: IndexMap<usize, IndexMap<String, String>> = IndexMap::new();
    for uri in &wanted.resource_subscriptions {
        let (server, own) = find_resource(view, uri)?;
        let asked = by_server.entry(server).or_default();
        asked.insert(own, uri.clone());
    }
    let opening = by_server.into_iter();
    let opening = opening.map(|(server, asked)| part(request, view, message, server, asked));
    let parts = futures_util::future::try_join_all(opening).await?;
    let id = message.answer_id();
    let (sender, events) = mpsc::channel(64);
    let _ = sender.try_send(acknowledged(&id, filter));
    let lists = news_of_lists(request, view, wanted, id, sender.clone());
    let stopping = request.endpoint.core.engine.stopping.clone();
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
        // The end of the stream shows a client that a server is gone; the client may subscribe again.
        tokio::select! {
            () = lists => {}
            () = one_ended => {}
            () = sender.closed() => {}
            () = stopping.cancelled() => {}
        }
    });
    Ok(session::response(events))
}

/// Subscribes to one server.
async fn part(
    request: &McpRequest<'_>,
    view: &Arc<View>,
    message: &ClientMessage,
    server: usize,
    asked: IndexMap<String, String>,
) -> Result<Part, McpExit> {
    let uris: Vec<&String> = asked.keys().collect();
    let filter = RawJson::from_json(&json!({"resourceSubscriptions": uris}));
    let place = message.params.notifications.as_ref();
    let edits = place.map(|place| (place, filter.as_bytes()));
    let line = splice(&message.line, edits.as_slice());
    let own = ClientMessage::read(&line).map_err(RpcError::from)?;
    // Each chat's folder may be on another replica, so each part is forwarded separately.
    let path = request.target.split('?').next().unwrap_or_default();
    let name = &view.offers[server].spec.name;
    let (path, name) = (path.trim_end_matches('/'), path_segment(name.as_str()));
    let target = format!("{path}/{name}");
    let request = &McpRequest {
        target: &target,
        body: own.line.clone(),
        ..*request
    };
    let answered =
        modern::request(request_to(request, view, server, None), own, method::LISTEN).await;
    let response = match answered {
        Ok(response) => response,
        Err(Exit::Answered(response)) => *response,
        Err(exit) => return Err(exit),
    };
    let kind = response.headers().get(header::CONTENT_TYPE);
    let is_stream = kind.is_some_and(|kind| kind == "text/event-stream");
    if response.status() != StatusCode::OK || !is_stream {
        // The server's own error.
        return Err(Exit::Answered(Box::new(response)));
    }
    let limit = request.endpoint.core.settings.limits.max_message();
    Ok(Part {
        messages: session::messages(response, limit),
        asked,
        uris: UriMapping::new(view.clone(), server),
    })
}

impl Part {
    /// Forwards the server's messages until its stream ends.
    async fn send(mut self, sender: &mpsc::Sender<Bytes>) {
        while let Some(line) = self.messages.next().await {
            if let Some(line) = self.line(&line)
                && sender.send(sse::event(None, &line)).await.is_err()
            {
                return;
            }
        }
    }

    /// A line for the client; `None` for the server's own acknowledgement.
    fn line(&self, line: &Bytes) -> Option<Bytes> {
        let said = Said::read(line)?;
        if &*said.method == method::ACKNOWLEDGED {
            return None;
        }
        let place = said.param(&["uri"]);
        let own = place.as_ref().and_then(|place| place.read::<String>().ok());
        match (place, own.and_then(|own| self.asked.get(&own))) {
            (Some(place), Some(asked)) => {
                let asked = RawJson::from_json(&asked.as_str().into());
                Some(splice(line, &[(&place, asked.as_bytes())]))
            }
            _ => Some(self.uris.note(&said)),
        }
    }
}

/// Sends the notifications of the joined lists that the client subscribed to.
fn news_of_lists(
    request: &McpRequest<'_>,
    view: &View,
    wanted: SubscriptionFilter,
    id: RawJson,
    sender: mpsc::Sender<Bytes>,
) -> impl Future<Output = ()> + Send + use<> {
    let mut changes = ListChanges::since(view, request.endpoint, request.caller);
    async move {
        while let Some(lists) = changes.look() {
            for list in lists.into_iter().filter(|list| wanted.has_change(list)) {
                let event = sse::event(None, &notification(list, Some(&id)));
                if sender.send(event).await.is_err() {
                    return;
                }
            }
            tokio::select! {
                changed = changes.catalog.changed() => if changed.is_err() {
                    return;
                },
                () = tokio::time::sleep(session::PING_EVERY) => {
                    if sender.send(session::PING).await.is_err() {
                        return;
                    }
                }
            }
        }
    }
}

// The server that a request is for, and the request in the form for that server.

/// The part of a request that identifies its server.
enum Reference {
    Tool(String),
    Prompt(String),
    Resource(String),
}

/// Finds the server, and the message for it: with the name or URI at that server, and all other bytes
/// unchanged. `None` if the method does not name a server. If another replica has to find it, the session
/// is a remote one there.
pub async fn route<'a>(
    request: &'a McpRequest<'a>,
    view: Arc<View>,
    message: &ClientMessage,
    session: Option<&'a Arc<McpSession>>,
) -> Result<Option<(ServerRequest<'a>, ClientMessage)>, McpExit> {
    let Some((reference, place)) = reference(message)? else {
        return Ok(None);
    };
    let found = match find(&view, &reference) {
        Ok(found) => (view, found),
        Err(unknown) => late(request, &reference, session, unknown).await?,
    };
    let (view, (server, own)) = found;
    let own = RawJson::from_json(&own.into());
    let line = splice(&message.line, &[(&place, own.as_bytes())]);
    let message = ClientMessage::read(&line).map_err(RpcError::from)?;
    Ok(Some((request_to(request, &view, server, session), message)))
}

/// The reference in a request, and its place in the line.
fn reference(message: &ClientMessage) -> Result<Option<(Reference, RawJson)>, RpcError> {
    let Kind::Request(method) = &message.kind else {
        return Ok(None);
    };
    let text = |path: &[&str]| {
        let place = message.param(path)?;
        Some((place.read::<String>().ok()?, place))
    };
    let resource = |path: &[&str]| text(path).map(|(uri, place)| (Reference::Resource(uri), place));
    let prompt = |path: &[&str]| text(path).map(|(name, place)| (Reference::Prompt(name), place));
    let (found, missing) = match &**method {
        method::TOOLS_CALL => {
            let name = message.params.name.clone();
            let tool = name.map(|(name, place)| (Reference::Tool(name), place));
            (tool, "params.name (the tool's name) is missing")
        }
        method::PROMPTS_GET => (
            prompt(&["name"]),
            "params.name (the prompt's name) is missing",
        ),
        method::RESOURCES_READ | method::RESOURCES_SUBSCRIBE | method::RESOURCES_UNSUBSCRIBE => {
            (resource(&["uri"]), "params.uri is missing")
        }
        method::COMPLETE => (
            resource(&["ref", "uri"]).or_else(|| prompt(&["ref", "name"])),
            "params.ref is neither a prompt nor a resource",
        ),
        _ => return Ok(None),
    };
    let missing = || RpcError::new(ErrorKind::BAD_ARGUMENTS, missing);
    found.ok_or_else(missing).map(Some)
}

fn find(view: &View, reference: &Reference) -> Result<(usize, String), RpcError> {
    match reference {
        Reference::Tool(name) => view.tool(name).ok_or_else(|| {
            let text = format!("Unknown tool: {name}");
            RpcError::new(ErrorKind::UNKNOWN_TOOL, text)
        }),
        Reference::Prompt(name) => view.prompt(name).ok_or_else(|| {
            let text = format!("Unknown prompt: {name}");
            RpcError::new(ErrorKind::BAD_ARGUMENTS, text)
        }),
        Reference::Resource(uri) => find_resource(view, uri),
    }
}

/// The server of a resource, and the resource's URI there.
fn find_resource(view: &View, uri: &str) -> Result<(usize, String), RpcError> {
    let unknown = || {
        let text = format!("Resource not found: {uri}");
        RpcError::new(ErrorKind::BAD_ARGUMENTS, text)
    };
    if let Some((server, own)) = aggregate::read_named_uri(uri) {
        let server = view.position(&server).ok_or_else(unknown)?;
        return Ok((server, own.to_owned()));
    }
    let servers = view.owners(uri);
    match servers[..] {
        [] => return Err(unknown()),
        [server] => return Ok((server, uri.to_owned())),
        _ => {}
    }
    let named: Vec<String> = view
        .names(&servers)
        .map(|server| aggregate::named_uri(server, uri))
        .collect();
    let text = format!("{uri} is not unique; request it as {}", named.join(" or "));
    let error = RpcError::new(ErrorKind::BAD_ARGUMENTS, text);
    Err(error.with(json!({"uris": named})))
}

/// Searches again once the offers of possible servers that are not known yet have been read: a client may
/// have its list of names from before a restart of the bridge.
async fn late(
    request: &McpRequest<'_>,
    reference: &Reference,
    session: Option<&Arc<McpSession>>,
    unknown: RpcError,
) -> Result<(Arc<View>, (usize, String)), McpExit> {
    let (endpoint, caller) = (request.endpoint, request.caller);
    let before = known_view(endpoint, caller);
    let config = endpoint.core.directory.config();
    let mut failure = None;
    for server in
        servers(&config, caller).filter(|server| before.position(server.as_str()).is_none())
    {
        let may_be = match reference {
            Reference::Tool(name) | Reference::Prompt(name) => aggregate::may_be_of(server, name),
            Reference::Resource(uri) => {
                aggregate::read_named_uri(uri).is_some_and(|(named, _)| named == server.as_str())
            }
        };
        if may_be {
            let learnt = learn(request, server, session).await;
            failure = failure.or(learnt.err());
        }
    }
    let now = known_view(endpoint, caller);
    match find(&now, reference) {
        Ok(found) => Ok((now, found)),
        Err(_) => Err(failure.unwrap_or(unknown.into())),
    }
}

/// Waits until the server's offer is known; if another replica knows it, that replica answers the request.
async fn learn(
    request: &McpRequest<'_>,
    server: &ServerName,
    session: Option<&Arc<McpSession>>,
) -> Result<(), McpExit> {
    let mut forwarding = request.forwarding();
    loop {
        let located = locate_offer(request.endpoint, server.as_str(), request.caller).await?;
        let Err(other) = located else {
            return Ok(());
        };
        let other = remote::with_remote_session(request, session, other).await;
        forwarding.to(&other).await?;
    }
}
