//! `POST /mcpo/{server}/{tool}`: the OpenAPI endpoint to a tool.

use std::{collections::HashSet, sync::Arc};

use axum::{
    body::Body,
    http::{HeaderMap, HeaderValue, header},
    response::{IntoResponse as _, Response},
};
use bridge_model::{Caller, Principal, Tenant};
use bridge_openapi::{BRIEF_BYTES, Stopped, ToolFailure, Unfit, result_body};
use bridge_protocol::RawJson;
use bytes::Bytes;
use parking_lot::Mutex;
use serde::Serialize;
use serde_json::{Map, Value, json};
use tokio::{task::spawn_blocking, time::Instant};

use super::{
    Audited, Problem, body,
    body::Unread,
    inbound::Inbound,
    multipart,
    route::{Front, Named, with_slashes},
    upload,
};
use crate::{
    app::App,
    artifacts::{numbered, safe_name},
    budget::Taken,
    call::{Answer, Call, CallError, Incoming, Link, Waited},
    catalog::{Knowledge, Offer},
    config::{Mode, ServerAccess, ServerSpec, Settings},
    identity::SESSION_HEADER,
    replicas::{Exit, Located, Payload},
    session::{Class, Wants, WorkspaceAddress},
    telemetry::{ProblemKind, RequestId},
};

/// Calls a tool below `/mcpo/`, where every server is, or at the root, where mcpo's users expect servers.
pub async fn call(
    app: &Arc<App>,
    inbound: &Inbound<'_>,
    body: &mut Body,
    front: Front,
    server: &str,
    tool: &str,
) -> Response {
    let named = with_slashes(app, server, tool);
    if front == Front::Root
        && named.is_none()
        && app.settings.command_line.server.is_some()
        && !app.directory.config().servers.contains_key(server)
    {
        let tool = format!("{server}/{tool}");
        return call_single(app, inbound, body, &tool).await;
    }
    let tool = named.as_ref().map_or((server, tool), Named::parts);
    audited(answer(app, inbound, body, tool).await)
}

/// Calls a tool at the root, where mcpo serves a single server's tools.
pub async fn call_single(
    app: &Arc<App>,
    inbound: &Inbound<'_>,
    body: &mut Body,
    tool: &str,
) -> Response {
    let Some(single) = &app.settings.command_line.server else {
        return Problem::not_found().into_response();
    };
    audited(answer(app, inbound, body, (single.name.as_str(), tool)).await)
}

/// Whose audit line is written; told only where one would be written else.
fn audited(answered: Result<Response, Exit<Problem>>) -> Response {
    let mut response = answered.unwrap_or_else(Exit::into_response);
    if response.extensions().get::<ProblemKind>().is_some() {
        response.extensions_mut().insert(Audited);
    }
    response
}

async fn answer(
    app: &Arc<App>,
    inbound: &Inbound<'_>,
    body: &mut Body,
    tool: (&str, &str),
) -> Result<Response, Exit<Problem>> {
    let caller = inbound.caller(app).await.map_err(Problem::from);
    let caller = caller.inspect_err(|problem| {
        let (address, nobody) = (inbound.peer.ip(), Principal::Anonymous);
        App::audit_refusal(address, &nobody, tool.0, tool.1, problem.kind());
    })?;
    if multipart::is_multipart(&inbound.parts.headers) {
        // Boxed: it is large, and few calls bring files.
        Box::pin(with_files(app, inbound, body, tool, &caller)).await
    } else {
        with_arguments(app, inbound, body, tool, &caller).await
    }
}

/// Leaves the audit line of a call that does not run: what runs leaves its own.
fn refused(app: &App, caller: &Caller, (server, tool): (&str, &str), problem: &Problem) {
    let kind = app.directory.refusal_kind(server, problem.kind());
    App::audit_refusal(caller.address, &caller.principal, server, tool, kind);
}

/// A call whose body is its arguments.
async fn with_arguments(
    app: &Arc<App>,
    inbound: &Inbound<'_>,
    body: &mut Body,
    tool: (&str, &str),
    caller: &Caller,
) -> Result<Response, Exit<Problem>> {
    let refused = |problem: &Problem| refused(app, caller, tool, problem);
    // Nothing is read for a caller who has no such tool.
    let locate = || async { locate(app, tool, caller).await.inspect_err(refused) };
    let located = locate().await?;
    let body = inbound.read(app, caller, body).await;
    let body = body.map_err(Problem::from).inspect_err(refused)?;
    let forward = || Some(inbound.forward(app, caller, body.clone()));
    let forwarding = app.replicas.forwarding(caller, forward);
    let found = forwarding.found(located, locate).await?;
    let prepared = prepare(app, &found, caller, &body, inbound.id).await;
    let mut call = prepared.inspect_err(refused)?;
    call.forwarded = app
        .identity
        .forwarded(&call.spec, &inbound.parts.headers, caller);
    let wants = Wants::for_caller(&call.spec, &call.profile, &call.caller);
    let (mode, address) = (call.spec.mode, &call.address);
    let entering = app
        .replicas
        .enter_or_forward(caller, mode, address, wants.as_ref(), forward);
    let opened = entering.await?;
    call.opened = Mutex::new(opened);
    Ok(run(app, call).await?)
}

