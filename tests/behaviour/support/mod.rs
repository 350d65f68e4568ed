//! What the integration tests stand on: a real bridge in folders of its own, a client that speaks
//! like Open WebUI, and a look at `/proc` for what should be gone.
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

/// A config that has just these servers.
pub fn servers<const N: usize>(entries: [(&str, Value); N]) -> Value {
    let entries = entries.map(|(name, entry)| (name.to_owned(), entry));
    json!({ "mcpServers": serde_json::Map::from_iter(entries) })
}

/// A config that has just the well-behaved test server.
pub fn just_echo() -> Value {
    servers([("echo", echo())])
}

/// The result in a call's answer, with or without files or something to say beside it.
pub fn result_of(answer: &Value) -> &Value {
    answer.get("result").unwrap_or(answer)
}

/// The well-behaved test server.
pub fn echo() -> Value {
    json!({ "command": "python3", "args": [fixture("echo_server.py")] })
}

/// The test server that shows and sends bytes as they are.
pub fn bytes() -> Value {
    json!({ "command": "python3", "args": [fixture("bytes_server.py")] })
}

/// The server that asks its user in the middle of a call.
pub fn dialog() -> Value {
    json!({"command": "python3", "args": [fixture("dialog_server.py")]})
}

/// The test server with prompts and resources; `name` is in all that it says, and what `more` of it
/// says the fixture's own text tells.
pub fn library(name: &str, more: &[&str]) -> Value {
    let script = fixture("library_server.py");
    let args = [&[&script, name], more].concat();
    json!({ "command": "python3", "args": args })
}

/// The test server that misbehaves as `mode` says.
pub fn rude(mode: &str) -> Value {
    json!({ "command": "python3", "args": [fixture("rude_server.py"), mode] })
}

/// The test server for how processes are started and ended.
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
