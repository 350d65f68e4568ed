//! Every setting as a flag and a variable: the one table that help, parsing and docs come from.
//!
//! Values stay raw here, so that `resolve` can report all faults at once and can take an empty
//! variable (compose passes `${X:-}`) for an unset one. A default that is worked out at run time
//! stands in the help text as `[default: …]`, the way clap prints the others.

use clap::{ArgAction, Args};

/// All settings, to be flattened into a command.
#[derive(Debug, Clone, Default, Args)]
pub struct SettingsArgs {
    #[command(flatten)]
    pub(super) general: GeneralArgs,
    #[command(flatten)]
    pub(super) listen: ListenArgs,
    #[command(flatten)]
    pub(super) access: AccessArgs,
    #[command(flatten)]
    pub(super) headers: HeaderArgs,
    #[command(flatten)]
    pub(super) files: FileArgs,
    #[command(flatten)]
    pub(super) limits: LimitArgs,
    #[command(flatten)]
    pub(super) stateful: StatefulArgs,
    #[command(flatten)]
    pub(super) log: LogArgs,
}

#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "General")]
pub(super) struct GeneralArgs {
    /// The server file, in the format of Claude Desktop and mcpo
    #[arg(
        long,
        short,
        visible_alias = "config-file",
        value_name = "FILE",
        env = "MCPO_CONFIG_FILE",
        default_value = "/app/config/mcp-servers.json"
    )]
    pub config: Option<String>,
    /// Where workspaces, links and leases live
    #[arg(
        long,
        value_name = "DIR",
        env = "MCPO_JOBS_DIR",
        default_value = "/tmp/mcpo-jobs"
    )]
    pub jobs_dir: Option<String>,
    /// Caches of launchers (uvx, npx), shared by all servers and kept between runs
    #[arg(
        long,
        value_name = "DIR",
        env = "MCPO_TOOLS_DIR",
        default_value = "/tmp/mcpo-tools"
    )]
    pub tools_dir: Option<String>,
    /// The mode of servers that name none: stateful, stateless or shared
    #[arg(
        long,
        value_name = "MODE",
        env = "MCPO_DEFAULT_MODE",
        default_value = "stateful"
    )]
    pub default_mode: Option<String>,
    /// The language of the sentences around links and of pages for browsers: en or ja
    #[arg(long, value_name = "LANG", env = "MCPO_LANG", default_value = "en")]
    pub lang: Option<String>,
    /// What is kept of each call in its workspace: full (request and response), metadata (times
    /// and files), or off
    #[arg(
        long,
        value_name = "KIND",
        env = "MCPO_JOURNAL",
        default_value = "full"
    )]
    pub journal: Option<String>,
}

#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "HTTP")]
pub(super) struct ListenArgs {
    /// Address to listen on; beyond loopback an API key is needed
    #[arg(
        long,
        value_name = "ADDRESS",
        env = "MCPO_HOST",
        default_value = "127.0.0.1"
    )]
    pub host: Option<String>,
    /// Port to listen on; 0 takes a free one
    #[arg(
        long,
        short,
        value_name = "PORT",
        env = "MCPO_PORT",
        default_value = "8080"
    )]
    pub port: Option<String>,
    /// The front of download links, as the user's browser reaches the bridge; `/` makes links
    /// relative to the page's origin
    #[arg(
        long,
        value_name = "URL",
        env = "MCPO_BASE_URL",
        default_value = "http://localhost:8080"
    )]
    pub base_url: Option<String>,
    /// In front of every route, such as `/mcpo` [default: none]
    #[arg(long, value_name = "PATH", env = "MCPO_PATH_PREFIX")]
    pub path_prefix: Option<String>,
    /// Host names that requests may be addressed to, beside loopback's, the listening address
    /// and the base URL's (comma-separated, repeatable); `*` allows any [default: none]
    #[arg(long, value_name = "HOSTS", env = "MCPO_ALLOWED_HOSTS", action = ArgAction::Append)]
    pub allowed_hosts: Vec<String>,
    /// Origins whose pages may call the bridge, such as `https://chat.example.com`
    /// (comma-separated, repeatable); `*` allows any [default: none]
    #[arg(
        long, value_name = "ORIGINS", env = "MCPO_CORS_ALLOW_ORIGINS", action = ArgAction::Append
    )]
    pub cors_allow_origins: Vec<String>,
    /// The largest request body, in bytes or with a unit (KiB, MiB, GiB, KB, MB, GB)
    #[arg(
        long,
        value_name = "BYTES",
        env = "MCPO_MAX_BODY_BYTES",
        default_value = "32MiB"
    )]
    pub max_body_bytes: Option<String>,
}

