//! From raw text to [`Settings`], with all faults at once.

use std::{net::IpAddr, num::NonZeroUsize, path::PathBuf, thread};

use bridge_openapi::{Documents, OperationIds};

use super::{
    Access, CommandLine, Files, IdentityHeaders, Journal, Lang, Limits, Listen, Log, LogFormat,
    LogLevel, OpenWebUiSettings, Pool, Replicas, Settings, Stateful, Tls,
    args::{
        AccessArgs, DocumentArgs, FileArgs, HeaderArgs, LimitArgs, ListenArgs, LogArgs,
        OpenWebUiArgs, PoolArgs, ReplicaArgs, SettingsArgs, StatefulArgs,
    },
    parse,
    reader::Reader,
};
use crate::{
    config::{BaseUrl, Fault, Faults, KeyRing, Mode, RESERVED_NAMES, Secret},
    memory::memory_limit,
};

/// Reads a field by its name, which is its id in the table.
macro_rules! read {
    ($reader:ident.$how:ident($args:ident.$field:ident, $parse:expr)) => {
        $reader.$how(stringify!($field), $args.$field, $parse)
    };
}

impl SettingsArgs {
    /// The server file as given, for whoever wants its faults beside those of the settings.
    pub fn config_file(&self) -> Option<PathBuf> {
        let given = self.general.config.as_deref().map(str::trim);
        given.filter(|path| !path.is_empty()).map(PathBuf::from)
    }

    /// The API keys themselves, for whoever has to hand one on; faults are told by
    /// [`SettingsArgs::resolve`].
    pub fn keys_in_clear(&self) -> Vec<(String, Secret)> {
        let (keys, file) = (
            self.access.api_key.clone(),
            self.access.api_key_file.clone(),
        );
        let text = Reader::new().secret("api_key", keys, file);
        text.map_or_else(Vec::new, |text| KeyRing::in_clear(text.expose()))
    }

    /// Checks everything and fills in the defaults. An empty value counts as unset.
    pub fn resolve(self) -> Result<Settings, Faults> {
        let r = &mut Reader::new();
        let general = self.general;
        let config_file = read!(r.required(general.config, parse::path));
        let mut settings = Settings {
            hot_reload: read!(r.required(general.hot_reload, parse::boolean)),
            command_line: CommandLine::default(),
            jobs_dir: read!(r.required(general.jobs_dir, parse::path)),
            tools_dir: read!(r.required(general.tools_dir, parse::path)),
            preinstalled_dir: read!(r.optional(general.preinstalled_dir, parse::path)),
            lock_file: read!(r.optional(general.lock_file, parse::path))
                .unwrap_or_else(|| config_file.with_extension("lock.json")),
            config_file,
            install: read!(r.required(general.install, parse::boolean)),
            default_mode: read!(r.required(general.default_mode, parse::choice(&MODES))),
            lang: read!(r.required(general.lang, parse::choice(&LANGS))),
            journal: read!(r.required(general.journal, parse::choice(&JOURNALS))),
            listen: listen(r, self.listen),
            documents: documents(r, self.documents),
            access: access(r, self.access, self.headers),
            openwebui: openwebui(r, self.openwebui),
            files: files(r, self.files),
            limits: limits(r, self.limits),
            stateful: stateful(r, self.stateful),
            pool: pool(r, self.pool),
            replicas: replicas(r, self.replicas),
            log: log(r, self.log),
            warnings: Vec::new(),
        };
        check_exposure(r, &settings);
        check_root_path(r, &settings.listen);
        if r.faults.is_empty() {
            settings.warnings = warnings(&settings);
            return Ok(settings);
        }
        Err(Faults {
            origin: "settings".into(),
            faults: std::mem::take(&mut r.faults),
        })
    }
}

