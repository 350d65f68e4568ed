//! Bodies that are read whole, up to a limit.

use axum::{BoxError, body::HttpBody, http::StatusCode};
use bytes::Bytes;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use serde_json::json;

use super::Problem;
use crate::mcp::RpcError;

/// Why a body was not read.
#[derive(Debug, thiserror::Error)]
pub enum Unread {
    /// It has more bytes than this.
    #[error("the body is larger than {0} bytes (MCPO_MAX_BODY_BYTES)")]
    TooLarge(u64),
    /// What the connection or its framing said.
    #[error("the body could not be read: {0}")]
    Broken(BoxError),
}

impl Unread {
    fn status(&self) -> StatusCode {
        match self {
            Self::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Broken(_) => StatusCode::BAD_REQUEST,
        }
    }

    fn kind(&self) -> &'static str {
        match self {
            Self::TooLarge(_) => "body_too_large",
            Self::Broken(_) => "broken_body",
        }
    }
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
        let text = unread.to_string();
        let detail = match unread {
            Unread::TooLarge(_) => json!({"message": text}),
            Unread::Broken(_) => text.into(),
        };
        Self::new(unread.status(), unread.kind(), detail)
    }
}

impl From<Unread> for RpcError {
    fn from(unread: Unread) -> Self {
        let (status, kind) = (unread.status(), unread.kind());
        Self::new(status, -32600, kind, &unread.to_string())
    }
}
