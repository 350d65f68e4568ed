//! `mcpo-bridge gc`: deletes expired data once.

use std::fmt::Write as _;

use bridge_model::Principal;
use bridge_state::GcReport;
use clap::Args;

use super::{
    Failure, SettingsArgs,
    local::open,
    output::{ODD, OutputArgs},
};

/// Text after the options in `--help`.
pub const HELP: &str = "\
The bridge does this itself, at start and every MCPO_STATEFUL_CLEANUP_INTERVAL. It is safe to run while a \
bridge is running: workspaces in use are skipped.

Examples:
  mcpo-bridge gc
  mcpo-bridge gc --user 0c1e…           # everything of a user who left";

/// The arguments of `gc`.
#[derive(Args)]
pub struct GcArgs {
    /// Delete all workspaces and links of this user, regardless of age, and nothing else
    #[arg(long, value_name = "ID")]
    user: Option<String>,
    #[command(flatten)]
    output: OutputArgs,
}

/// Deletes the data, and fails if something could not be deleted.
pub fn run(args: GcArgs, settings: &SettingsArgs) -> Result<(), Failure> {
    if args.user.as_deref().is_some_and(|id| id.trim().is_empty()) {
        return Err(Failure::usage("--user: the user id is empty"));
    }
    let (settings, _log, store) = open(settings)?;
    let user = args.user.map(|id| Principal::User(id.into()));
    let report = if let Some(user) = &user {
        store.forget_user(user)
    } else {
        let retention = settings.files.retention;
        store.sweep_once_clocks_are_known(retention).report
    };
    args.output.print(&report, text)?;
    Failure::unless(report.errors.is_empty())
}

fn text(report: &GcReport) -> String {
    let counts = [
        (report.ended_links, "links expired"),
        (report.removed_tombstones, "records of old links removed"),
        (report.removed_jobs, "workspaces removed"),
        (
            report.leased_jobs,
            "workspaces skipped because they are in use",
        ),
        (report.removed_bindings, "chat bindings removed"),
        (report.removed_instances, "records of dead bridges removed"),
        (
            report.removed_catalog_entries,
            "catalog entries of removed servers deleted",
        ),
        (report.unknown_entries, "unknown entries left unchanged"),
    ];
    let mut text = String::new();
    for (count, what) in counts.iter().filter(|(count, _)| *count > 0) {
        let _ = writeln!(text, "{what}: {count}");
    }
    if text.is_empty() && report.held_back.is_none() {
        text.push_str("nothing to delete\n");
    }
    if let Some(why) = &report.held_back {
        let _ = writeln!(
            text,
            "{ODD}warning:{ODD:#} nothing was deleted by age: {why}"
        );
    }
    for error in &report.errors {
        let _ = writeln!(text, "{ODD}warning:{ODD:#} not deleted: {error}");
    }
    text
}
