//! The settings: typed and complete, made from flags and environment by `SettingsArgs::resolve`.

use std::{num::NonZeroUsize, path::PathBuf, time::Duration};

use axum::http::HeaderName;
use bridge_model::ServerName;
use bridge_openapi::Documents;
use ipnet::IpNet;
use serde::{Serialize, Serializer};
use url::Url;

use super::{BaseUrl, KeyRing, Mode, Secret};

mod args;
mod misspelt;
mod parse;
mod reader;
#[cfg(test)]
mod reference;
mod resolve;
mod table;

pub use args::SettingsArgs;
pub use misspelt::misspelt_variables;

/// Everything that flags and variables say. `Debug` and JSON show no secret.
#[derive(Debug, Clone, Serialize)]
pub struct Settings {
    /// The server file.
    pub config_file: PathBuf,
    /// A change of the server file is taken over by itself.
    pub hot_reload: bool,
    /// What the command line of `serve` says beside the settings.
    pub command_line: CommandLine,
    /// Workspaces, links, leases.
    pub jobs_dir: PathBuf,
    /// Launcher caches (uv, npm) that all children share, and what is installed for them.
    pub tools_dir: PathBuf,
    /// What was installed ahead and is only read.
    pub preinstalled_dir: Option<PathBuf>,
    /// What is locked; need not be there.
    pub lock_file: PathBuf,
    /// Packages of launchers are installed beside the calls.
    pub install: bool,
    /// The mode of servers that name none.
    pub default_mode: Mode,
    /// The language of sentences around links and of pages for browsers.
    pub lang: Lang,
    /// What is written of each call beside the workspace.
    pub journal: Journal,
    /// The HTTP side.
    pub listen: Listen,
    /// What documents say.
    pub documents: Documents,
    /// Who may call, and who is believed.
    pub access: Access,
    /// Open WebUI as a service that we call.
    pub openwebui: OpenWebUiSettings,
    /// Links and workspaces.
    pub files: Files,
    /// Time and load.
    pub limits: Limits,
    /// Children that live on between calls.
    pub stateful: Stateful,
    /// Children that nobody has yet.
    pub pool: Pool,
    /// Several bridges on one jobs folder.
    pub replicas: Replicas,
    /// Where the log goes.
    pub log: Log,
    /// What deserves a line at start and in `/health`, though it is no fault.
    pub warnings: Vec<String>,
}

/// Servers and variables that are given on the command line itself, as mcpo's are.
#[derive(Debug, Clone, Default, Serialize)]
pub struct CommandLine {
    /// The one server that stands in place of the server file.
    pub server: Option<SingleServer>,
    /// Variables for every child, beneath the server's own, and for references in the file.
    pub env: Vec<(String, Secret)>,
}

/// A server without a file. It is served at the root, and by its name like any other.
#[derive(Debug, Clone, Serialize)]
pub struct SingleServer {
    /// The last part of its URLs below `/mcpo` and `/mcp`.
    #[serde(serialize_with = "as_name")]
    pub name: ServerName,
    /// A server file that holds this server alone: arguments and headers may be secrets.
    pub document: Secret,
}

/// A certificate and its key, as files.
#[derive(Debug, Clone, Serialize)]
pub struct Tls {
    /// The chain, the server's own certificate first.
    pub certificate: PathBuf,
    /// The private key.
    pub key: PathBuf,
}

/// The HTTP side.
#[derive(Debug, Clone, Serialize)]
pub struct Listen {
    /// Address or host name to listen on; IPv6 without brackets.
    pub host: String,
    /// TCP port; 0 lets the system choose.
    pub port: u16,
    /// The front of every link.
    pub base_url: BaseUrl,
    /// Empty, or `/x`: in front of every route.
    pub path_prefix: String,
    /// Empty, or `/x`: what a proxy in front takes off.
    pub root_path: String,
    /// HTTPS, where it is set.
    pub tls: Option<Tls>,
    /// Host names and addresses in `Host` and `Origin` that are ours: lower case, no port, IPv6
    /// without brackets. Loopback's names and the base URL's host are among them. `*` is any.
    pub allowed_hosts: Vec<String>,
    /// Origins (`https://chat.example`) whose pages may call us; `*` is any.
    pub cors_allow_origins: Vec<String>,
    /// The largest request body, in bytes.
    pub max_body_bytes: u64,
    /// The most JSON values in one request body.
    pub max_body_values: u64,
    /// What all request bodies may take of the memory while they are read, parsed, checked, and wait.
    pub body_memory_bytes: u64,
    /// Of this, the bodies of one user.
    pub body_memory_per_user_bytes: u64,
    /// Connections; 0 until [`crate::serve`] worked it out.
    pub max_connections: usize,
    /// Requests at the same time that have a file open: downloads and uploads. Worked out likewise.
    pub max_file_requests: usize,
    /// A request's head has to be complete within this.
    #[serde(serialize_with = "as_seconds")]
    pub head_timeout: Duration,
    /// The longest silence in a request's body.
    #[serde(serialize_with = "as_seconds")]
    pub body_timeout: Duration,
    /// A connection without a request is kept this long.
    #[serde(serialize_with = "as_seconds")]
    pub keep_alive: Duration,
}

