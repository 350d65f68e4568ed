//! `POST /mcpo/{server}/{tool}`: the OpenAPI door to a tool.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use axum::{
    BoxError,
    body::HttpBody,
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
    replicas::{Payload, Routed as _},
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
    let (server, tool) = named.as_ref().map_or((server, tool), Named::parts);
    let caller = match caller(app, server, tool, peer, &parts.extensions, &parts.headers).await {
        Ok(caller) => caller,
        Err(problem) => return audited(Err(problem)),
    };
    audited(with_arguments(app, (server, tool), &caller, id, parts, body).await)
}

/// Whose audit line is written; told only where one would be written else.
fn audited(answered: Result<Response, Problem>) -> Response {
    let mut response = answered.unwrap_or_else(Problem::into_response);
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
) -> Result<Response, Problem> {
    let named = with_slashes(app, server, tool);
    let (server, tool) = named.as_ref().map_or((server, tool), Named::parts);
    let (extensions, headers) = (request.extensions(), request.headers());
    let caller = caller(app, server, tool, peer, extensions, headers).await?;
    let id = forward::request_id(extensions);
    if !multipart::is_multipart(headers) {
        let (parts, body) = request.into_parts();
        return with_arguments(app, (server, tool), &caller, &id, &parts, body).await;
    }
    let refused = |problem: &Problem| refused(app, &caller, server, tool, problem);
    let attempt = async |request| {
        let prepared = prepare_with_files(app, server, tool, &caller, &id, request).await;
        run(app, prepared.inspect_err(refused)?).await
    };
    // Nothing is written for a caller who has no such tool.
    let known = tool_of(app, server, tool, &caller).await;
    if let Err(problem) = known.inspect_err(refused)
        && problem.elsewhere().is_none()
    {
        return Err(problem);
    }
    forward::run(app, &caller, request, attempt).await
}

async fn caller(
    app: &App,
    server: &str,
    tool: &str,
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
fn refused(app: &App, caller: &Caller, server: &str, tool: &str, problem: &Problem) {
    if problem.elsewhere().is_none() {
        let kind = app.directory.refusal_kind(server, problem.kind());
        App::audit_refusal(caller.address, &caller.principal, server, tool, kind);
    }
}

/// A call whose body is its arguments.
async fn with_arguments<B>(
    app: &Arc<App>,
    (server, tool): (&str, &str),
    caller: &Caller,
    id: &RequestId,
    parts: &Parts,
    body: B,
) -> Result<Response, Problem>
where
    B: HttpBody<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    let refused = |problem: &Problem| refused(app, caller, server, tool, problem);
    // Nothing is read for a caller who has no such tool.
    let known = match tool_of(app, server, tool, caller).await {
        Err(problem) if problem.elsewhere().is_none() => {
            refused(&problem);
            return Err(problem);
        }
        known => Mutex::new(known.ok()),
    };
    let body = match parts.extensions.get::<Payload>() {
        // What another replica sent was read already.
        Some(Payload::Whole(body)) => Ok(body.clone()),
        _ => {
            body::whole(
                app.bodies.of(Tenant::of(caller)),
                body,
                app.settings.listen.max_body_bytes,
            )
            .await
        }
    };
    let body = body.map_err(Problem::from).inspect_err(refused)?;
    let request = || forward::forward(app, caller, parts, id, body.clone());
    let attempt = async || {
        let first = known.lock().unwrap_or_else(PoisonError::into_inner).take();
        let found = match first {
            Some(found) => Ok(found),
            None => tool_of(app, server, tool, caller).await,
        };
        let prepared = match found {
            Ok((offer, tool)) => prepare(app, &offer, tool, caller, &body, id).await,
            Err(problem) => Err(problem),
        };
        let mut call = prepared.inspect_err(refused)?;
        call.forwarded = app.identity.forwarded(&call.spec, &parts.headers, caller);
        call.place.wants = Wants::of(&call.spec, &call.profile, &call.caller);
        let entered = app
            .replicas
            .enter(caller, call.spec.mode, &mut call.place)
            .await;
        entered.map_err(Problem::elsewhere)?;
        run(app, call).await
    };
    app.replicas.run(caller, request, attempt).await
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
    offer: &Arc<Offer>,
    tool: &str,
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
    let place = Place::of(caller, &offer.spec);
    let place = place.ok_or_else(|| Problem::from(CallError::UnknownSession))?;
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

/// The same for a call that brings files, and its place: that is opened before they are put there.
async fn prepare_with_files(
    app: &Arc<App>,
    server: &str,
    tool: &str,
    caller: &Caller,
    id: &RequestId,
    request: Request,
) -> Result<Box<Call>, Problem> {
    let (offer, tool) = tool_of(app, server, tool, caller).await?;
    let headers = request.headers().clone();
    let with = WithFiles::read(app, caller, &offer, tool, request).await?;
    let received = Instant::now();
    check(&offer, tool, with.arguments(&with.expected())?, received).await?;
    let place = Place::of(caller, &offer.spec);
    let mut place = place.ok_or_else(|| Problem::from(CallError::UnknownSession))?;
    let entered = app
        .replicas
        .enter(caller, offer.spec.mode, &mut place)
        .await;
    entered.map_err(Problem::elsewhere)?;
    let (arguments, incoming) = with.bring(app, caller, &offer, &place).await?;
    note_missing_chat(app, &offer, &place);
    let arguments = check(&offer, tool, arguments, received).await?;
    let spec = offer.spec.clone();
    let mut call = Call::of_tool(caller.clone(), spec, place, tool, arguments, id);
    call.received = received;
    call.incoming = Mutex::new(incoming);
    call.forwarded = app.identity.forwarded(&call.spec, &headers, caller);
    Ok(call)
}

/// The offer of a server that has the tool, and the tool's name.
async fn tool_of<'t>(
    app: &App,
    server: &str,
    tool: &'t str,
    caller: &Caller,
) -> Result<(Arc<Offer>, &'t str), Problem> {
    let offer = offer(app, server, caller).await?;
    let name = offer.name_at(tool);
    if offer
        .tool(name)
        .is_some_and(|known| known.tool.needs_task())
    {
        return Err(Problem::task_only(server, name));
    }
    if offer.may_call(name) {
        return Ok((offer, name));
    }
    Err(Problem::unknown_tool(server, name))
}

async fn offer(app: &App, server: &str, caller: &Caller) -> Result<Arc<Offer>, Problem> {
    let unknown = || Problem::unknown_server(server);
    let (name, access) = app
        .directory
        .server_for(server, caller)
        .ok_or_else(unknown)?;
    if access != ServerAccess::Use {
        return Err(Problem::user_needed(server));
    }
    match app.catalog.offer(&name).await.ok_or_else(unknown)? {
        Knowledge::Ready(offer) => Ok(offer),
        Knowledge::Learning => Err(match app.replicas.anyone_for(caller) {
            Some(other) => Problem::elsewhere(other),
            None => Problem::not_ready(server),
        }),
        Knowledge::Failed { why, .. } => Err(Problem::failed(server, &why)),
    }
}

/// Without a chat every call is a stranger's: somebody forgot a setting in Open WebUI.
fn note_missing_chat(app: &App, offer: &Offer, place: &Place) {
    if offer.spec.mode == Mode::Stateful && place.class == Class::OneCall {
        app.note_call_without_chat();
    }
}
