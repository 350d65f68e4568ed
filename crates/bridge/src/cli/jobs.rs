//! `mcpo-bridge jobs`: workspaces, their files and their links.

mod journal;
mod list;
mod revoke;
mod show;

use bridge_model::JobId;
use bridge_state::{Artifact, ChatStore, ChatSummary, GoneReason};
use clap::Subcommand;
use jiff::Timestamp;

use super::{Failure, SettingsArgs};

/// The commands.
#[derive(Subcommand)]
pub enum JobsCommand {
    /// List the workspaces, oldest first
    #[command(after_help = list::HELP)]
    List(list::ListArgs),
    /// Show one workspace: status, files, links, recent calls
    #[command(after_help = show::HELP)]
    Show(show::ShowArgs),
    /// Revoke one link, or all links of a workspace
    #[command(after_help = revoke::HELP)]
    Revoke(revoke::RevokeArgs),
}

/// Runs one of them.
pub fn run(command: JobsCommand, settings: &SettingsArgs) -> Result<(), Failure> {
    match command {
        JobsCommand::List(args) => list::run(&args, settings),
        JobsCommand::Show(args) => show::run(&args, settings),
        JobsCommand::Revoke(args) => revoke::run(&args, settings),
    }
}

/// The minimum length of an id's prefix.
const PREFIX: usize = 4;

/// A workspace by its id or a unique prefix of it; `what` names what it could have been instead.
fn find(store: &ChatStore, id: &str, what: &str) -> Result<ChatSummary, Failure> {
    let none = || {
        Failure::failed(format!(
            "no {what} matches '{id}' (see `mcpo-bridge jobs list`)"
        ))
    };
    if let Ok(id) = id.parse::<JobId>() {
        let found = store.chat(id).map_err(Failure::failed)?;
        return found.ok_or_else(none);
    }
    if id.len() < PREFIX {
        return Err(none());
    }
    let jobs = store.chats().map_err(Failure::failed)?.into_iter();
    let mut found = jobs.filter(|job| job.job.id().to_string().starts_with(id));
    match (found.next(), found.next()) {
        (Some(job), None) => Ok(job),
        (Some(_), Some(_)) => Err(Failure::failed(format!(
            "several workspace ids start with '{id}'; give a longer prefix"
        ))),
        (None, _) => Err(none()),
    }
}

/// The state of a link, in one word.
fn link_state(artifact: &Artifact, now: Timestamp) -> &'static str {
    match (artifact.gone_at, artifact.gone) {
        (Some(_), Some(GoneReason::Revoked)) => "revoked",
        (Some(_), _) => "expired",
        (None, _) if artifact.expires_at <= now => "expired",
        (None, _) => "live",
    }
}
