//! `mcpo-bridge gc`: one round of cleaning up.

use std::fmt::Write as _;

use bridge_model::Principal;
use bridge_state::{Clocks, GcReport, TOMBSTONE};
use clap::Args;
use jiff::Timestamp;

use super::{Failure, SettingsArgs, local::open_store, log, output::OutputArgs};
use crate::cli::text::ODD;

/// What `--help` adds.
pub const HELP: &str = "\
The bridge does this itself, at its start and every MCPO_STATEFUL_CLEANUP_INTERVAL. Beside a running
bridge it is safe: where somebody works, nothing is touched.

Examples:
  mcpo-bridge gc
  mcpo-bridge gc --user 0c1e…           # all that this user has, now: somebody left";

/// What `gc` is told.
#[derive(Args)]
pub struct GcArgs {
    /// Only this user's workspaces and links, but all of them, whatever their age
    #[arg(long, value_name = "ID")]
    user: Option<String>,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    settings: SettingsArgs,
}

/// Cleans, and fails where something could not be cleaned.
pub fn run(args: GcArgs) -> Result<(), Failure> {
    if args.user.as_deref().is_some_and(|id| id.trim().is_empty()) {
        return Err(Failure::told_wrongly("--user: the id is empty"));
    }
    let settings = args.settings.resolve()?;
    let _log = log::start(&settings.log)?;
    let store = open_store(&settings.jobs_dir)?;
    let clocks = Clocks {
        retention: settings.files.retention,
        tombstone: TOMBSTONE,
    };
    let user = args.user.map(|id| Principal::User(id.into()));
    let report = match &user {
        Some(_) => store.collect(&clocks, user.as_ref(), Timestamp::now()),
        None => store.collect_due_after_a_look(&clocks),
    };
    args.output.print(&report, text)?;
    if report.errors.is_empty() {
        Ok(())
    } else {
        Err(Failure::silent(1))
    }
}

fn text(report: &GcReport) -> String {
    let counts = [
        (report.ended_links, "links ended"),
        (report.removed_tombstones, "records of old links removed"),
        (report.removed_jobs, "workspaces removed"),
        (
            report.leased_jobs,
            "workspaces kept: somebody works in them",
        ),
        (report.removed_bindings, "chats forgotten"),
        (report.removed_instances, "dead bridges cleared away"),
        (
            report.removed_catalog_entries,
            "lists of servers that are gone removed",
        ),
        (
            report.unknown_entries,
            "entries left alone: not the bridge's",
        ),
    ];
    let mut text = String::new();
    for (count, what) in counts.iter().filter(|(count, _)| *count > 0) {
        let _ = writeln!(text, "{count} {what}");
    }
    if text.is_empty() && report.held_back.is_none() {
        text.push_str("nothing to clean up\n");
    }
    if let Some(why) = &report.held_back {
        let _ = writeln!(text, "{ODD}nothing was removed for its age:{ODD:#} {why}");
    }
    for error in &report.errors {
        let _ = writeln!(text, "{ODD}not cleaned:{ODD:#} {error}");
    }
    text
}
