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
        text::{BOLD, note, plain},
    },
    config::Secret,
};

/// What `--help` adds.
pub const HELP: &str = "\
Adds a connection for each server, updates those that it made (address, type, key, headers), and
removes those of servers that are gone. Everybody else's connections stay as they are; so do, in its
own, the switch, the function filter, headers that were added, and names and access grants that an
administrator changed. Run it after a new server or a new key. Keys are never printed.

Examples:
  mcpo-bridge openwebui sync --url http://open-webui:8080 --bridge-url http://mcpo-bridge:8080 \\
      --admin-key-file admin.key --dry-run";

/// Between reading and writing, somebody else may write.
const ATTEMPTS: usize = 3;

/// What `sync` is told.
#[derive(Args)]
pub struct SyncArgs {
    /// Where Open WebUI answers
    #[arg(long, value_name = "URL", env = "MCPO_OPENWEBUI_URL")]
    url: String,
    /// An administrator's API key or token. Prefer the variable or the file: a command line is
    /// readable by others on the machine
    #[arg(
        long,
        value_name = "KEY",
        env = "MCPO_OPENWEBUI_ADMIN_KEY",
        hide_env_values = true
    )]
    admin_key: Option<String>,
    /// A file with it
    #[arg(long, value_name = "FILE", env = "MCPO_OPENWEBUI_ADMIN_KEY_FILE")]
    admin_key_file: Option<String>,
    /// Where Open WebUI reaches the bridge [default: the base URL]
    #[arg(long, value_name = "URL")]
    bridge_url: Option<String>,
    /// Print what would change, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Take over connections with the ids of this config's servers that were made by hand
    #[arg(long)]
    adopt: bool,
    #[command(flatten)]
    make: MakeArgs,
    #[command(flatten)]
    settings: SettingsArgs,
}

/// Compares and changes.
pub fn run(args: SyncArgs) -> Result<(), Failure> {
    let key = admin_key(args.admin_key, args.admin_key_file)?;
    let maker = Maker::new(args.make, args.bridge_url.as_deref(), args.settings)?;
    let admin = Admin::new(&args.url, &key)?;
    let work = async {
        let done = sync(&admin, &maker, args.adopt, args.dry_run);
        until_signal(done).await?
    };
    let plan = block_on(work)?;
    for text in &plan.notes {
        note(plain(text));
    }
    print(&told(&plan, args.dry_run))
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
        // Planned anew, where an administrator was quicker.
        if admin.connections().await? == current {
            admin.set_connections(&plan.connections).await?;
            return Ok(plan);
        }
    }
    Err(Failure::failed(
        "somebody else is changing the connections at the same time: try again",
    ))
}

fn told(plan: &Plan, dry: bool) -> String {
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
        (false, false) => "Open WebUI has these connections now.",
    };
    lines.push(format!("{end}\n"));
    lines.join("\n")
}

fn admin_key(key: Option<String>, file: Option<String>) -> Result<Secret, Failure> {
    let given = |text: Option<String>| text.filter(|text| !text.trim().is_empty());
    let key = match (given(key), given(file)) {
        (Some(key), None) => key,
        (None, Some(file)) => std::fs::read_to_string(&file).map_err(|error| {
            Failure::told_wrongly(format!("--admin-key-file: {file} cannot be read: {error}"))
        })?,
        (Some(_), Some(_)) => {
            let why = "--admin-key and --admin-key-file are both given: keep one of them";
            return Err(Failure::told_wrongly(why));
        }
        (None, None) => {
            let why = "--admin-key-file (or MCPO_OPENWEBUI_ADMIN_KEY): an administrator's API key \
                       or token is needed";
            return Err(Failure::told_wrongly(why));
        }
    };
    Ok(Secret::new(key.trim()))
}
