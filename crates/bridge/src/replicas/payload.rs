//! The body of a request that may go on: in memory, or on disk where it brings files.

use std::{io, sync::Arc};

use axum::body::Body;
use bridge_state::StagedFile;
use bytes::Bytes;
use tokio_util::io::ReaderStream;

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
pub struct Spooled(StagedFile);

impl Spooled {
    /// All that is in the file.
    pub fn new(file: StagedFile) -> Self {
        Self(file)
    }
}

impl Payload {
    /// From its beginning.
    pub fn body(&self) -> io::Result<Body> {
        Ok(match self {
            Self::Whole(bytes) => Body::from(bytes.clone()),
            Self::Spooled(spooled) => Body::from_stream(spooled.read()?),
        })
    }
}

impl Spooled {
    fn read(&self) -> io::Result<ReaderStream<tokio::fs::File>> {
        let file = tokio::fs::File::from_std(self.0.read()?);
        Ok(ReaderStream::with_capacity(file, CHUNK))
    }
}

impl From<Bytes> for Payload {
    fn from(bytes: Bytes) -> Self {
        Self::Whole(bytes)
    }
}
