//! `/files/{token}/{name}`: downloads. The token alone decides what is served.
//!
//! Whatever a tool wrote is a stranger's content under our origin: it is always an attachment,
//! never sniffed, and sandboxed should a browser show it all the same.

mod conditions;
mod headers;
mod page;
mod stream;

use std::sync::Arc;

use axum::{
    body::Body,
    http::{HeaderMap, HeaderValue, Method, StatusCode, header},
    response::Response,
};
use bridge_model::LinkToken;
use bridge_state::{Artifact, BlobId, ChatStore, GoneReason, Link, OpenBlob, StoreError};

use self::{conditions::Selection, page::Problem, stream::stream};

/// The language of pages for browsers that do not ask for one of ours (`MCPO_LANG`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum PageLanguage {
    /// Japanese.
    Japanese,
    /// English.
    #[default]
    English,
}

/// Set as an extension on answers that carry or would carry (HEAD, 304, 416) an artifact, for the
/// audit log.
#[derive(Debug, Clone)]
pub struct Served(pub Arc<Artifact>);

/// The files behind links. Needs no key: the token is the capability.
#[derive(Debug, Clone)]
pub struct Downloads {
    store: Arc<ChatStore>,
    language: PageLanguage,
}

impl Downloads {
    /// Of this jobs folder, with pages in this language for browsers that ask for none.
    pub fn new(store: Arc<ChatStore>, language: PageLanguage) -> Self {
        Self { store, language }
    }

    /// Answers `GET` and `HEAD` of `/files/{token}/{name}`; every other path below `/files` is 404.
    pub async fn answer(&self, path: &str, method: &Method, headers: &HeaderMap) -> Response {
        let Some(token) = token(path) else {
            return page::answer(Problem::NotFound, self.language, headers);
        };
        let (store, method, headers) = (self.store.clone(), method.clone(), headers.clone());
        let found = tokio::task::spawn_blocking(move || match store.link(&token)? {
            Link::Live(artifact, blob) => Answer::live(&store, artifact, &blob, &method, headers),
            Link::Gone(GoneReason::Expired) => Ok(Answer::Problem(Problem::Expired, headers)),
            Link::Gone(GoneReason::Revoked) => Ok(Answer::Problem(Problem::Revoked, headers)),
            Link::Unknown => Ok(Answer::Problem(Problem::NotFound, headers)),
        });
        match found.await {
            Ok(Ok(answer)) => answer.respond(self.language),
            Ok(Err(error)) => failed(&error, self.language),
            Err(error) => failed(&error, self.language),
        }
    }
}

fn failed(error: &dyn std::error::Error, language: PageLanguage) -> Response {
    tracing::error!(%error, "a download failed");
    page::answer(Problem::Unreadable, language, &HeaderMap::new())
}

/// Exactly `/files/{token}/{name}`; the name is for people and may have been mangled on its way.
fn token(path: &str) -> Option<LinkToken> {
    let (token, name) = path.strip_prefix("/files/")?.split_once('/')?;
    let one_name = !name.is_empty() && !name.contains('/');
    one_name.then(|| token.parse().ok())?
}

/// What the disk said.
enum Answer {
    Bytes {
        artifact: Box<Artifact>,
        data: OpenBlob,
        selection: Selection,
    },
    Problem(Problem, HeaderMap),
}

impl Answer {
    fn live(
        store: &ChatStore,
        artifact: Box<Artifact>,
        blob: &BlobId,
        method: &Method,
        headers: HeaderMap,
    ) -> Result<Self, StoreError> {
        let selection = conditions::select(&artifact, method, &headers);
        let range = match &selection {
            Selection::Part(range) => Some(range.clone()),
            _ => None,
        };
        Ok(match store.blobs().get(blob, range)? {
            Some(data) => Self::Bytes {
                artifact,
                data,
                selection,
            },
            // It ended between the two looks.
            None => Self::Problem(Problem::Expired, headers),
        })
    }

    fn respond(self, language: PageLanguage) -> Response {
        match self {
            Self::Problem(problem, headers) => page::answer(problem, language, &headers),
            Self::Bytes {
                artifact,
                data,
                selection,
            } => bytes(*artifact, data, &selection),
        }
    }
}

fn bytes(artifact: Artifact, data: OpenBlob, selection: &Selection) -> Response {
    let mut response = Response::new(Body::empty());
    let headers = response.headers_mut();
    headers::describe(headers, &artifact);
    match selection {
        Selection::Whole => {
            headers.insert(header::CONTENT_LENGTH, artifact.size.into());
            *response.body_mut() = stream(data, artifact.size);
        }
        Selection::Part(range) => {
            let length = range.end() - range.start() + 1;
            headers.insert(header::CONTENT_LENGTH, length.into());
            let range = format!("bytes {}-{}/{}", range.start(), range.end(), artifact.size);
            insert(headers, header::CONTENT_RANGE, &range);
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
            *response.body_mut() = stream(data, length);
        }
        Selection::NotModified => {
            headers.remove(header::CONTENT_TYPE);
            *response.status_mut() = StatusCode::NOT_MODIFIED;
        }
        Selection::OutOfRange => {
            headers.remove(header::CONTENT_DISPOSITION);
            headers.remove(header::CONTENT_TYPE);
            let range = format!("bytes */{}", artifact.size);
            insert(headers, header::CONTENT_RANGE, &range);
            *response.status_mut() = StatusCode::RANGE_NOT_SATISFIABLE;
        }
    }
    response.extensions_mut().insert(Served(Arc::new(artifact)));
    response
}

fn insert(headers: &mut HeaderMap, name: header::HeaderName, value: &str) {
    // Values are built from names that were made safe; what is not all the same is left out.
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

#[cfg(test)]
mod tests;
