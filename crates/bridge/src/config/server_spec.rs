//! One server of the server file, validated, with all defaults filled in.

use std::{fmt, num::NonZeroUsize, sync::OnceLock, time::Duration};

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use bridge_model::{Caller, FieldHasher, Principal, ServerName, hex};
use bridge_process::{CommandSpec, RemoteKind, RemoteSpec};
use bridge_protocol::RawJson;
use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The argument with which the bridge's own binary runs as this server.
pub const FILES_SERVER: &str = "__files";

/// The path of the bridge's own program.
pub const OWN_PROGRAM: &str = "/proc/self/exe";

/// Routes of the bridge: a server with such a name has no URL at the root.
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
    /// The transport that reaches it.
    pub transport: Transport,
    /// How its processes are shared.
    pub mode: Mode,
    /// The folder its children work in.
    pub workspace: WorkspaceScope,
    /// A session without calls ends after this time; > 0, ≤ 24 h.
    pub idle_timeout: Duration,
    /// The timeout of a call, including queue and start; > 0, ≤ 24 h.
    pub timeout: Duration,
    /// Maximum number of live children of this server per user and chat; ≥ 1.
    pub max_processes_per_chat: usize,
    /// Maximum number of concurrent calls in one child, if the file sets it.
    pub concurrency: Option<NonZeroUsize>,
    /// If set, only these tools are offered.
    pub enabled_tools: Option<Vec<String>>,
    /// Never offered, regardless of `enabled_tools`.
    pub disabled_tools: Vec<String>,
    /// Whether the server's lists depend on the session: they are then requested from the caller's own child.
    pub session_lists: bool,
    /// Text for the operation descriptions.
    pub usage_guide: Option<String>,
    /// Text appended to a result that has files.
    pub post_instruction: Option<String>,
    /// The kinds of files of a call that are shown in the chat, if the request has the user's token.
    pub embed: Vec<Embed>,
    /// Result fields that name files.
    pub file_path_fields: Vec<String>,
    /// Argument fields that are made absolute.
    pub resolve_path_fields: Vec<String>,
    /// Argument fields in which a file's name becomes a `file:` URI.
    pub resolve_uri_fields: Vec<String>,
    /// A tool call that saves work before the bridge ends a session.
    pub before_end: Option<BeforeEnd>,
    /// Whether its packages may be installed in advance, and its program started without its launcher.
    pub install: bool,
    /// How its processes are started.
    pub launch: Launch,
    /// The maximum number of warm processes, if the file limits it.
    pub pool: Option<usize>,
    /// The headers of a caller's request that are forwarded to the server, if the file enables it.
    pub forwarding: Option<HeaderForwarding>,
    /// Who may use it; `None` for everyone.
    pub allow: Option<Allow>,
    /// The cached result of [`Self::version`].
    pub remembered: Remembered,
}

impl ServerSpec {
    /// Whether it is the built-in server, which lists and deletes the files of a chat.
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

    /// The caller's access to this server.
    pub fn access(&self, caller: &Caller) -> ServerAccess {
        let allow = self.allow.as_ref();
        allow.map_or(ServerAccess::Use, |allow| allow.access(caller))
    }

    /// A hash of everything that determines a child. A reload keeps the sessions of a server whose version is
    /// unchanged; the version also changes with the value of a `${…}`.
    pub fn version(&self) -> SpecVersion {
        self.remembered.get(|| SpecVersion::hash(self))
    }
}

/// How a server is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Transport {
    /// A program that the bridge starts.
    Stdio(CommandSpec),
    /// A remote server.
    Remote(RemoteSpec),
}

/// Who shares a running process of the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum Mode {
    /// One process for each user and chat.
    Stateful,
    /// A new process and folder for each call.
    Stateless,
    /// One process for all users: for servers that keep no state and write no files.
    Shared,
}

impl Mode {
    /// Its name in the server file.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stateful => "stateful",
            Self::Stateless => "stateless",
            Self::Shared => "shared",
        }
    }
}

/// A kind of file that a chat can show.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum Embed {
    /// Images.
    Image,
    /// Pages, in a sandboxed frame of Open WebUI.
    Html,
}

