//! `mcpo-bridge sessions`: live chat sessions.

use bridge_state::{Metadata, SessionSummary};
use clap::Args;
use jiff::Timestamp;
use serde::Serialize;

use super::{
    Failure, SettingsArgs,
    local::open,
    output::{OutputArgs, ago, seconds_since, table, time},
};

/// Text after the options in `--help`.
pub const HELP: &str = "\
Lists the sessions of every bridge that uses the jobs directory. A chat is shown as the first characters of \
its hash, as in the audit log.

Examples:
  mcpo-bridge sessions
  mcpo-bridge sessions --json | jq 'length'";

/// Displayed characters of a hash.
const DIGEST: usize = 8;

/// The arguments of `sessions`.
#[derive(Args)]
pub struct SessionsArgs {
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Serialize)]
struct Row {
    server: String,
    /// The hash of the chat's key; `None` for a call without a chat.
    chat: Option<String>,
    /// `None` for a remote server.
    pid: Option<u32>,
    since: Timestamp,
    idle_seconds: u64,
    job: String,
    instance: String,
}

/// Lists the sessions.
pub fn run(args: &SessionsArgs, settings: &SettingsArgs) -> Result<(), Failure> {
    let (_, _log, store) = open(settings)?;
    let now = Timestamp::now();
    let mut rows = Vec::new();
    for found in store.sessions().map_err(Failure::failed)? {
        // The workspace may have been removed since.
        if let Some(chat) = store.chat(found.job).map_err(Failure::failed)? {
            rows.push(row(found, &chat.metadata, now));
        }
    }
    args.output.print(&rows, |rows| text(rows, now))
}

fn row(found: SessionSummary, metadata: &Metadata, now: Timestamp) -> Row {
    let session = found.session;
    let used = metadata.last_call_at.unwrap_or(session.started_at);
    let key = metadata.session_keys.first();
    Row {
        server: session.server,
        chat: key.map(|key| key.chars().take(DIGEST).collect()),
        pid: session.pid,
        since: session.started_at,
        idle_seconds: seconds_since(used.max(session.started_at), now),
        job: found.job.to_string(),
        instance: found.instance.to_string(),
    }
}

fn text(rows: &[Row], now: Timestamp) -> String {
    if rows.is_empty() {
        return "no live sessions\n".to_owned();
    }
    let cells = rows.iter().map(|row| {
        let used = now - jiff::SignedDuration::from_secs(row.idle_seconds.cast_signed());
        [
            row.server.clone(),
            row.chat.clone().unwrap_or_else(|| "-".to_owned()),
            row.pid
                .map_or_else(|| "-".to_owned(), |pid| pid.to_string()),
            time(row.since),
            ago(used, now),
            row.job.clone(),
        ]
    });
    let cells: Vec<_> = cells.collect();
    table(["SERVER", "CHAT", "PID", "SINCE", "IDLE", "JOB"], &cells)
}
