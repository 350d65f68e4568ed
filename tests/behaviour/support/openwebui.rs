//! A small Open WebUI that can misbehave: the part of its API that the bridge calls. The real one is
//! tested by `make test-openwebui`.

use std::{
    collections::{HashMap, HashSet},
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex, MutexGuard},
    thread,
    time::Duration,
};

use serde_json::{Value, json};

use super::{Client, TestBridge, until};

/// The bridge's key.
pub const KEY: &str = "the-key";
/// Alice's token.
pub const TOKEN: &str = "eyJ-the-token-of-alice";
/// One of her chats.
pub const CHAT: &str = "6e0d4fc2-3f1c-4a5e-9a4e-5a1b7d0c9f11";

/// Alice in [`CHAT`], with the requests of a connection of auth type session while `message` is
/// generated.
pub fn session(bridge: &TestBridge, message: &str) -> Client {
    let client = bridge.client().bearer(TOKEN).header("X-MCPO-Key", KEY);
    let client = client.in_chat(CHAT);
    client.header("X-OpenWebUI-Message-Id", message)
}

/// How it answers.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Mood {
    /// Like the real one.
    Well,
    /// With this status.
    Status(u16),
    /// With an HTML page instead of the API.
    Page,
    /// Not at all.
    Silent,
}

/// A received request.
#[derive(Clone)]
pub struct Asked {
    pub method: String,
    pub path: String,
    pub head: String,
    pub body: Vec<u8>,
}

#[derive(Default)]
struct State {
    moods: HashMap<&'static str, Mood>,
    users: HashMap<String, Value>,
    /// Keys of programs, which are not signed in.
    keys: HashSet<String>,
    chats: HashMap<String, Value>,
    files: HashMap<String, Vec<u8>>,
    asked: Vec<Asked>,
}

/// Runs until the test's process ends.
pub struct FakeOpenWebUi {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
}

impl FakeOpenWebUi {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("an address");
        let state = Arc::new(Mutex::new(State::default()));
        let shared = state.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = shared.clone();
                thread::spawn(move || serve(stream, &state));
            }
        });
        Self { address, state }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic before")
    }

    /// A user who is signed in with this token.
    pub fn user(&self, token: &str, id: &str, role: &str) {
        let user = json!({
            "id": id, "name": format!("{id}'s name"), "email": format!("{id}@example.com"),
            "role": role, "token": token, "token_type": "Bearer",
        });
        self.state().users.insert(token.to_owned(), user);
    }

    /// A program that acts for a user: an automation, or a client with the user's API key.
    pub fn key(&self, token: &str, id: &str) {
        self.user(token, id, "user");
        self.state().keys.insert(token.to_owned());
    }

    /// Sets how requests are answered whose path contains `part`.
    pub fn mood(&self, part: &'static str, mood: Mood) {
        self.state().moods.insert(part, mood);
    }

    /// A chat whose user messages have these files.
    pub fn chat(&self, id: &str, files: &Value) {
        let message = json!({"id": "m0", "role": "user", "content": "look", "files": files});
        let chat = json!({"id": id, "chat": {"history": {"messages": {"m0": message}}}});
        self.state().chats.insert(id.to_owned(), chat);
    }

    /// A file attached by a user.
    pub fn file(&self, id: &str, bytes: &[u8]) {
        self.state().files.insert(id.to_owned(), bytes.to_vec());
    }

    /// The requests so far whose path contains `part`.
    pub fn asked(&self, part: &str) -> Vec<Asked> {
        let state = self.state();
        let asked = state.asked.iter();
        asked
            .filter(|asked| asked.path.contains(part))
            .cloned()
            .collect()
    }

    /// The bodies of the events so far.
    pub fn events(&self) -> Vec<Value> {
        let asked = self.asked("/event");
        let body = |asked: &Asked| serde_json::from_slice(&asked.body).expect("JSON");
        asked.iter().map(body).collect()
    }
}