/// How a server's processes are started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum Launch {
    /// By forking if the packages are pinned, else as new processes.
    #[default]
    Auto,
    /// As new processes.
    Exec,
    /// By forking, wherever possible.
    Fork,
}

/// The folder that a server's process works in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum WorkspaceScope {
    /// The chat's folder, shared with the chat's other servers.
    #[default]
    Chat,
    /// A separate folder within the chat.
    Own,
}

/// A tool call that the bridge makes before it ends a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BeforeEnd {
    /// The tool's name.
    pub tool: String,
    /// Its arguments: a JSON object.
    pub arguments: RawJson,
}

// Access to a server.

/// `allow` of a server: a caller in one of the lists may use it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Allow {
    /// Users, by id or email address.
    pub users: Vec<String>,
    /// The same in lower case, because email addresses are compared case-insensitively.
    emails: Vec<String>,
    /// Groups, by name or id.
    pub groups: Vec<String>,
    /// Roles.
    pub roles: Vec<String>,
    keys: Vec<String>,
}

/// A caller's access to a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServerAccess {
    /// Full access.
    Use,
    /// Only reading the server's offer: the caller is trusted and names no user, as Open WebUI does when it
    /// lists the tools.
    Read,
    /// None: the server does not exist for this caller.
    None,
}

impl Allow {
    /// Creates it from the lists of the file. Surrounding white space is ignored.
    pub fn new(users: &[String], groups: &[String], roles: &[String], keys: &[String]) -> Self {
        let names = |list: &[String]| list.iter().map(|text| text.trim().to_owned()).collect();
        Self {
            users: names(users),
            emails: users
                .iter()
                .map(|text| text.trim().to_lowercase())
                .collect(),
            groups: names(groups),
            roles: names(roles),
            keys: names(keys),
        }
    }

    /// The access of this caller.
    pub fn access(&self, caller: &Caller) -> ServerAccess {
        let admitted = match &caller.principal {
            Principal::User(id) => self.has_user(id, caller),
            Principal::Key(name) => has(&self.keys, name),
            Principal::Anonymous => false,
        };
        let names_user = matches!(caller.principal, Principal::User(_));
        match (admitted, caller.trusted && !names_user) {
            (true, _) => ServerAccess::Use,
            (false, true) => ServerAccess::Read,
            (false, false) => ServerAccess::None,
        }
    }

    fn has_user(&self, id: &str, caller: &Caller) -> bool {
        let user = &caller.user;
        let email = user.email.as_deref().map(str::to_lowercase);
        has(&self.users, id)
            || email.is_some_and(|email| self.emails.contains(&email))
            || user.role.iter().any(|role| has(&self.roles, role))
            || user.groups.iter().any(|group| has(&self.groups, group))
    }
}

fn has(names: &[String], wanted: &str) -> bool {
    names.iter().any(|name| name == wanted)
}

// Forwarding of headers from a caller's request to a server.

/// `client_header_forwarding` of a server, if enabled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeaderForwarding {
    allowed: Vec<Pattern>,
    denied: Vec<Pattern>,
}

/// A header name in lower case, or a prefix of header names.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Pattern {
    Exactly(String),
    Beginning(String),
}

/// Headers that identify the user: they are only forwarded if the list contains their full names.
const CREDENTIALS: [&str; 3] = ["authorization", "cookie", "proxy-authorization"];

/// Headers that belong to one connection and one body, or to the protocol on it.
const FRAMING: [&str; 17] = [
    "accept",
    "accept-encoding",
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "expect",
    "host",
    "keep-alive",
    "last-event-id",
    "origin",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "user-agent",
];

impl HeaderForwarding {
    /// `whitelist` and `blacklist` as in mcpo: names, or prefixes of names with a `*`. Without a whitelist,
    /// `*` is used.
    pub fn new(whitelist: Vec<String>, blacklist: Vec<String>) -> Self {
        let patterns = |list: Vec<String>| list.iter().map(|text| Pattern::parse(text)).collect();
        let mut allowed: Vec<Pattern> = patterns(whitelist);
        if allowed.is_empty() {
            allowed.push(Pattern::Beginning(String::new()));
        }
        Self {
            allowed,
            denied: patterns(blacklist),
        }
    }