const MODES: [(&str, Mode); 3] = [
    ("stateful", Mode::Stateful),
    ("stateless", Mode::Stateless),
    ("shared", Mode::Shared),
];
const LANGS: [(&str, Lang); 2] = [("en", Lang::En), ("ja", Lang::Ja)];
const JOURNALS: [(&str, Journal); 3] = [
    ("full", Journal::Full),
    ("metadata", Journal::Metadata),
    ("off", Journal::Off),
];
const LEVELS: [(&str, LogLevel); 6] = [
    ("DEBUG", LogLevel::Debug),
    ("INFO", LogLevel::Info),
    ("WARNING", LogLevel::Warning),
    ("ERROR", LogLevel::Error),
    ("CRITICAL", LogLevel::Critical),
    ("WARN", LogLevel::Warning),
];
const OPERATION_IDS: [(&str, OperationIds); 2] =
    [("tool", OperationIds::Tool), ("mcpo", OperationIds::Mcpo)];
const FORMATS: [(&str, LogFormat); 3] = [
    ("auto", LogFormat::Auto),
    ("json", LogFormat::Json),
    ("text", LogFormat::Text),
];

fn listen(r: &mut Reader, args: ListenArgs) -> Listen {
    let host = read!(r.required(args.host, parse::host));
    let port = read!(r.required(args.port, parse::port));
    let tls = tls(r, args.ssl_certfile, args.ssl_keyfile);
    let base_url = read!(r.optional(args.base_url, parse::base_url));
    let base_url = base_url.unwrap_or_else(|| BaseUrl::local(port, tls.is_some()));
    let named = read!(r.optional(args.allowed_hosts, parse::hosts)).unwrap_or_default();
    let loopback = ["localhost", "127.0.0.1", "::1"].map(str::to_owned);
    let own = (!is_unspecified(&host)).then(|| host.clone());
    let mut allowed_hosts: Vec<String> = Vec::new();
    for name in loopback
        .into_iter()
        .chain(own)
        .chain(base_url.host())
        .chain(named)
    {
        if !allowed_hosts.contains(&name) {
            allowed_hosts.push(name);
        }
    }
    let body_memory_bytes = read!(r.optional(args.body_memory, parse::bytes))
        .unwrap_or_else(|| memory_limit().bytes / 8);
    Listen {
        host,
        port,
        base_url,
        path_prefix: read!(r.optional(args.path_prefix, parse::path_prefix)).unwrap_or_default(),
        root_path: read!(r.optional(args.root_path, parse::path_prefix)).unwrap_or_default(),
        tls,
        allowed_hosts,
        cors_allow_origins: read!(r.optional(args.cors_allow_origins, parse::origins))
            .unwrap_or_default(),
        max_body_bytes: read!(r.required(args.max_body_bytes, parse::bytes)),
        max_body_values: read!(r.required(args.max_body_values, parse::count)).get() as u64,
        body_memory_bytes,
        body_memory_per_user_bytes: read!(r.optional(args.body_memory_per_user, parse::bytes))
            .unwrap_or(body_memory_bytes / 4 * 3),
        max_connections: read!(r.optional(args.max_connections, parse::count))
            .map_or(0, NonZeroUsize::get),
        max_file_requests: 0,
        head_timeout: read!(r.required(args.head_timeout, parse::timeout)),
        body_timeout: read!(r.required(args.body_timeout, parse::timeout)),
        keep_alive: read!(r.required(args.keep_alive, parse::timeout)),
    }
}

fn tls(r: &mut Reader, certificate: Option<String>, key: Option<String>) -> Option<Tls> {
    let certificate = r.optional("ssl_certfile", certificate, parse::path);
    let key = r.optional("ssl_keyfile", key, parse::path);
    let (given, missing) = match (certificate, key) {
        (Some(certificate), Some(key)) => return Some(Tls { certificate, key }),
        (None, None) => return None,
        (Some(_), None) => ("ssl_certfile", "ssl_keyfile"),
        (None, Some(_)) => ("ssl_keyfile", "ssl_certfile"),
    };
    let missing = r.place(missing);
    let fix = "give both a certificate and its key, or neither";
    let fault = Fault::new(r.place(given), format!("{missing} is not given"), fix);
    r.faults.push(fault);
    None
}

fn documents(r: &mut Reader, args: DocumentArgs) -> Documents {
    let text = |text: &str| Ok(text.to_owned());
    Documents {
        name: read!(r.optional(args.name, text)),
        description: read!(r.optional(args.description, text)),
        version: None,
        operation_ids: read!(r.required(args.operation_ids, parse::choice(&OPERATION_IDS))),
    }
}