fn serve(stream: TcpStream, state: &Mutex<State>) {
    let mut reader = BufReader::new(stream);
    while let Some(asked) = read(&mut reader) {
        let (mood, answer) = {
            let mut state = state.lock().expect("no panic before");
            state.asked.push(asked.clone());
            let mut moods = state.moods.iter();
            let mood = moods.find(|(part, _)| asked.path.contains(**part));
            let mood = mood.map_or(Mood::Well, |(_, mood)| *mood);
            let answer = state.answer(&asked);
            (mood, answer)
        };
        let (status, body) = match mood {
            Mood::Well => answer,
            Mood::Status(status) => (status, b"{\"detail\": \"no\"}".to_vec()),
            Mood::Page => (200, b"<html>sign in here</html>".to_vec()),
            Mood::Silent => {
                // Until the bridge closes the connection.
                let gone = || matches!(reader.get_ref().peek(&mut [0]), Ok(0)).then_some(());
                until(Duration::from_mins(1), gone);
                return;
            }
        };
        let head = format!(
            "HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        let stream = reader.get_mut();
        if stream
            .write_all(&[head.as_bytes(), &body].concat())
            .is_err()
        {
            return;
        }
    }
}

fn read(reader: &mut BufReader<TcpStream>) -> Option<Asked> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head).ok()? == 0 {
            return None;
        }
    }
    let length = header(&head, "content-length").and_then(|length| length.parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    reader.read_exact(&mut body).ok()?;
    let mut words = head.split(' ');
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    Some(Asked {
        method,
        path,
        head,
        body,
    })
}

fn header<'h>(head: &'h str, name: &str) -> Option<&'h str> {
    let lines = head.lines().filter_map(|line| line.split_once(": "));
    lines
        .filter(|(key, _)| key.eq_ignore_ascii_case(name))
        .map(|(_, value)| value)
        .next()
}

/// Stores the attachments of a message like the real one: new items come first.
fn keep(message: &mut Value, event: &[u8]) {
    let event: Value = serde_json::from_slice(event).unwrap_or_default();
    let key = match event["type"].as_str() {
        Some("files") => "files",
        Some("embeds") => "embeds",
        _ => return,
    };
    let data = &event["data"];
    let mut all = data[key].as_array().cloned().unwrap_or_default();
    if data["replace"] != true {
        all.extend(message[key].as_array().cloned().unwrap_or_default());
    }
    message[key] = all.into();
}

impl State {
    fn answer(&mut self, asked: &Asked) -> (u16, Vec<u8>) {
        let token = header(&asked.head, "authorization").and_then(|value| value.split_once(' '));
        let token = token.map(|(_, token)| token).unwrap_or_default();
        let Some(user) = self.users.get(token) else {
            return (401, b"{\"detail\": \"401 Unauthorized\"}".to_vec());
        };
        let path = asked.path.split('?').next().unwrap_or_default();
        let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        let json = |value: &Value| (200, value.to_string().into_bytes());
        let found = match (asked.method.as_str(), &parts[..]) {
            ("GET", ["api", "v1", "auths"]) if self.keys.contains(token) => Some((
                403,
                b"{\"detail\": \"A human session is required.\"}".to_vec(),
            )),
            ("GET", ["api", "v1", "auths"] | ["api", "v1", "users", "user", "status"]) => {
                Some(json(user))
            }
            ("GET", ["api", "v1", "chats", id]) => self.chats.get(*id).map(json),
            ("GET", ["api", "v1", "files", id, "content"]) => {
                self.files.get(*id).map(|bytes| (200, bytes.clone()))
            }
            ("POST", ["api", "v1", "files"]) => {
                let id = format!("uploaded-{}", self.files.len());
                self.files.insert(id.clone(), asked.body.clone());
                Some(json(&json!({"id": id, "filename": "x"})))
            }
            ("POST", ["api", "v1", "chats", chat, "messages", message, "event"]) => {
                if let Some(chat) = self.chats.get_mut(*chat) {
                    keep(
                        &mut chat["chat"]["history"]["messages"][*message],
                        &asked.body,
                    );
                }
                Some(json(&json!(true)))
            }
            _ => None,
        };
        found.unwrap_or((404, b"{\"detail\": \"Not found\"}".to_vec()))
    }
}
