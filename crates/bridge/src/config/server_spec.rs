//! One server of the file, checked and complete: every default filled in.

use std::{num::NonZeroUsize, time::Duration};

use bridge_model::{Caller, ServerName};
use bridge_process::{CommandSpec, RemoteSpec};
use bridge_protocol::RawJson;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

mod allow;
mod forwarding;
mod version;

pub use allow::{Allow, ServerAccess};
pub use forwarding::HeaderForwarding;
pub use version::{Remembered, SpecVersion};

/// The word on the command line that makes the bridge's own binary this server.
pub const FILES_SERVER: &str = "__files";
/// The program that is the bridge itself.
pub const OWN_PROGRAM: &str = "/proc/self/exe";

/// Routes of ours: a server of such a name has no URL of its own beside them.
pub const RESERVED_NAMES: [&str; 9] = [
    "mcp",
    "mcpo",
    "files",
    "health",
    "metrics",
    "docs",
    "openapi.json",
    "favicon.ico",
    "admin",
];

/// One entry of `mcpServers`. `Debug` shows no value that may be secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerSpec {
    /// The key in `mcpServers`.
    pub name: ServerName,
    /// How to reach it.
    pub transport: Transport,
    /// Who shares a child.
    pub mode: Mode,
    /// Which folder its children work in.
    pub workspace: WorkspaceScope,
    /// A session without calls ends after this; > 0, ≤ 24 h.
    pub idle_timeout: Duration,
    /// A call's deadline, queue and start included; > 0, ≤ 24 h.
    pub timeout: Duration,
    /// Live children of this server for one user and chat; ≥ 1.
    pub max_processes_per_chat: usize,
    /// Calls side by side in one child, where the file says so.
    pub concurrency: Option<NonZeroUsize>,
    /// If set, only these tools are offered.
    pub enabled_tools: Option<Vec<String>>,
    /// Never offered, whatever `enabled_tools` says.
    pub disabled_tools: Vec<String>,
    /// What the server lists depends on the session: lists come from the caller's own child.
    pub session_lists: bool,
    /// Text for the operation descriptions.
    pub usage_guide: Option<String>,
    /// Text appended to an answer that made files.
    pub post_instruction: Option<String>,
    /// What of the files that a call made shows in the chat itself, where the user's token came.
    pub embed: Vec<Embed>,
    /// Result fields that name files.
    pub file_path_fields: Vec<String>,
    /// Argument fields that are made absolute.
    pub resolve_path_fields: Vec<String>,
    /// Argument fields in which a file's name becomes a `file:` URI.
    pub resolve_uri_fields: Vec<String>,
    /// A call that saves work before a session is ended by us.
    pub before_end: Option<BeforeEnd>,
    /// Its packages may be installed ahead, and its program started without its launcher.
    pub install: bool,
    /// How its processes come to be.
    pub launch: Launch,
    /// Processes that may be ready before anybody calls, where the file says so.
    pub pool: Option<usize>,
    /// Headers of a caller's request that the server gets, where the file says so.
    pub forwarding: Option<HeaderForwarding>,
    /// Whom it is there for; everybody, where the file does not say.
    pub allow: Option<Allow>,
    /// What [`Self::version`] found.
    pub remembered: Remembered,
}

impl ServerSpec {
    /// Whether it is the bridge's own, which lists and deletes the files of a chat.
    pub fn is_files_server(&self) -> bool {
        let Transport::Stdio(command) = &self.transport else {
            return false;
        };
        command.program == OWN_PROGRAM && command.args == [FILES_SERVER]
    }

    /// Whether callers may see and call `tool`.
    pub fn offers(&self, tool: &str) -> bool {
        let listed = |list: &[String]| list.iter().any(|name| name == tool);
        let enabled = self.enabled_tools.as_deref().is_none_or(listed);
        enabled && !listed(&self.disabled_tools)
    }

    /// What this caller may do with it.
    pub fn access(&self, caller: &Caller) -> ServerAccess {
        let allow = self.allow.as_ref();
        allow.map_or(ServerAccess::Use, |allow| allow.access(caller))
    }

    /// A hash of everything that shapes a child. A reload keeps the sessions of a server whose
    /// version is the same; it changes with the value of a `${…}` too.
    pub fn version(&self) -> SpecVersion {
        self.remembered.get(|| SpecVersion::of(self))
    }
}

/// How a server is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Transport {
    /// A program that we start.
    Stdio(CommandSpec),
    /// A server somewhere else.
    Remote(RemoteSpec),
}

/// Who shares a running process of the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum Mode {
    /// One process for each user and chat.
    Stateful,
    /// A fresh process and folder for each call.
    Stateless,
    /// One process for everyone: for servers that hold nothing and write nothing.
    Shared,
}

/// A kind of file that a chat can show.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum Embed {
    /// Pictures.
    Image,
    /// Pages, in a sandboxed frame of Open WebUI's.
    Html,
}

/// How a server's processes come to be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum Launch {
    /// By forking where that is known to be as good, else each by itself.
    #[default]
    Auto,
    /// Each by itself.
    Exec,
    /// By forking wherever it can be done.
    Fork,
}

/// Which folder a server's process works in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum WorkspaceScope {
    /// The chat's folder, shared with the chat's other servers.
    #[default]
    Chat,
    /// A folder of its own within the chat.
    Own,
}

/// A tool call that the bridge makes itself before it ends a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BeforeEnd {
    /// The tool's name.
    pub tool: String,
    /// Its arguments: a JSON object.
    pub arguments: RawJson,
}

#[cfg(test)]
mod tests;
