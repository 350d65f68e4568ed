//! What nobody read of a request's body.
//!
//! A refusal often comes before the body was read. Then the server ends a kept connection without a
//! word, and the client's next request there is lost. So a short rest is read here; where it is
//! long, or the client waits to be asked for it, the answer says that the connection ends.

use std::time::Duration;

use axum::{
    body::{Body, to_bytes},
    http::{HeaderMap, HeaderValue, Version, header},
    response::Response,
};

/// Bytes of a rest that is read, and how long they may take.
const SHORT: usize = 64 * 1024;
const SOON: Duration = Duration::from_millis(500);

/// What is to be known of who sent a body.
#[derive(Clone, Copy)]
pub struct Client {
    /// It sends its body only where it is asked for (`Expect: 100-continue`).
    asked_for: bool,
    version: Version,
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
