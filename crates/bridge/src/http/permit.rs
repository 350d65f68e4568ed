//! An answer that holds a permit for as long as it is sent.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use axum::body::{Body, Bytes, HttpBody};
use http_body::{Frame, SizeHint};
use tokio::sync::OwnedSemaphorePermit;

/// The body with the permit, which is given back when the body is dropped.
pub fn with_permit(body: Body, permit: OwnedSemaphorePermit) -> Body {
    Body::new(WithPermit {
        body,
        _permit: permit,
    })
}

struct WithPermit {
    body: Body,
    _permit: OwnedSemaphorePermit,
}

impl HttpBody for WithPermit {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
