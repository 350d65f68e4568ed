//! Bodies that bring files, kept on disk until it is known which replica they are for.

use std::sync::Arc;

use axum::{
    body::{Body, HttpBody as _},
    extract::Request,
    http::request::Parts,
    response::Response,
};
use futures_util::StreamExt as _;
use tokio::io::AsyncWriteExt as _;

use super::{Problem, body::Unread, multipart, peers};
use crate::{
    app::App,
    model::Caller,
    replicas::{Payload, Spooled},
};

/// Runs `attempt` with the request, here or where it belongs. Where there are no others, its body is
/// read as it comes; else it is written down first, since it may have to go on.
pub async fn run<F: Future<Output = Result<Response, Problem>>>(
    app: &Arc<App>,
    caller: &Caller,
    request: Request,
    attempt: impl Fn(Request) -> F,
) -> Result<Response, Problem> {
    let (parts, body) = request.into_parts();
    let payload = match parts.extensions.get::<Payload>() {
        // What another replica sent is on disk already.
        Some(payload) => payload.clone(),
        None if app.replicas.is_alone().await => {
            return attempt(Request::from_parts(parts, body)).await;
        }
        None => spool(app, body).await?,
    };
    let id = peers::request_id(&parts.extensions);
    let forward = || peers::forward(app, caller, &parts, &id, payload.clone());
    let again = async || attempt(again(&parts, &payload)?).await;
    app.replicas.run(caller, &forward, again).await
}

fn again(parts: &Parts, payload: &Payload) -> Result<Request, Problem> {
    let body = payload.body().map_err(multipart::unwritten)?;
    Ok(Request::from_parts(parts.clone(), body))
}

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
