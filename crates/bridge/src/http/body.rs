//! Bodies that are read completely, up to a limit, within the memory for bodies.

use std::{io, pin::pin};

use axum::{
    BoxError,
    body::{Body, HttpBody},
};
use bytes::Bytes;
use http_body_util::BodyExt as _;

use crate::{
    budget::{MemoryError, SMALL, TenantMemory},
    error_table::{CallerError, ErrorKind},
};

/// The body with a guard, which is dropped together with it.
pub fn guarded<G>(body: Body, guard: G) -> impl HttpBody<Data = Bytes, Error = axum::Error> {
    // Of the adapters that keep frames, size and end, this one takes a closure, which owns the guard.
    body.map_err(move |error| {
        let _held = &guard;
        error
    })
}

/// Why a body was not read.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// It has more bytes than this.
    #[error("the body is larger than {0} bytes (MCPO_MAX_BODY_BYTES)")]
    TooLarge(u64),
    /// It gets no memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// Its sender was silent for too long, or too slow.
    #[error("the body was not received in time (MCPO_BODY_TIMEOUT)")]
    TooSlow,
    /// The error of the connection or of the framing.
    #[error("cannot read the body: {0}")]
    Broken(BoxError),
}

impl BodyError {
    /// From the error of reading it.
    pub fn from_error(error: impl Into<BoxError>) -> Self {
        let error = error.into();
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&*error);
        while let Some(this) = cause {
            let io = this.downcast_ref::<io::Error>();
            if io.is_some_and(|io| io.kind() == io::ErrorKind::TimedOut) {
                return Self::TooSlow;
            }
            cause = this.source();
        }
        Self::Broken(error)
    }
}

impl CallerError for BodyError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::TooLarge(_) => ErrorKind::BODY_TOO_LARGE,
            Self::Memory(error) => error.kind(),
            Self::TooSlow => ErrorKind::SLOW_BODY,
            Self::Broken(_) => ErrorKind::BROKEN_BODY,
        }
    }
}

/// A complete body of at most `limit` bytes. It keeps its share of the memory for bodies as long as any part of
/// it exists.
pub async fn whole<B>(memory: TenantMemory<'_>, body: B, limit: u64) -> Result<Bytes, BodyError>
where
    B: HttpBody<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    let mut body = pin!(body);
    let length = body.size_hint().exact();
    if body.size_hint().lower() > limit {
        return Err(BodyError::TooLarge(limit));
    }
    let (mut share, mut first, mut all) = (memory.begin(length), Bytes::new(), Vec::new());
    while let Some(frame) = body.frame().await {
        let Ok(chunk) = frame.map_err(BodyError::from_error)?.into_data() else {
            continue;
        };
        let before = first.len().max(all.len());
        let size = (before + chunk.len()) as u64;
        if size > limit {
            return Err(BodyError::TooLarge(limit));
        }
        share.grow(size).await?;
        if before == 0 {
            // Most bodies arrive in one chunk, and are not copied.
            first = chunk;
            continue;
        }
        if size > SMALL
            && let Some(length) = length
        {
            let length = usize::try_from(length).unwrap_or(0);
            all.reserve_exact(length.saturating_sub(all.len()));
        }
        all.extend_from_slice(&std::mem::take(&mut first));
        all.extend_from_slice(&chunk);
    }
    let bytes = if all.is_empty() { first } else { all.into() };
    Ok(share.keep(bytes))
}
