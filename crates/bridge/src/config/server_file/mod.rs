//! `mcp-servers.json`: the file format of Claude Desktop and mcpo, with additional keys.
//!
//! The steps are: text → value (no duplicate keys) → schema (types and ranges) → keys (comments, spellings) →
//! references → specs. Each step adds its errors; a valid file has none. [`Directory`] holds the active file.

mod build;
mod interpolate;
mod schema;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeSet,
    fmt,
    fs::OpenOptions,
    io::{self, Read as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path as FilePath,
    sync::Arc,
    time::Duration,
};

use bridge_model::{Caller, ServerName};
use bridge_process::{USER_PLACEHOLDERS, asks_for_user};
use build::Builder;
use indexmap::IndexMap;
use interpolate::Lookup;
use parking_lot::RwLock;
use rustix::fs::OFlags;
use schema::{AllowEntry, ServerEntry};
use serde_json::{Map, Value, json};

use super::{
    Allow, FILES_SERVER, Fault, Faults, Mode, OWN_PROGRAM, RESERVED_NAMES, ServerAccess,
    ServerSpec, Settings, Transport,
};

pub use schema::json_schema;

/// A valid server file.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// In the order of the file, without disabled servers.
    pub servers: IndexMap<ServerName, Arc<ServerSpec>>,
    /// One sentence each; without secrets.
    pub warnings: Vec<String>,
}

/// Why there is no configuration. Contains no secrets.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {path} ({source}); {}", remedy(source))]
    Unreadable {
        /// The path as given.
        path: String,
        /// The system's error.
        source: io::Error,
    },
    /// Its content has errors.
    #[error(transparent)]
    Faulty(#[from] Faults),
}

/// The remedy for a server file that cannot be read.
pub fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => {
            "create it with `mcpo-bridge init`, or set --config / MCPO_CONFIG_FILE to an existing file"
        }
        io::ErrorKind::PermissionDenied => {
            "make the file and its directories readable for the user that runs mcpo-bridge"
        }
        _ => "set --config / MCPO_CONFIG_FILE to a readable JSON file",
    }
}

/// Maximum size of a server file or its lock file: more than any real one has.
pub const LARGEST_FILE: u64 = 16 * 1024 * 1024;

/// The servers to serve: the single server of the command line, else those of the file.
pub fn servers(settings: &Settings) -> Result<Loaded, ConfigError> {
    match &settings.command_line.server {
        Some(server) => {
            let origin = "the command line".to_owned();
            load_bytes(server.document.expose().as_bytes(), origin, settings)
        }
        None => load(&settings.config_file, settings),
    }
}

/// Reads and validates the file; blocks on files. References are resolved again each time.
pub fn load(path: &FilePath, settings: &Settings) -> Result<Loaded, ConfigError> {
    let bytes = read_bounded(path, LARGEST_FILE).map_err(|source| ConfigError::Unreadable {
        path: path.display().to_string(),
        source,
    })?;
    load_bytes(&bytes, path.display().to_string(), settings)
}

fn load_bytes(bytes: &[u8], origin: String, settings: &Settings) -> Result<Loaded, ConfigError> {
    let lookup = |name: &str| {
        let given = settings.command_line.env.iter().rev();
        let mut given = given.filter(|(known, _)| known == name);
        let given = given.next().map(|(_, value)| value.expose().to_owned());
        given.or_else(|| std::env::var(name).ok())
    };
    read(bytes, settings, &lookup).map_err(|faults| ConfigError::Faulty(Faults { origin, faults }))
}

