//! Every setting as a flag and a variable: the one table that help, parsing and docs come from.
//!
//! Values stay raw here, so that `resolve` can report all faults at once and can take an empty
//! variable (compose passes `${X:-}`) for an unset one. A default that is worked out at run time
//! stands in the help text as `[default: …]`, the way clap prints the others.

use clap::Args;

mod http;
mod load;
mod openwebui;
mod replicas;

pub(super) use http::{AccessArgs, DocumentArgs, HeaderArgs, ListenArgs};
pub(super) use load::{FileArgs, LimitArgs, LogArgs, PoolArgs, StatefulArgs};
pub(super) use openwebui::OpenWebUiArgs;
pub(super) use replicas::ReplicaArgs;

/// All settings, to be flattened into a command.
#[derive(Debug, Clone, Default, Args)]
pub struct SettingsArgs {
    #[command(flatten)]
    pub(super) general: GeneralArgs,
    #[command(flatten)]
    pub(super) listen: ListenArgs,
    #[command(flatten)]
    pub(super) documents: DocumentArgs,
    #[command(flatten)]
    pub(super) access: AccessArgs,
    #[command(flatten)]
    pub(super) headers: HeaderArgs,
    #[command(flatten)]
    pub(super) openwebui: OpenWebUiArgs,
    #[command(flatten)]
    pub(super) files: FileArgs,
    #[command(flatten)]
    pub(super) limits: LimitArgs,
    #[command(flatten)]
    pub(super) stateful: StatefulArgs,
    #[command(flatten)]
    pub(super) pool: PoolArgs,
    #[command(flatten)]
    pub(super) replicas: ReplicaArgs,
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
    /// Read the server file again when it changes; if false, only on SIGHUP
    #[arg(
        long, value_name = "BOOL", env = "MCPO_HOT_RELOAD", default_value = "true",
        default_missing_value = "true", num_args = 0..=1, require_equals = true
    )]
    pub hot_reload: Option<String>,
    /// Where workspaces, links and leases live
    #[arg(
        long,
        value_name = "DIR",
        env = "MCPO_JOBS_DIR",
        default_value = "/tmp/mcpo-jobs"
    )]
    pub jobs_dir: Option<String>,
    /// Packages and caches of launchers (uvx, npx), shared by all servers and kept between runs
    #[arg(
        long,
        value_name = "DIR",
        env = "MCPO_TOOLS_DIR",
        default_value = "/tmp/mcpo-tools"
    )]
    pub tools_dir: Option<String>,
    /// What `mcpo-bridge install` locked [default: beside the server file, as
    /// mcp-servers.lock.json]
    #[arg(long, value_name = "FILE", env = "MCPO_LOCK_FILE")]
    pub lock_file: Option<String>,
    /// What was installed ahead by `mcpo-bridge install` and is only read, with the lock file
    /// mcp-servers.lock.json in it: the image's own is /opt/mcpo-tools
    #[arg(long, value_name = "DIR", env = "MCPO_PREINSTALLED_DIR")]
    pub preinstalled_dir: Option<String>,
    /// Install the packages of launchers (uvx, npx) once, beside the calls; if false, only what
    /// `mcpo-bridge install` installed is started without its launcher
    #[arg(
        long, value_name = "BOOL", env = "MCPO_INSTALL", default_value = "true",
        default_missing_value = "true", num_args = 0..=1, require_equals = true
    )]
    pub install: Option<String>,
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
