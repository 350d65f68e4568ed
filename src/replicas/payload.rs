//! The body of a request that may go on: in memory, or on disk where it brings files.

use std::{io, sync::Arc};

use axum::body::Body;
use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use tokio_util::io::ReaderStream;

use crate::{model::hex, store::StagedFile};

/// Read and sent at a time.
const CHUNK: usize = 128 * 1024;

/// A whole body, which can be read more than once.
#[derive(Debug, Clone)]
pub enum Payload {
    /// In memory.
    Whole(Bytes),
    /// On disk.
    Spooled(Arc<Spooled>),
}

/// A body on disk; gone when it is dropped.
#[derive(Debug)]
pub struct Spooled {
    file: StagedFile,
    digest: String,
}

impl Spooled {
    /// `digest` is that of everything in the file.
    pub fn new(file: StagedFile, digest: Sha256) -> Self {
        Self {
            file,
            digest: hex(&digest.finalize()),
        }
    }
}

impl Payload {
    /// SHA-256, lower-case hex.
    pub fn digest(&self) -> String {
        match self {
            Self::Whole(bytes) => hex(&Sha256::digest(bytes)),
            Self::Spooled(spooled) => spooled.digest.clone(),
        }
    }

    /// From its beginning.
    pub fn body(&self) -> io::Result<Body> {
        Ok(match self {
            Self::Whole(bytes) => Body::from(bytes.clone()),
            Self::Spooled(spooled) => Body::from_stream(spooled.read()?),
        })
    }

    pub(super) fn outgoing(&self) -> io::Result<reqwest::Body> {
        Ok(match self {
            Self::Whole(bytes) => bytes.clone().into(),
            Self::Spooled(spooled) => reqwest::Body::wrap_stream(spooled.read()?),
        })
    }
}

impl Spooled {
    fn read(&self) -> io::Result<ReaderStream<tokio::fs::File>> {
        let file = tokio::fs::File::from_std(self.file.read()?);
        Ok(ReaderStream::with_capacity(file, CHUNK))
    }
}

impl From<Bytes> for Payload {
    fn from(bytes: Bytes) -> Self {
        Self::Whole(bytes)
    }
}
