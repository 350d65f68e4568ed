//! What shows in a chat: events of the message that is being answered.

use bridge_model::UserToken;
use reqwest::{
    Method,
    header::{CONTENT_TYPE, HeaderValue},
};
use serde_json::{Value, json};

use super::{Failure, OpenWebUi, SILENCE, read};

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
pub struct Beside {
    /// Its files.
    pub files: Vec<Value>,
    /// Its pages.
    pub pages: Vec<Value>,
}

impl OpenWebUi {
    /// What a message shows already.
    pub async fn beside(
        &self,
        token: &UserToken,
        chat: &str,
        message: &str,
    ) -> Result<Beside, Failure> {
        let chat = self.chat(token, chat).await?;
        let message = &chat["history"]["messages"][message];
        let list = |key: &str| message[key].as_array().cloned().unwrap_or_default();
        Ok(Beside {
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

#[cfg(test)]
mod tests {
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