#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Access")]
pub(super) struct AccessArgs {
    /// API keys: KEY, or NAME:KEY for several (comma-separated, repeatable). Prefer the variable
    /// or the file: a command line is readable by others on the machine [default: none]
    #[arg(
        long, short = 'k', value_name = "KEYS", env = "MCPO_API_KEY", hide_env_values = true,
        action = ArgAction::Append
    )]
    pub api_key: Vec<String>,
    /// A file with the API keys, separated by commas or line ends [default: none]
    #[arg(long, value_name = "FILE", env = "MCPO_API_KEY_FILE")]
    pub api_key_file: Option<String>,
    /// Ask for the key on documents (openapi.json, docs) too
    #[arg(
        long, value_name = "BOOL", env = "MCPO_STRICT_AUTH", default_value = "false",
        default_missing_value = "true", num_args = 0..=1, require_equals = true
    )]
    pub strict_auth: Option<String>,
    /// Listen beyond loopback without an API key: anybody who reaches the port may call every tool
    #[arg(
        long, value_name = "BOOL", env = "MCPO_ALLOW_UNAUTHENTICATED", default_value = "false",
        default_missing_value = "true", num_args = 0..=1, require_equals = true
    )]
    pub allow_unauthenticated: Option<String>,
    /// Open WebUI's `FORWARD_USER_INFO_HEADER_JWT_SECRET`: with it only signed user tokens
    /// (HS256) are believed, and plain user headers are ignored [default: none]
    #[arg(
        long,
        value_name = "SECRET",
        env = "MCPO_JWT_SECRET",
        hide_env_values = true
    )]
    pub jwt_secret: Option<String>,
    /// A file with that secret [default: none]
    #[arg(long, value_name = "FILE", env = "MCPO_JWT_SECRET_FILE")]
    pub jwt_secret_file: Option<String>,
    /// Networks whose plain user headers are believed without a key, as addresses or CIDR
    /// (comma-separated, repeatable); `none` trusts no address
    #[arg(
        long, value_name = "NETWORKS", env = "MCPO_TRUSTED_PROXIES", action = ArgAction::Append,
        default_value = "127.0.0.0/8,::1/128"
    )]
    pub trusted_proxies: Vec<String>,
}

#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Identity headers (where Open WebUI's were renamed)")]
#[expect(clippy::struct_field_names, reason = "a field is named as its flag")]
pub(super) struct HeaderArgs {
    /// Names the user
    #[arg(
        long,
        value_name = "NAME",
        env = "MCPO_HEADER_USER_ID",
        default_value = "X-OpenWebUI-User-Id"
    )]
    pub header_user_id: Option<String>,
    /// The user's display name, percent-encoded
    #[arg(
        long,
        value_name = "NAME",
        env = "MCPO_HEADER_USER_NAME",
        default_value = "X-OpenWebUI-User-Name"
    )]
    pub header_user_name: Option<String>,
    /// The user's mail address
    #[arg(
        long,
        value_name = "NAME",
        env = "MCPO_HEADER_USER_EMAIL",
        default_value = "X-OpenWebUI-User-Email"
    )]
    pub header_user_email: Option<String>,
    /// The user's role
    #[arg(
        long,
        value_name = "NAME",
        env = "MCPO_HEADER_USER_ROLE",
        default_value = "X-OpenWebUI-User-Role"
    )]
    pub header_user_role: Option<String>,
    /// The signed token that stands for the four above
    #[arg(
        long,
        value_name = "NAME",
        env = "MCPO_HEADER_USER_JWT",
        default_value = "X-OpenWebUI-User-Jwt"
    )]
    pub header_user_jwt: Option<String>,
    /// Names the chat
    #[arg(
        long,
        value_name = "NAME",
        env = "MCPO_HEADER_CHAT_ID",
        default_value = "X-OpenWebUI-Chat-Id"
    )]
    pub header_chat_id: Option<String>,
    /// Names the message
    #[arg(
        long,
        value_name = "NAME",
        env = "MCPO_HEADER_MESSAGE_ID",
        default_value = "X-OpenWebUI-Message-Id"
    )]
    pub header_message_id: Option<String>,
}

#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Files")]
pub(super) struct FileArgs {
    /// How long a download link works, from its hand-out
    #[arg(
        long,
        value_name = "SECONDS",
        env = "MCPO_FILE_EXPIRY",
        default_value = "3600"
    )]
    pub file_expiry: Option<String>,
    /// How long a workspace is kept after its last call [default: the file expiry]
    #[arg(long, value_name = "SECONDS", env = "MCPO_FILE_RETENTION")]
    pub file_retention: Option<String>,
    /// Files that one call may link; the rest is named in the answer only
    #[arg(
        long,
        value_name = "COUNT",
        env = "MCPO_MAX_FILES_PER_CALL",
        default_value = "50"
    )]
    pub max_files_per_call: Option<String>,
    /// The size of one workspace, in bytes or with a unit
    #[arg(
        long,
        value_name = "BYTES",
        env = "MCPO_MAX_WORKSPACE_BYTES",
        default_value = "2GiB"
    )]
    pub max_workspace_bytes: Option<String>,
    /// Files and folders in one workspace
    #[arg(
        long,
        value_name = "COUNT",
        env = "MCPO_MAX_WORKSPACE_FILES",
        default_value = "10000"
    )]
    pub max_workspace_files: Option<String>,
    /// Refuse new work while the disk has less than this free, in bytes or with a unit
    #[arg(
        long,
        value_name = "BYTES",
        env = "MCPO_MIN_FREE_DISK_BYTES",
        default_value = "256MiB"
    )]
    pub min_free_disk_bytes: Option<String>,
}

