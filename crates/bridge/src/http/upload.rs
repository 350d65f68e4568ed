//! `POST /files`: uploads files to a chat's folder, before a tool is called with their names.

use std::sync::Arc;

use axum::{
    body::Body,
    extract::Query,
    http::{StatusCode, header},
    response::{IntoResponse as _, Response},
};
use bridge_model::{Caller, Principal};
use bridge_state::{CallEnd, Done};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Problem, add_session, inbound::Inbound, multipart};
use crate::{
    artifacts::mime_type,
    call::{CallEngine, CallError, Incoming},
    config::{Directory, Mode, WorkspaceScope},
    http::Audited,
    identity::{NoServer, usable},
    replicas::Exit,
    session::{SessionError, WorkspaceAddress},
    telemetry::{Action, AuditEvent, AuditFile, audit},
};

/// The query parameters.
#[derive(Deserialize)]
struct UploadQuery {
    /// The server that has a private folder in each chat, if the files are for it.
    server: Option<String>,
}

/// Stores files and answers with their names.
pub async fn post(inbound: &Inbound<'_>, body: &mut Body) -> Result<Response, Problem> {
    let asked = match Query::<UploadQuery>::try_from_uri(&inbound.parts.uri) {
        Ok(Query(asked)) => asked,
        Err(rejection) => return Ok(rejection.into_response()),
    };
    let caller = inbound.caller().await?;
    let taken = upload(inbound, &caller, asked.server.as_deref(), body).await;
    let mut response = taken.unwrap_or_else(|exit| {
        if let Exit::Error(problem) = &exit {
            write_audit(&caller, &[], problem.kind());
        }
        exit.into_response()
    });
    response.extensions_mut().insert(Audited);
    Ok(response)
}

async fn upload(
    inbound: &Inbound<'_>,
    caller: &Caller,
    server: Option<&str>,
    body: &mut Body,
) -> Result<Response, Exit<Problem>> {
    let core = inbound.core;
    // Nothing is written for a caller without a folder.
    if server.is_some() {
        address_of(&core.directory, caller, server)?;
    }
    let (kept, mut spooled) = inbound.keep(body).await?.unzip();
    let body = spooled.as_mut().unwrap_or(body);
    let sent = multipart::read(core, caller, &inbound.parts.headers, body).await?;
    let named = sent.texts.iter().find(|(name, _)| name == "server");
    let named = named.map(|(_, server)| server.as_str());
    let address = address_of(&core.directory, caller, server.or(named))?;
    let files: Vec<_> = sent.files.into_iter().map(|(_, file)| file).collect();
    if files.is_empty() {
        return Err(Problem::bad_part("the request contains no file part").into());
    }
    let forward = || Some(inbound.forward(caller, kept.clone()?));
    let entering =
        core.replicas
            .enter_or_forward::<Problem>(caller, Mode::Stateful, &address, None, forward);
    let _opened = entering.await?;
    let taken = take_in(&core.engine, caller, &address, files).await?;
    let total: u64 = taken.iter().map(|file| file.size).sum();
    core.engine.metrics.uploaded(total);
    write_audit(caller, &taken, "ok");
    let files: Vec<Value> = taken.iter().map(Taken::describe).collect();
    let body = json!({ "files": files }).to_string();
    let kind = [(header::CONTENT_TYPE, "application/json")];
    let mut response = (StatusCode::CREATED, kind, body).into_response();
    if let Some(session) = &address.session {
        add_session(&mut response, session);
    }
    Ok(response)
}

fn address_of(
    directory: &Directory,
    caller: &Caller,
    server: Option<&str>,
) -> Result<WorkspaceAddress, Problem> {
    let config = directory.config();
    let mut own = None;
    if let Some(server) = server.map(str::trim).filter(|server| !server.is_empty()) {
        let name = usable(directory, server, caller)?;
        let spec = config.servers.get(&name);
        let spec = spec.ok_or_else(|| NoServer::Unknown(server.to_owned()))?;
        if spec.mode != Mode::Stateful {
            return Err(Problem::no_folder(server));
        }
        own = (spec.workspace == WorkspaceScope::Own).then(|| spec.name.clone());
    }
    let address = WorkspaceAddress::within(caller, own.as_ref());
    address.ok_or_else(|| Problem::from(CallError::UnknownSession))
}

/// A file that was stored in a folder.
pub struct Taken {
    /// Its name there.
    pub name: String,
    sent_as: String,
    size: u64,
}

impl Taken {
    fn describe(&self) -> Value {
        let mut file = json!({
            "name": self.name, "size": self.size, "mime_type": mime_type(&self.name),
        });
        if self.sent_as != self.name {
            file["sent_as"] = self.sent_as.as_str().into();
        }
        file
    }
}

/// Moves files into the folder of a workspace, and restarts its lifetime.
pub async fn take_in(
    engine: &Arc<CallEngine>,
    caller: &Caller,
    address: &WorkspaceAddress,
    files: Vec<Incoming>,
) -> Result<Vec<Taken>, Problem> {
    let opened = engine.sessions.open(address, &caller.principal, None).await;
    let workspace = opened.map_err(|error: SessionError| CallError::from(error))?;
    let sent: Vec<_> = files
        .iter()
        .map(|file| (file.name.clone(), file.size))
        .collect();
    let taken = engine.take_in(&caller.principal, &workspace, files).await;
    let (store, lease) = (engine.store.clone(), workspace.lease.clone());
    let (bytes, outcome) = (engine.disk.of_folder(lease.job), None);
    let done = Done {
        ended: Some(CallEnd { bytes, outcome }),
        ..Done::default()
    };
    let touch = tokio::task::spawn_blocking(move || store.commit(&lease, done));
    if let Ok(Err(error)) = touch.await {
        tracing::warn!(%error, "the upload was not written to the journal");
    }
    drop(workspace);
    engine.sessions.call_ended(address.key);
    let names = taken?.into_iter().zip(sent);
    let taken = |(name, (sent_as, size))| Taken {
        name,
        sent_as,
        size,
    };
    Ok(names.map(taken).collect())
}

fn write_audit(caller: &Caller, files: &[Taken], outcome: &'static str) {
    let files: Vec<_> = files
        .iter()
        .map(|file| AuditFile {
            name: &file.name,
            size: file.size,
            sha256: None,
        })
        .collect();
    let principal: &Principal = &caller.principal;
    audit(&AuditEvent {
        address: Some(caller.address),
        chat: caller.chat.as_deref(),
        files: &files,
        ..AuditEvent::new(Action::Upload, principal, outcome)
    });
}