    /// The headers of `headers` that are forwarded, with all values of repeated ones.
    pub fn choose(&self, headers: &HeaderMap) -> Vec<(HeaderName, HeaderValue)> {
        let chosen = headers.iter().filter(|(name, _)| self.takes(name.as_str()));
        chosen
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect()
    }

    fn takes(&self, name: &str) -> bool {
        let framing = FRAMING.contains(&name) || name.starts_with("mcp-");
        let in_full = CREDENTIALS.contains(&name);
        let allows = |pattern: &Pattern| match pattern {
            Pattern::Beginning(_) if in_full => false,
            pattern => pattern.matches(name),
        };
        let denied = self.denied.iter().any(|pattern| pattern.matches(name));
        !framing && !denied && self.allowed.iter().any(allows)
    }
}

impl Pattern {
    fn matches(&self, name: &str) -> bool {
        match self {
            Self::Exactly(whole) => whole == name,
            Self::Beginning(start) => name.starts_with(start.as_str()),
        }
    }

    fn parse(text: &str) -> Self {
        let text = text.trim().to_ascii_lowercase();
        match text.strip_suffix('*') {
            Some(start) => Self::Beginning(start.to_owned()),
            None => Self::Exactly(text),
        }
    }
}

// The hash of everything that determines a child.

/// SHA-256 over a server's transport, mode and workspace. Equal versions make equal children.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpecVersion([u8; 32]);

impl SpecVersion {
    fn hash(spec: &ServerSpec) -> Self {
        let mut hash = FieldHasher::new("mcpo-bridge server v1");
        hash.text(spec.name.as_str());
        hash.text(spec.mode.as_str());
        hash.text(match spec.workspace {
            WorkspaceScope::Chat => "chat",
            WorkspaceScope::Own => "own",
        });
        match &spec.transport {
            Transport::Stdio(command) => {
                hash.text("stdio");
                hash.text(&command.program);
                hash.list(&command.args);
                hash.list(&sorted(&command.env));
                let cwd = command.cwd.as_deref().map(|cwd| cwd.to_str().unwrap_or(""));
                hash.list(cwd.as_slice());
                let install = if spec.install {
                    "install"
                } else {
                    "as written"
                };
                hash.text(install);
                hash.text(match spec.launch {
                    Launch::Auto => "auto",
                    Launch::Exec => "exec",
                    Launch::Fork => "fork",
                });
            }
            Transport::Remote(remote) => {
                hash.text(match remote.kind {
                    RemoteKind::StreamableHttp => "streamable-http",
                    RemoteKind::Sse => "sse",
                });
                hash.text(remote.url.as_str());
                hash.list(&sorted(&remote.headers));
            }
        }
        Self(hash.finish())
    }

    /// Lower-case hex, 64 characters.
    pub fn to_hex(self) -> String {
        hex(&self.0)
    }
}

/// Caches the version of a spec that no longer changes, because each call of a shared server needs it. A
/// clone starts empty, because clones are made to be changed.
#[derive(Debug, Default)]
pub struct Remembered(OnceLock<SpecVersion>);

impl Remembered {
    fn get(&self, find: impl FnOnce() -> SpecVersion) -> SpecVersion {
        *self.0.get_or_init(find)
    }
}

impl Clone for Remembered {
    fn clone(&self) -> Self {
        Self::default()
    }
}

/// The cache is derived from the other fields, so it is ignored in comparisons.
impl PartialEq for Remembered {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Remembered {}

impl fmt::Debug for SpecVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_hex()[..12])
    }
}

/// Sorted by name, so that the order in the file does not affect the version.
fn sorted(pairs: &IndexMap<String, String>) -> Vec<&str> {
    let mut pairs: Vec<_> = pairs.iter().collect();
    pairs.sort();
    let fields = pairs.into_iter();
    fields
        .flat_map(|(name, value)| [name.as_str(), value])
        .collect()
}

#[cfg(test)]
mod tests {
    use bridge_process::RemoteKind;

    use super::*;

