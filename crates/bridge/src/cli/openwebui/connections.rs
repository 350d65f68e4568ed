//! `mcpo-bridge openwebui connections`: for a new Open WebUI.

use clap::Args;

use super::{
    connection::{MakeArgs, Maker},
    grants::Directory,
};
use crate::cli::{
    Failure, SettingsArgs,
    output::{print, print_json},
};

/// What `--help` adds.
pub const HELP: &str = "\
Prints the value of TOOL_SERVER_CONNECTIONS, which Open WebUI reads only while its database is new. For a \
running Open WebUI use `mcpo-bridge openwebui sync`.

Without --show-key the output contains ${MCPO_API_KEY} instead of the key, and with --session \
${MCPO_SPEC_PATH} instead of the path that `mcpo-bridge openwebui spec-path` prints. Ids of users and groups \
in `allow` become access grants; email addresses and group names need a running Open WebUI.

Examples:
  mcpo-bridge openwebui connections --bridge-url http://mcpo-bridge:8080
  TOOL_SERVER_CONNECTIONS=$(mcpo-bridge openwebui connections --show-key --compact)";

/// Printed instead of a key.
const PLACEHOLDER: &str = "${MCPO_API_KEY}";
/// Printed instead of the path that `spec-path` prints.
const PATH_PLACEHOLDER: &str = "${MCPO_SPEC_PATH}";

/// The arguments of `connections`.
#[derive(Args)]
pub struct ConnectionsArgs {
    /// URL where Open WebUI reaches the bridge [default: the base URL]
    #[arg(long, alias = "url", value_name = "URL")]
    bridge_url: Option<String>,
    /// Print the API key itself
    #[arg(long)]
    show_key: bool,
    /// Print the JSON on one line
    #[arg(long)]
    compact: bool,
    #[command(flatten)]
    make: MakeArgs,
}

/// Prints them.
pub fn run(args: ConnectionsArgs, settings: &SettingsArgs) -> Result<(), Failure> {
    let mut maker = Maker::new(args.make, args.bridge_url.as_deref(), settings)?;
    if !args.show_key {
        maker.hide_key(PLACEHOLDER, PATH_PLACEHOLDER);
    }
    let connections = maker.connections(&Directory::default());
    if args.compact {
        print(&format!("{}\n", serde_json::Value::from(connections)))
    } else {
        print_json(&connections)
    }
}
