//! The client of Open WebUI's own API, on behalf of the user whose token a request carries.
//!
//! Requests and responses are those of 0.12: `GET /api/v1/auths/` returns the user of a token, `POST
//! /api/v1/files/` accepts a file, and events of a message show items in the chat.

use std::{
    fs::File,
    sync::Arc,
    time::{Duration, Instant},
};

use bridge_model::{UserInfo, UserToken};
use bridge_process::remote::Outbound;
use bytes::Bytes;
use moka::{Expiry, future::Cache};
use reqwest::{
    Body, Client, Method, RequestBuilder, Response, StatusCode, Url,
    header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue},
    multipart::{Form, Part},
    redirect::Policy,
};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::{io::AsyncWriteExt as _, time::timeout};
use tokio_util::io::ReaderStream;

use crate::telemetry::Metrics;

const CONNECT: Duration = Duration::from_secs(5);

/// The timeout of a response, and of each part of its body.
const SILENCE: Duration = Duration::from_secs(15);

/// The client, one for the whole bridge.
pub struct OpenWebUi {
    client: Client,
    url: Url,
    /// The users of tokens, by the SHA-256 of the token, so that no token stays in memory.
    users: Cache<[u8; 32], Option<User>>,
    metrics: Arc<Metrics>,
}

impl OpenWebUi {
    /// Makes no connection yet.
    pub fn new(url: Url, metrics: Arc<Metrics>) -> Result<Self, reqwest::Error> {
        let client = Outbound::from_environment()
            .builder()
            .user_agent(concat!("mcpo-bridge/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT)
            // A token is sent only to the configured address.
            .redirect(Policy::none())
            .build()?;
        Ok(Self {
            client,
            url,
            users: Cache::builder()
                .max_capacity(REMEMBERED)
                .expire_after(CacheTime)
                .build(),
            metrics,
        })
    }

    /// The URL of an API path. Segments are encoded, so that none of them changes the path.
    fn at(&self, path: &[&str]) -> Url {
        let mut url = self.url.clone();
        if let Ok(mut parts) = url.path_segments_mut() {
            parts.pop_if_empty().extend(path);
        }
        url
    }

    fn ask(&self, method: Method, url: Url, token: &UserToken) -> Result<RequestBuilder, Failure> {
        let bearer = HeaderValue::try_from(format!("Bearer {}", token.expose()));
        let mut bearer = bearer.map_err(|_| Failure::Refused(StatusCode::UNAUTHORIZED))?;
        bearer.set_sensitive(true);
        let request = self.client.request(method, url);
        Ok(request.header(AUTHORIZATION, bearer))
    }

    /// Sends the request, counts it in the metrics as `what`, and returns only successful responses.
    async fn send(
        &self,
        what: &'static str,
        request: RequestBuilder,
        within: Duration,
    ) -> Result<Response, Failure> {
        let answered = timeout(within, request.send()).await;
        let answered = match answered {
            Ok(Ok(response)) if response.status().is_success() => Ok(response),
            Ok(Ok(response)) => Err(Failure::Refused(response.status())),
            Ok(Err(error)) => Err(Failure::sending(&error)),
            Err(_) => Err(Failure::Silent),
        };
        let outcome = answered.as_ref().map_or_else(Failure::kind, |_| "ok");
        self.metrics.openwebui_asked(what, outcome);
        answered
    }
}

/// Reads the whole response, JSON of at most `limit` bytes.
async fn read<T: DeserializeOwned>(mut response: Response, limit: usize) -> Result<T, Failure> {
    let mut body = Vec::new();
    while let Some(chunk) = next(&mut response).await? {
        if body.len() + chunk.len() > limit {
            return Err(Failure::TooLarge(limit as u64));
        }
        body.extend_from_slice(&chunk);
    }
    serde_json::from_slice(&body).map_err(|_| Failure::Unreadable)
}

/// The next part of a response; `None` at its end.
async fn next(response: &mut Response) -> Result<Option<Bytes>, Failure> {
    let chunk = timeout(SILENCE, response.chunk()).await;
    chunk
        .map_err(|_| Failure::Silent)?
        .map_err(|error| Failure::sending(&error))
}

// Events of the message that is being generated.

/// An event that the chat shows with a message.
#[derive(Debug, Clone)]
pub enum Event {
    /// New files in Open WebUI. It stores them with the message, before its earlier files.
    Files(Vec<Value>),
    /// All files of the message, for browsers that show it now: they show those of the last event
    /// only.
    AllFiles(Vec<Value>),
    /// Pages, each in a sandboxed frame, and whether they are all pages of the message.
    Pages(Vec<Value>, bool),
    /// A status line, and whether the work is finished; the line is then hidden.
    Status(String, bool),
}

impl Event {
    fn body(&self) -> Value {
        let (kind, data) = match self {
            Self::Files(files) => ("files", json!({"files": files})),
            Self::AllFiles(files) => ("chat:message:files", json!({"files": files})),
            Self::Pages(pages, all) => ("embeds", json!({"embeds": pages, "replace": all})),
            Self::Status(line, over) => {
                let data = json!({"description": line, "done": over, "hidden": over});
                ("status", data)
            }
        };
        json!({"type": kind, "data": data})
    }
}

/// Whether Open WebUI may have assigned this id: clients choose those of temporary chats.
fn is_kept(id: &str) -> bool {
    let good = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
    (1..=128).contains(&id.len()) && id.chars().all(good)
}

/// A file that a user attached in a chat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attachment {
    /// Its id in Open WebUI.
    pub id: String,
    /// The file name given by the user.
    pub name: String,
}

/// Maximum size of a chat: enough for thousands of messages.
const LONGEST_CHAT: usize = 64 * 1024 * 1024;

/// The attachments of a message, newest first.
#[derive(Debug, Default)]
pub struct MessageAttachments {
    /// Its files.
    pub files: Vec<Value>,
    /// Its pages.
    pub pages: Vec<Value>,
}

/// A chat stored in Open WebUI, accessed with the rights of its user.
pub struct Chat {
    openwebui: Arc<OpenWebUi>,
    token: UserToken,
    id: Box<str>,
}

impl Chat {
    /// `None` for an id that Open WebUI does not assign, such as that of a temporary chat.
    pub fn new(openwebui: Arc<OpenWebUi>, token: UserToken, id: Box<str>) -> Option<Self> {
        is_kept(&id).then_some(Self {
            openwebui,
            token,
            id,
        })
    }

