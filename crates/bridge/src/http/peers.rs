//! Requests that another replica has sent on: their envelope says who calls, and nobody else's may.

use std::sync::Arc;

use axum::{
    extract::Request,
    http::StatusCode,
    response::{IntoResponse as _, Response},
};
use bridge_model::{Caller, Tenant};

use super::{Problem, body, multipart, spool};
use crate::{
    app::App,
    replicas::{OverChannel, PEER_HEADER, Refused, again},
};

/// Takes the envelope off, and leaves the caller in the request's extensions.
pub async fn admit(app: &App, mut request: Request) -> Result<Request, Response> {
    let mut sent = request.headers().get_all(&PEER_HEADER).iter();
    let (first, second) = (sent.next().cloned(), sent.next().is_some());
    let Some(value) = first else {
        return Ok(request);
    };
    request.headers_mut().remove(&PEER_HEADER);
    let proven = request.extensions().get::<OverChannel>().is_some();
    if second || !proven {
        return Err(refuse());
    }
    match app.replicas.read(&value) {
        Ok(caller) => unpack(app, caller, request).await,
        Err(Refused::Misdirected) => Err(again()),
        Err(Refused::Broken) => Err(refuse()),
    }
}

async fn unpack(app: &App, caller: Caller, request: Request) -> Result<Request, Response> {
    let (mut parts, body) = request.into_parts();
    let body = if multipart::is_multipart(&parts.headers) {
        spool::spool(app, body)
            .await
            .map_err(Problem::into_response)?
    } else {
        let body = body::whole(
            app.bodies.of(Tenant::of(&caller)),
            body,
            app.settings.listen.max_body_bytes,
        )
        .await;
        let body = body.map_err(|unread| Problem::from(unread).into_response())?;
        body.into()
    };
    parts.extensions.insert(Arc::new(caller));
    let bytes = body.body();
    let bytes = bytes.map_err(|error| multipart::unwritten(error).into_response())?;
    parts.extensions.insert(body);
    Ok(Request::from_parts(parts, bytes))
}

fn refuse() -> Response {
    let text = format!(
        "the {PEER_HEADER} header is for the bridges of this service alone, within the encrypted \
         connections between them: a bridge of an older version that sends it has to be updated"
    );
    Problem::new(StatusCode::FORBIDDEN, "forged_peer", text.into()).into_response()
}