fn access(r: &mut Reader, args: AccessArgs, headers: HeaderArgs) -> Access {
    let secret = r.secret("api_key", args.api_key, args.api_key_file);
    let keys = secret.map(|keys| KeyRing::parse(keys.expose()));
    let keys = keys.unwrap_or_else(|| Ok(KeyRing::default()));
    let keys = keys.unwrap_or_else(|error| {
        let fix = "write NAME:KEY,NAME:KEY, or one KEY alone";
        let fault = Fault::new(r.place("api_key"), error.to_string(), fix);
        r.faults.push(fault);
        KeyRing::default()
    });
    Access {
        keys,
        strict_auth: read!(r.required(args.strict_auth, parse::boolean)),
        allow_unauthenticated: read!(r.required(args.allow_unauthenticated, parse::boolean)),
        jwt_secret: r.secret("jwt_secret", args.jwt_secret, args.jwt_secret_file),
        trusted_proxies: read!(r.required(args.trusted_proxies, parse::networks)),
        headers: identity_headers(r, headers),
    }
}

fn identity_headers(r: &mut Reader, args: HeaderArgs) -> IdentityHeaders {
    IdentityHeaders {
        key: read!(r.required(args.header_key, parse::header_name)),
        user_id: read!(r.required(args.header_user_id, parse::header_name)),
        user_name: read!(r.required(args.header_user_name, parse::header_name)),
        user_email: read!(r.required(args.header_user_email, parse::header_name)),
        user_role: read!(r.required(args.header_user_role, parse::header_name)),
        user_groups: read!(r.required(args.header_user_groups, parse::header_name)),
        user_jwt: read!(r.required(args.header_user_jwt, parse::header_name)),
        chat_id: read!(r.required(args.header_chat_id, parse::header_name)),
        message_id: read!(r.required(args.header_message_id, parse::header_name)),
    }
}

fn openwebui(r: &mut Reader, args: OpenWebUiArgs) -> OpenWebUiSettings {
    OpenWebUiSettings {
        url: read!(r.optional(args.openwebui_url, parse::service_url)),
    }
}

fn files(r: &mut Reader, args: FileArgs) -> Files {
    let expiry = read!(r.required(args.file_expiry, parse::lifetime));
    Files {
        expiry,
        retention: read!(r.optional(args.file_retention, parse::retention)).unwrap_or(expiry),
        max_per_call: read!(r.required(args.max_files_per_call, parse::count)).get(),
        max_workspace_bytes: read!(r.required(args.max_workspace_bytes, parse::bytes)),
        max_user_bytes: read!(r.optional(args.max_user_bytes, parse::bytes)),
        max_workspace_files: read!(r.required(args.max_workspace_files, parse::count)).get(),
        server: read!(r.required(args.files_server, parse::boolean)),
        max_upload_bytes: read!(r.required(args.max_upload_bytes, parse::bytes)),
        min_free_disk_bytes: read!(r.required(args.min_free_disk_bytes, parse::bytes_or_none)),
    }
}

fn limits(r: &mut Reader, args: LimitArgs) -> Limits {
    // Counts a container's CPU quota, of cgroup v1 and v2.
    let cpus = thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    let four = NonZeroUsize::MIN.saturating_add(3);
    Limits {
        max_concurrent: read!(r.optional(args.max_concurrent, parse::count))
            .unwrap_or(cpus.saturating_mul(four)),
        max_concurrent_per_user: read!(r.optional(args.max_concurrent_per_user, parse::count)),
        server_calls_per_user: read!(r.required(args.server_calls_per_user, parse::count)),
        max_waiting: read!(r.required(args.max_waiting, parse::count)),
        max_starts: read!(r.optional(args.max_starts, parse::count)).unwrap_or(cpus),
        timeout: read!(r.required(args.timeout, parse::timeout)),
        start_timeout: read!(r.required(args.start_timeout, parse::timeout)),
        queue_timeout: read!(r.required(args.queue_timeout, parse::grace)),
        input_timeout: read!(r.required(args.input_timeout, parse::timeout)),
        kill_grace: read!(r.required(args.kill_grace, parse::grace)),
        shutdown_grace: read!(r.required(args.shutdown_grace, parse::grace)),
        max_message_bytes: read!(r.required(args.max_message_bytes, parse::bytes)),
    }
}

