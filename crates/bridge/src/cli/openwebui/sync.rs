//! `mcpo-bridge openwebui sync`: for an Open WebUI that runs.

use clap::Args;

use super::{
    admin::Admin,
    connection::{MakeArgs, Maker},
    grants::Directory,
    plan::{Change, Plan, Rules, plan},
};
use crate::{
    cli::{
        Failure, SettingsArgs,
        local::{block_on, until_signal},
        output::print,
        text::{BOLD, plain, warn},
    },
    config::Secret,
};

/// What `--help` adds.
pub const HELP: &str = "\
Adds a connection for each server, updates the connections that it created (URL, type, key, headers) and \
removes those whose servers no longer exist. All other connections stay unchanged. In its own connections it \
keeps the on/off switch, the function filter, added headers, and names and access grants that an administrator \
changed. Run it after adding a server or rotating the API key. Keys are never printed.

Examples:
  mcpo-bridge openwebui sync --url http://open-webui:8080 --bridge-url http://mcpo-bridge:8080 \\
      --admin-key-file admin.key --dry-run";

/// How often to retry when the connections change between reading and writing.
const ATTEMPTS: usize = 3;

/// The arguments of `sync`.
#[derive(Args)]
pub struct SyncArgs {
    /// URL of Open WebUI
    #[arg(long, value_name = "URL", env = "MCPO_OPENWEBUI_URL")]
    url: String,
    /// API key or token of an administrator. Prefer the variable or the file: other users of the machine
    /// can read a command line
    #[arg(
        long,
        value_name = "KEY",
        env = "MCPO_OPENWEBUI_ADMIN_KEY",
        hide_env_values = true
    )]
    admin_key: Option<String>,
    /// File that contains the value of --admin-key
    #[arg(long, value_name = "FILE", env = "MCPO_OPENWEBUI_ADMIN_KEY_FILE")]
    admin_key_file: Option<String>,
    /// URL where Open WebUI reaches the bridge [default: the base URL]
    #[arg(long, value_name = "URL")]
    bridge_url: Option<String>,
    /// Show the changes without applying them
    #[arg(long)]
    dry_run: bool,
    /// Take over manually created connections that have the id of one of this configuration's servers
    #[arg(long)]
    adopt: bool,
    #[command(flatten)]
    make: MakeArgs,
}

/// Compares and changes.
pub fn run(args: SyncArgs, settings: &SettingsArgs) -> Result<(), Failure> {
    let key = admin_key(args.admin_key, args.admin_key_file)?;
    let maker = Maker::new(args.make, args.bridge_url.as_deref(), settings)?;
    let admin = Admin::new(&args.url, &key)?;
    let work = async {
        let done = sync(&admin, &maker, args.adopt, args.dry_run);
        until_signal(done).await?
    };
    let plan = block_on(work)?;
    for text in &plan.notes {
        warn(plain(text));
    }
    print(&report(&plan, args.dry_run))
}

async fn sync(admin: &Admin, maker: &Maker, adopt: bool, dry: bool) -> Result<Plan, Failure> {
    let known = if maker.needs_directory() {
        admin.directory().await?
    } else {
        Directory::default()
    };
    let wanted = maker.connections(&known);
    let headers = maker.header_names();
    let rules = Rules {
        owner: maker.owner(),
        bridge: maker.bridge(),
        headers: &headers,
        adopt,
    };
    for _ in 0..ATTEMPTS {
        let current = admin.connections().await?;
        let plan = plan(&current, &wanted, &rules).map_err(Failure::failed)?;
        if dry || plan.changes.is_empty() {
            return Ok(plan);
        }
        // Planned again, if an administrator was faster.
        if admin.connections().await? == current {
            admin.set_connections(&plan.connections).await?;
            return Ok(plan);
        }
    }
    Err(Failure::failed(
        "the connections were changed at the same time by someone else; try again",
    ))
}

fn report(plan: &Plan, dry: bool) -> String {
    let mut lines = Vec::new();
    for change in &plan.changes {
        let (sign, name, differences) = match change {
            Change::Added(name) => ('+', name, &[][..]),
            Change::Removed(name) => ('-', name, &[][..]),
            Change::Updated(name, differences) => ('~', name, &differences[..]),
        };
        lines.push(format!("{BOLD}{sign} {}{BOLD:#}", plain(name)));
        lines.extend(
            differences
                .iter()
                .map(|line| format!("    {}", plain(line))),
        );
    }
    let end = match (plan.changes.is_empty(), dry) {
        (true, _) => "Open WebUI is up to date.",
        (false, true) => "Nothing was changed (--dry-run).",
        (false, false) => "Connections updated.",
    };
    lines.push(format!("{end}\n"));
    lines.join("\n")
}

fn admin_key(key: Option<String>, file: Option<String>) -> Result<Secret, Failure> {
    let given = |text: Option<String>| text.filter(|text| !text.trim().is_empty());
    let key = match (given(key), given(file)) {
        (Some(key), None) => key,
        (None, Some(file)) => std::fs::read_to_string(&file).map_err(|error| {
            Failure::usage(format!("--admin-key-file: cannot read {file}: {error}"))
        })?,
        (Some(_), Some(_)) => {
            let why = "--admin-key and --admin-key-file are both set; set only one of the two";
            return Err(Failure::usage(why));
        }
        (None, None) => {
            let why = "an administrator's API key or token is required; set --admin-key-file or \
                       MCPO_OPENWEBUI_ADMIN_KEY";
            return Err(Failure::usage(why));
        }
    };
    Ok(Secret::new(key.trim()))
}