    fn spec() -> ServerSpec {
        ServerSpec {
            name: "excel".parse().unwrap(),
            transport: Transport::Stdio(CommandSpec {
                program: "uvx".into(),
                args: vec!["--dir={MCPO_WORKDIR}/x".into(), "{MCPO_JOB_ID}".into()],
                env: [
                    ("TOKEN".to_owned(), "hunter2".to_owned()),
                    ("DIR".to_owned(), "{MCPO_WORKDIR}".to_owned()),
                ]
                .into(),
                cwd: None,
            }),
            mode: Mode::Stateful,
            workspace: WorkspaceScope::Chat,
            idle_timeout: Duration::from_mins(30),
            timeout: Duration::from_mins(5),
            max_processes_per_chat: 1,
            concurrency: None,
            enabled_tools: None,
            disabled_tools: Vec::new(),
            usage_guide: None,
            post_instruction: None,
            file_path_fields: Vec::new(),
            resolve_path_fields: Vec::new(),
            resolve_uri_fields: Vec::new(),
            before_end: None,
            embed: Vec::new(),
            install: true,
            launch: Launch::Auto,
            pool: None,
            forwarding: None,
            allow: None,
            remembered: Remembered::default(),
            session_lists: false,
        }
    }

    fn command(spec: &mut ServerSpec) -> &mut CommandSpec {
        match &mut spec.transport {
            Transport::Stdio(command) => command,
            Transport::Remote(_) => panic!("a stdio server"),
        }
    }

    type Change = fn(&mut ServerSpec);

    #[test]
    fn the_version_follows_what_shapes_a_child_and_nothing_else() {
        let base = spec().version();
        let shaping: [Change; 8] = [
            |s| s.mode = Mode::Shared,
            |s| s.workspace = WorkspaceScope::Own,
            |s| command(s).program.push('x'),
            |s| command(s).args = vec!["--dir={MCPO_WORKDIR}/x{MCPO_JOB_ID}".into()],
            |s| {
                command(s).env.insert("TOKEN".into(), "other".into());
            },
            |s| command(s).cwd = Some("/srv".into()),
            |s| s.name = "word".parse().unwrap(),
            |s| s.install = false,
        ];
        for (number, change) in shaping.iter().enumerate() {
            let mut spec = spec();
            change(&mut spec);
            assert_ne!(spec.version(), base, "change {number}");
        }
        let outside: [Change; 3] = [
            |s| s.idle_timeout = Duration::from_secs(1),
            |s| s.usage_guide = Some("x".into()),
            |s| command(s).env.reverse(),
        ];
        for (number, change) in outside.iter().enumerate() {
            let mut spec = spec();
            change(&mut spec);
            assert_eq!(spec.version(), base, "change {number}");
        }
    }

    #[test]
    fn disabled_tools_win_over_enabled_ones() {
        let mut spec = spec();
        assert!(spec.offers("any"));
        spec.enabled_tools = Some(vec!["read".into(), "write".into()]);
        spec.disabled_tools = vec!["write".into()];
        assert!(spec.offers("read"));
        assert!(!spec.offers("write"));
        assert!(!spec.offers("any"));
    }

    #[test]
    fn debug_shows_no_value() {
        let shown = format!("{:?}", spec());
        assert!(shown.contains("TOKEN"), "{shown}");
        assert!(
            !shown.contains("hunter2") && !shown.contains("--dir"),
            "{shown}"
        );
        let remote = Transport::Remote(RemoteSpec {
            url: "https://mcp.example/key-in-path?token=hunter2"
                .parse()
                .unwrap(),
            kind: RemoteKind::Sse,
            headers: [("Authorization".to_owned(), "Bearer hunter2".to_owned())].into(),
        });
        let shown = format!("{remote:?}");
        assert!(
            !shown.contains("hunter2") && !shown.contains("key-in-path"),
            "{shown}"
        );
    }
}

#[cfg(test)]
mod allow_tests {
    use std::net::IpAddr;

    use bridge_model::UserInfo;

    use super::*;

    fn caller(principal: Principal, trusted: bool) -> Caller {
        Caller {
            principal,
            user: UserInfo {
                email: Some("Ann@Example.com".into()),
                role: Some("user".into()),
                groups: vec!["sales".into(), "g-1".into()],
                ..UserInfo::default()
            },
            trusted,
            ..Caller::nobody(IpAddr::from([192, 0, 2, 1]))
        }
    }

