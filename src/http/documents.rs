//! Documents and pages: served from memory, open to everybody unless `--strict-auth`.

use std::{net::SocketAddr, sync::Arc};

use axum::{
    extract::{ConnectInfo, Path, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, header},
    response::{IntoResponse as _, Response},
};
use bytes::Bytes;

use super::{Problem, call::server_url};
use crate::{
    app::App,
    catalog::{Knowledge, Offer},
    config::RESERVED_NAMES,
    openapi::{self, DOCS_CSP, INDEX_CSP, IndexEntry, IndexStatus, path_segment},
};

/// Who asks for a document.
pub struct Reader {
    method: Method,
    headers: HeaderMap,
    peer: SocketAddr,
}

impl axum::extract::FromRequestParts<Arc<App>> for Reader {
    type Rejection = std::convert::Infallible;
    async fn from_request_parts(
        parts: &mut axum::http::request::Parts,
        state: &Arc<App>,
    ) -> Result<Self, Self::Rejection> {
        let peer = ConnectInfo::<SocketAddr>::from_request_parts(parts, state).await;
        // Without an address nobody is trusted.
        let peer = peer.map_or_else(|_| SocketAddr::from(([0, 0, 0, 0], 0)), |peer| peer.0);
        Ok(Self {
            method: parts.method.clone(),
            headers: parts.headers.clone(),
            peer,
        })
    }
}

impl Reader {
    /// Refuses a reader who may not see documents.
    pub async fn admit(&self, app: &App) -> Result<(), Problem> {
        let ip = self.peer.ip();
        app.identity
            .authenticate_document(&self.method, &self.headers, ip)
            .await?;
        Ok(())
    }
}

/// `GET /mcpo/{server}/{leaf}`.
pub async fn below_mcpo(
    State(app): State<Arc<App>>,
    Path((server, leaf)): Path<(String, String)>,
    reader: Reader,
) -> Response {
    leaf_of(&app, &server, &leaf, &reader, true)
        .await
        .unwrap_or_else(Problem::into_response)
}

/// `GET /{server}/{leaf}`.
pub async fn at_root(
    State(app): State<Arc<App>>,
    Path((server, leaf)): Path<(String, String)>,
    reader: Reader,
) -> Response {
    if RESERVED_NAMES.contains(&server.as_str()) {
        return Problem::not_found().into_response();
    }
    leaf_of(&app, &server, &leaf, &reader, false)
        .await
        .unwrap_or_else(Problem::into_response)
}

/// `GET /mcpo/{server}/{secret}/openapi.json`: for who cannot send a key.
pub async fn secret_below_mcpo(
    State(app): State<Arc<App>>,
    Path((server, secret)): Path<(String, String)>,
) -> Response {
    by_secret(&app, &server, &secret, true)
        .await
        .unwrap_or_else(Problem::into_response)
}

/// `GET /{server}/{secret}/openapi.json`.
pub async fn secret_at_root(
    State(app): State<Arc<App>>,
    Path((server, secret)): Path<(String, String)>,
) -> Response {
    if RESERVED_NAMES.contains(&server.as_str()) {
        return Problem::not_found().into_response();
    }
    by_secret(&app, &server, &secret, false)
        .await
        .unwrap_or_else(Problem::into_response)
}

async fn by_secret(
    app: &App,
    server: &str,
    secret: &str,
    below_mcpo: bool,
) -> Result<Response, Problem> {
    if !app.settings.access.keys.opens_documents(secret) {
        return Err(Problem::not_found());
    }
    leaf(app, server, "openapi.json", below_mcpo).await
}

async fn leaf_of(
    app: &App,
    server: &str,
    name: &str,
    reader: &Reader,
    below_mcpo: bool,
) -> Result<Response, Problem> {
    reader.admit(app).await?;
    leaf(app, server, name, below_mcpo).await
}

