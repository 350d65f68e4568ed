//! Documents and pages: served from memory, open to all callers unless `--strict-auth`.

use std::sync::Arc;

use axum::{
    http::{HeaderName, header},
    response::{IntoResponse as _, Response},
};
use bridge_openapi::{DOCS_CSP, INDEX_CSP, IndexEntry, IndexStatus, path_segment};
use bytes::Bytes;
use tokio::task::spawn_blocking;

use super::route::{Mount, server_url, with_slashes};
use super::{Problem, inbound::Inbound};
use crate::{
    call::CallError,
    catalog::{Knowledge, Offer},
    config::Settings,
    identity::NoServer,
};

/// `GET /mcpo/{server}/{leaf}` and `GET /{server}/{leaf}`; `GET /{leaf}` if a single server is served at the root.
pub async fn of_server(
    inbound: &Inbound<'_>,
    mount: Mount,
    server: &str,
    leaf: &str,
) -> Result<Response, Problem> {
    let (core, leaf) = (inbound.core, leaf.trim_end_matches('/'));
    let named = with_slashes(&core.directory, server, leaf);
    let (server, leaf) = named
        .as_ref()
        .map_or((server, leaf), |(server, leaf)| (server, leaf));
    let keys = &core.settings.access.keys;
    let (leaf, opened) = match leaf.split_once('/') {
        // For clients that cannot send a key: the secret in the path proves that the client has it.
        Some((secret, document @ "openapi.json")) if keys.opens_documents(secret) => {
            (document, true)
        }
        _ => {
            inbound.admit_reader().await?;
            (leaf, false)
        }
    };
    let unknown = || NoServer::Unknown(server.to_owned());
    let config = core.directory.config();
    let spec = config.servers.get(server);
    let spec = spec.filter(|spec| opened || inbound.reader_sees(spec));
    let name = spec.map(|spec| spec.name.clone()).ok_or_else(unknown)?;
    let offer = match core.catalog.offer(&name).await.ok_or_else(unknown)? {
        Knowledge::Ready(offer) => offer,
        Knowledge::Learning => return Err(NoServer::Starting(server.to_owned()).into()),
        Knowledge::Failed { .. } => {
            // The reason may quote the server's log, which is only for operators.
            let why = "it failed to start; see the log or run `mcpo-bridge check`";
            return Err(NoServer::Failed(server.to_owned(), why.to_owned()).into());
        }
    };
    match leaf {
        "openapi.json" => openapi_json(&core.settings, &offer, mount).await,
        "docs" => {
            let listen = &core.settings.listen;
            let outside = format!("{}{}/docs/assets", listen.root_path, listen.path_prefix);
            let assets = match mount {
                // The depth of the page depends on whether its address encodes the slashes.
                _ if named.is_some() => &*outside,
                Mount::Mcpo => "../../docs/assets",
                Mount::Root => "../docs/assets",
                Mount::Single => "docs/assets",
            };
            Ok(page(
                bridge_openapi::docs_page(offer.title(), "openapi.json", assets),
                DOCS_CSP,
            ))
        }
        tool if offer.may_call(offer.name_at(tool)) => Err(Problem::method_not_allowed()),
        _ => Err(Problem::not_found()),
    }
}

async fn openapi_json(
    settings: &Settings,
    offer: &Arc<Offer>,
    mount: Mount,
) -> Result<Response, Problem> {
    let url = server_url(&settings.listen, mount, offer.spec.name.as_str());
    let documents = match mount {
        Mount::Single => settings.documents.clone(),
        // Title, description and version are those of the root's document.
        Mount::Mcpo | Mount::Root => settings.documents.of_server(),
    };
    let secured = !settings.access.keys.is_empty();
    let offer = offer.clone();
    // A document of thousands of tools takes a while to serialize.
    let document = spawn_blocking(move || offer.document(&url, &documents, secured)).await;
    let document = document.map_err(|_| CallError::ShuttingDown)?;
    Ok(json(document))
}

/// `GET /openapi.json` and `GET /docs`: the servers, with links to their documents. A single server has its own there.
pub async fn root(inbound: &Inbound<'_>, file: &str) -> Result<Response, Problem> {
    let core = inbound.core;
    if let Some(single) = &core.settings.command_line.server {
        return of_server(inbound, Mount::Single, single.name.as_str(), file).await;
    }
    inbound.admit_reader().await?;
    let config = core.directory.config();
    let seen = config.servers.iter();
    let seen = seen.filter(|(_, spec)| inbound.reader_sees(spec));
    let known = seen.map(|(name, _)| {
        let url = format!("mcpo/{}", path_segment(name.as_str()));
        (name, core.catalog.peek(name), url)
    });
    let known: Vec<_> = known.collect();
    let entries = known.iter().map(|(name, known, url)| {
        let (title, status) = match known {
            Some(Knowledge::Ready(offer)) => {
                let tools = offer.tools().len();
                (Some(offer.title()), IndexStatus::Ready { tools })
            }
            Some(Knowledge::Failed { .. }) => {
                let reason = "failed to start; see the log or run `mcpo-bridge check`";
                (None, IndexStatus::Failed { reason })
            }
            Some(Knowledge::Learning) | None => (None, IndexStatus::Starting),
        };
        IndexEntry {
            name: name.as_str(),
            title,
            status,
            url,
        }
    });
    let entries: Vec<IndexEntry<'_>> = entries.collect();
    if file == "docs" {
        return Ok(page(bridge_openapi::index_page(&entries), INDEX_CSP));
    }
    let document = bridge_openapi::index_document(&core.settings.documents, &entries);
    Ok(json(document.to_string().into()))
}

/// `GET /docs/assets/{file}`: the scripts and styles of the docs page, from the binary.
pub fn asset(file: &str) -> Result<Response, Problem> {
    let (kind, bytes) = bridge_openapi::asset(file).ok_or_else(Problem::not_found)?;
    let headers = [
        (header::CONTENT_TYPE, &*kind),
        (header::CACHE_CONTROL, "public, max-age=86400"),
        NOSNIFF,
    ];
    Ok((headers, bytes.into_owned()).into_response())
}

fn json(body: Bytes) -> Response {
    let kind = (header::CONTENT_TYPE, "application/json");
    ([kind, NOSNIFF], body).into_response()
}

fn page(html: String, policy: &'static str) -> Response {
    let kind = (header::CONTENT_TYPE, "text/html; charset=utf-8");
    let policy = (header::CONTENT_SECURITY_POLICY, policy);
    ([kind, policy, NOSNIFF], html).into_response()
}

const NOSNIFF: (HeaderName, &str) = (header::X_CONTENT_TYPE_OPTIONS, "nosniff");