    fn ann() -> Caller {
        caller(Principal::User("ann-id".into()), true)
    }

    fn allow(key: &str, name: &str) -> Allow {
        let of = |wanted: &str| {
            if key == wanted {
                vec![name.to_owned()]
            } else {
                Vec::new()
            }
        };
        Allow::new(&of("users"), &of("groups"), &of("roles"), &of("keys"))
    }

    #[test]
    fn one_list_is_enough() {
        for (key, name) in [
            ("users", "ann-id"),
            ("users", " ann@EXAMPLE.com "),
            ("groups", "sales"),
            ("groups", "g-1"),
            ("roles", "user"),
        ] {
            assert_eq!(
                allow(key, name).access(&ann()),
                ServerAccess::Use,
                "{key} {name}"
            );
        }
        for (key, name) in [
            ("users", "ANN-ID"),
            ("users", "ann"),
            ("users", ""),
            ("users", "sales"),
            ("groups", "Sales"),
            ("groups", "ann-id"),
            ("roles", "admin"),
            ("keys", "ann-id"),
        ] {
            assert_eq!(
                allow(key, name).access(&ann()),
                ServerAccess::None,
                "{key} {name}"
            );
        }
    }

    #[test]
    fn who_names_no_user_reads_if_he_is_believed() {
        let nobody = |trusted| caller(Principal::Anonymous, trusted);
        let key = |name: &str| caller(Principal::Key(name.into()), true);
        for allow in [allow("users", "ann-id"), allow("roles", "user")] {
            assert_eq!(allow.access(&nobody(false)), ServerAccess::None);
            assert_eq!(allow.access(&nobody(true)), ServerAccess::Read);
            assert_eq!(allow.access(&key("robot")), ServerAccess::Read);
        }
        let robots = allow("keys", "robot");
        assert_eq!(robots.access(&key("robot")), ServerAccess::Use);
        assert_eq!(robots.access(&key("other")), ServerAccess::Read);
        assert_eq!(
            robots.access(&ann()),
            ServerAccess::None,
            "a user is a user"
        );
    }
}

#[cfg(test)]
mod forwarding_tests {
    use super::*;

    fn chosen(whitelist: &[&str], blacklist: &[&str]) -> Vec<String> {
        let list = |list: &[&str]| list.iter().map(|&text| text.to_owned()).collect();
        let mut headers = HeaderMap::new();
        for name in [
            "authorization",
            "content-length",
            "cookie",
            "host",
            "mcp-session-id",
            "x-tenant-id",
            "x-tenant-key",
            "x-trace",
        ] {
            headers.insert(name, HeaderValue::from_static("v"));
        }
        let forwarding = HeaderForwarding::new(list(whitelist), list(blacklist));
        let chosen = forwarding.choose(&headers);
        let mut names: Vec<_> = chosen.iter().map(|(name, _)| name.to_string()).collect();
        names.sort();
        names
    }

    #[test]
    fn names_and_beginnings_choose_in_any_case() {
        assert_eq!(chosen(&["X-Trace"], &[]), ["x-trace"]);
        assert_eq!(
            chosen(&["X-Tenant-*"], &[]),
            ["x-tenant-id", "x-tenant-key"]
        );
        assert_eq!(
            chosen(&["X-*"], &["x-tenant-K*"]),
            ["x-tenant-id", "x-trace"]
        );
    }

    #[test]
    fn credentials_go_on_only_where_they_are_named() {
        let all = ["x-tenant-id", "x-tenant-key", "x-trace"];
        assert_eq!(chosen(&[], &[]), all);
        assert_eq!(chosen(&["*"], &[]), all);
        assert_eq!(chosen(&["auth*"], &[]), [""; 0]);
        assert_eq!(chosen(&["Authorization"], &[]), ["authorization"]);
        assert_eq!(chosen(&["Authorization"], &["*"]), [""; 0]);
    }

    #[test]
    fn what_frames_a_message_never_goes_on() {
        let named = ["Host", "Content-Length", "Mcp-Session-Id"];
        assert_eq!(chosen(&named, &[]), [""; 0]);
    }
}
