//! `POST /mcpo/{server}/{tool}`: the OpenAPI door to a tool.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use axum::{
    BoxError,
    body::{Body, HttpBody},
    extract::{ConnectInfo, Path, Request, State},
    http::{Extensions, HeaderMap, HeaderValue, request::Parts},
    response::{IntoResponse as _, Response},
};
use bridge_model::{Caller, Principal, Tenant};
use bridge_openapi::{BRIEF_BYTES, Stopped, Unfit};
use bridge_protocol::RawJson;
use bytes::Bytes;
use tokio::{task::spawn_blocking, time::Instant};

use super::{
    Problem, answer, body,
    call_files::WithFiles,
    forward,
    front::{Named, with_slashes},
    multipart,
};
use crate::{
    app::App,
    call::{Call, CallError, Waited},
    catalog::{Knowledge, Offer},
    config::{Mode, RESERVED_NAMES, ServerAccess},
    http::Audited,
    identity::SESSION_HEADER,
    replicas::{Exit, Forward, Located, Payload},
    session::{Class, Place, Wants},
    telemetry::{ProblemKind, RequestId},
};

/// Under `/mcpo/`, where every server is.
pub async fn below_mcpo(
    State(app): State<Arc<App>>,
    Path((server, tool)): Path<(String, String)>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    request: Request,
) -> Response {
    audited(call(&app, &server, &tool, peer, request).await)
}

/// The same for a call whose address was read already, and whose body stays with whoever asks.
pub async fn straight<B>(
    app: &Arc<App>,
    (server, tool): (&str, &str),
    peer: SocketAddr,
    id: &RequestId,
    parts: &Parts,
    body: B,
) -> Response
where
    B: HttpBody<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    let named = with_slashes(app, server, tool);
    let tool = named.as_ref().map_or((server, tool), Named::parts);
    let caller = match caller(app, tool, peer, &parts.extensions, &parts.headers).await {
        Ok(caller) => caller,
        Err(problem) => return audited(Err(problem.into())),
    };
    audited(with_arguments(app, tool, &caller, id, parts, body).await)
}

/// Whose audit line is written; told only where one would be written else.
fn audited(answered: Result<Response, Exit<Problem>>) -> Response {
    let mut response = answered.unwrap_or_else(Exit::into_response);
    if response.extensions().get::<ProblemKind>().is_some() {
        response.extensions_mut().insert(Audited);
    }
    response
}

/// At the root, where mcpo's users expect servers.
pub async fn at_root(
    state: State<Arc<App>>,
    Path((server, tool)): Path<(String, String)>,
    peer: ConnectInfo<SocketAddr>,
    request: Request,
) -> Response {
    if RESERVED_NAMES.contains(&server.as_str()) {
        return Problem::not_found().into_response();
    }
    let (config, single) = (
        state.directory.config(),
        &state.settings.command_line.server,
    );
    if single.is_some()
        && with_slashes(&state, &server, &tool).is_none()
        && !config.servers.contains_key(server.as_str())
    {
        return of_single(state, Path(format!("{server}/{tool}")), peer, request).await;
    }
    below_mcpo(state, Path((server, tool)), peer, request).await
}

/// At the root, where mcpo serves a single server's tools.
pub async fn of_single(
    state: State<Arc<App>>,
    Path(tool): Path<String>,
    peer: ConnectInfo<SocketAddr>,
    request: Request,
) -> Response {
    let Some(single) = &state.settings.command_line.server else {
        return Problem::not_found().into_response();
    };
    let server = single.name.to_string();
    below_mcpo(state, Path((server, tool)), peer, request).await
}

async fn call(
    app: &Arc<App>,
    server: &str,
    tool: &str,
    peer: SocketAddr,
    request: Request,
) -> Result<Response, Exit<Problem>> {
    let named = with_slashes(app, server, tool);
    let tool = named.as_ref().map_or((server, tool), Named::parts);
    let (extensions, headers) = (request.extensions(), request.headers());
    let caller = caller(app, tool, peer, extensions, headers).await?;
    let id = forward::request_id(extensions);
    let (parts, body) = request.into_parts();
    if multipart::is_multipart(&parts.headers) {
        with_files(app, tool, &caller, &id, &parts, body).await
    } else {
        with_arguments(app, tool, &caller, &id, &parts, body).await
    }
}

async fn caller(
    app: &App,
    (server, tool): (&str, &str),
    peer: SocketAddr,
    extensions: &Extensions,
    headers: &HeaderMap,
) -> Result<Caller, Problem> {
    let caller = forward::caller(app, extensions, headers, peer).await;
    caller.map_err(Problem::from).inspect_err(|problem| {
        let nobody = Principal::Anonymous;
        App::audit_refusal(peer.ip(), &nobody, server, tool, problem.kind());
    })
}