async fn leaf(app: &App, server: &str, leaf: &str, below_mcpo: bool) -> Result<Response, Problem> {
    let unknown = || Problem::unknown_server(server);
    let name = server.parse().map_err(|_| unknown())?;
    let offer = match app.catalog.offer(&name).await.ok_or_else(unknown)? {
        Knowledge::Ready(offer) => offer,
        Knowledge::Learning => return Err(Problem::not_ready(server)),
        Knowledge::Failed { .. } => {
            // The reason may quote the server's log: it is for the operator, not for everybody.
            return Err(Problem::failed(
                server,
                "it did not start (the log and 'check' say why)",
            ));
        }
    };
    match leaf {
        "openapi.json" => Ok(openapi_json(app, &offer, below_mcpo)),
        "docs" => {
            let assets = if below_mcpo {
                "../../docs/assets"
            } else {
                "../docs/assets"
            };
            Ok(page(
                openapi::docs_page(offer.title(), "openapi.json", assets),
                DOCS_CSP,
            ))
        }
        tool if offer.tool(tool).is_some() => Err(Problem::method_not_allowed()),
        _ => Err(Problem::not_found()),
    }
}

fn openapi_json(app: &App, offer: &Offer, below_mcpo: bool) -> Response {
    let listen = &app.settings.listen;
    let url = server_url(&listen.path_prefix, below_mcpo, offer.spec.name.as_str());
    json(offer.document(&url, !app.settings.access.keys.is_empty()))
}

/// `GET /openapi.json`: names the servers and where their documents are.
pub async fn root(State(app): State<Arc<App>>, reader: Reader) -> Response {
    match reader.admit(&app).await {
        Ok(()) => index_with(&app, |entries| {
            json(openapi::index_document(entries).to_string().into())
        }),
        Err(problem) => problem.into_response(),
    }
}

/// `GET /docs`.
pub async fn index(State(app): State<Arc<App>>, reader: Reader) -> Response {
    match reader.admit(&app).await {
        Ok(()) => index_with(&app, |entries| {
            page(openapi::index_page(entries), INDEX_CSP)
        }),
        Err(problem) => problem.into_response(),
    }
}

fn index_with(app: &App, make: impl FnOnce(&[IndexEntry<'_>]) -> Response) -> Response {
    let config = app.config();
    let known: Vec<_> = config
        .servers
        .keys()
        .map(|name| (name, app.catalog.peek(name).unwrap_or(Knowledge::Learning)))
        .map(|(name, known)| (name, known, format!("mcpo/{}", path_segment(name.as_str()))))
        .collect();
    let entries: Vec<IndexEntry<'_>> = known
        .iter()
        .map(|(name, known, url)| {
            let (title, status) = match known {
                Knowledge::Ready(offer) => (
                    Some(offer.title()),
                    IndexStatus::Ready {
                        tools: offer.tools().len(),
                    },
                ),
                Knowledge::Learning => (None, IndexStatus::Starting),
                Knowledge::Failed { .. } => (
                    None,
                    IndexStatus::Failed {
                        reason: "it did not start; see the log",
                    },
                ),
            };
            IndexEntry {
                name: name.as_str(),
                title,
                status,
                url,
            }
        })
        .collect();
    make(&entries)
}

/// `GET /docs/assets/{file}`: the docs page's scripts and styles, from the binary.
pub async fn asset(Path(file): Path<String>) -> Response {
    let Some((kind, bytes)) = openapi::asset(&file) else {
        return Problem::not_found().into_response();
    };
    let cache = HeaderValue::from_static("public, max-age=86400");
    let kind = HeaderValue::from_str(&kind).unwrap_or(HeaderValue::from_static("text/plain"));
    let headers = [
        (header::CONTENT_TYPE, kind),
        (header::CACHE_CONTROL, cache),
        nosniff(),
    ];
    (headers, bytes.into_owned()).into_response()
}

fn json(body: Bytes) -> Response {
    let kind = HeaderValue::from_static("application/json");
    ([(header::CONTENT_TYPE, kind), nosniff()], body).into_response()
}

fn page(html: String, policy: &'static str) -> Response {
    let kind = HeaderValue::from_static("text/html; charset=utf-8");
    let policy = (
        header::CONTENT_SECURITY_POLICY,
        HeaderValue::from_static(policy),
    );
    ([(header::CONTENT_TYPE, kind), policy, nosniff()], html).into_response()
}

fn nosniff() -> (HeaderName, HeaderValue) {
    (
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    )
}