/// A call that brings files. They are put into its folder before it runs.
async fn with_files(
    app: &Arc<App>,
    inbound: &Inbound<'_>,
    body: &mut Body,
    tool: (&str, &str),
    caller: &Caller,
) -> Result<Response, Exit<Problem>> {
    let refused = |problem: &Problem| refused(app, caller, tool, problem);
    // Nothing is written for a caller who has no such tool.
    let locate = || async { locate(app, tool, caller).await.inspect_err(refused) };
    let located = locate().await?;
    let kept = inbound.keep(app, body).await?;
    let written = kept.as_ref().map(Payload::body).transpose();
    let mut written = written.map_err(multipart::unwritten)?;
    let body = written.as_mut().unwrap_or(body);
    let forward = || Some(inbound.forward(app, caller, kept.clone()?));
    let forwarding = app.replicas.forwarding(caller, forward);
    let found = forwarding.found(located, locate).await?;
    let (offer, tool) = (&found.offer, found.tool.as_str());
    let read = async {
        let with = WithFiles::read(app, caller, offer, tool, &inbound.parts.headers, body).await?;
        let (received, expected) = (Instant::now(), with.arguments(&with.expected())?);
        check(offer, tool, expected, received).await?;
        Ok((with, received, address_of(caller, offer)?))
    };
    let (with, received, address) = read.await.inspect_err(refused)?;
    let mode = offer.spec.mode;
    let entering = app
        .replicas
        .enter_or_forward(caller, mode, &address, None, forward);
    let opened = entering.await?;
    let bring = async {
        let (arguments, incoming) = with.bring(app, caller, offer, &address).await?;
        note_missing_chat(app, offer, &address);
        let arguments = check(offer, tool, arguments, received).await?;
        Ok((arguments, incoming))
    };
    let (arguments, incoming) = bring.await.inspect_err(refused)?;
    let spec = offer.spec.clone();
    let mut call = Call::of_tool(caller.clone(), spec, address, tool, arguments, inbound.id);
    call.received = received;
    call.opened = Mutex::new(opened);
    call.incoming = Mutex::new(incoming);
    call.forwarded = app
        .identity
        .forwarded(&call.spec, &inbound.parts.headers, caller);
    Ok(run(app, call).await?)
}