impl Listen {
    /// The port that the system chose, where it was left to it; links follow, unless they were told
    /// where to go.
    pub fn bound_to(&mut self, port: u16) {
        if self.base_url == BaseUrl::local(self.port, self.tls.is_some()) {
            self.base_url = BaseUrl::local(port, self.tls.is_some());
        }
        self.port = port;
    }

    /// The origins of our own pages: at our port under each name that is ours, where links lead, and
    /// at the web's usual ports of hosts that were named, where something in front of us listens.
    pub fn own_origins(&self) -> Vec<String> {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        let mut own = Vec::from_iter(self.base_url.origin());
        for host in self.allowed_hosts.iter().filter(|host| *host != "*") {
            let shown = if host.contains(':') {
                format!("[{host}]")
            } else {
                host.clone()
            };
            let mut urls = vec![format!("{scheme}://{shown}:{}", self.port)];
            let is_base = self.base_url.host().as_ref() == Some(host);
            if !resolve::is_loopback(host) && !is_base {
                urls.extend([format!("http://{shown}"), format!("https://{shown}")]);
            }
            // Drops the scheme's own port, as browsers do.
            let parsed = urls.iter().filter_map(|url| Url::parse(url).ok());
            own.extend(parsed.map(|url| url.origin().ascii_serialization()));
        }
        own
    }
}

/// `MCPO_STATEFUL_MAX_TOTAL_PROCESSES` where it is not set.
pub const DEFAULT_MAX_TOTAL_PROCESSES: usize = 100;

/// Who may call, and who is believed.
#[derive(Debug, Clone, Serialize)]
pub struct Access {
    /// The API keys; with none, no route asks for one.
    pub keys: KeyRing,
    /// Documents ask for the key too.
    pub strict_auth: bool,
    /// Said explicitly: listen beyond loopback without a key.
    pub allow_unauthenticated: bool,
    /// With it, only signed user tokens are believed.
    pub jwt_secret: Option<Secret>,
    /// Peers whose plain identity headers are believed without a key.
    pub trusted_proxies: Vec<IpNet>,
    /// The names of the identity headers.
    pub headers: IdentityHeaders,
}

/// The names of the headers that say who the user is.
#[derive(Debug, Clone, Serialize)]
pub struct IdentityHeaders {
    /// `X-MCPO-Key`
    #[serde(serialize_with = "as_text")]
    pub key: HeaderName,
    /// `X-OpenWebUI-User-Id`
    #[serde(serialize_with = "as_text")]
    pub user_id: HeaderName,
    /// `X-OpenWebUI-User-Name`, percent-encoded
    #[serde(serialize_with = "as_text")]
    pub user_name: HeaderName,
    /// `X-OpenWebUI-User-Email`
    #[serde(serialize_with = "as_text")]
    pub user_email: HeaderName,
    /// `X-OpenWebUI-User-Role`
    #[serde(serialize_with = "as_text")]
    pub user_role: HeaderName,
    /// `X-OpenWebUI-User-Groups`, a list
    #[serde(serialize_with = "as_text")]
    pub user_groups: HeaderName,
    /// `X-OpenWebUI-User-Jwt`
    #[serde(serialize_with = "as_text")]
    pub user_jwt: HeaderName,
    /// `X-OpenWebUI-Chat-Id`
    #[serde(serialize_with = "as_text")]
    pub chat_id: HeaderName,
    /// `X-OpenWebUI-Message-Id`
    #[serde(serialize_with = "as_text")]
    pub message_id: HeaderName,
}

fn as_name<S: Serializer>(name: &ServerName, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(name.as_str())
}

fn as_text<S: Serializer>(name: &HeaderName, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(name.as_str())
}

/// Open WebUI as a service that we call.
#[derive(Debug, Clone, Serialize)]
pub struct OpenWebUiSettings {
    /// Its address for us; without it no user token is looked at.
    #[serde(serialize_with = "as_url")]
    pub url: Option<Url>,
}

/// Links and workspaces.
#[derive(Debug, Clone, Serialize)]
#[expect(clippy::struct_field_names, reason = "workspaces have files, too")]
pub struct Files {
    /// A link lives this long from its hand-out.
    #[serde(serialize_with = "as_seconds")]
    pub expiry: Duration,
    /// A workspace lives this long past the end of its last call.
    #[serde(serialize_with = "as_seconds")]
    pub retention: Duration,
    /// Files linked from one call; ≥ 1.
    pub max_per_call: usize,
    /// Bytes on disk in one workspace.
    pub max_workspace_bytes: u64,
    /// Bytes on disk of all workspaces and links of one user, where that was said.
    pub max_user_bytes: Option<u64>,
    /// Files and folders in one workspace; ≥ 1.
    pub max_workspace_files: usize,
    /// The built-in server `files` is offered.
    pub server: bool,
    /// The largest file that is taken in, or handed to Open WebUI, in bytes.
    pub max_upload_bytes: u64,
    /// Below this much free disk nothing new is written.
    pub min_free_disk_bytes: u64,
}

