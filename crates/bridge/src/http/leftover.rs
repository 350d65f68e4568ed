//! What nobody read of a request's body.
//!
//! A refusal often comes before the body was read. Then the server ends a kept connection without a
//! word, and the client's next request there is lost. So a short rest is read here; where it is
//! long, or the client waits to be asked for it, the answer says that the connection ends.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    body::{Body, Bytes, HttpBody, to_bytes},
    extract::Request,
    http::{HeaderMap, HeaderValue, Version, header},
    response::Response,
};
use http_body::{Frame, SizeHint};

/// Bytes of a rest that is read, and how long they may take.
const SHORT: usize = 64 * 1024;
const SOON: Duration = Duration::from_millis(500);

/// The way back for a body that is not read to its end.
pub struct Leftover {
    rest: Rest,
    client: Client,
}

/// What is to be known of who sent a body.
#[derive(Clone, Copy)]
pub struct Client {
    /// It sends its body only where it is asked for (`Expect: 100-continue`).
    asked_for: bool,
    version: Version,
}

#[derive(Clone, Default)]
struct Rest(Arc<Mutex<Option<Body>>>);

impl Rest {
    fn lock(&self) -> MutexGuard<'_, Option<Body>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Leftover {
    /// Watches a request that has a body.
    pub fn watch(request: Request) -> (Request, Option<Self>) {
        if request.body().is_end_stream() {
            return (request, None);
        }
        let leftover = Self {
            rest: Rest::default(),
            client: Client::of(request.headers(), request.version()),
        };
        let back = leftover.rest.clone();
        let request = request.map(|body| Body::new(Lent { body, back }));
        (request, Some(leftover))
    }

    /// To be called once the answer is known.
    pub async fn settle(self, response: &mut Response) {
        let rest = self.rest.lock().take();
        if let Some(rest) = rest {
            self.client.settle(rest, response).await;
        }
    }
}

impl Client {
    /// By its request.
    pub fn of(headers: &HeaderMap, version: Version) -> Self {
        let asked_for = headers.contains_key(header::EXPECT);
        Self { asked_for, version }
    }

    /// Reads what nobody read, or has the answer say that the connection ends.
    pub async fn settle(self, rest: Body, response: &mut Response) {
        let read = !self.asked_for
            && matches!(
                tokio::time::timeout(SOON, to_bytes(rest, SHORT)).await,
                Ok(Ok(_))
            );
        if !read && self.version <= Version::HTTP_11 {
            let close = HeaderValue::from_static("close");
            response.headers_mut().insert(header::CONNECTION, close);
        }
    }
}

/// A body that comes back where it is dropped before its end.
struct Lent {
    body: Body,
    back: Rest,
}

impl HttpBody for Lent {
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

impl Drop for Lent {
    fn drop(&mut self) {
        if !self.body.is_end_stream() {
            let body = std::mem::replace(&mut self.body, Body::empty());
            *self.back.lock() = Some(body);
        }
    }
}
