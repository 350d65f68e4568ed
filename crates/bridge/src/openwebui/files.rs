//! Files that go to Open WebUI and come from it.

use std::{fs::File, time::Duration};

use bridge_model::UserToken;
use reqwest::{
    Body, Method,
    multipart::{Form, Part},
};
use serde::Deserialize;
use tokio::io::AsyncWriteExt as _;
use tokio_util::io::ReaderStream;

use super::{Failure, OpenWebUi, SILENCE, next, read};

/// Read and sent at a time.
const CHUNK: usize = 128 * 1024;
/// A record of a file.
const LONGEST: usize = 4 * 1024 * 1024;
/// A whole upload, of whatever size is allowed.
const UPLOAD: Duration = Duration::from_secs(120);

impl OpenWebUi {
    /// Gives a file to the user's own files and returns its id. Its text is not looked into.
    pub async fn upload(
        &self,
        token: &UserToken,
        name: &str,
        mime_type: &str,
        data: File,
        size: u64,
    ) -> Result<Box<str>, Failure> {
        #[derive(Deserialize)]
        struct Stored {
            id: Box<str>,
        }
        let stream = ReaderStream::with_capacity(tokio::fs::File::from_std(data), CHUNK);
        let part = Part::stream_with_length(Body::wrap_stream(stream), size);
        let part = part.file_name(name.to_owned());
        let part = part.mime_str(mime_type).map_err(|_| Failure::Unreadable)?;
        // Names go as browsers send them: as they are, in UTF-8.
        let form = Form::new().percent_encode_noop().part("file", part);
        let mut url = self.at(&["api", "v1", "files", ""]);
        url.set_query(Some("process=false"));
        let request = self.ask(Method::POST, url, token)?.multipart(form);
        let response = self.send("upload", request, UPLOAD).await?;
        let body = read(response, LONGEST).await?;
        let stored: Stored = serde_json::from_slice(&body).map_err(|_| Failure::Unreadable)?;
        Ok(stored.id)
    }

    /// Writes a file of the user's into `to` and returns its size. What is larger than `limit` is
    /// given up.
    pub async fn download(
        &self,
        token: &UserToken,
        id: &str,
        to: File,
        limit: u64,
    ) -> Result<u64, Failure> {
        let url = self.at(&["api", "v1", "files", id, "content"]);
        let request = self.ask(Method::GET, url, token)?;
        let mut response = self.send("download", request, SILENCE).await?;
        if response.content_length().is_some_and(|size| size > limit) {
            return Err(Failure::TooLarge(limit));
        }
        let mut to = tokio::fs::File::from_std(to);
        let mut size = 0;
        while let Some(chunk) = next(&mut response).await? {
            size += chunk.len() as u64;
            if size > limit {
                return Err(Failure::TooLarge(limit));
            }
            to.write_all(&chunk).await.map_err(|error| disk(&error))?;
        }
        to.flush().await.map_err(|error| disk(&error))?;
        Ok(size)
    }
}

fn disk(error: &std::io::Error) -> Failure {
    Failure::Disk(error.to_string().into())
}
