//! `POST /mcpo/{server}/{tool}`: the OpenAPI endpoint of a tool.

use std::{collections::HashSet, sync::Arc};

use axum::{
    body::Body,
    http::header,
    response::{IntoResponse as _, Response},
};
use bridge_model::Caller;
use bridge_openapi::{ArgumentsError, BRIEF_BYTES, Stopped, ToolFailure, result_body};
use bridge_protocol::RawJson;
use bridge_state::Artifact;
use bytes::Bytes;
use parking_lot::Mutex;
use serde::Serialize;
use serde_json::{Map, Value, json};
use tokio::{task::spawn_blocking, time::Instant};

use super::{
    Audited, Problem, add_session,
    inbound::Inbound,
    multipart, refused,
    route::{Mount, with_slashes},
    upload,
};
use crate::{
    artifacts::{numbered, safe_name},
    body::{Taken, is_multipart},
    call::{Answer, Ask, Call, CallEngine, CallError, Incoming, Link, Waited},
    catalog::{Knowledge, Offer},
    config::{Mode, ServerSpec, Settings},
    core::Core,
    identity::{NoServer, usable},
    replicas::{Exit, Located, Payload},
    session::{ChildSpec, Class, WorkspaceAddress},
    telemetry::ProblemKind,
};

/// Calls a tool below `/mcpo/`, with all servers, or at the root, for compatibility with mcpo.
pub async fn call(
    inbound: &Inbound<'_>,
    body: &mut Body,
    mount: Mount,
    server: &str,
    tool: &str,
) -> Response {
    let core = inbound.core;
    // A single server's tools are at the root, and their names may contain slashes.
    let of_single = || {
        let single = core.settings.command_line.server.as_ref()?;
        let known = || core.directory.config().servers.contains_key(server);
        let is_tool = mount == Mount::Root && !known();
        is_tool.then(|| (single.name.to_string(), format!("{server}/{tool}")))
    };
    let named = with_slashes(&core.directory, server, tool).or_else(of_single);
    let tool = named
        .as_ref()
        .map_or((server, tool), |(server, tool)| (server, tool));
    let answered = answer(inbound, body, tool).await;
    let mut response = answered.unwrap_or_else(Exit::into_response);
    if response.extensions().get::<ProblemKind>().is_some() {
        response.extensions_mut().insert(Audited);
    }
    response
}

async fn answer(
    inbound: &Inbound<'_>,
    body: &mut Body,
    tool: (&str, &str),
) -> Result<Response, Exit<Problem>> {
    let (core, headers) = (inbound.core, &inbound.parts.headers);
    let caller = inbound.caller().await.map_err(Problem::from);
    let caller = &caller.inspect_err(|problem| {
        let nobody = Caller::nobody(inbound.peer.ip());
        refused(&core.directory, &nobody, tool, problem.kind());
    })?;
    let refused = |problem: &Problem| refused(&core.directory, caller, tool, problem.kind());
    // Nothing is read or written for a caller without access to such a tool.
    let locate = || async { locate(core, tool, caller).await.inspect_err(refused) };
    let located = locate().await?;
    let (mut whole, mut kept, mut spooled) = (None, None, None);
    if is_multipart(headers) {
        (kept, spooled) = inbound.keep(body).await?.unzip();
    } else {
        let read = inbound.read(caller, body).await.map_err(Problem::from);
        whole = Some(read.inspect_err(refused)?);
    }
    let kept = kept.or_else(|| whole.clone().map(Payload::Whole));
    let forward = || Some(inbound.forward(caller, kept.clone()?));
    let forwarding = core.replicas.forwarding(caller, forward);
    let found = &forwarding.found(located, locate).await?;
    let prepared = if let Some(body) = &whole {
        prepare(inbound, found, caller, body).await
    } else {
        let body = spooled.as_mut().unwrap_or(body);
        // Boxed, because it is large, and few calls have files.
        Box::pin(prepare_files(inbound, found, caller, body)).await
    };
    let (mut call, files) = prepared.inspect_err(refused)?;
    let child = match &files {
        None => ChildSpec::for_caller(&call.spec, &call.profile, caller),
        Some(_) => None,
    };
    let (replicas, mode, address) = (&core.replicas, call.spec.mode, &call.address);
    let entering = replicas.enter_or_forward(caller, mode, address, child.as_ref(), forward);
    let opened = entering.await?;
    call.opened = Mutex::new(opened);
    if let Some(files) = files {
        let bringing = Box::pin(files.bring(&core.engine, found, &mut call));
        bringing.await.inspect_err(refused)?;
    }
    call.forwarded = core.identity.forwarded(&call.spec, headers, caller);
    Ok(run(&core.engine, call).await)
}

