//! Bodies that are read whole, up to a limit.

use axum::{BoxError, body::HttpBody, http::StatusCode};
use bytes::Bytes;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};

use super::Problem;
use crate::mcp::RpcError;

/// Why a body was not read.
pub enum Unread {
    /// It has more bytes than this.
    TooLarge(u64),
    /// What the connection or its framing said.
    Broken(BoxError),
}

/// All of a body that has at most `limit` bytes.
pub async fn whole<B>(body: B, limit: u64) -> Result<Bytes, Unread>
where
    B: HttpBody<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    let most = usize::try_from(limit).unwrap_or(usize::MAX);
    match Limited::new(body, most).collect().await {
        Ok(read) => Ok(read.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(Unread::TooLarge(limit)),
        Err(error) => Err(Unread::Broken(error)),
    }
}

impl From<Unread> for Problem {
    fn from(unread: Unread) -> Self {
        match unread {
            Unread::TooLarge(limit) => Self::too_large(limit),
            Unread::Broken(error) => Self::broken_body(&error),
        }
    }
}

impl From<Unread> for RpcError {
    fn from(unread: Unread) -> Self {
        let (status, kind, message) = match unread {
            Unread::TooLarge(limit) => (
                StatusCode::PAYLOAD_TOO_LARGE,
                "body_too_large",
                format!("the body is larger than {limit} bytes (MCPO_MAX_BODY_BYTES)"),
            ),
            Unread::Broken(error) => (
                StatusCode::BAD_REQUEST,
                "broken_body",
                format!("the body could not be read: {error}"),
            ),
        };
        Self::new(status, -32600, kind, &message)
    }
}
