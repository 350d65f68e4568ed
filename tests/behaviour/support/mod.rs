//! The harness of the integration tests: a real bridge in its own folders, a client that sends the
//! requests of Open WebUI, and checks in `/proc` for processes that should have ended.
//!
//! Every test ends with the checks of [`TestBridge`]'s drop: nothing may be left behind.

mod bridge;
mod client;
pub mod far;
mod folders;
mod openwebui;
mod processes;
mod replicas;
mod sse;
pub mod vars;
mod wait;

pub use bridge::{Builder, TestBridge};
pub use client::{Client, PendingCall, Reply};
pub use openwebui::{CHAT, FakeOpenWebUi, KEY, Mood, TOKEN, session};
pub use processes::{Process, alive, is_stopped, kill_process, processes_of};
pub use replicas::Replicas;
pub(crate) use sse::scenarios;
pub use sse::{ALL, LEGACY, MODERN, Mcp, Scope, Stream, accepted, with_envelope};
pub use wait::{LONG, PROMPT, eventually, promptly, until};

use serde_json::{Value, json};

/// A config with only these servers.
pub fn servers<const N: usize>(entries: [(&str, Value); N]) -> Value {
    let entries = entries.map(|(name, entry)| (name.to_owned(), entry));
    json!({ "mcpServers": serde_json::Map::from_iter(entries) })
}

/// A config with only the well-behaved test server.
pub fn just_echo() -> Value {
    servers([("echo", echo())])
}

/// The result in a call's answer, with or without files or notices.
pub fn result_of(answer: &Value) -> &Value {
    answer.get("result").unwrap_or(answer)
}

/// The well-behaved test server.
pub fn echo() -> Value {
    json!({ "command": "python3", "args": [fixture("echo_server.py")] })
}

/// The test server that returns and sends bytes unchanged.
pub fn bytes() -> Value {
    json!({ "command": "python3", "args": [fixture("bytes_server.py")] })
}

/// The server that requests input from its user during a call.
pub fn dialog() -> Value {
    json!({"command": "python3", "args": [fixture("dialog_server.py")]})
}

/// The test server with prompts and resources; `name` is part of all its texts, and the values of
/// `more` are documented in the fixture.
pub fn library(name: &str, more: &[&str]) -> Value {
    let script = fixture("library_server.py");
    let args = [&[&script, name], more].concat();
    json!({ "command": "python3", "args": args })
}

/// The test server that misbehaves according to `mode`.
pub fn rude(mode: &str) -> Value {
    json!({ "command": "python3", "args": [fixture("rude_server.py"), mode] })
}

/// The test server for starts and ends of processes.
pub fn odd(mode: &str) -> Value {
    json!({ "command": "python3", "args": [fixture("odd_server.py"), mode] })
}

/// `entry` with the keys of `more` set or replaced.
pub fn with(mut entry: Value, more: Value) -> Value {
    let (Value::Object(into), Value::Object(more)) = (&mut entry, more) else {
        panic!("both are objects");
    };
    into.extend(more);
    entry
}

/// The path of a file of the repository.
pub fn at_the_root(file: &str) -> String {
    format!("{}/../../{file}", env!("CARGO_MANIFEST_DIR"))
}

/// The path of a file in `tests/fixtures`.
pub fn fixture(name: &str) -> String {
    at_the_root(&format!("tests/fixtures/{name}"))
}
