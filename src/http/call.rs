//! `POST /mcpo/{server}/{tool}`: the OpenAPI door to a tool.

use std::{net::SocketAddr, sync::Arc};

use axum::{
    body::Body,
    extract::{ConnectInfo, Path, Request, State},
    response::{IntoResponse as _, Response},
};

use super::{Problem, answer, routes::RESERVED};
use crate::{
    app::App,
    call::Call,
    catalog::{Knowledge, Offer},
    config::{Mode, ServerSpec},
    model::{Caller, Principal},
    openapi::{self, path_segment},
    telemetry::RequestId,
};

/// Under `/mcpo/`, where every server is.
pub async fn below_mcpo(
    State(app): State<Arc<App>>,
    Path((server, tool)): Path<(String, String)>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    request: Request,
) -> Response {
    call(&app, &server, &tool, peer, request)
        .await
        .unwrap_or_else(Problem::into_response)
}

/// At the root, where mcpo's users expect servers.
pub async fn at_root(
    state: State<Arc<App>>,
    Path((server, tool)): Path<(String, String)>,
    peer: ConnectInfo<SocketAddr>,
    request: Request,
) -> Response {
    if RESERVED.contains(&server.as_str()) {
        return Problem::not_found().into_response();
    }
    below_mcpo(state, Path((server, tool)), peer, request).await
}

async fn call(
    app: &Arc<App>,
    server: &str,
    tool: &str,
    peer: SocketAddr,
    request: Request,
) -> Result<Response, Problem> {
    let (parts, body) = request.into_parts();
    let caller = app
        .identity
        .authenticate(&parts.headers, peer.ip())
        .map_err(Problem::from);
    let caller = caller.inspect_err(|problem| {
        let nobody = Principal::Anonymous;
        App::audit_refusal(peer.ip(), &nobody, server, tool, problem.kind());
    })?;
    let principal = caller.principal.clone();
    let request_id = parts.extensions.get::<RequestId>().map(ToString::to_string);
    let prepared = prepare(app, server, tool, caller, body, request_id).await;
    let (call, spec) = prepared.inspect_err(|problem| {
        // What runs leaves its own line.
        App::audit_refusal(peer.ip(), &principal, server, tool, problem.kind());
    })?;
    let answer = app.engine.run(call).await.map_err(Problem::from)?;
    answer::response(&answer, &spec, &app.settings)
}

/// Everything that can be wrong with a call before it runs.
async fn prepare(
    app: &Arc<App>,
    server: &str,
    tool: &str,
    caller: Caller,
    body: Body,
    request_id: Option<String>,
) -> Result<(Call, Arc<ServerSpec>), Problem> {
    let offer = offer(app, server).await?;
    let offered = offer
        .tool(tool)
        .ok_or_else(|| Problem::unknown_tool(server, tool))?;
    let arguments = read(body, app.settings.listen.max_body_bytes).await?;
    let checked = offered.rules().check(&arguments);
    let arguments = checked.map_err(|faults| Problem::bad_arguments(&faults))?;
    note_missing_chat(app, &offer, &caller);
    let call = Call {
        caller,
        spec: offer.spec.clone(),
        tool: tool.into(),
        arguments,
        request_id: request_id.unwrap_or_default().into(),
    };
    Ok((call, offer.spec.clone()))
}

async fn offer(app: &App, server: &str) -> Result<Arc<Offer>, Problem> {
    let unknown = || Problem::unknown_server(server);
    let name = server.parse().map_err(|_| unknown())?;
    match app.catalog.offer(&name).await.ok_or_else(unknown)? {
        Knowledge::Ready(offer) => Ok(offer),
        Knowledge::Learning => Err(Problem::not_ready(server)),
        Knowledge::Failed { why, .. } => Err(Problem::failed(server, &why)),
    }
}

async fn read(body: Body, limit: u64) -> Result<crate::model::RawJson, Problem> {
    let most = usize::try_from(limit).unwrap_or(usize::MAX);
    let bytes = axum::body::to_bytes(body, most).await;
    let bytes = bytes.map_err(|_| Problem::too_large(limit))?;
    openapi::read_body(bytes).map_err(|error| Problem::bad_json(&error))
}

/// Without a chat every call is a stranger's: somebody forgot a setting in Open WebUI.
fn note_missing_chat(app: &App, offer: &Offer, caller: &Caller) {
    if offer.spec.mode == Mode::Stateful && caller.chat.is_none() && caller.session.is_none() {
        app.note_call_without_chat();
    }
}

/// The address of a server's operations, as its document names it.
pub fn server_url(prefix: &str, below_mcpo: bool, server: &str) -> String {
    let mcpo = if below_mcpo { "/mcpo" } else { "" };
    format!("{prefix}{mcpo}/{}", path_segment(server))
}