/// Leaves the audit line of a call that does not run: what runs leaves its own.
fn refused(app: &App, caller: &Caller, (server, tool): (&str, &str), problem: &Problem) {
    let kind = app.directory.refusal_kind(server, problem.kind());
    App::audit_refusal(caller.address, &caller.principal, server, tool, kind);
}

/// A call whose body is its arguments.
async fn with_arguments<B>(
    app: &Arc<App>,
    tool: (&str, &str),
    caller: &Caller,
    id: &RequestId,
    parts: &Parts,
    body: B,
) -> Result<Response, Exit<Problem>>
where
    B: HttpBody<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    let refused = |problem: &Problem| refused(app, caller, tool, problem);
    // Nothing is read for a caller who has no such tool.
    let located = locate(app, tool, caller).await.inspect_err(refused)?;
    let body = match parts.extensions.get::<Payload>() {
        // What another replica sent was read already.
        Some(Payload::Whole(body)) => Ok(body.clone()),
        _ => {
            let memory = app.bodies.of(Tenant::of(caller));
            body::whole(memory, body, app.settings.listen.max_body_bytes).await
        }
    };
    let body = body.map_err(Problem::from).inspect_err(refused)?;
    let forward = || Some(forward::forward(app, caller, parts, id, body.clone()));
    let found = found_or_forward(app, tool, caller, located, forward).await?;
    let prepared = prepare(app, &found, caller, &body, id).await;
    let mut call = prepared.inspect_err(refused)?;
    call.forwarded = app.identity.forwarded(&call.spec, &parts.headers, caller);
    call.place.wants = Wants::of(&call.spec, &call.profile, &call.caller);
    let mode = call.spec.mode;
    app.replicas
        .enter_or_forward(caller, mode, &mut call.place, forward)
        .await?;
    Ok(run(app, call).await?)
}

/// A call that brings files. They are put into its folder before it runs.
async fn with_files(
    app: &Arc<App>,
    tool: (&str, &str),
    caller: &Caller,
    id: &RequestId,
    parts: &Parts,
    body: Body,
) -> Result<Response, Exit<Problem>> {
    let refused = |problem: &Problem| refused(app, caller, tool, problem);
    // Nothing is written for a caller who has no such tool.
    let located = locate(app, tool, caller).await.inspect_err(refused)?;
    let (body, kept) = forward::keep(app, parts, body).await?;
    let forward = || {
        let kept = kept.clone()?;
        Some(forward::forward(app, caller, parts, id, kept))
    };
    let found = found_or_forward(app, tool, caller, located, forward).await?;
    let (offer, tool) = (&found.offer, found.tool.as_str());
    let read = async {
        let with = WithFiles::read(app, caller, offer, tool, &parts.headers, body).await?;
        let (received, expected) = (Instant::now(), with.arguments(&with.expected())?);
        check(offer, tool, expected, received).await?;
        Ok((with, received, place_of(caller, offer)?))
    };
    let (with, received, mut place) = read.await.inspect_err(refused)?;
    let mode = offer.spec.mode;
    app.replicas
        .enter_or_forward(caller, mode, &mut place, forward)
        .await?;
    let bring = async {
        let (arguments, incoming) = with.bring(app, caller, offer, &place).await?;
        note_missing_chat(app, offer, &place);
        let arguments = check(offer, tool, arguments, received).await?;
        Ok((arguments, incoming))
    };
    let (arguments, incoming) = bring.await.inspect_err(refused)?;
    let spec = offer.spec.clone();
    let mut call = Call::of_tool(caller.clone(), spec, place, tool, arguments, id);
    call.received = received;
    call.incoming = Mutex::new(incoming);
    call.forwarded = app.identity.forwarded(&call.spec, &parts.headers, caller);
    Ok(run(app, call).await?)
}

async fn run(app: &Arc<App>, call: Box<Call>) -> Result<Response, Problem> {
    let (spec, session) = (call.spec.clone(), call.place.session.clone());
    let answered = app.engine.run(call).await.map_err(Problem::from);
    let response = answered.and_then(|answer| answer::response(&answer, &spec, &app.settings));
    let mut response = response.unwrap_or_else(Problem::into_response);
    if spec.mode == Mode::Stateful
        && let Some(session) = session
        && let Ok(session) = HeaderValue::from_str(session.as_str())
    {
        // How a caller without a chat comes back, whatever became of this call.
        response
            .headers_mut()
            .insert(SESSION_HEADER.clone(), session);
    }
    Ok(response)
}