fn read(bytes: &[u8], settings: &Settings, lookup: Lookup) -> Result<Loaded, Vec<Fault>> {
    let parsed = interpolate::parse(bytes).map_err(|error| {
        let problem = format!("not JSON: {error}");
        let fix = "JSON has no trailing commas and no comments, but keys that begin with // are \
                   ignored";
        vec![Fault::new("", problem, fix)]
    })?;
    let twice = |path: String| Fault::new(path, "duplicate key", "keep one of them");
    let mut faults: Vec<Fault> = parsed.duplicates.into_iter().map(twice).collect();
    let mut document = parsed.value;
    if let Value::Object(root) = &mut document {
        schema::drop_comments(root);
        root.shift_remove("$schema");
        faults.extend(missing_servers(root));
    }
    let disabled = disabled(&document);
    let shape = schema::faults(&document).into_iter().filter(|fault| {
        // A missing `mcpServers` is reported above, with a better message.
        let root = fault.location.is_empty() && document.is_object();
        let off = |name: &String| Path::server(name).holds(&fault.location);
        !root && !disabled.iter().any(off)
    });
    faults.extend(shape);
    let Value::Object(mut root) = document else {
        return Err(faults);
    };
    let mut warnings = schema::unknown(&root, &Path::root(), &["mcpServers"]);
    let Some(Value::Object(entries)) = root.shift_remove("mcpServers") else {
        return Err(faults);
    };
    if entries.is_empty() {
        warnings.push("mcpServers is empty: no servers to serve".into());
    }
    let misshapen: Vec<String> = faults.iter().map(|fault| fault.location.clone()).collect();
    let known = schema::server_keys();
    let known: Vec<&str> = known.iter().map(String::as_str).collect();
    let mut builder = Builder {
        settings,
        lookup,
        faults,
        warnings,
    };
    // An entry with its name replaces it, even a disabled one.
    let own = settings.files.server && settings.stateful.enabled && !entries.contains_key(FILES);
    let mut specs = Vec::new();
    for (name, entry) in entries {
        let Value::Object(keys) = entry else { continue };
        if disabled.contains(&name) {
            continue;
        }
        let path = Path::server(&name);
        let well_shaped = !misshapen.iter().any(|location| path.holds(location));
        specs.extend(builder.server(&name, keys, &path, &known, well_shaped));
    }
    if own && let Ok(name) = FILES.parse::<ServerName>() {
        specs.extend(builder.spec(name, files_server(settings), &Path::server(FILES)));
    }
    if !builder.faults.is_empty() {
        return Err(builder.faults);
    }
    let servers = specs.into_iter();
    Ok(Loaded {
        servers: servers
            .map(|spec| (spec.name.clone(), Arc::new(spec)))
            .collect(),
        warnings: builder.warnings,
    })
}

/// Names of disabled servers: their entries are not validated.
fn disabled(document: &Value) -> BTreeSet<String> {
    let entries = document.get("mcpServers").and_then(Value::as_object);
    let off = |entry: &Value| entry["disabled"] == true || entry["enabled"] == false;
    entries
        .into_iter()
        .flatten()
        .filter(|(_, entry)| off(entry))
        .map(|(name, _)| name.clone())
        .collect()
}

fn missing_servers(root: &Map<String, Value>) -> Option<Fault> {
    if root.contains_key("mcpServers") {
        return None;
    }
    let names = ["mcpServers", "servers"];
    let close = |key: &str| schema::nearest(key, names.into_iter()).is_some();
    // The keys in settings of VS Code, Zed, Codex and Amp.
    let others = [
        "mcp.servers",
        "context_servers",
        "mcp_servers",
        "amp.mcpServers",
    ];
    let meant = root
        .keys()
        .find(|key| close(key) || others.contains(&key.as_str()));
    let nested = || {
        root.iter().find_map(|(outer, value)| {
            let inner = value.as_object()?.keys().find(|key| close(key))?;
            Some(format!("{outer}.{inner}"))
        })
    };
    let fix = match meant.cloned().or_else(nested) {
        Some(key) if key.contains('.') => {
            format!("move the content of {key} to \"mcpServers\" at the top level of the file")
        }
        Some(key) => format!("rename {key} to mcpServers"),
        None => r#"add "mcpServers": {"time": {"command": "uvx", "args": ["mcp-server-time"]}}"#
            .to_owned(),
    };
    Some(Fault::new("mcpServers", "missing key", fix))
}

// Reading the administrator's files while the bridge runs: at most a limit of bytes, and without blocking on a
// writer.

/// Reads a regular file of at most `most` bytes; links are followed. The error is a message for people.
pub fn read_bounded(path: &FilePath, most: u64) -> io::Result<Vec<u8>> {
    // Opening a FIFO would block until its other end is opened.
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(flags)
        .open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    let mut content = Vec::new();
    file.take(most + 1).read_to_end(&mut content)?;
    if content.len() as u64 > most {
        return Err(io::Error::other(format!("larger than {most} bytes")));
    }
    Ok(content)
}

// The active server file, and which callers may see which of its servers.

/// The servers and their access rules.
pub struct Directory {
    config: RwLock<Arc<Loaded>>,
}

impl Directory {
    /// Creates it with this server file.
    pub fn new(config: Loaded) -> Self {
        Self {
            config: RwLock::new(Arc::new(config)),
        }
    }

    /// Activates another server file; returns the previous one.
    pub fn replace(&self, config: Arc<Loaded>) -> Arc<Loaded> {
        let mut current = self.config.write();
        std::mem::replace(&mut *current, config)
    }

    /// The active server file.
    pub fn config(&self) -> Arc<Loaded> {
        self.config.read().clone()
    }