fn stateful(r: &mut Reader, args: StatefulArgs) -> Stateful {
    Stateful {
        enabled: read!(r.required(args.stateful_enabled, parse::boolean)),
        default_idle_timeout: read!(r.required(args.stateful_default_idle_timeout, parse::timeout)),
        max_processes_per_chat: read!(
            r.required(args.stateful_max_processes_per_chat, parse::count)
        ),
        max_total_processes: read!(r.required(args.stateful_max_total_processes, parse::count)),
        max_processes_per_user: read!(
            r.optional(args.stateful_max_processes_per_user, parse::count)
        ),
        cleanup_interval: read!(r.required(args.stateful_cleanup_interval, parse::timeout)),
    }
}

fn pool(r: &mut Reader, args: PoolArgs) -> Pool {
    Pool {
        max: read!(r.required(args.pool_max, parse::count_or_none)),
        idle: read!(r.required(args.pool_idle, parse::timeout)),
        min_free_memory_bytes: read!(r.required(args.pool_min_free_memory, parse::bytes_or_none)),
    }
}

fn replicas(r: &mut Reader, args: ReplicaArgs) -> Replicas {
    Replicas {
        address: read!(r.optional(args.peer_address, parse::peer_address)),
        key: r.secret("peer_key", args.peer_key, args.peer_key_file),
        lease_ttl: read!(r.required(args.lease_ttl, parse::lease)),
        drain_delay: read!(r.required(args.drain_delay, parse::grace)),
    }
}

fn log(r: &mut Reader, args: LogArgs) -> Log {
    Log {
        level: read!(r.required(args.log_level, parse::choice(&LEVELS))),
        file: read!(r.optional(args.log_file, parse::path)),
        format: read!(r.required(args.log_format, parse::choice(&FORMATS))),
    }
}

fn is_unspecified(host: &str) -> bool {
    host.parse::<IpAddr>()
        .is_ok_and(|address| address.is_unspecified())
}

/// A name other than `localhost` may resolve to anything, so it counts as beyond.
pub(super) fn is_loopback(host: &str) -> bool {
    let address = host.parse::<IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.to_canonical().is_loopback())
}

fn is_exposed(settings: &Settings) -> bool {
    settings.access.keys.is_empty() && !is_loopback(&settings.listen.host)
}

fn check_exposure(r: &mut Reader, settings: &Settings) {
    // A broken key is told already; that there is none would be wrong.
    let keys_faulty = r
        .faults
        .iter()
        .any(|fault| fault.place.starts_with("--api-key"));
    if is_exposed(settings) && !settings.access.allow_unauthenticated && !keys_faulty {
        let fault = Fault::new(
            r.place("host"),
            "listening beyond loopback without an API key lets anybody call every tool",
            "set MCPO_API_KEY or MCPO_API_KEY_FILE, or say that you mean it with \
             MCPO_ALLOW_UNAUTHENTICATED=true",
        );
        r.faults.push(fault.with_value(&settings.listen.host));
    }
}

/// Routes are served with the root path and without it: one that begins as a route of ours would make
/// one path mean two things.
fn check_root_path(r: &mut Reader, listen: &Listen) {
    let inner = listen.root_path.strip_prefix(&listen.path_prefix);
    let first = inner.and_then(|path| path.strip_prefix('/'));
    let first = first.and_then(|path| path.split('/').next());
    if let Some(first) = first.filter(|first| RESERVED_NAMES.contains(first)) {
        let fault = Fault::new(
            r.place("root_path"),
            format!(
                "the bridge's own routes begin with {}/{first}, too",
                listen.path_prefix
            ),
            "let the proxy take off another path, such as /tools; to serve everything below a \
             path, set MCPO_PATH_PREFIX",
        );
        r.faults.push(fault.with_value(&listen.root_path));
    }
}