async fn run(app: &Arc<App>, call: Box<Call>) -> Result<Response, Problem> {
    let (spec, session) = (call.spec.clone(), call.address.session.clone());
    let answered = app.engine.run(call).await.map_err(Problem::from);
    let response = answered.and_then(|answer| call_response(&answer, &spec, &app.settings));
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
    let parsing = body::parse(app.bodies.for_tenant(Tenant::from_caller(caller)), body).await?;
    let arguments = read(body.clone()).await?;
    let arguments = check(offer, tool, arguments, received).await?;
    drop(parsing);
    let arguments = arguments.kept_with(body);
    let address = address_of(caller, offer)?;
    note_missing_chat(app, offer, &address);
    let mut call = Call::of_tool(
        caller.clone(),
        offer.spec.clone(),
        address,
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

fn address_of(caller: &Caller, offer: &Offer) -> Result<WorkspaceAddress, Problem> {
    let address = WorkspaceAddress::for_caller(caller, &offer.spec);
    address.ok_or_else(|| CallError::UnknownSession.into())
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

/// Without a chat every call is a stranger's: somebody forgot a setting in Open WebUI.
fn note_missing_chat(app: &App, offer: &Offer, address: &WorkspaceAddress) {
    if offer.spec.mode == Mode::Stateful && address.class == Class::OneCall {
        app.note_call_without_chat();
    }
}

// A tool call in parts: `arguments` is JSON, and each file's part is called as the argument that
// takes the file's name.

/// A call with the files that it came with.
struct WithFiles {
    arguments: Map<String, Value>,
    /// With the names of their parts.
    files: Vec<(String, Incoming)>,
    /// What the arguments take of the memory for bodies.
    _held: Option<Taken>,
    /// The tool's arguments by name, and whether each takes a list.
    lists: Vec<(String, bool)>,
}

impl WithFiles {
    /// Reads the body; the files are beside the workspaces then.
    pub async fn read(
        app: &App,
        caller: &Caller,
        offer: &Offer,
        tool: &str,
        headers: &HeaderMap,
        body: &mut Body,
    ) -> Result<Self, Problem> {
        if offer.spec.mode == Mode::Shared {
            return Err(Problem::no_folder(offer.spec.name.as_str()));
        }
        let parts = multipart::read(app, caller, headers, body).await?;
        let mut arguments = Map::new();
        for (name, text) in parts.texts {
            if name != "arguments" {
                let why = format!(
                    "the part '{name}' is not a file: send all other values in the part 'arguments'"
                );
                return Err(Problem::bad_part(&why));
            }
            let parsing = app
                .bodies
                .for_tenant(Tenant::from_caller(caller))
                .parse(text.as_bytes())
                .await;
            let _parsing = parsing.map_err(Unread::from)?;
            let read = serde_json::from_str(&text);
            arguments = read.map_err(|error| {
                Problem::bad_part(&format!(
                    "the part 'arguments' is not a JSON object: {error}"
                ))
            })?;
        }
        let schema = offer.tool(tool).map(|known| known.tool.input_schema());
        let properties = schema.and_then(|schema| schema["properties"].as_object());
        let properties = properties.into_iter().flatten();
        let lists = properties.map(|(name, schema)| (name.clone(), schema["type"] == "array"));
        Ok(Self {
            arguments,
            files: parts.files,
            _held: parts.held,
            lists: lists.collect(),
        })
    }

    /// The names that the files would get in an empty folder.
    pub fn expected(&self) -> Vec<String> {
        let mut taken = HashSet::new();
        let files = self.files.iter();
        let names = files.map(|(_, file)| {
            let free = numbered(&safe_name(&file.name)).find(|name| taken.insert(name.clone()));
            free.unwrap_or_default()
        });
        names.collect()
    }

    /// The arguments with the files' names in them. A part that is called as no argument brings its
    /// file and nothing else.
    pub fn arguments(&self, names: &[String]) -> Result<RawJson, Problem> {
        let parts = self.files.iter().map(|(part, _)| part);
        self.filled(parts, names)
    }

    fn filled<'p>(
        &self,
        parts: impl Iterator<Item = &'p String>,
        names: &[String],
    ) -> Result<RawJson, Problem> {
        let mut arguments = self.arguments.clone();
        for (part, name) in parts.zip(names) {
            let Some((_, list)) = self.lists.iter().find(|(argument, _)| argument == part) else {
                continue;
            };
            let name = Value::from(name.as_str());
            match arguments.get_mut(part) {
                Some(Value::Array(names)) => names.push(name),
                Some(_) => {
                    let why = format!("the argument '{part}' is given more than once");
                    return Err(Problem::bad_part(&why));
                }
                None if *list => {
                    arguments.insert(part.clone(), vec![name].into());
                }
                None => {
                    arguments.insert(part.clone(), name);
                }
            }
        }
        RawJson::from_value(&arguments).map_err(|error| Problem::bad_json(&error))
    }

    /// Puts the files where the call will find them. For a call that gets a folder of its own they
    /// are handed on to it.
    pub async fn bring(
        mut self,
        app: &Arc<App>,
        caller: &Caller,
        offer: &Offer,
        address: &WorkspaceAddress,
    ) -> Result<(RawJson, Vec<Incoming>), Problem> {
        let expected = self.expected();
        if offer.spec.mode == Mode::Stateless {
            let arguments = self.arguments(&expected)?;
            let files = self.files.into_iter().map(|(_, file)| file);
            return Ok((arguments, files.collect()));
        }
        let (parts, files): (Vec<_>, Vec<_>) = std::mem::take(&mut self.files).into_iter().unzip();
        let taken = upload::take_in(app, caller, address, files).await?;
        let names: Vec<_> = taken.into_iter().map(|file| file.name).collect();
        Ok((self.filled(parts.iter(), &names)?, Vec::new()))
    }
}

// A finished call as the OpenAPI answer.

/// The answer of a call that made files, or after which the model should know something.
#[derive(Serialize)]
struct Wrapped {
    result: RawJson,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    files: Vec<Link>,
    #[serde(skip_serializing_if = "Option::is_none")]
    archive: Option<Link>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    notice: Option<String>,
}

/// Without files and notices the tool's own result, byte by byte; else an object around it.
fn call_response(
    answer: &Answer,
    spec: &ServerSpec,
    settings: &Settings,
) -> Result<Response, Problem> {
    let files: Vec<Link> = answer
        .files
        .files
        .iter()
        .map(|file| Link::to_artifact(file, settings))
        .collect();
    let archive = answer
        .files
        .archive
        .as_ref()
        .map(|file| Link::to_artifact(file, settings));
    let notice = answer.notice(settings.lang);
    let result = match result_body(&answer.outcome) {
        Ok(result) => result,
        Err(ToolFailure { message }) => {
            let mut problem = Problem::tool_failed(&message);
            // A tool that failed half-way may have left something that its user wants.
            if !files.is_empty() {
                problem = problem.with("files", json!(files));
            }
            if let Some(notice) = notice {
                problem = problem.with("notice", notice.into());
            }
            return Err(problem);
        }
    };
    let body = if files.is_empty() && notice.is_none() {
        result
    } else {
        let message = (!files.is_empty()).then(|| message(answer, spec, settings));
        RawJson::from_value(&Wrapped {
            result,
            files,
            archive,
            message,
            notice,
        })
        .map_err(|error| Problem::tool_failed(&error.to_string()))?
    };
    let mut response = body.into_bytes().into_response();
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    Ok(response)
}

fn message(answer: &Answer, spec: &ServerSpec, settings: &Settings) -> String {
    let mut message = answer.files.message(settings);
    if let Some(instruction) = &spec.post_instruction {
        message.push('\n');
        message.push_str(instruction);
    }
    message
}