    /// The server of this name and the caller's access to it, if the caller may see it at all.
    /// Every endpoint asks here, and gives the same answer for an invisible server as for one that
    /// does not exist.
    pub fn server_for(&self, name: &str, caller: &Caller) -> Option<(ServerName, ServerAccess)> {
        // The file is not copied, because every call passes here.
        let config = self.config.read();
        let spec = config.servers.get(name)?;
        let access = spec.access(caller);
        (access != ServerAccess::None).then(|| (spec.name.clone(), access))
    }

    /// Whether this caller may at least read every server.
    pub fn shows_all(&self, caller: &Caller) -> bool {
        let config = self.config();
        let mut servers = config.servers.values();
        servers.all(|spec| spec.access(caller) != ServerAccess::None)
    }

    /// The word in the audit log for a caller that got "no such server".
    pub fn refusal_kind(&self, server: &str, kind: &'static str) -> &'static str {
        match kind {
            "unknown_server" if self.config().servers.contains_key(server) => "not_allowed",
            kind => kind,
        }
    }
}

// Checks of one server: its keys, access to it, and what it receives about its users.

impl Builder<'_> {
    /// Warns about keys without effect, and about a name that is a path of the bridge.
    fn warn_of_keys(&mut self, name: &str, keys: &Map<String, Value>, path: &Path, known: &[&str]) {
        let unknown = schema::unknown(keys, path, known);
        self.warnings.extend(unknown);
        let nested: [(&str, &[&str]); 3] = [
            ("allow", &["users", "groups", "roles", "keys"]),
            ("before_end", &["tool", "arguments"]),
            (
                "client_header_forwarding",
                &["enabled", "whitelist", "blacklist", "debug_headers"],
            ),
        ];
        for (key, names) in nested {
            if let Some(Value::Object(inner)) = keys.get(key) {
                let unknown = schema::unknown(inner, &path.key(key), names);
                self.warnings.extend(unknown);
            }
        }
        let oauth = keys.get("oauth");
        if oauth.is_some_and(|value| value["enabled"] != false) {
            let why = "ignored because the bridge does not support OAuth: add a token to headers, such as \
                       \"Authorization\": \"Bearer ${file:/run/secrets/TOKEN}\"";
            self.warn(&path.key("oauth"), why);
        }
        let first = name.split('/').next().unwrap_or_default();
        if RESERVED_NAMES.contains(&first) {
            let why =
                format!("served only under /mcpo/{name} because /{first} is a path of the bridge");
            self.warn(path, why);
        }
    }

    /// Builds `allow`; an error if all lists are empty.
    fn allow(&mut self, entry: AllowEntry, path: &Path) -> Option<Allow> {
        let path = path.key("allow");
        let list = |list: Option<Vec<String>>| list.unwrap_or_default();
        let (users, groups) = (list(entry.users), list(entry.groups));
        let (roles, keys) = (list(entry.roles), list(entry.keys));
        let mut named = [&users, &groups, &roles, &keys].into_iter().flatten();
        if named.clone().next().is_none() {
            let fix = r#"add an entry, such as "groups": ["sales"], or disable the server with "disabled": true"#;
            self.fault(path, "empty list", fix);
            return None;
        }
        if named.any(|name| name.trim().is_empty()) {
            self.fault(path, "empty name", "remove it");
            return None;
        }
        self.warn_of_allow(&keys, &path);
        Some(Allow::new(&users, &groups, &roles, &keys))
    }

    fn warn_of_allow(&mut self, keys: &[String], path: &Path) {
        let access = &self.settings.access;
        let known = |key: &&String| access.keys.names().any(|name| name == key.trim());
        let strange: Vec<_> = keys.iter().filter(|key| !known(key)).collect();
        for key in strange {
            self.warn(
                &path.key("keys"),
                format!("no API key has the name {key:?}"),
            );
        }
        let proof = !access.keys.is_empty() || access.jwt_secret.is_some();
        if !proof && access.trusted_proxies.is_empty() {
            let why = "nobody can use this server because callers cannot be identified: set \
                       MCPO_API_KEY for Open WebUI";
            self.warn(path, why);
        }
    }