/// What `--strict-auth` means for connections that send the user's token.
const SESSION_DOCUMENTS: &str = "documents ask for the key (MCPO_STRICT_AUTH), and Open WebUI sends \
    none when it fetches openapi.json of a connection with auth type session: let it come from an \
    address in MCPO_TRUSTED_PROXIES, or put what `mcpo-bridge openwebui spec-path` prints into the \
    connection's path";

fn any_origin(settings: &Settings) -> Option<String> {
    let any = settings
        .listen
        .cors_allow_origins
        .iter()
        .any(|it| it == "*");
    (any && settings.access.keys.is_empty()).then(|| {
        "MCPO_CORS_ALLOW_ORIGINS=* without an API key: every web page that a browser on a machine \
         which reaches the bridge opens may call every tool and read what anonymous callers made; name \
         the origins, or set MCPO_API_KEY"
            .to_owned()
    })
}

/// Where the settings show that others than programs on this machine come to a bridge on loopback,
/// while users are known by address.
fn proxied_without_key(settings: &Settings) -> Option<String> {
    let (listen, access) = (&settings.listen, &settings.access);
    let by_address = access.keys.is_empty()
        && access.jwt_secret.is_none()
        && access
            .trusted_proxies
            .iter()
            .any(|net| net.addr().is_loopback());
    if !by_address || !is_loopback(&listen.host) {
        return None;
    }
    let beyond = |host: &str| !is_loopback(host);
    let sign = match listen.base_url.host() {
        None => "MCPO_BASE_URL = /".to_owned(),
        Some(host) if beyond(&host) => format!("MCPO_BASE_URL = {}", listen.base_url),
        Some(_) if !listen.root_path.is_empty() => format!("MCPO_ROOT_PATH = {}", listen.root_path),
        Some(_) => {
            let host = listen.allowed_hosts.iter().find(|host| beyond(host))?;
            format!("MCPO_ALLOWED_HOSTS holds {host}")
        }
    };
    Some(format!(
        "{sign}, so a proxy on this machine seems to pass requests on, and there is no API key: one \
         that adds no header such as X-Forwarded-For or Via (nginx's plain proxy_pass, ssh -R, socat) \
         makes everybody a program of this machine, whose user headers are believed; set MCPO_API_KEY, \
         or MCPO_TRUSTED_PROXIES=none"
    ))
}

fn warnings(settings: &Settings) -> Vec<String> {
    let access = &settings.access;
    let mut warnings = Vec::new();
    if is_exposed(settings) {
        warnings.push(format!(
            "anybody who reaches {}:{} may call every tool: MCPO_ALLOW_UNAUTHENTICATED is set and \
             there is no API key",
            settings.listen.host, settings.listen.port
        ));
    }
    warnings.extend(any_origin(settings));
    warnings.extend(proxied_without_key(settings));
    if access
        .trusted_proxies
        .iter()
        .any(|network| network.prefix_len() == 0)
    {
        warnings.push(
            "MCPO_TRUSTED_PROXIES holds every address: user headers are believed from anybody"
                .into(),
        );
    }
    if access.strict_auth && settings.openwebui.url.is_some() && !access.keys.is_empty() {
        warnings.push(SESSION_DOCUMENTS.into());
    }
    let short = |secret: &crate::config::Secret| secret.expose().len() < 32;
    if settings.replicas.key.as_ref().is_some_and(short) {
        warnings.push("MCPO_PEER_KEY has fewer than 32 bytes, so it can be guessed".into());
    }
    if access.jwt_secret.as_ref().is_some_and(short) {
        warnings.push(
            "MCPO_JWT_SECRET has fewer than 32 bytes, so a token can be used to guess it".into(),
        );
    }
    if let Some(host) = settings.listen.base_url.internal_host() {
        warnings.push(format!(
            "MCPO_BASE_URL = {}: links begin with it, and a browser can hardly reach '{host}'; set \
             it to the URL under which users' browsers reach the bridge",
            settings.listen.base_url
        ));
    }
    if settings.listen.allowed_hosts.iter().any(|host| host == "*") {
        warnings.push("MCPO_ALLOWED_HOSTS=* switches the protection from DNS rebinding off".into());
    }
    warnings
}

#[cfg(test)]
mod tests;
