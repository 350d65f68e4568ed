//! The client of Open WebUI's own API, on behalf of the user whose token a request brought.
//!
//! What it is told and answers is measured for 0.12: `GET /api/v1/auths/` names the user of a token,
//! `POST /api/v1/files/` takes a file, and events of a message show things in the chat.

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
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::{io::AsyncWriteExt as _, time::timeout};
use tokio_util::io::ReaderStream;

use crate::telemetry::Metrics;

const CONNECT: Duration = Duration::from_secs(5);

/// How long Open WebUI may be silent, whatever it is asked.
const SILENCE: Duration = Duration::from_secs(15);

/// Asks Open WebUI. One for the whole bridge.
pub struct OpenWebUi {
    client: Client,
    url: Url,
    users: Users,
    metrics: Arc<Metrics>,
}

impl OpenWebUi {
    /// No connection is made yet.
    pub fn new(url: Url, metrics: Arc<Metrics>) -> Result<Self, reqwest::Error> {
        let client = Outbound::from_environment()
            .builder()
            .user_agent(concat!("mcpo-bridge/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT)
            // A token goes where the operator said, and nowhere else.
            .redirect(Policy::none())
            .build()?;
        Ok(Self {
            client,
            url,
            users: Users::default(),
            metrics,
        })
    }

    /// A path of the API. Parts are encoded, so none of them leads elsewhere.
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

    /// Sends, counts, and gives back only answers that say yes. `what` is a word for metrics.
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

impl std::fmt::Debug for OpenWebUi {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OpenWebUi").finish_non_exhaustive()
    }
}

/// The whole answer, of at most `limit` bytes.
async fn read(mut response: Response, limit: usize) -> Result<Vec<u8>, Failure> {
    let mut body = Vec::new();
    while let Some(chunk) = next(&mut response).await? {
        if body.len() + chunk.len() > limit {
            return Err(Failure::TooLarge(limit as u64));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// The next part of an answer; none at its end.
async fn next(response: &mut Response) -> Result<Option<Bytes>, Failure> {
    let chunk = timeout(SILENCE, response.chunk()).await;
    chunk
        .map_err(|_| Failure::Silent)?
        .map_err(|error| Failure::sending(&error))
}

// What shows in a chat: events of the message that is being answered.

/// Something that the chat shows with a message.
#[derive(Debug, Clone)]
pub enum Event {
    /// New files that Open WebUI has. It keeps them with the message, before what that had.
    Files(Vec<Value>),
    /// All files of the message, for who looks at it now: Open WebUI shows him those of the last event.
    AllFiles(Vec<Value>),
    /// Pages, each in a frame that its script does not leave, and whether they are all of the
    /// message's.
    Pages(Vec<Value>, bool),
    /// A line about what is being done, and whether that is over; it goes then.
    Status(String, bool),
}

impl Event {
    fn body(&self) -> Value {
        match self {
            Self::Files(files) => json!({"type": "files", "data": {"files": files}}),
            Self::AllFiles(files) => {
                json!({"type": "chat:message:files", "data": {"files": files}})
            }
            Self::Pages(pages, all) => {
                let data = json!({"embeds": pages, "replace": all});
                json!({"type": "embeds", "data": data})
            }
            Self::Status(line, over) => {
                let data = json!({"description": line, "done": over, "hidden": over});
                json!({"type": "status", "data": data})
            }
        }
    }
}

/// Whether an id is one that Open WebUI gives: temporary chats have the client's own words.
fn is_kept(id: &str) -> bool {
    let good = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
    (1..=128).contains(&id.len()) && id.chars().all(good)
}

/// A file that a user attached in a chat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attachment {
    /// Open WebUI's id of it.
    pub id: String,
    /// As the user calls it.
    pub name: String,
}

/// A chat of thousands of messages.
const LONGEST_CHAT: usize = 64 * 1024 * 1024;

/// What a message shows beside its text, newest first.
#[derive(Debug, Default)]
pub struct MessageAttachments {
    /// Its files.
    pub files: Vec<Value>,
    /// Its pages.
    pub pages: Vec<Value>,
}

impl OpenWebUi {
    /// What a message shows already.
    pub async fn message_attachments(
        &self,
        token: &UserToken,
        chat: &str,
        message: &str,
    ) -> Result<MessageAttachments, Failure> {
        let chat = self.chat(token, chat).await?;
        let message = &chat["history"]["messages"][message];
        let list = |key: &str| message[key].as_array().cloned().unwrap_or_default();
        Ok(MessageAttachments {
            files: list("files"),
            pages: list("embeds"),
        })
    }

    /// The files that the user's messages of a chat carry, each once.
    pub async fn attachments(
        &self,
        token: &UserToken,
        chat: &str,
    ) -> Result<Vec<Attachment>, Failure> {
        Ok(attachments(&self.chat(token, chat).await?))
    }

    async fn chat(&self, token: &UserToken, chat: &str) -> Result<Value, Failure> {
        let url = self.at(&["api", "v1", "chats", chat]);
        let request = self.ask(Method::GET, url, token)?;
        let response = self.send("chat", request, SILENCE).await?;
        let body = read(response, LONGEST_CHAT).await?;
        let mut chat: Value = serde_json::from_slice(&body).map_err(|_| Failure::Unreadable)?;
        Ok(chat["chat"].take())
    }

    /// Whether it has such a chat, as far as the id says.
    pub fn keeps(chat: &str) -> bool {
        is_kept(chat)
    }

    /// Tells the chat. Nothing happens in a chat that Open WebUI does not keep.
    pub async fn tell(
        &self,
        token: &UserToken,
        chat: &str,
        message: &str,
        event: &Event,
    ) -> Result<(), Failure> {
        if !is_kept(chat) || !is_kept(message) {
            return Ok(());
        }
        let path = ["api", "v1", "chats", chat, "messages", message, "event"];
        let request = self.ask(Method::POST, self.at(&path), token)?;
        let kind = HeaderValue::from_static("application/json");
        let request = request.header(CONTENT_TYPE, kind);
        let request = request.body(event.body().to_string());
        self.send("event", request, SILENCE).await.map(drop)
    }
}

/// Of the user's messages, and those that a chat has as a whole. What an assistant's message has came
/// from here, or is a picture of the model's.
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

/// Collections, notes, web pages and pictures within the message are no files.
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

// Why Open WebUI did not do what it was asked. No token and no address is in it.

/// What went wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// No connection, or it broke.
    #[error("Open WebUI cannot be reached: {0}")]
    Unreachable(Box<str>),
    /// No answer in time.
    #[error("Open WebUI does not respond")]
    Silent,
    /// Any status but success.
    #[error("Open WebUI returned {0}")]
    Refused(StatusCode),
    /// Something else than its API answers.
    #[error("Open WebUI returned an unexpected response")]
    Unreadable,
    /// More bytes than are taken.
    #[error("larger than {0} bytes (MCPO_MAX_UPLOAD_BYTES)")]
    TooLarge(u64),
    /// Our own disk.
    #[error("{0}")]
    Disk(Box<str>),
}

impl Failure {
    /// Without the URL, which is the operator's.
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

    /// One word for logs and metrics.
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

    /// Whether it says that the token is not, or no longer, good.
    pub fn is_about_token(&self) -> bool {
        matches!(
            self,
            Self::Refused(StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN)
        )
    }
}

// Files that go to Open WebUI and come from it.

/// Read and sent at a time.
const CHUNK: usize = 128 * 1024;

/// A record of a file.
const LARGEST_LIST: usize = 4 * 1024 * 1024;

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
        let body = read(response, LARGEST_LIST).await?;
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

// Whose a token is. Open WebUI says so; it is asked once for many requests.

/// A token that was taken back is believed no longer than this.
const BELIEVED: Duration = Duration::from_secs(60);

/// A flood of bad tokens asks once for each in this time.
const DISBELIEVED: Duration = Duration::from_secs(10);

/// Tokens that are remembered.
const REMEMBERED: u64 = 10_000;

/// Far more than an account takes.
const LARGEST_USER: usize = 4 * 1024 * 1024;

/// The same bound as for ids in headers.
const LONGEST_ID: usize = 1024;

/// A user as Open WebUI knows him.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// His id.
    pub id: Box<str>,
    /// Beside it.
    pub info: UserInfo,
}

/// What is known of tokens, by their hashes: SHA-256, so that no token lies in memory for long.
struct Users(Cache<[u8; 32], Option<User>>);

impl Default for Users {
    fn default() -> Self {
        let cache = Cache::builder().max_capacity(REMEMBERED);
        Self(cache.expire_after(Belief).build())
    }
}

struct Belief;

impl Expiry<[u8; 32], Option<User>> for Belief {
    fn expire_after_create(
        &self,
        _: &[u8; 32],
        user: &Option<User>,
        _: Instant,
    ) -> Option<Duration> {
        Some(if user.is_some() {
            BELIEVED
        } else {
            DISBELIEVED
        })
    }
}

impl OpenWebUi {
    /// The user of a token; `None` where Open WebUI refuses it. Requests with one token that come
    /// together ask once. That Open WebUI could not be asked is not remembered.
    pub async fn user_of(&self, token: &UserToken) -> Result<Option<User>, Failure> {
        let hash: [u8; 32] = Sha256::digest(token.expose()).into();
        let asked = self.users.0.try_get_with(hash, self.ask_user(token)).await;
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
            // That is for people who are signed in. Tokens of automations and sub-agents, and API
            // keys, learn of whom they are where users set their status.
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
        let body = read(response, LARGEST_USER).await?;
        let account: Account = serde_json::from_slice(&body).map_err(|_| Failure::Unreadable)?;
        let id = account.id;
        if id.trim().is_empty() || id.len() > LONGEST_ID || id.contains(char::is_control) {
            return Err(Failure::Unreadable);
        }
        // Who waits for an administrator's yes may not use anything yet.
        if !matches!(account.role.as_deref(), Some("user" | "admin")) {
            return Ok(None);
        }
        let filled = |text: Option<Box<str>>| text.filter(|text| !text.is_empty());
        let info = UserInfo {
            name: filled(account.name),
            email: filled(account.email),
            role: filled(account.role),
            groups: Vec::new(),
        };
        Ok(Some(User { id, info }))
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