    /// Placeholders of the user are replaced in variables and headers only, and only for servers with one
    /// user at a time: arguments are visible in the process list, and could be parsed as options.
    fn check_placeholders(&mut self, spec: &ServerSpec, path: &Path) {
        let mut public: Vec<(Path, &str)> = Vec::new();
        let mut private: Vec<(Path, &str)> = Vec::new();
        let cwd;
        match &spec.transport {
            Transport::Stdio(command) => {
                public.push((path.key("command"), &command.program));
                let args = command.args.iter().enumerate();
                public.extend(args.map(|(at, arg)| (path.key("args").index(at), &**arg)));
                if let Some(given) = &command.cwd {
                    cwd = given.to_string_lossy();
                    public.push((path.key("cwd"), &cwd));
                }
                let env = command.env.iter();
                private.extend(env.map(|(name, value)| (path.key("env").key(name), &**value)));
            }
            Transport::Remote(remote) => {
                public.push((path.key("url"), remote.url.as_str()));
                let headers = remote.headers.iter();
                private
                    .extend(headers.map(|(name, value)| (path.key("headers").key(name), &**value)));
            }
        }
        let all = USER_PLACEHOLDERS.join(", ");
        // Braces are percent-encoded in a URL.
        let asks = |text: &str| {
            asks_for_user(text) || asks_for_user(&text.replace("%7B", "{").replace("%7D", "}"))
        };
        for (location, _) in public.into_iter().filter(|(_, text)| asks(text)) {
            let fix = "move it to env (with a url: to headers), where it is not visible to other \
                       processes and in logs";
            self.fault(location, format!("{all} are not replaced in this key"), fix);
        }
        if spec.mode != Mode::Shared {
            return;
        }
        for (location, _) in private.into_iter().filter(|(_, text)| asks_for_user(text)) {
            let problem = "a shared server has no single user";
            let fix = r#"set "mode" to "stateful" or "stateless", or remove it"#;
            self.fault(location, problem, fix);
        }
    }
}

// A location in the file for error messages: `mcpServers.excel.args[2]`.

/// A path of keys and indexes. Ambiguous keys are written as `["…"]`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Path(String);

impl Path {
    fn root() -> Self {
        Self(String::new())
    }

    fn server(name: &str) -> Self {
        Self("mcpServers".into()).key(name)
    }

    fn key(&self, key: &str) -> Self {
        let plain = |c: char| !c.is_control() && !c.is_whitespace() && !".[]\"".contains(c);
        if key.is_empty() || !key.chars().all(plain) {
            return Self(format!("{}[{key:?}]", self.0));
        }
        let dot = if self.0.is_empty() { "" } else { "." };
        Self(format!("{}{dot}{key}", self.0))
    }

    /// Whether `location` is this location or within it.
    fn holds(&self, location: &str) -> bool {
        let rest = location.strip_prefix(&self.0);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
    }

    fn index(&self, index: usize) -> Self {
        Self(format!("{}[{index}]", self.0))
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<Path> for String {
    fn from(path: Path) -> Self {
        path.0
    }
}

// The built-in server, which exists unless it is disabled or the file has a server of its name.

/// Name of the built-in server.
const FILES: &str = "files";

/// The field of its results that names a file to link.
pub const LINK_FIELD: &str = "file";

/// Idle timeout: the server has no state, and starts in milliseconds.
const IDLE: Duration = Duration::from_secs(60);

/// Its entry, as written in a server file.
fn files_server(settings: &Settings) -> ServerEntry {
    let idle = IDLE.min(settings.stateful.default_idle_timeout);
    let entry = json!({
        "command": OWN_PROGRAM,
        "args": [FILES_SERVER],
        "mode": "stateful",
        "idle_timeout": idle.as_secs_f64(),
        "max_processes_per_chat": 1,
        "file_path_fields": [LINK_FIELD],
        "install": false,
        "launch": "exec",
        // It starts so fast that warm processes are not needed.
        "pool": 0,
    });
    serde_json::from_value(entry).expect("it has the keys of a server")
}

#[cfg(test)]
mod reading_tests {
    use super::*;

    #[test]
    fn only_regular_files_within_the_bound_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let (file, link, fifo) = (
            folder.path().join("file"),
            folder.path().join("link"),
            folder.path().join("fifo"),
        );
        std::fs::write(&file, "four").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        let made = std::process::Command::new("mkfifo").arg(&fifo).status();
        assert!(made.unwrap().success());
        assert_eq!(read_bounded(&link, 4).unwrap(), b"four");
        for (path, most) in [
            (&*file, 3),
            (&*fifo, 9),
            (folder.path(), 9),
            (FilePath::new("/dev/zero"), 9),
        ] {
            assert!(read_bounded(path, most).is_err(), "{path:?}");
        }
    }
}

#[cfg(test)]
mod path_tests {
    use super::*;

    #[test]
    fn a_place_holds_itself_and_what_is_in_it() {
        let path = Path::server("a");
        for inner in [
            path.clone(),
            path.key("env"),
            path.key("x.y"),
            path.index(0),
        ] {
            assert!(path.holds(&inner.to_string()), "{inner}");
        }
        assert!(!path.holds("mcpServers.ab") && !path.holds("mcpServers"));
    }

    #[test]
    fn odd_keys_stay_readable() {
        let path = Path::server("a.b").key("env").key("").key("X").index(3);
        assert_eq!(path.to_string(), r#"mcpServers["a.b"].env[""].X[3]"#);
        assert_eq!(Path::server("日本").to_string(), "mcpServers.日本");
    }
}
