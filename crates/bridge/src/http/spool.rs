//! Bodies that bring files, kept on disk until it is known which replica they are for.

use std::sync::Arc;

use axum::body::{Body, HttpBody as _};
use futures_util::StreamExt as _;
use tokio::io::AsyncWriteExt as _;

use super::{Problem, body::Unread, multipart};
use crate::{
    app::App,
    replicas::{Payload, Spooled},
};

/// Writes a body down, of no more bytes than all that one request may bring.
pub async fn spool(app: &App, body: Body) -> Result<Payload, Problem> {
    let limit = multipart::most(app);
    if body.size_hint().lower() > limit {
        return Err(Problem::files_too_large(limit));
    }
    let file = multipart::stage(app).await?;
    let to = file.data().map_err(multipart::unwritten)?;
    let mut to = tokio::fs::File::from_std(to);
    let (mut chunks, mut size) = (body.into_data_stream(), 0_u64);
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(Unread::of)?;
        size = size.saturating_add(chunk.len() as u64);
        if size > limit {
            return Err(Problem::files_too_large(limit));
        }
        to.write_all(&chunk).await.map_err(multipart::unwritten)?;
    }
    to.flush().await.map_err(multipart::unwritten)?;
    Ok(Payload::Spooled(Arc::new(Spooled::new(file))))
}
