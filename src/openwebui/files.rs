//! Files that go to Open WebUI.

use std::{fs::File, time::Duration};

use reqwest::{
    Body, Method,
    multipart::{Form, Part},
};
use serde::Deserialize;
use tokio_util::io::ReaderStream;

use super::{Failure, OpenWebUi, read};
use crate::model::UserToken;

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
}
