//! What shows in a chat: events of the message that is being answered.

use reqwest::{
    Method,
    header::{CONTENT_TYPE, HeaderValue},
};
use serde_json::{Value, json};

use super::{Failure, OpenWebUi, SILENCE};
use crate::model::UserToken;

/// Something that the chat shows with a message.
#[derive(Debug, Clone)]
pub enum Event {
    /// Files that Open WebUI has.
    Files(Vec<Value>),
}

impl Event {
    fn body(&self) -> Value {
        match self {
            Self::Files(files) => json!({"type": "files", "data": {"files": files}}),
        }
    }
}

/// Whether an id is one that Open WebUI gives: temporary chats have the client's own words.
fn is_kept(id: &str) -> bool {
    let good = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
    (1..=128).contains(&id.len()) && id.chars().all(good)
}

impl OpenWebUi {
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
