//! Multipart bodies: files are written to disk as they come, words are kept.

use axum::extract::{
    FromRequest as _, Multipart, Request,
    multipart::{Field, MultipartError, MultipartRejection},
};
use axum::http::{HeaderMap, StatusCode, header};
use tokio::io::AsyncWriteExt as _;

use super::{Problem, body::Unread};
use crate::{
    app::App,
    call::Incoming,
    store::{StagedFile, StoreError},
};

/// A body in parts.
#[derive(Default)]
pub struct Parts {
    /// The parts that are no files: names and texts.
    pub texts: Vec<(String, String)>,
    /// The files, with the names of their parts.
    pub files: Vec<(String, Incoming)>,
}

/// Whether a body comes in parts.
pub fn is_multipart(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE);
    let kind = kind.map_or(&b""[..], axum::http::HeaderValue::as_bytes);
    let start = b"multipart/form-data";
    kind.len() >= start.len() && kind[..start.len()].eq_ignore_ascii_case(start)
}

/// Reads all parts. Each file may have `MCPO_MAX_UPLOAD_BYTES`, all texts together
/// `MCPO_MAX_BODY_BYTES`; there may be as many files as a call may link.
pub async fn read(app: &App, request: Request) -> Result<Parts, Problem> {
    let body = Multipart::from_request(request, &()).await;
    let mut body =
        body.map_err(|error: MultipartRejection| Problem::bad_part(&error.body_text()))?;
    let mut parts = Parts::default();
    let mut room = app.settings.listen.max_body_bytes;
    while let Some(field) = body.next_field().await.map_err(|error| bad(&error))? {
        let name = field.name().unwrap_or_default().to_owned();
        if field.file_name().is_none() {
            let text = text(field, &mut room, app.settings.listen.max_body_bytes).await?;
            parts.texts.push((name, text));
            continue;
        }
        let most = app.settings.files.max_per_call;
        if parts.files.len() >= most {
            return Err(Problem::too_many_files(most));
        }
        parts.files.push((name, file(app, field).await?));
    }
    Ok(parts)
}

async fn text(mut field: Field<'_>, room: &mut u64, limit: u64) -> Result<String, Problem> {
    let mut bytes = Vec::new();
    while let Some(chunk) = field.chunk().await.map_err(|error| bad(&error))? {
        *room = room
            .checked_sub(chunk.len() as u64)
            .ok_or(Unread::TooLarge(limit))?;
        bytes.extend_from_slice(&chunk);
    }
    String::from_utf8(bytes).map_err(|_| Problem::bad_part("a part that is no file is not UTF-8"))
}

async fn file(app: &App, mut field: Field<'_>) -> Result<Incoming, Problem> {
    let name = field.file_name().unwrap_or_default().to_owned();
    let limit = app.settings.files.max_upload_bytes;
    let file = stage(app).await?;
    let mut to = tokio::fs::File::from_std(file.data().map_err(unwritten)?);
    let mut size = 0;
    while let Some(chunk) = field.chunk().await.map_err(|error| bad(&error))? {
        size += chunk.len() as u64;
        if size > limit {
            return Err(Problem::file_too_large(&name, limit));
        }
        to.write_all(&chunk).await.map_err(unwritten)?;
    }
    to.flush().await.map_err(unwritten)?;
    Ok(Incoming { name, file, size })
}

/// Begins a file.
pub async fn stage(app: &App) -> Result<StagedFile, Problem> {
    let store = app.store.clone();
    let staged = tokio::task::spawn_blocking(move || store.stage_file()).await;
    staged.expect("staging does not panic").map_err(full)
}

fn full(error: StoreError) -> Problem {
    crate::call::CallError::from(error).into()
}

/// What came could not be kept.
pub fn unwritten(source: std::io::Error) -> Problem {
    full(StoreError::Io {
        action: "write",
        path: "an upload".into(),
        source,
    })
}

fn bad(error: &MultipartError) -> Problem {
    if error.status() == StatusCode::PAYLOAD_TOO_LARGE {
        return Problem::bad_part("a part's headers are too long");
    }
    Problem::bad_part(&error.body_text())
}
