//! `mcpo-bridge jobs`: workspaces, what lies in them, and their links.

mod journal;
mod list;
mod revoke;
mod show;

use bridge_model::JobId;
use bridge_state::{Artifact, GoneReason, JobSummary, Store};
use clap::Subcommand;
use jiff::Timestamp;

use super::Failure;

/// What `jobs` is told.
#[derive(Subcommand)]
pub enum JobsCommand {
    /// Lists the workspaces, oldest first
    #[command(after_help = list::HELP)]
    List(list::ListArgs),
    /// Shows one: its life, its files, its links, its last calls
    #[command(after_help = show::HELP)]
    Show(show::ShowArgs),
    /// Takes links back: one, or all of a workspace
    #[command(after_help = revoke::HELP)]
    Revoke(revoke::RevokeArgs),
}

/// Runs one of them.
pub fn run(command: JobsCommand) -> Result<(), Failure> {
    match command {
        JobsCommand::List(args) => list::run(args),
        JobsCommand::Show(args) => show::run(args),
        JobsCommand::Revoke(args) => revoke::run(args),
    }
}

/// The beginning of an id that is taken for it, at least.
const PREFIX: usize = 4;

/// A workspace by its id, or by a beginning of it that only one has.
fn find(store: &Store, id: &str) -> Result<JobSummary, Failure> {
    let none = || {
        Failure::failed(format!(
            "no workspace has the id '{id}': `mcpo-bridge jobs list` names them"
        ))
    };
    if let Ok(id) = id.parse::<JobId>() {
        let found = store.summary(id).map_err(Failure::failed)?;
        return found.ok_or_else(none);
    }
    if id.len() < PREFIX {
        return Err(none());
    }
    let jobs = store.jobs().map_err(Failure::failed)?.into_iter();
    let mut found = jobs.filter(|job| job.job.id().to_string().starts_with(id));
    match (found.next(), found.next()) {
        (Some(job), None) => Ok(job),
        (Some(_), Some(_)) => Err(Failure::failed(format!(
            "more than one workspace's id begins with '{id}': write more of it"
        ))),
        (None, _) => Err(none()),
    }
}

/// How a link is, in one word.
fn link_state(artifact: &Artifact, now: Timestamp) -> &'static str {
    match (artifact.gone_at, artifact.gone) {
        (Some(_), Some(GoneReason::Revoked)) => "revoked",
        (Some(_), _) => "expired",
        (None, _) if artifact.expires_at <= now => "expired",
        (None, _) => "live",
    }
}