async fn run(engine: &Arc<CallEngine>, call: Box<Call>) -> Response {
    let (spec, session) = (call.spec.clone(), call.address.session.clone());
    let answered = engine.run(call).await.map_err(Problem::from);
    let response = answered.and_then(|answer| call_response(&answer, &spec, &engine.settings));
    let mut response = response.unwrap_or_else(Problem::into_response);
    if let Some(session) = session.filter(|_| spec.mode == Mode::Stateful) {
        // The session for a caller without a chat, also after a failed call.
        add_session(&mut response, &session);
    }
    response
}

/// Prepares a call whose body is its arguments: all checks before it runs.
async fn prepare(
    inbound: &Inbound<'_>,
    found: &Found,
    caller: &Caller,
    body: &Bytes,
) -> Result<Prepared, Problem> {
    let received = Instant::now();
    let parsing = inbound.core.bodies.for_caller(caller).parse(body).await?;
    let arguments = read(body.clone()).await?;
    let arguments = check(found, arguments, received).await?;
    drop(parsing);
    let call = call_of(inbound, found, caller, arguments.kept_with(body), received)?;
    Ok((call, None))
}

/// A call, and its files.
type Prepared = (Box<Call>, Option<WithFiles>);

fn call_of(
    inbound: &Inbound<'_>,
    Found { offer, tool }: &Found,
    caller: &Caller,
    arguments: RawJson,
    received: Instant,
) -> Result<Box<Call>, Problem> {
    let address = WorkspaceAddress::for_caller(caller, &offer.spec);
    let address = address.ok_or(CallError::UnknownSession)?;
    if offer.spec.mode == Mode::Stateful && address.class == Class::OneCall {
        // Without a chat each call has a folder of its own: a setting is missing in Open WebUI.
        inbound.core.note_call_without_chat();
    }
    let (caller, spec) = (caller.clone(), offer.spec.clone());
    let mut call = Call::of_tool(caller, spec, address, tool, arguments, inbound.id);
    call.received = received;
    Ok(call)
}

/// Parses a body as JSON; a large one is parsed on a thread for blocking work.
async fn read(body: Bytes) -> Result<RawJson, Problem> {
    let read = if body.len() <= BRIEF_BYTES {
        bridge_openapi::read_body(body)
    } else {
        let reading = spawn_blocking(|| bridge_openapi::read_body(body)).await;
        reading.map_err(|_| CallError::ShuttingDown)?
    };
    read.map_err(|error| Problem::bad_json(&error))
}

/// The arguments to send; the time of the check counts towards the call's timeout.
async fn check(
    Found { offer, tool }: &Found,
    arguments: RawJson,
    received: Instant,
) -> Result<RawJson, Problem> {
    let time = offer.spec.timeout;
    let checked = offer.check_until(tool, arguments, received + time).await;
    checked.map_err(|error| match error {
        ArgumentsError::Faults(faults) => Problem::bad_arguments(&faults),
        ArgumentsError::Stopped(Stopped::Left) => CallError::Left.into(),
        ArgumentsError::Stopped(Stopped::Work | Stopped::Time) => {
            CallError::Timeout(Waited { time, noise: None }).into()
        }
    })
}

/// A tool that was found by its address.
struct Found {
    offer: Arc<Offer>,
    tool: String,
}

/// The tool, here or, while the server's offer is being read, at a replica that may know it.
async fn locate(
    core: &Core,
    (server, tool): (&str, &str),
    caller: &Caller,
) -> Result<Located<Found>, Problem> {
    let unknown = || NoServer::Unknown(server.to_owned());
    let name = usable(&core.directory, server, caller)?;
    let offer = match core.catalog.offer(&name).await.ok_or_else(unknown)? {
        Knowledge::Ready(offer) => offer,
        Knowledge::Learning => {
            let other = core.replicas.anyone_for(caller);
            let other = other.ok_or_else(|| NoServer::Starting(server.to_owned()))?;
            return Ok(Err(other));
        }
        Knowledge::Failed { why, .. } => {
            return Err(NoServer::Failed(server.to_owned(), why.to_string()).into());
        }
    };
    let tool = offer.name_at(tool).to_owned();
    let offered = offer.tool(&tool);
    if offered.is_some_and(|offered| offered.tool.needs_task()) {
        return Err(Problem::task_only(server, &tool));
    }
    if !offer.may_call(&tool) {
        return Err(Problem::unknown_tool(server, &tool));
    }
    Ok(Ok(Found { offer, tool }))
}

// A multipart tool call: `arguments` is JSON, and each file's part has the name of the argument that
// gets the file's name.

/// The files of a call, and its other arguments.
struct WithFiles {
    arguments: Map<String, Value>,
    files: Vec<Incoming>,
    /// The names of their parts.
    parts: Vec<String>,
    /// The memory for bodies that the arguments use.
    _held: Option<Taken>,
}