/// Everything that can be wrong with a call before it runs.
async fn prepare(
    app: &Arc<App>,
    Found { offer, tool }: &Found,
    caller: &Caller,
    body: &Bytes,
    id: &RequestId,
) -> Result<Box<Call>, Problem> {
    let received = Instant::now();
    let parsing = body::parse(app.bodies.of(Tenant::of(caller)), body).await?;
    let arguments = read(body.clone()).await?;
    let arguments = check(offer, tool, arguments, received).await?;
    drop(parsing);
    let arguments = arguments.kept_with(body);
    let place = place_of(caller, offer)?;
    note_missing_chat(app, offer, &place);
    let mut call = Call::of_tool(
        caller.clone(),
        offer.spec.clone(),
        place,
        tool,
        arguments,
        id,
    );
    call.received = received;
    Ok(call)
}

/// A body as JSON: a large one is read where nobody waits for the thread.
async fn read(body: Bytes) -> Result<RawJson, Problem> {
    let read = if body.len() <= BRIEF_BYTES {
        bridge_openapi::read_body(body)
    } else {
        let reading = spawn_blocking(|| bridge_openapi::read_body(body)).await;
        reading.map_err(|_| CallError::ShuttingDown)?
    };
    read.map_err(|error| Problem::bad_json(&error))
}

/// The arguments to send; what the check takes is a part of the call's time.
async fn check(
    offer: &Arc<Offer>,
    tool: &str,
    arguments: RawJson,
    received: Instant,
) -> Result<RawJson, Problem> {
    let time = offer.spec.timeout;
    let checked = offer.check_until(tool, arguments, received + time).await;
    checked.map_err(|unfit| match unfit {
        Unfit::Faults(faults) => Problem::bad_arguments(&faults),
        Unfit::Stopped(Stopped::Left) => CallError::Left.into(),
        Unfit::Stopped(Stopped::Work | Stopped::Time) => {
            CallError::Timeout(Waited { time, noise: None }).into()
        }
    })
}

fn place_of(caller: &Caller, offer: &Offer) -> Result<Place, Problem> {
    let place = Place::of(caller, &offer.spec);
    place.ok_or_else(|| CallError::UnknownSession.into())
}

/// What a tool's address leads to.
struct Found {
    offer: Arc<Offer>,
    tool: String,
}

/// The tool, here or, while the server is being learnt, at a replica that may know it.
async fn locate(
    app: &App,
    (server, tool): (&str, &str),
    caller: &Caller,
) -> Result<Located<Found>, Problem> {
    let unknown = || Problem::unknown_server(server);
    let (name, access) = app
        .directory
        .server_for(server, caller)
        .ok_or_else(unknown)?;
    if access != ServerAccess::Use {
        return Err(Problem::user_needed(server));
    }
    let offer = match app.catalog.offer(&name).await.ok_or_else(unknown)? {
        Knowledge::Ready(offer) => offer,
        Knowledge::Learning => {
            let other = app.replicas.anyone_for(caller);
            let other = other.ok_or_else(|| Problem::not_ready(server))?;
            return Ok(Located::Elsewhere(other));
        }
        Knowledge::Failed { why, .. } => return Err(Problem::failed(server, &why)),
    };
    let tool = offer.name_at(tool).to_owned();
    let offered = offer.tool(&tool);
    if offered.is_some_and(|offered| offered.tool.needs_task()) {
        return Err(Problem::task_only(server, &tool));
    }
    if !offer.may_call(&tool) {
        return Err(Problem::unknown_tool(server, &tool));
    }
    Ok(Located::Here(Found { offer, tool }))
}

/// What was located; where that is elsewhere, the call is answered there.
async fn found_or_forward(
    app: &App,
    tool: (&str, &str),
    caller: &Caller,
    mut located: Located<Found>,
    forward: impl Fn() -> Option<Forward>,
) -> Result<Found, Exit<Problem>> {
    let mut forwarding = app.replicas.forwarding(caller, forward);
    loop {
        match located {
            Located::Here(found) => return Ok(found),
            Located::Elsewhere(other) => forwarding.to(&other).await?,
        }
        let again = locate(app, tool, caller).await;
        located = again.inspect_err(|problem| refused(app, caller, tool, problem))?;
    }
}

/// Without a chat every call is a stranger's: somebody forgot a setting in Open WebUI.
fn note_missing_chat(app: &App, offer: &Offer, place: &Place) {
    if offer.spec.mode == Mode::Stateful && place.class == Class::OneCall {
        app.note_call_without_chat();
    }
}