    /// The attachments of a message.
    pub async fn message_attachments(&self, message: &str) -> Result<MessageAttachments, Failure> {
        let chat = self.content().await?;
        let message = &chat["history"]["messages"][message];
        let list = |key: &str| message[key].as_array().cloned().unwrap_or_default();
        Ok(MessageAttachments {
            files: list("files"),
            pages: list("embeds"),
        })
    }

    /// The files attached to the user's messages, without duplicates.
    pub async fn attachments(&self) -> Result<Vec<Attachment>, Failure> {
        Ok(attachments(&self.content().await?))
    }

    async fn content(&self) -> Result<Value, Failure> {
        let url = self.openwebui.at(&["api", "v1", "chats", &self.id]);
        let response = self.get("chat", url).await?;
        let mut chat: Value = read(response, LONGEST_CHAT).await?;
        Ok(chat["chat"].take())
    }

    async fn get(&self, what: &'static str, url: Url) -> Result<Response, Failure> {
        let request = self.openwebui.ask(Method::GET, url, &self.token)?;
        self.openwebui.send(what, request, SILENCE).await
    }

    /// Sends an event of a message.
    pub async fn tell(&self, message: &str, event: &Event) -> Result<(), Failure> {
        if !is_kept(message) {
            return Ok(());
        }
        let path = ["api", "v1", "chats", &self.id, "messages", message, "event"];
        let url = self.openwebui.at(&path);
        let request = self.openwebui.ask(Method::POST, url, &self.token)?;
        let kind = HeaderValue::from_static("application/json");
        let request = request.header(CONTENT_TYPE, kind);
        let request = request.body(event.body().to_string());
        let sent = self.openwebui.send("event", request, SILENCE).await;
        sent.map(drop)
    }
}

/// The attachments of the user's messages and of the chat as a whole. Files of an assistant's message
/// came from this bridge or were generated by the model.
fn attachments(chat: &Value) -> Vec<Attachment> {
    let messages = chat["history"]["messages"].as_object();
    let messages = messages.into_iter().flat_map(serde_json::Map::values);
    let users = messages.filter(|message| message["role"] == "user");
    let lists = users.map(|message| &message["files"]);
    let items = lists.chain([&chat["files"]]).filter_map(Value::as_array);
    let mut found: Vec<Attachment> = Vec::new();
    for attachment in items.flatten().filter_map(attachment) {
        if !found.iter().any(|known| known.id == attachment.id) {
            found.push(attachment);
        }
    }
    found
}

/// The file of an item. Collections, notes, web pages and inline images are not files.
fn attachment(item: &Value) -> Option<Attachment> {
    let kind = item["type"].as_str().unwrap_or("file");
    if !matches!(kind, "file" | "image") {
        return None;
    }
    let texts = [&item["id"], &item["file"]["id"], &item["url"]];
    let id = texts
        .into_iter()
        .filter_map(Value::as_str)
        .find_map(file_id)?;
    let file = &item["file"];
    let names = [&item["name"], &file["meta"]["name"], &file["filename"]];
    let name = names.into_iter().filter_map(Value::as_str);
    let name = name.map(str::trim).find(|name| !name.is_empty());
    let name = name.unwrap_or(if kind == "image" { "image.png" } else { "file" });
    Some(Attachment {
        id: id.to_owned(),
        name: name.to_owned(),
    })
}

/// The id itself, or the one in `…/files/{id}/content`.
fn file_id(text: &str) -> Option<&str> {
    let id = match text.split_once("/files/") {
        Some((_, rest)) => rest.split('/').next()?,
        None => text,
    };
    is_kept(id).then_some(id)
}

// Errors, without tokens and addresses.

/// Why a request to Open WebUI failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The connection failed or was interrupted.
    #[error("Open WebUI cannot be reached: {0}")]
    Unreachable(Box<str>),
    /// Timeout of the response.
    #[error("Open WebUI does not respond")]
    Silent,
    /// Any status but success.
    #[error("Open WebUI returned {0}")]
    Refused(StatusCode),
    /// The response is not valid in its API.
    #[error("Open WebUI returned an unexpected response")]
    Unreadable,
    /// The response is larger than this limit, in bytes.
    #[error("larger than {0} bytes (MCPO_MAX_UPLOAD_BYTES)")]
    TooLarge(u64),
    /// An error of the bridge's own disk.
    #[error("{0}")]
    Disk(Box<str>),
}

