//! `mcpo-bridge openwebui connections`: for an Open WebUI that is set up anew.

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
For the variable TOOL_SERVER_CONNECTIONS, which Open WebUI reads while its database is new; for one
that runs already there is `mcpo-bridge openwebui sync`. The keys stand as ${MCPO_API_KEY} in it,
unless --show-key is given; with --session, what `mcpo-bridge openwebui spec-path` prints stands as
${MCPO_SPEC_PATH}. Access grants of `allow` are made where it holds ids of Open WebUI; mail
addresses and names of groups are only known to a running one.

Examples:
  mcpo-bridge openwebui connections --bridge-url http://mcpo-bridge:8080
  TOOL_SERVER_CONNECTIONS=$(mcpo-bridge openwebui connections --show-key --compact)";

/// In the place of a key.
const PLACEHOLDER: &str = "${MCPO_API_KEY}";
/// In the place of what `spec-path` prints.
const PATH_PLACEHOLDER: &str = "${MCPO_SPEC_PATH}";

/// What `connections` is told.
#[derive(Args)]
pub struct ConnectionsArgs {
    /// Where Open WebUI reaches the bridge [default: the base URL]
    #[arg(long, alias = "url", value_name = "URL")]
    bridge_url: Option<String>,
    /// Print the API key itself
    #[arg(long)]
    show_key: bool,
    /// Print on one line
    #[arg(long)]
    compact: bool,
    #[command(flatten)]
    make: MakeArgs,
    #[command(flatten)]
    settings: SettingsArgs,
}

/// Prints them.
pub fn run(args: ConnectionsArgs) -> Result<(), Failure> {
    let mut maker = Maker::new(args.make, args.bridge_url.as_deref(), args.settings)?;
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