#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Time and load")]
pub(super) struct LimitArgs {
    /// Calls being executed at the same time [default: 4 × CPUs, a container's quota counted]
    #[arg(long, value_name = "COUNT", env = "MCPO_MAX_CONCURRENT")]
    pub max_concurrent: Option<String>,
    /// Servers being started at the same time [default: CPUs, a container's quota counted]
    #[arg(long, value_name = "COUNT", env = "MCPO_MAX_STARTS")]
    pub max_starts: Option<String>,
    /// A call's deadline, wait and start included
    #[arg(
        long,
        value_name = "SECONDS",
        env = "MCPO_TIMEOUT",
        default_value = "300"
    )]
    pub timeout: Option<String>,
    /// How long a server may take to start
    #[arg(
        long,
        value_name = "SECONDS",
        env = "MCPO_START_TIMEOUT",
        default_value = "60"
    )]
    pub start_timeout: Option<String>,
    /// How long a call waits for its turn before it is refused with 429
    #[arg(
        long,
        value_name = "SECONDS",
        env = "MCPO_QUEUE_TIMEOUT",
        default_value = "60"
    )]
    pub queue_timeout: Option<String>,
    /// From SIGTERM to SIGKILL of a server's process
    #[arg(
        long,
        value_name = "SECONDS",
        env = "MCPO_KILL_GRACE",
        default_value = "3"
    )]
    pub kill_grace: Option<String>,
    /// What running calls get when the bridge is told to stop
    #[arg(
        long,
        value_name = "SECONDS",
        env = "MCPO_SHUTDOWN_GRACE",
        default_value = "30"
    )]
    pub shutdown_grace: Option<String>,
    /// The longest message (one line) from a server, in bytes or with a unit
    #[arg(
        long,
        value_name = "BYTES",
        env = "MCPO_MAX_MESSAGE_BYTES",
        default_value = "64MiB"
    )]
    pub max_message_bytes: Option<String>,
}

#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Stateful servers")]
#[expect(clippy::struct_field_names, reason = "a field is named as its flag")]
pub(super) struct StatefulArgs {
    /// Keep a process for each user and chat; if false, stateful servers run stateless
    #[arg(
        long, value_name = "BOOL", env = "MCPO_STATEFUL_ENABLED", default_value = "true",
        default_missing_value = "true", num_args = 0..=1, require_equals = true
    )]
    pub stateful_enabled: Option<String>,
    /// A process without calls ends after this, where its server names no `idle_timeout`
    #[arg(
        long,
        value_name = "SECONDS",
        env = "MCPO_STATEFUL_DEFAULT_IDLE_TIMEOUT",
        default_value = "1800"
    )]
    pub stateful_default_idle_timeout: Option<String>,
    /// Live processes of one server for one user and chat
    #[arg(
        long,
        value_name = "COUNT",
        env = "MCPO_STATEFUL_MAX_PROCESSES_PER_CHAT",
        default_value = "1"
    )]
    pub stateful_max_processes_per_chat: Option<String>,
    /// Live processes in all; over it the least recently used idle one ends
    #[arg(
        long,
        value_name = "COUNT",
        env = "MCPO_STATEFUL_MAX_TOTAL_PROCESSES",
        default_value = "100"
    )]
    pub stateful_max_total_processes: Option<String>,
    /// Time between two rounds of cleaning up
    #[arg(
        long,
        value_name = "SECONDS",
        env = "MCPO_STATEFUL_CLEANUP_INTERVAL",
        default_value = "300"
    )]
    pub stateful_cleanup_interval: Option<String>,
}

#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Log")]
#[expect(clippy::struct_field_names, reason = "a field is named as its flag")]
pub(super) struct LogArgs {
    /// DEBUG, INFO, WARNING, ERROR or CRITICAL
    #[arg(
        long,
        value_name = "LEVEL",
        env = "MCPO_LOG_LEVEL",
        default_value = "INFO"
    )]
    pub log_level: Option<String>,
    /// Append the log to this file too, as JSON [default: none]
    #[arg(long, value_name = "FILE", env = "MCPO_LOG_FILE")]
    pub log_file: Option<String>,
    /// auto (text on a terminal, JSON otherwise), json or text
    #[arg(
        long,
        value_name = "FORMAT",
        env = "MCPO_LOG_FORMAT",
        default_value = "auto"
    )]
    pub log_format: Option<String>,
}