impl Failure {
    /// Removes the URL, which only the administrator may know.
    fn sending(error: &reqwest::Error) -> Self {
        if error.is_timeout() {
            return Self::Silent;
        }
        let mut why: &dyn std::error::Error = error;
        while let Some(source) = why.source() {
            why = source;
        }
        Self::Unreachable(why.to_string().into())
    }

    /// An error of the bridge's own disk.
    pub fn disk(error: impl std::fmt::Display) -> Self {
        Self::Disk(error.to_string().into())
    }

    /// The label for logs and metrics.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Unreachable(_) => "unreachable",
            Self::Silent => "timeout",
            Self::Refused(_) => "refused",
            Self::Unreadable => "unreadable",
            Self::TooLarge(_) => "too_large",
            Self::Disk(_) => "disk",
        }
    }

    /// Whether Open WebUI rejected the token.
    pub fn is_about_token(&self) -> bool {
        matches!(
            self,
            Self::Refused(StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN)
        )
    }
}

// Transfers of files to and from Open WebUI.

/// Bytes read and sent at a time.
const CHUNK: usize = 128 * 1024;

/// Maximum size of a file's record.
const LARGEST_LIST: usize = 4 * 1024 * 1024;

/// Timeout of a whole upload, whatever its size.
const UPLOAD: Duration = Duration::from_secs(120);

impl Chat {
    /// Uploads a file to the user's files and returns its id. Open WebUI does not index its text.
    pub async fn upload(
        &self,
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
        // Names are sent as browsers send them: unescaped, in UTF-8.
        let form = Form::new().percent_encode_noop().part("file", part);
        let mut url = self.openwebui.at(&["api", "v1", "files", ""]);
        url.set_query(Some("process=false"));
        let request = self.openwebui.ask(Method::POST, url, &self.token)?;
        let request = request.multipart(form);
        let response = self.openwebui.send("upload", request, UPLOAD).await?;
        let stored: Stored = read(response, LARGEST_LIST).await?;
        Ok(stored.id)
    }

    /// Writes one of the user's files into `to` and returns its size. A file larger than `limit` is
    /// an error.
    pub async fn download(&self, id: &str, to: File, limit: u64) -> Result<u64, Failure> {
        let url = self.openwebui.at(&["api", "v1", "files", id, "content"]);
        let mut response = self.get("download", url).await?;
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
            to.write_all(&chunk).await.map_err(Failure::disk)?;
        }
        to.flush().await.map_err(Failure::disk)?;
        Ok(size)
    }
}

// The user of a token: one request to Open WebUI serves many calls.

/// A revoked token is accepted for this long at most.
const ACCEPTED_FOR: Duration = Duration::from_secs(60);

/// A rejected token is checked again after this.
const REJECTED_FOR: Duration = Duration::from_secs(10);

/// The capacity of the cache.
const REMEMBERED: u64 = 10_000;