/// Prepares a call with files: reads its body, and stores the files next to the workspaces.
async fn prepare_files(
    inbound: &Inbound<'_>,
    found: &Found,
    caller: &Caller,
    body: &mut Body,
) -> Result<Prepared, Problem> {
    let spec = &found.offer.spec;
    if spec.mode == Mode::Shared {
        return Err(Problem::no_folder(spec.name.as_str()));
    }
    let sent = multipart::read(inbound.core, caller, &inbound.parts.headers, body).await?;
    let mut arguments = Map::new();
    for (name, text) in sent.texts {
        if name != "arguments" {
            let why = format!(
                "the part '{name}' is not a file: send all other values in the part 'arguments'"
            );
            return Err(Problem::bad_part(&why));
        }
        let memory = inbound.core.bodies.for_caller(caller);
        let _parsing = memory.parse(text.as_bytes()).await?;
        arguments = serde_json::from_str(&text).map_err(|error| {
            let why = format!("the part 'arguments' is not a JSON object: {error}");
            Problem::bad_part(&why)
        })?;
    }
    let (parts, files) = sent.files.into_iter().unzip();
    let files = WithFiles {
        arguments,
        files,
        parts,
        _held: sent.held,
    };
    let received = Instant::now();
    let arguments = files.arguments(found, &files.expected())?;
    let arguments = check(found, arguments, received).await?;
    let call = call_of(inbound, found, caller, arguments, received)?;
    Ok((call, Some(files)))
}

impl WithFiles {
    /// The names of the files in an empty folder.
    fn expected(&self) -> Vec<String> {
        let mut taken = HashSet::new();
        let names = self.files.iter().map(|file| {
            let free = numbered(&safe_name(&file.name)).find(|name| taken.insert(name.clone()));
            free.unwrap_or_default()
        });
        names.collect()
    }

    /// The arguments with the files' names. A file whose part has no argument's name is not in any of them.
    fn arguments(&self, found: &Found, names: &[String]) -> Result<RawJson, Problem> {
        let mut arguments = self.arguments.clone();
        let tool = found.offer.tool(&found.tool);
        let properties = tool.map(|known| &known.tool.input_schema()["properties"]);
        for (part, name) in self.parts.iter().zip(names) {
            let Some(schema) = properties.and_then(|all| all.get(part)) else {
                continue;
            };
            let name = Value::from(name.as_str());
            match arguments.get_mut(part) {
                Some(Value::Array(names)) => names.push(name),
                Some(_) => {
                    let why = format!("the argument '{part}' is given more than once");
                    return Err(Problem::bad_part(&why));
                }
                None => {
                    let list = schema["type"] == "array";
                    let value = if list { vec![name].into() } else { name };
                    arguments.insert(part.clone(), value);
                }
            }
        }
        RawJson::from_value(&arguments).map_err(|error| Problem::bad_json(&error))
    }

    /// Moves the files into the call's folder. A call with a private folder does this itself.
    async fn bring(
        mut self,
        engine: &Arc<CallEngine>,
        found: &Found,
        call: &mut Call,
    ) -> Result<(), Problem> {
        let files = std::mem::take(&mut self.files);
        if call.spec.mode == Mode::Stateless {
            call.incoming = Mutex::new(files);
            return Ok(());
        }
        let taken = upload::take_in(engine, &call.caller, &call.address, files).await?;
        let names: Vec<_> = taken.into_iter().map(|file| file.name).collect();
        let arguments = self.arguments(found, &names)?;
        let arguments = check(found, arguments, call.received).await?;
        let name = found.tool.as_str().into();
        call.ask = Ask::Tool { name, arguments };
        Ok(())
    }
}

// The OpenAPI answer of a finished call.

/// The answer of a call with files, or with notices for the model.
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

/// Without files and notices the tool's own result, byte by byte; otherwise an object with the result in it.
fn call_response(
    answer: &Answer,
    spec: &ServerSpec,
    settings: &Settings,
) -> Result<Response, Problem> {
    let link = |file: &Artifact| Link::to_artifact(file, settings);
    let files: Vec<Link> = answer.files.files.iter().map(link).collect();
    let archive = answer.files.archive.as_deref().map(link);
    let notice = answer.notice(settings.lang);
    let result = match result_body(&answer.outcome) {
        Ok(result) => result,
        Err(ToolFailure { message }) => {
            let mut problem = Problem::tool_failed(&message);
            // A tool that failed may have made files before, which its user may want.
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
        let message = (!files.is_empty()).then(|| {
            let message = answer.files.message(settings);
            let lines = [Some(message), spec.post_instruction.clone()];
            lines.into_iter().flatten().collect::<Vec<_>>().join("\n")
        });
        RawJson::from_value(&Wrapped {
            result,
            files,
            archive,
            message,
            notice,
        })
        .map_err(|error| Problem::tool_failed(&error.to_string()))?
    };
    let kind = [(header::CONTENT_TYPE, "application/json")];
    Ok((kind, body.into_bytes()).into_response())
}
