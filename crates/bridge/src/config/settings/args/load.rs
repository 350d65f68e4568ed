//! Files, time, load and the log.

use clap::Args;

#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Files")]
pub(in crate::config::settings) struct FileArgs {
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
    /// Files that one call may link
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
    /// The size of all chats and links of one user, in bytes or with a unit
    /// [default: three quarters of what is free above the floor or taken by them]
    #[arg(long, value_name = "BYTES", env = "MCPO_MAX_USER_BYTES")]
    pub max_user_bytes: Option<String>,
    /// Files and folders in one workspace
    #[arg(
        long,
        value_name = "COUNT",
        env = "MCPO_MAX_WORKSPACE_FILES",
        default_value = "10000"
    )]
    pub max_workspace_files: Option<String>,
    /// Offer the built-in server `files`, by which a chat lists, links and deletes its files. An
    /// entry `files` in the server file takes its place
    #[arg(
        long, value_name = "BOOL", env = "MCPO_FILES_SERVER", default_value = "true",
        default_missing_value = "true", num_args = 0..=1, require_equals = true
    )]
    pub files_server: Option<String>,
    /// The largest file that comes into a workspace by an upload or from a chat, or that is attached
    /// in a chat, in bytes or with a unit
    #[arg(
        long,
        value_name = "BYTES",
        env = "MCPO_MAX_UPLOAD_BYTES",
        default_value = "100MiB"
    )]
    pub max_upload_bytes: Option<String>,
    /// Refuse new work while the disk has less than this free, in bytes or with a unit; 0: never
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
pub(in crate::config::settings) struct LimitArgs {
    /// Calls being executed at the same time [default: 4 × CPUs, a container's quota counted]
    #[arg(long, value_name = "COUNT", env = "MCPO_MAX_CONCURRENT")]
    pub max_concurrent: Option<String>,
    /// Of these, calls of one user; the rest is kept for users of whom none is being executed
    /// [default: three of four]
    #[arg(long, value_name = "COUNT", env = "MCPO_MAX_CONCURRENT_PER_USER")]
    pub max_concurrent_per_user: Option<String>,
    /// Calls of one user that one server works on at the same time, where it is `shared` without a
    /// `concurrency` of its own, or remote; four times as many of callers who are no known user
    #[arg(
        long,
        value_name = "COUNT",
        env = "MCPO_SERVER_CALLS_PER_USER",
        default_value = "8"
    )]
    pub server_calls_per_user: Option<String>,
    /// Calls that wait for their turn; over it the last one of the user who has the most is refused
    #[arg(
        long,
        value_name = "COUNT",
        env = "MCPO_MAX_WAITING",
        default_value = "1000"
    )]
    pub max_waiting: Option<String>,
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
    /// How long a caller may take to answer what a server asks him during a call
    #[arg(
        long,
        value_name = "SECONDS",
        env = "MCPO_INPUT_TIMEOUT",
        default_value = "600"
    )]
    pub input_timeout: Option<String>,
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
pub(in crate::config::settings) struct StatefulArgs {
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
    /// Live processes in all; over it the least recently used idle one of the user who has the most
    /// ends
    #[arg(
        long,
        value_name = "COUNT",
        env = "MCPO_STATEFUL_MAX_TOTAL_PROCESSES",
        default_value = "100"
    )]
    pub stateful_max_total_processes: Option<String>,
    /// Of these, processes of one user; over it his own least recently used idle one ends
    /// [default: three of four, where there are four or more]
    #[arg(
        long,
        value_name = "COUNT",
        env = "MCPO_STATEFUL_MAX_PROCESSES_PER_USER"
    )]
    pub stateful_max_processes_per_user: Option<String>,
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
#[command(next_help_heading = "Processes that are ready")]
#[expect(clippy::struct_field_names, reason = "a field is named as its flag")]
pub(in crate::config::settings) struct PoolArgs {
    /// Processes in all that are started ahead of the calls and chats that take them, as many as
    /// lately came; 0: none
    #[arg(long, value_name = "COUNT", env = "MCPO_POOL_MAX", default_value = "8")]
    pub pool_max: Option<String>,
    /// None is kept of a server for which nobody came for this long
    #[arg(
        long,
        value_name = "SECONDS",
        env = "MCPO_POOL_IDLE",
        default_value = "600"
    )]
    pub pool_idle: Option<String>,
    /// None is kept while less memory than this is free, of the machine's or a container's, in bytes
    /// or with a unit; 0: whatever is free
    #[arg(
        long,
        value_name = "BYTES",
        env = "MCPO_POOL_MIN_FREE_MEMORY",
        default_value = "512MiB"
    )]
    pub pool_min_free_memory: Option<String>,
}

#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Log")]
#[expect(clippy::struct_field_names, reason = "a field is named as its flag")]
pub(in crate::config::settings) struct LogArgs {
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
