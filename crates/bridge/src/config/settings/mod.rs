//! The settings. Each is declared once, in the sections of this file: its declaration determines the field,
//! the flag, the environment variable, the type, the default, the text of `--help` and the row in
//! `docs/configuration.md`.
//!
//! To add a setting, add a field to a section. Its doc comment is its help text. Then run `UPDATE_DOCS=1
//! cargo test the_table_in_the_docs`. Rules between settings are in `rules.rs`.

mod parse;
#[macro_use]
mod reader;
mod rules;

use std::{
    num::NonZeroUsize,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use axum::http::HeaderName;
use bridge_openapi::{Documents, OperationIds};
use bridge_state::JournalMode;
use ipnet::IpNet;
use parse::choice;
use reader::{Reader, Setting, table};
use url::Url;

use super::{BaseUrl, Faults, KeyRing, Mode, Secret};
use crate::memory::memory_limit;

pub use parse::{CommandLine, Lang, LogFormat, LogLevel, PeerAddress, SingleServer, Tls};
pub use reader::SettingsArgs;

section! {
    /// All settings. `Debug` shows no secret.
    pub struct Settings(r, "General") {
        /// Server file, in the format of Claude Desktop and mcpo
        config_file: PathBuf = r.setting("-c, --config, --config-file FILE", parse::path)
            .or("./mcp-servers.json if it exists, else /app/config/mcp-servers.json", default_config_file),
        /// Reload the server file when it changes; if false, only on SIGHUP
        hot_reload: bool = r.setting("--hot-reload BOOL", parse::boolean).default("true"),
        /// Directory for workspaces, links and leases
        jobs_dir: PathBuf = r.setting("--jobs-dir DIR", parse::path).default("/tmp/mcpo-jobs"),
        /// Directory for installed packages and for the caches of launchers (uvx, npx), shared by all
        /// servers and kept between runs
        tools_dir: PathBuf = r.setting("--tools-dir DIR", parse::path).default("/tmp/mcpo-tools"),
        /// Lock file written by `mcpo-bridge install`; it may be absent
        lock_file: PathBuf = r.setting("--lock-file FILE", parse::path)
            .or("mcp-servers.lock.json next to the server file", || config_file.with_extension("lock.json")),
        /// Read-only directory with packages installed in advance by `mcpo-bridge install`, and their
        /// lock file mcp-servers.lock.json; the container image has one at /opt/mcpo-tools
        preinstalled_dir: Option<PathBuf> = r.setting("--preinstalled-dir DIR", parse::path).optional(),
        /// Install the packages of launchers (uvx, npx) in the background and start servers from them; if
        /// false, only packages installed by `mcpo-bridge install` are used
        install: bool = r.setting("--install BOOL", parse::boolean).default("true"),
        /// Mode of servers without a `mode`: stateful, stateless or shared
        default_mode: Mode = r.setting("--default-mode MODE", choice(&[
            ("stateful", Mode::Stateful), ("stateless", Mode::Stateless), ("shared", Mode::Shared),
        ])).default("stateful"),
        /// Language of the texts around links and of pages shown in browsers: en or ja
        lang: Lang = r.setting("--lang LANG", choice(&[("en", Lang::En), ("ja", Lang::Ja)])).default("en"),
        /// What to record of each call in its workspace: full (request and response), metadata (times and
        /// files) or off
        journal: JournalMode = r.setting("--journal KIND", choice(&[
            ("full", JournalMode::Full), ("metadata", JournalMode::Metadata), ("off", JournalMode::Off),
        ])).default("full"),
        /// The HTTP server.
        listen: Listen = Listen::read(r),
        /// Texts of the OpenAPI documents.
        documents: Documents = documents(r),
        /// Authentication of callers, and which callers may name a user.
        access: Access = Access::read(r),
        /// Open WebUI's API.
        openwebui: OpenWebUiSettings = OpenWebUiSettings::read(r),
        /// Links and workspaces.
        files: Files = Files::read(r),
        /// Timeouts and concurrency.
        limits: Limits = Limits::read(r),
        /// Processes that are kept between calls.
        stateful: Stateful = Stateful::read(r),
        /// Processes that are started before a call needs them.
        pool: Pool = Pool::read(r),
        /// Several bridges that share a jobs directory.
        replicas: Replicas = Replicas::read(r),
        /// The log outputs.
        log: Log = Log::read(r),
        /// Servers and variables from the command line of `serve`, in addition to the settings.
        command_line: CommandLine = CommandLine::default(),
        /// Warnings at start and in `/health`: valid settings that weaken the bridge.
        warnings: Vec<String> = Vec::new(),
    }
}

section! {
    /// The HTTP server.
    pub struct Listen(r, "HTTP") {
        /// Address to listen on; an address other than loopback requires an API key
        host: String = r.setting("--host ADDRESS", parse::host).default("127.0.0.1"),
        /// Port to listen on; 0 selects a free port
        port: u16 = r.setting("-p, --port PORT", parse::port).default("8080"),
        /// HTTPS, if a certificate is configured.
        tls: Option<Tls> = tls(r),
        /// Public base URL of download links, as users' browsers reach it; `/` makes links relative to the
        /// origin of the page that shows them
        base_url: BaseUrl = r.setting("--base-url URL", parse::base_url)
            .or("http://localhost:PORT, or https with a certificate", || BaseUrl::local(port, tls.is_some())),
        /// Prefix of all routes, for example `/mcpo`
        path_prefix: String = r.setting("--path-prefix PATH", parse::path_prefix).optional().unwrap_or_default(),
        /// Prefix that a reverse proxy strips before forwarding, for example `/tools`. OpenAPI documents
        /// include it, and requests that still have it are served too
        root_path: String = r.setting("--root-path PATH", parse::path_prefix).optional().unwrap_or_default(),
        /// Host names accepted in the `Host` and `Origin` headers, in addition to loopback, the listening
        /// address and the host of the base URL (comma-separated, repeatable); `*` accepts any
        allowed_hosts: Vec<String> = {
            let named = r.setting("--allowed-hosts HOSTS...", parse::hosts).optional();
            rules::allowed_hosts(&host, &base_url, named.unwrap_or_default())
        },
        /// Origins whose pages may call the bridge (CORS), for example `https://chat.example.com`
        /// (comma-separated, repeatable); `*` allows any
        cors_allow_origins: Vec<String> = r.setting("--cors-allow-origins ORIGINS...", parse::origins)
            .optional().unwrap_or_default(),
        /// Maximum size of a request body, in bytes or with a unit (KiB, MiB, GiB, KB, MB, GB)
        max_body_bytes: u64 = r.setting("--max-body-bytes BYTES", parse::bytes).default("32MiB"),
        /// Maximum number of JSON values in a request body; each member of an object or list counts
        max_body_values: u64 = r.setting("--max-body-values COUNT", parse::count).default("1000000").get() as u64,
        /// Memory for all request bodies, from their first byte until their calls run, in bytes or with a
        /// unit; a body that does not fit waits, then gets 503
        body_memory_bytes: u64 = r.setting("--body-memory BYTES", parse::bytes)
            .or("an eighth of the memory of the host or container", || memory_limit().bytes / 8),
        /// Share of this memory that one user's bodies may take. A single body may exceed it; the user's
        /// other bodies then wait. Callers without a known user count by API key, or by address
        body_memory_per_user_bytes: u64 = r.setting("--body-memory-per-user BYTES", parse::bytes)
            .or("three quarters", || body_memory_bytes / 4 * 3),
        /// Maximum number of connections; when it is reached, the connections idle for longest are closed
        max_connections: usize = r.setting("--max-connections COUNT", parse::count)
            .optional_or("three quarters of the open files not needed for server processes, at most 16384")
            .map_or(0, NonZeroUsize::get),
        /// Maximum number of concurrent downloads and uploads. Computed at start, like `max_connections` if
        /// unset.
        max_file_requests: usize = 0,
        /// Timeout for receiving a request's head, including the TLS handshake
        head_timeout: Duration = r.setting("--head-timeout SECONDS", parse::timeout).default("20"),
        /// Maximum pause while a request body is being received. The whole body may take this long plus one
        /// second per KiB received, so slow uploads work
        body_timeout: Duration = r.setting("--body-timeout SECONDS", parse::timeout).default("30"),
        /// How long to keep a connection without a request, or with a client that does not read its response
        keep_alive: Duration = r.setting("--keep-alive SECONDS", parse::timeout).default("75"),
    }
}

section! {
    /// Authentication of callers, and which callers may name a user.
    pub struct Access(r, "Access") {
        /// API keys: KEY, or NAME:KEY for several (comma-separated, repeatable; in a file also one per
        /// line). Prefer the variable or the file: other users of the machine can read a command line
        keys: KeyRing = r.setting("-k, --api-key KEYS...", parse::key_ring).secret()
            .optional().unwrap_or_default(),
        /// Require the API key for documents (openapi.json, docs) too
        strict_auth: bool = r.setting("--strict-auth BOOL", parse::boolean).default("false"),
        /// Allow listening beyond loopback without an API key: everyone who reaches the port can call every
        /// tool
        allow_unauthenticated: bool = r.setting("--allow-unauthenticated BOOL", parse::boolean).default("false"),
        /// Open WebUI's `FORWARD_USER_INFO_HEADER_JWT_SECRET`. If set, only signed user tokens (HS256) are
        /// trusted, and plain user headers are ignored
        jwt_secret: Option<Secret> = r.setting("--jwt-secret SECRET", |text| Ok(Secret::new(text))).secret().optional(),
        /// Networks whose user headers are trusted without a key, as addresses or CIDR (comma-separated,
        /// repeatable); `none` trusts no address
        trusted_proxies: Vec<IpNet> = r.setting("--trusted-proxies NETWORKS...", parse::networks)
            .default("127.0.0.0/8,::1/128"),
        /// The names of the identity headers.
        headers: IdentityHeaders = IdentityHeaders::read(r),
    }
}

section! {
    /// The names of the headers that identify the user.
    pub struct IdentityHeaders(r, "Identity headers (only if you renamed them in Open WebUI)") {
        /// Header with the API key, for connections whose `Authorization` carries something else
        key: HeaderName = r.setting("--header-key NAME", parse::header_name).default("X-MCPO-Key"),
        /// Header with the user's id
        user_id: HeaderName = r.setting("--header-user-id NAME", parse::header_name).default("X-OpenWebUI-User-Id"),
        /// Header with the user's display name, percent-encoded
        user_name: HeaderName = r.setting("--header-user-name NAME", parse::header_name)
            .default("X-OpenWebUI-User-Name"),
        /// Header with the user's email address
        user_email: HeaderName = r.setting("--header-user-email NAME", parse::header_name)
            .default("X-OpenWebUI-User-Email"),
        /// Header with the user's role
        user_role: HeaderName = r.setting("--header-user-role NAME", parse::header_name)
            .default("X-OpenWebUI-User-Role"),
        /// Header with the names or ids of the user's groups: `{{USER_GROUPS}}` in a custom header of the
        /// connection
        user_groups: HeaderName = r.setting("--header-user-groups NAME", parse::header_name)
            .default("X-OpenWebUI-User-Groups"),
        /// Header with the signed token that contains id, name, email address and role
        user_jwt: HeaderName = r.setting("--header-user-jwt NAME", parse::header_name)
            .default("X-OpenWebUI-User-Jwt"),
        /// Header with the chat's id
        chat_id: HeaderName = r.setting("--header-chat-id NAME", parse::header_name).default("X-OpenWebUI-Chat-Id"),
        /// Header with the message's id
        message_id: HeaderName = r.setting("--header-message-id NAME", parse::header_name)
            .default("X-OpenWebUI-Message-Id"),
    }
}

section! {
    /// Open WebUI's API.
    pub struct OpenWebUiSettings(r, "Open WebUI") {
        /// URL where the bridge reaches Open WebUI, for example `http://open-webui:8080`. With it a
        /// connection may send the user's own token (auth type session) and the API key in `X-MCPO-Key`:
        /// files attached in a chat are copied into its workspace, and new files appear in the chat
        url: Option<Url> = r.setting("--openwebui-url URL", parse::service_url).optional(),
    }
}

section! {
    /// Links and workspaces.
    pub struct Files(r, "Files") {
        /// Lifetime of a download link
        expiry: Duration = r.setting("--file-expiry SECONDS", parse::lifetime).default("3600"),
        /// How long to keep a workspace after its last call
        retention: Duration = r.setting("--file-retention SECONDS", parse::retention).or("the file expiry", || expiry),
        /// Maximum number of files linked from one call
        max_per_call: usize = r.setting("--max-files-per-call COUNT", parse::count).default("50").get(),
        /// Maximum size of a workspace, in bytes or with a unit
        max_workspace_bytes: u64 = r.setting("--max-workspace-bytes BYTES", parse::bytes).default("2GiB"),
        /// Maximum size of all workspaces and links of one user, in bytes or with a unit
        max_user_bytes: Option<u64> = r.setting("--max-user-bytes BYTES", parse::bytes).optional_or(
            "three quarters of the disk space that they use or that is free above the minimum"),
        /// Maximum number of files and directories in a workspace
        max_workspace_files: usize = r.setting("--max-workspace-files COUNT", parse::count).default("10000").get(),
        /// Offer the built-in server `files`, with which a chat lists, links and deletes its files. An entry
        /// `files` in the server file replaces it
        server: bool = r.setting("--files-server BOOL", parse::boolean).default("true"),
        /// Maximum size of a file that is uploaded, copied from a chat or attached to a chat, in bytes or
        /// with a unit
        max_upload_bytes: u64 = r.setting("--max-upload-bytes BYTES", parse::bytes).default("100MiB"),
        /// Refuse new work while less disk space than this is free, in bytes or with a unit; 0 disables the
        /// check
        min_free_disk_bytes: u64 = r.setting("--min-free-disk-bytes BYTES", parse::bytes_or_none).default("256MiB"),
    }
}

section! {
    /// Timeouts and concurrency.
    pub struct Limits(r, "Timeouts and concurrency") {
        /// Maximum number of calls that run at the same time
        max_concurrent: NonZeroUsize = r.setting("--max-concurrent COUNT", parse::count)
            .or("4 × CPUs, or a container's CPU quota", || cpus().saturating_mul(NonZeroUsize::MIN.saturating_add(3))),
        /// Maximum number of these that belong to one user; the rest is reserved for users without a running
        /// call
        max_concurrent_per_user: Option<NonZeroUsize> = r.setting("--max-concurrent-per-user COUNT", parse::count)
            .optional_or("three quarters"),
        /// Maximum number of one user's concurrent calls to one server, if the server is remote, or `shared`
        /// without a `concurrency`; four times as many for callers without a known user
        server_calls_per_user: NonZeroUsize = r.setting("--server-calls-per-user COUNT", parse::count).default("8"),
        /// Maximum number of waiting calls; beyond it the newest call of the user with the most waiting calls
        /// is refused
        max_waiting: NonZeroUsize = r.setting("--max-waiting COUNT", parse::count).default("1000"),
        /// Maximum number of concurrent server starts
        max_starts: NonZeroUsize = r.setting("--max-starts COUNT", parse::count)
            .or("CPUs, or a container's CPU quota", cpus),
        /// Timeout of a call, including its wait and the start of its server
        timeout: Duration = r.setting("--timeout SECONDS", parse::timeout).default("300"),
        /// Timeout for the start of a server
        start_timeout: Duration = r.setting("--start-timeout SECONDS", parse::timeout).default("60"),
        /// How long a call waits to run before it is refused with 429
        queue_timeout: Duration = r.setting("--queue-timeout SECONDS", parse::grace).default("60"),
        /// How long to wait for the user's answer to a server's question
        input_timeout: Duration = r.setting("--input-timeout SECONDS", parse::timeout).default("600"),
        /// Delay between SIGTERM and SIGKILL for a server process
        kill_grace: Duration = r.setting("--kill-grace SECONDS", parse::grace).default("3"),
        /// Time running calls get to finish on shutdown
        shutdown_grace: Duration = r.setting("--shutdown-grace SECONDS", parse::grace).default("30"),
        /// Maximum size of a message (one line) from a server, in bytes or with a unit
        max_message_bytes: u64 = r.setting("--max-message-bytes BYTES", parse::bytes).default("64MiB"),
    }
}

section! {
    /// Processes that are kept between calls.
    pub struct Stateful(r, "Stateful servers") {
        /// Keep one process per user and chat; if false, stateful servers run stateless
        enabled: bool = r.setting("--stateful-enabled BOOL", parse::boolean).default("true"),
        /// End a process that has been idle this long, unless its server has an `idle_timeout`
        default_idle_timeout: Duration = r.setting("--stateful-default-idle-timeout SECONDS", parse::timeout)
            .default("1800"),
        /// Maximum number of processes of one server per user and chat
        max_processes_per_chat: NonZeroUsize = r.setting("--stateful-max-processes-per-chat COUNT", parse::count)
            .default("1"),
        /// Maximum number of processes; beyond it the least recently used idle process of the user with the
        /// most processes is ended
        max_total_processes: NonZeroUsize = r.setting("--stateful-max-total-processes COUNT", parse::count)
            .default("100"),
        /// Maximum number of these that belong to one user; beyond it the user's least recently used idle
        /// process is ended
        max_processes_per_user: Option<NonZeroUsize> = r.setting("--stateful-max-processes-per-user COUNT", parse::count)
            .optional_or("three quarters, if there are four or more"),
        /// Interval of the clean-up of expired data
        cleanup_interval: Duration = r.setting("--stateful-cleanup-interval SECONDS", parse::timeout).default("300"),
    }
}

section! {
    /// Processes that are started before a call needs them.
    pub struct Pool(r, "Warm process pool") {
        /// Maximum number of warm (pre-started) processes for all servers; the number follows recent demand;
        /// 0 disables the pool
        max: usize = r.setting("--pool-max COUNT", parse::count_or_none).default("8"),
        /// Stop keeping warm processes for a server unused for this long
        idle: Duration = r.setting("--pool-idle SECONDS", parse::timeout).default("600"),
        /// Keep no warm processes while less memory than this (of the host or container) is free, in bytes or
        /// with a unit; 0 disables the check
        min_free_memory_bytes: u64 = r.setting("--pool-min-free-memory BYTES", parse::bytes_or_none).default("512MiB"),
    }
}

section! {
    /// Several bridges that share a jobs directory.
    pub struct Replicas(r, "Multiple replicas") {
        /// Address where other replicas reach this one: a host, with a port if it differs from the listening
        /// port
        address: Option<PeerAddress> = r.setting("--peer-address ADDRESS", parse::peer_address)
            .optional_or("`POD_IP`, else the listening address, else the host's address"),
        /// Secret with which replicas authenticate each other, the same for all
        key: Option<Secret> = r.setting("--peer-key SECRET", |text| Ok(Secret::new(text))).secret()
            .optional_or("created by the first replica in the jobs directory"),
        /// Time without a heartbeat after which other replicas take over; a heartbeat is sent four times as
        /// often
        lease_ttl: Duration = r.setting("--lease-ttl SECONDS", parse::lease).default("20"),
        /// How long a stopping replica still accepts requests and forwards them to the others, so that load
        /// balancers notice; a single bridge stops listening at once
        drain_delay: Duration = r.setting("--drain-delay SECONDS", parse::grace).default("5"),
    }
}

section! {
    /// The log outputs.
    pub struct Log(r, "Log") {
        /// Minimum level: DEBUG, INFO, WARNING, ERROR or CRITICAL
        level: LogLevel = r.setting("--log-level LEVEL", choice(&[
            ("DEBUG", LogLevel::Debug), ("INFO", LogLevel::Info), ("WARNING", LogLevel::Warning),
            ("ERROR", LogLevel::Error), ("CRITICAL", LogLevel::Critical), ("WARN", LogLevel::Warning),
        ])).default("INFO"),
        /// Also append the log to this file, as JSON
        file: Option<PathBuf> = r.setting("--log-file FILE", parse::path).optional(),
        /// Format of the log on standard output: auto (text on a terminal, else JSON), json or text
        format: LogFormat = r.setting("--log-format FORMAT", choice(&[
            ("auto", LogFormat::Auto), ("json", LogFormat::Json), ("text", LogFormat::Text),
        ])).default("auto"),
    }
}

/// Default of `MCPO_STATEFUL_MAX_TOTAL_PROCESSES`.
pub const DEFAULT_MAX_TOTAL_PROCESSES: usize = 100;

/// `Documents` is a struct of the OpenAPI crate, so its settings are declared in a function.
fn documents(r: &mut Reader<'_>) -> Documents {
    let outer = r.enter("Documents");
    let documents = Documents {
        name: r
            .describe("Title of the OpenAPI document at the root")
            .setting("-n, --name TEXT", |text| Ok(text.to_owned()))
            .optional_or("mcpo-bridge, or the title of a single server"),
        description: r
            .describe("Description of the OpenAPI document at the root")
            .setting("-d, --description TEXT", |text| Ok(text.to_owned()))
            .optional_or("a sentence, or the description of a single server"),
        version: None,
        operation_ids: r
            .describe(
                "Naming scheme of operationIds: tool (the tool's name) or mcpo (`tool_NAME_post`), \
                 for clients that filter on mcpo's names",
            )
            .setting(
                "--operation-ids STYLE",
                choice(&[("tool", OperationIds::Tool), ("mcpo", OperationIds::Mcpo)]),
            )
            .default("tool"),
    };
    r.enter(outer);
    documents
}

fn tls(r: &mut Reader<'_>) -> Option<Tls> {
    let certificate = r
        .describe(
            "Serve HTTPS with this certificate chain (PEM); requires the key. Changed files are used for \
             new connections",
        )
        .setting("-t, --ssl-certfile FILE", parse::path)
        .optional();
    let key = r
        .describe("Private key of the certificate (PEM, without a passphrase)")
        .setting("-K, --ssl-keyfile FILE", parse::path)
        .optional();
    rules::both(r, certificate, key)
}

fn default_config_file() -> PathBuf {
    let here = Path::new("mcp-servers.json");
    let image = Path::new("/app/config/mcp-servers.json");
    let found = [here, image].into_iter().find(|path| path.is_file());
    // `mcpo-bridge init` creates the first one.
    found.unwrap_or(here).to_owned()
}

/// Includes the CPU quota of a container, from cgroup v1 and v2.
fn cpus() -> NonZeroUsize {
    thread::available_parallelism().unwrap_or(NonZeroUsize::MIN)
}

impl SettingsArgs {
    /// Validates all settings and fills in the defaults. An empty value counts as unset.
    pub fn resolve(&self) -> Result<Settings, Faults> {
        let mut reader = Reader::new(self);
        let mut settings = Settings::read(&mut reader);
        let mut faults = reader.faults;
        faults.extend(rules::faults(&settings, &faults));
        if faults.is_empty() {
            settings.warnings = rules::warnings(&settings);
            return Ok(settings);
        }
        let origin = "settings".into();
        Err(Faults { origin, faults })
    }

    /// The path of the server file as given, so that its errors can be reported with those of the settings.
    pub fn config_file(&self) -> Option<PathBuf> {
        self.given("config-file").map(PathBuf::from)
    }

    /// The API keys in clear, so that one can be passed on. [`SettingsArgs::resolve`] reports their errors.
    pub fn keys_in_clear(&self) -> Vec<(String, Secret)> {
        let mut reader = Reader::new(self);
        let keys = reader.setting("--api-key KEYS...", |text| Ok(KeyRing::in_clear(text)));
        keys.secret().optional().unwrap_or_default()
    }
}

// Variables that look like settings but are not.

const PREFIX: &str = "MCPO_";

/// A warning for each of these variables whose name is similar to a setting's. Other variables that begin
/// with `MCPO_` may have another purpose: the server file may use them, and so do the files that start a
/// container.
pub fn misspelt_variables(names: impl Iterator<Item = String>) -> Vec<String> {
    let known: Vec<String> = table().iter().map(Setting::variable).collect();
    let mut unknown: Vec<String> = names
        .filter(|name| name.starts_with(PREFIX) && !known.contains(name))
        .collect();
    unknown.sort();
    let warn = |name: String| {
        let distance = |known: &&String| strsim::damerau_levenshtein(&name, known);
        let nearest = known.iter().min_by_key(distance)?;
        // In a short name, two letters are half of it.
        let most = if name.len() < PREFIX.len() + 6 { 1 } else { 2 };
        (distance(&nearest) <= most).then(|| {
            format!(
                "the variable {name} has no effect: there is no such setting; did you mean {nearest}? (see `mcpo-bridge \
                 serve --help`)"
            )
        })
    };
    unknown.into_iter().filter_map(warn).collect()
}

#[cfg(test)]
mod tests {
    use std::{fs, time::Duration};

    use clap::{Args, Command, FromArgMatches};

    use super::*;

    /// Parses flags like the program, without the variables of the test's environment.
    fn args(flags: &[&str]) -> SettingsArgs {
        let command =
            SettingsArgs::augment_args(Command::new("t")).mut_args(|arg| arg.env(None::<&str>));
        let matches = command.get_matches_from(["t"].iter().chain(flags));
        SettingsArgs::from_arg_matches(&matches).unwrap()
    }

    fn resolve(flags: &[&str]) -> Result<Settings, Faults> {
        args(flags).resolve()
    }

    #[test]
    fn the_defaults_are_the_products() {
        let s = resolve(&[]).unwrap();
        assert_eq!(s.listen.host, "127.0.0.1");
        assert_eq!(s.listen.port, 8080);
        assert_eq!(s.listen.base_url.to_string(), "http://localhost:8080");
        assert_eq!(s.listen.allowed_hosts, ["localhost", "127.0.0.1", "::1"]);
        assert_eq!(s.config_file.to_str(), Some("mcp-servers.json"));
        assert_eq!(s.lock_file.to_str(), Some("mcp-servers.lock.json"));
        assert_eq!(s.jobs_dir.to_str(), Some("/tmp/mcpo-jobs"));
        assert_eq!(s.files.expiry, Duration::from_hours(1));
        assert_eq!(s.files.retention, Duration::from_hours(1));
        assert_eq!(s.limits.timeout, Duration::from_mins(5));
        assert_eq!(s.limits.max_concurrent.get(), 4 * s.limits.max_starts.get());
        assert!(s.stateful.enabled);
        assert_eq!(s.stateful.default_idle_timeout, Duration::from_mins(30));
        assert_eq!(
            s.stateful.max_total_processes.get(),
            crate::config::DEFAULT_MAX_TOTAL_PROCESSES
        );
        assert_eq!(s.stateful.cleanup_interval, Duration::from_mins(5));
        assert_eq!(s.default_mode, Mode::Stateful);
        assert_eq!(s.log.level, LogLevel::Info);
        assert!(s.access.keys.is_empty() && s.warnings.is_empty());
    }

    #[test]
    fn args_without_a_command_line_are_the_defaults_too() {
        let made = SettingsArgs::default().resolve().unwrap();
        let parsed = resolve(&[]).unwrap();
        assert_eq!(format!("{made:?}"), format!("{parsed:?}"));
    }

    #[test]
    fn an_empty_value_is_an_unset_one() {
        let s = resolve(&[
            "--port=",
            "--api-key=",
            "--api-key-file=",
            "--file-retention=",
            "--log-file= ",
            "--trusted-proxies=",
            "--strict-auth=",
            "--cors-allow-origins=",
        ])
        .unwrap();
        assert_eq!(s.listen.port, 8080);
        assert!(s.access.keys.is_empty() && s.log.file.is_none());
        assert_eq!(s.access.trusted_proxies.len(), 2);
    }

    #[test]
    fn all_faults_come_at_once_with_name_value_and_fix() {
        let faults = resolve(&[
            "--port=99999",
            "--timeout=soon",
            "--base-url=localhost",
            "--log-level=loud",
            "--max-body-bytes=32M",
            "--strict-auth=perhaps",
            "--header-user-id=a b",
        ])
        .unwrap_err();
        assert_eq!(faults.faults.len(), 7, "{faults}");
        let text = faults.to_string();
        for part in [
            "--port / MCPO_PORT = 99999: ",
            "--timeout / MCPO_TIMEOUT = soon: ",
            "use one of DEBUG, INFO",
            "32MiB",
            "write true or false",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }

    #[test]
    fn a_flag_without_value_is_a_yes() {
        assert!(resolve(&["--strict-auth"]).unwrap().access.strict_auth);
        assert!(!resolve(&["--strict-auth=off"]).unwrap().access.strict_auth);
    }

    #[test]
    fn beyond_loopback_a_key_is_needed_unless_said_otherwise() {
        for host in ["0.0.0.0", "::", "192.168.1.2", "bridge", "[::]"] {
            let faults = resolve(&["--host", host]).unwrap_err();
            assert_eq!(faults.faults.len(), 1);
            assert!(faults.to_string().contains("MCPO_API_KEY"), "{faults}");
            assert!(resolve(&["--host", host, "--api-key=k"]).is_ok());
            let open = resolve(&["--host", host, "--allow-unauthenticated"]).unwrap();
            assert_eq!(open.warnings.len(), 1);
        }
        for host in ["localhost", "127.0.0.1", "127.1.2.3", "::1", "[::1]"] {
            assert!(resolve(&["--host", host]).is_ok(), "{host}");
        }
    }

    #[test]
    fn secrets_come_from_files_without_their_last_line_end() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("key");
        let file = file.to_str().unwrap();
        fs::write(file, "alice:k1\nbob:k2\r\n").unwrap();
        let s = resolve(&["--api-key-file", file, "--jwt-secret-file", file]).unwrap();
        assert_eq!(s.access.keys.find(b"k2"), Some("bob"));
        let jwt = s.access.jwt_secret.unwrap();
        assert_eq!(jwt.expose(), "alice:k1\nbob:k2");
    }

    #[test]
    fn secret_files_that_cannot_serve_are_faults() {
        let folder = tempfile::tempdir().unwrap();
        let empty = folder.path().join("empty");
        fs::write(&empty, "\n").unwrap();
        let empty = empty.to_str().unwrap();
        let missing = folder.path().join("missing");
        let missing = missing.to_str().unwrap();
        for file in [empty, missing] {
            let faults = resolve(&["--host=0.0.0.0", "--api-key-file", file]).unwrap_err();
            assert_eq!(faults.faults.len(), 1, "{faults}");
            assert!(faults.to_string().contains("MCPO_API_KEY_FILE"), "{faults}");
        }
        let both = resolve(&["--jwt-secret=x", "--jwt-secret-file", missing]).unwrap_err();
        assert!(
            both.to_string().contains("set only one of the two"),
            "{both}"
        );
    }

    #[test]
    fn no_output_shows_a_secret() {
        let s = resolve(&["--api-key=alice:hunter2", "--jwt-secret=swordfish"]).unwrap();
        let shown = format!("{s:?}");
        assert!(shown.contains("alice"), "{shown}");
        assert!(
            !shown.contains("hunter2") && !shown.contains("swordfish"),
            "{shown}"
        );
        let faults = resolve(&["--api-key=hunter2,hunter3", "--base-url=http://u:hunter2@x"]);
        let text = faults.unwrap_err().to_string();
        assert!(!text.contains("hunter"), "{text}");
    }

    #[test]
    fn allowed_hosts_are_ours_and_the_named_ones() {
        let s = resolve(&[
            "--host=10.0.0.5",
            "--api-key=k",
            "--base-url=https://Chat.Example/mcpo",
            "--allowed-hosts=mcpo-bridge:8080",
            "--allowed-hosts=other",
        ])
        .unwrap();
        let hosts = s.listen.allowed_hosts;
        assert_eq!(
            hosts,
            [
                "localhost",
                "127.0.0.1",
                "::1",
                "10.0.0.5",
                "chat.example",
                "mcpo-bridge",
                "other"
            ]
        );
    }

    #[test]
    fn what_weakens_the_bridge_or_its_links_is_a_warning() {
        let s = resolve(&[
            "--trusted-proxies=0.0.0.0/0",
            "--jwt-secret=short",
            "--allowed-hosts=*",
            "--base-url=http://mcpo-bridge:8080",
        ]);
        assert_eq!(s.unwrap().warnings.len(), 4);
    }

    #[test]
    fn flattening_leaves_the_commands_own_words() {
        /// Serves.
        #[derive(clap::Parser)]
        struct Cli {
            #[command(flatten)]
            settings: SettingsArgs,
        }
        let about = <Cli as clap::CommandFactory>::command()
            .get_about()
            .map(ToString::to_string);
        assert_eq!(about.as_deref(), Some("Serves"));
        let cli = <Cli as clap::Parser>::parse_from(["t", "--port=1"]);
        assert!(cli.settings.given("port") == Some("1"));
    }

    #[test]
    fn the_links_front_follows_the_port_and_the_certificate() {
        let url = |flags: &[&str]| resolve(flags).unwrap().listen.base_url.to_string();
        assert_eq!(url(&["--port", "8000"]), "http://localhost:8000");
        let tls = ["-p", "8443", "-t", "c.pem", "-K", "k.pem"];
        assert_eq!(url(&tls), "https://localhost:8443");
        assert_eq!(url(&["-p", "1", "--base-url", "/"]), "/");
    }

    #[test]
    fn a_certificate_needs_its_key() {
        let faults = resolve(&["--ssl-certfile", "c.pem"])
            .unwrap_err()
            .to_string();
        assert!(
            faults.contains("--ssl-keyfile / MCPO_SSL_KEYFILE is not set"),
            "{faults}"
        );
    }

    #[test]
    fn a_root_path_must_not_be_a_route() {
        for (root, prefix) in [("/mcpo", ""), ("/docs/x", ""), ("/p/files", "/p")] {
            let faults = resolve(&["--root-path", root, "--path-prefix", prefix]).unwrap_err();
            assert!(faults.to_string().contains("MCPO_ROOT_PATH"), "{faults}");
        }
        for (root, prefix) in [
            ("/tools", ""),
            ("/mcpo", "/p"),
            ("/p", "/p"),
            ("/mcpox", ""),
        ] {
            assert!(resolve(&["--root-path", root, "--path-prefix", prefix]).is_ok());
        }
    }
}

#[cfg(test)]
mod misspelt_tests {
    use super::*;

    #[test]
    fn a_misspelt_variable_is_reported_with_the_nearest_setting() {
        let names = [
            "MCPO_API_KEYS",
            "MCPO_PROT",
            "MCPO_TIMEOUT",
            "MCPO_API_KEY_FILE",
            "MCPO_UID",
            "MCPO_ASSETS_DIR",
            "MCPO_CPUS",
            "MCPO_BINARY",
            "MCPO_IMAGE_TAG",
            "MY_API_KEYS",
        ];
        let warnings = misspelt_variables(names.map(str::to_owned).into_iter());
        assert_eq!(warnings.len(), 2, "{warnings:?}");
        assert!(
            warnings[0].contains("MCPO_API_KEYS")
                && warnings[0].contains("did you mean MCPO_API_KEY?")
        );
        assert!(
            warnings[1].contains("MCPO_PROT") && warnings[1].contains("did you mean MCPO_PORT?")
        );
    }
}

/// The tables of `docs/configuration.md` must match the program and be complete.
#[cfg(test)]
mod reference_tests {
    use std::{collections::BTreeSet, fmt::Write as _, fs};

    use super::{reader::Unset, *};

    /// The tables of `docs/configuration.md`, between their markers.
    fn markdown() -> String {
        let mut text = String::new();
        let mut heading = "";
        for setting in table() {
            if setting.heading != heading {
                heading = setting.heading;
                let head =
                    "| Variable | Flag | Value | Default | What it does |\n|---|---|---|---|---|";
                let _ = write!(text, "\n### {heading}\n\n{head}\n");
            }
            let short = setting.short.map(|short| format!(", `-{short}`"));
            let default = match setting.default {
                Unset::None => "none".to_owned(),
                Unset::Value(value) => format!("`{value}`"),
                Unset::Computed(words) => words.to_owned(),
            };
            let cells = [
                format!("`{}`", setting.variable()),
                format!("`{}`{}", setting.flag(), short.unwrap_or_default()),
                setting.value.to_owned(),
                default,
                setting.help,
            ];
            // A `|` would end the cell.
            let cells = cells.map(|cell| cell.replace('|', "\\|"));
            let _ = writeln!(text, "| {} |", cells.join(" | "));
        }
        text
    }

    const START: &str = "<!-- settings:start -->";

    const END: &str = "<!-- settings:end -->";

    /// `UPDATE_DOCS=1 cargo test` rewrites the table; the rest of the page is kept.
    #[test]
    fn the_table_in_the_docs_is_the_programs() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/configuration.md");
        let page = || fs::read_to_string(&file).unwrap_or_default();
        let wanted = format!("{START}\n{}\n{END}", markdown());
        if std::env::var_os("UPDATE_DOCS").is_some() {
            let before = page();
            let cut = before
                .split_once(START)
                .and_then(|(head, rest)| Some((head, rest.split_once(END)?.1)));
            let (head, tail) = cut.unwrap_or(("# Configuration\n\n## Settings\n\n", "\n"));
            fs::write(&file, format!("{head}{wanted}{tail}")).unwrap();
        }
        assert!(
            page().contains(&wanted),
            "run: UPDATE_DOCS=1 cargo test the_table_in_the_docs"
        );
    }

    #[test]
    fn every_setting_says_what_it_does_in_which_unit() {
        let table = table();
        assert!(table.len() > 70, "{}", table.len());
        for setting in &table {
            assert!(setting.help.len() > 10, "{setting:?}");
            assert!(
                !setting.value.is_empty() && !setting.heading.is_empty(),
                "{setting:?}"
            );
            assert!(!setting.help.contains("  "), "{setting:?}");
        }
        let names: BTreeSet<_> = table.iter().map(Setting::variable).collect();
        assert_eq!(names.len(), table.len());
    }

    #[test]
    fn a_declaration_gives_flag_variable_and_default() {
        let table = table();
        let find = |variable: &str| {
            let mut found = table
                .iter()
                .filter(|setting| setting.variable() == variable);
            found.next().unwrap_or_else(|| panic!("{variable}"))
        };
        let port = find("MCPO_PORT");
        assert_eq!(
            (&*port.flag(), port.short, port.value),
            ("--port", Some('p'), "PORT")
        );
        assert_eq!(port.default, Unset::Value("8080"));
        assert_eq!(find("MCPO_CONFIG_FILE").flag(), "--config", "mcpo's name");
        assert_eq!(
            find("MCPO_FILE_RETENTION").default,
            Unset::Computed("the file expiry")
        );
        for secret in ["MCPO_API_KEY", "MCPO_JWT_SECRET", "MCPO_PEER_KEY"] {
            let file = find(&format!("{secret}_FILE"));
            assert!(find(secret).arg().is_hide_env_values_set(), "{secret}");
            assert!(file.help.contains(&find(secret).flag()), "{file:?}");
        }
    }
}