/// Time and load.
#[derive(Debug, Clone, Serialize)]
pub struct Limits {
    /// Calls being executed.
    pub max_concurrent: NonZeroUsize,
    /// Of these, calls of one user, where that was said.
    pub max_concurrent_per_user: Option<NonZeroUsize>,
    /// Calls of one user that a server works on side by side.
    pub server_calls_per_user: NonZeroUsize,
    /// Calls that wait for their turn.
    pub max_waiting: NonZeroUsize,
    /// Cold starts at the same time.
    pub max_starts: NonZeroUsize,
    /// A call's deadline where its server names none.
    #[serde(serialize_with = "as_seconds")]
    pub timeout: Duration,
    /// A child's first answer.
    #[serde(serialize_with = "as_seconds")]
    pub start_timeout: Duration,
    /// A call's wait for its turn.
    #[serde(serialize_with = "as_seconds")]
    pub queue_timeout: Duration,
    /// A caller's answer to what a server asks him.
    #[serde(serialize_with = "as_seconds")]
    pub input_timeout: Duration,
    /// From SIGTERM to SIGKILL of a child.
    #[serde(serialize_with = "as_seconds")]
    pub kill_grace: Duration,
    /// What running calls get when the bridge is told to stop.
    #[serde(serialize_with = "as_seconds")]
    pub shutdown_grace: Duration,
    /// One line from a child, in bytes.
    pub max_message_bytes: u64,
}

impl Limits {
    /// [`Self::max_message_bytes`] as a length in memory.
    pub fn max_message(&self) -> usize {
        usize::try_from(self.max_message_bytes).unwrap_or(usize::MAX)
    }
}

/// Children that live on between calls.
#[derive(Debug, Clone, Serialize)]
pub struct Stateful {
    /// If false, stateful servers run stateless.
    pub enabled: bool,
    /// The idle end of servers that name none.
    #[serde(serialize_with = "as_seconds")]
    pub default_idle_timeout: Duration,
    /// For servers that name none.
    pub max_processes_per_chat: NonZeroUsize,
    /// Over this many an idle session ends.
    pub max_total_processes: NonZeroUsize,
    /// Of these, processes of one user, where that was said.
    pub max_processes_per_user: Option<NonZeroUsize>,
    /// Time between two rounds of the collector.
    #[serde(serialize_with = "as_seconds")]
    pub cleanup_interval: Duration,
}

/// Children that are ready before anybody calls.
#[derive(Debug, Clone, Serialize)]
pub struct Pool {
    /// Of all servers; 0 for none.
    pub max: usize,
    /// A server for which nobody came for so long has none.
    #[serde(serialize_with = "as_seconds")]
    pub idle: Duration,
    /// Below this much free memory there are none.
    pub min_free_memory_bytes: u64,
}

/// Several bridges on one jobs folder.
#[derive(Debug, Clone, Serialize)]
pub struct Replicas {
    /// Where the others reach this one, where that was said.
    pub address: Option<PeerAddress>,
    /// What they prove themselves to each other with; else one that lies in the jobs folder.
    pub key: Option<Secret>,
    /// How long one may be silent before others take its chats over.
    #[serde(serialize_with = "as_seconds")]
    pub lease_ttl: Duration,
    /// How long one that stops still takes requests for the others.
    #[serde(serialize_with = "as_seconds")]
    pub drain_delay: Duration,
}

/// A host, as a URL has it but for IPv6's brackets, and perhaps a port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PeerAddress {
    /// Name or address.
    pub host: String,
    /// Else the one that is listened on.
    pub port: Option<u16>,
}

/// Where the log goes.
#[derive(Debug, Clone, Serialize)]
pub struct Log {
    /// The least level that is written.
    pub level: LogLevel,
    /// Also appended here, as JSON.
    pub file: Option<PathBuf>,
    /// What standard output gets.
    pub format: LogFormat,
}

/// Python's level names, which the design uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum LogLevel {
    /// Everything.
    Debug,
    /// What an operator wants to see.
    Info,
    /// What may need a hand.
    Warning,
    /// What failed.
    Error,
    /// What stops the bridge.
    Critical,
}

/// What standard output gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Text on a terminal, JSON otherwise.
    Auto,
    /// One JSON object per line.
    Json,
    /// For people.
    Text,
}

/// The language of what people read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Lang {
    /// English.
    En,
    /// Japanese.
    Ja,
}

/// What `journal.jsonl` keeps of each call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Journal {
    /// Request, response, times, files.
    Full,
    /// Times, files, sizes and outcome.
    Metadata,
    /// Nothing.
    Off,
}

#[expect(clippy::ref_option, reason = "serde hands the field over like this")]
fn as_url<S: Serializer>(url: &Option<Url>, to: S) -> Result<S::Ok, S::Error> {
    url.as_ref().map(Url::as_str).serialize(to)
}

fn as_seconds<S: Serializer>(time: &Duration, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_f64(time.as_secs_f64())
}
