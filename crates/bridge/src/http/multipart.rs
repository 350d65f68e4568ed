//! Multipart bodies: files are written to disk as they come, words are kept.

mod names;
mod reader;

use axum::{
    body::Body,
    http::{HeaderMap, HeaderValue, header},
};
use bridge_model::{Caller, Tenant};
use bridge_state::{StagedFile, StoreError};
use bytes::Bytes;
use tokio::io::AsyncWriteExt as _;

use self::{
    names::Disposition,
    reader::{Head, Reader},
};
use super::{Problem, body::Unread};
use crate::{
    app::App,
    budget::{Share, Taken},
    call::Incoming,
};

/// A body in parts.
#[derive(Default)]
pub struct Parts {
    /// The parts that are no files: names and texts.
    pub texts: Vec<(String, String)>,
    /// The files, with the names of their parts.
    pub files: Vec<(String, Incoming)>,
    /// What the texts take of the memory for bodies.
    pub held: Option<Taken>,
}

/// Whether a body comes in parts.
pub fn is_multipart(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE);
    let kind = kind.map_or(&b""[..], axum::http::HeaderValue::as_bytes);
    let start = b"multipart/form-data";
    kind.len() >= start.len() && kind[..start.len()].eq_ignore_ascii_case(start)
}

/// Parts beside those with files.
const TEXTS: usize = 100;

/// Bytes that all parts of a request may have.
pub fn most(app: &App) -> u64 {
    let (files, listen) = (&app.settings.files, &app.settings.listen);
    let all = files
        .max_upload_bytes
        .saturating_mul(files.max_per_call as u64);
    all.saturating_add(listen.max_body_bytes)
}

/// Reads all parts. Each file may have `MCPO_MAX_UPLOAD_BYTES`, all texts together
/// `MCPO_MAX_BODY_BYTES`; there may be as many files as a call may link.
pub async fn read(
    app: &App,
    caller: &Caller,
    headers: &HeaderMap,
    body: &mut Body,
) -> Result<Parts, Problem> {
    let boundary = boundary(headers)?;
    let mut body = Reader::new(body, &boundary, most(app));
    body.check_length()?;
    let mut parts = Parts::default();
    let mut texts = Texts {
        limit: app.settings.listen.max_body_bytes,
        taken: 0,
        share: app.bodies.of(Tenant::of(caller)).begin(None),
    };
    while let Some(head) = body.next().await? {
        let disposition = Disposition::read(&head.disposition);
        let name = disposition.name;
        let Some(file_name) = disposition.file_name.or_else(|| unnamed(&head, &name)) else {
            if parts.texts.len() >= TEXTS {
                let why = format!("more than {TEXTS} parts are no files");
                return Err(Problem::bad_part(&why));
            }
            let text = text(&mut body, &name, &mut texts).await?;
            parts.texts.push((name, text));
            continue;
        };
        let first = body.chunk().await?;
        if file_name.is_empty() && first.is_none() {
            // What a browser sends for a field in which nobody chose a file.
            continue;
        }
        let most = app.settings.files.max_per_call;
        if parts.files.len() >= most {
            return Err(Problem::too_many_files(most));
        }
        parts
            .files
            .push((name, file(app, &mut body, file_name, first).await?));
    }
    parts.held = texts.share.into_taken();
    Ok(parts)
}

/// What stands between the parts.
fn boundary(headers: &HeaderMap) -> Result<String, Problem> {
    let kind = headers.get(header::CONTENT_TYPE);
    let kind = kind.map_or(&b""[..], HeaderValue::as_bytes);
    let boundary = names::parameter(kind, b"boundary").unwrap_or_default();
    match String::from_utf8(boundary) {
        // RFC 2046 has 70.
        Ok(boundary) if (1..=200).contains(&boundary.len()) => Ok(boundary),
        _ => Err(Problem::bad_part(
            "Content-Type names no boundary between the parts",
        )),
    }
}

/// What a part without a file name is called that is a file all the same, by its type.
fn unnamed(head: &Head, part: &str) -> Option<String> {
    let kind = head.content_type.to_ascii_lowercase();
    let text = kind.is_empty() || kind.starts_with(b"text/");
    let json = kind.starts_with(b"application/json");
    let form = kind.starts_with(b"application/x-www-form-urlencoded");
    let plain = part == "arguments" || part == "server";
    (!text && !json && !form && !plain).then(|| part.to_owned())
}

/// What the parts that are no files take.
struct Texts<'m> {
    limit: u64,
    taken: u64,
    share: Share<'m>,
}

impl Texts<'_> {
    async fn take(&mut self, bytes: u64) -> Result<(), Problem> {
        self.taken = self.taken.saturating_add(bytes);
        if self.taken > self.limit {
            return Err(Unread::TooLarge(self.limit).into());
        }
        Ok(self.share.grow(self.taken).await.map_err(Unread::from)?)
    }
}

async fn text(body: &mut Reader<'_>, name: &str, texts: &mut Texts<'_>) -> Result<String, Problem> {
    let mut bytes = Vec::new();
    texts.take(name.len() as u64).await?;
    while let Some(chunk) = body.chunk().await? {
        texts.take(chunk.len() as u64).await?;
        bytes.extend_from_slice(&chunk);
    }
    String::from_utf8(bytes).map_err(|_| Problem::bad_part("a part that is no file is not UTF-8"))
}

async fn file(
    app: &App,
    body: &mut Reader<'_>,
    name: String,
    mut chunk: Option<Bytes>,
) -> Result<Incoming, Problem> {
    let limit = app.settings.files.max_upload_bytes;
    let file = stage(app).await?;
    let mut to = tokio::fs::File::from_std(file.data().map_err(unwritten)?);
    let mut size = 0;
    while let Some(bytes) = chunk {
        size += bytes.len() as u64;
        if size > limit {
            return Err(Problem::file_too_large(&name, limit));
        }
        to.write_all(&bytes).await.map_err(unwritten)?;
        chunk = body.chunk().await?;
    }
    to.flush().await.map_err(unwritten)?;
    Ok(Incoming { name, file, size })
}

/// Begins a file.
pub async fn stage(app: &App) -> Result<StagedFile, Problem> {
    let store = app.store.clone();
    let staged = tokio::task::spawn_blocking(move || store.blobs().stage()).await;
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