/// Maximum size of an account's record, far above the usual size.
const LARGEST_USER: usize = 4 * 1024 * 1024;

/// The same bound as for ids in headers.
const LONGEST_ID: usize = 1024;

/// A user of Open WebUI.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// The user's id.
    pub id: Box<str>,
    /// Name, email and role.
    pub info: UserInfo,
}

impl User {
    /// `None` for an id that a header could not contain either. Empty details count as absent.
    pub fn new(id: Box<str>, details: [Option<Box<str>>; 3]) -> Option<Self> {
        if id.trim().is_empty() || id.len() > LONGEST_ID || id.contains(char::is_control) {
            return None;
        }
        let [name, email, role] = details.map(|text| text.filter(|text| !text.is_empty()));
        let info = UserInfo {
            name,
            email,
            role,
            groups: Vec::new(),
        };
        Some(Self { id, info })
    }
}

struct CacheTime;

impl Expiry<[u8; 32], Option<User>> for CacheTime {
    fn expire_after_create(
        &self,
        _: &[u8; 32],
        user: &Option<User>,
        _: Instant,
    ) -> Option<Duration> {
        Some(if user.is_some() {
            ACCEPTED_FOR
        } else {
            REJECTED_FOR
        })
    }
}

impl OpenWebUi {
    /// The user of a token; `None` if Open WebUI rejects it. Concurrent requests with one token cause
    /// one request to Open WebUI. Failed requests are not cached.
    pub async fn user_of(&self, token: &UserToken) -> Result<Option<User>, Failure> {
        let hash: [u8; 32] = Sha256::digest(token.expose()).into();
        let asked = self.users.try_get_with(hash, self.ask_user(token)).await;
        asked.map_err(|failure| Failure::clone(&failure))
    }

    async fn ask_user(&self, token: &UserToken) -> Result<Option<User>, Failure> {
        #[derive(Deserialize)]
        struct Account {
            id: Box<str>,
            name: Option<Box<str>>,
            email: Option<Box<str>>,
            role: Option<Box<str>>,
        }
        let ask = async |path: &[&str]| {
            let request = self.ask(Method::GET, self.at(path), token)?;
            self.send("user", request, SILENCE).await
        };
        let asked = match ask(&["api", "v1", "auths", ""]).await {
            // That endpoint is for signed-in users. Tokens of automations and sub-agents, and API
            // keys, get their user from the endpoint for the user's own status.
            Err(Failure::Refused(StatusCode::FORBIDDEN)) => {
                ask(&["api", "v1", "users", "user", "status"]).await
            }
            asked => asked,
        };
        let response = match asked {
            Ok(response) => response,
            Err(failure) if failure.is_about_token() => return Ok(None),
            Err(failure) => return Err(failure),
        };
        let account: Account = read(response, LARGEST_USER).await?;
        let details = [account.name, account.email, account.role];
        let user = User::new(account.id, details).ok_or(Failure::Unreadable)?;
        // Accounts that wait for an administrator's approval may not use anything yet.
        let approved = matches!(user.info.role.as_deref(), Some("user" | "admin"));
        Ok(Some(user).filter(|_| approved))
    }
}

#[cfg(test)]
mod chats_tests {
    use super::*;

    #[test]
    fn each_file_of_the_users_messages_is_found_once() {
        let file =
            |id: &str, name: &str| json!({"type": "file", "id": id, "url": id, "name": name});
        let chat = json!({
            "files": [file("f1", "a.xlsx"), {"type": "collection", "id": "k1", "name": "Handbook"}],
            "history": {"messages": {
                "m1": {"role": "user", "files": [file("f1", "a.xlsx"), file("f2", "b.csv")]},
                "m2": {"role": "assistant", "files": [file("f3", "made.pptx")]},
                "m3": {"role": "user", "files": [
                    {"type": "image", "url": "data:image/png;base64,AAAA"},
                    {"type": "image", "url": "/api/v1/files/f4/content", "name": "photo.jpg"},
                    {"type": "file", "file": {"id": "f5", "filename": "c.docx"}},
                    {"type": "file", "id": "../../x", "name": "bad"},
                ]},
                "m4": {"role": "user", "files": null},
                "m5": {"role": "user"},
            }},
        });
        let found = attachments(&chat);
        let found: Vec<_> = found.iter().map(|file| (&*file.id, &*file.name)).collect();
        let expected = [
            ("f1", "a.xlsx"),
            ("f2", "b.csv"),
            ("f4", "photo.jpg"),
            ("f5", "c.docx"),
        ];
        assert_eq!(found, expected);
        assert_eq!(attachments(&json!("odd")), []);
    }
}
