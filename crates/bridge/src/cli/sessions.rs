//! `mcpo-bridge sessions`: live chat sessions.

use bridge_state::{ChatStore, SessionSummary, StoreError};
use clap::Args;
use jiff::Timestamp;
use serde::Serialize;

use super::output::{ago, seconds_since, table, time};
use super::{Failure, SettingsArgs, local::open_store, output, output::OutputArgs};

/// What `--help` adds.
pub const HELP: &str = "\
Lists the sessions of every bridge that uses the jobs directory. A chat is shown as the first characters of \
its hash, as in the audit log.

Examples:
  mcpo-bridge sessions
  mcpo-bridge sessions --json | jq 'length'";

/// Characters of a hash.
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
    /// Of the chat's key; none for a call without a chat.
    chat: Option<String>,
    /// None for a remote server.
    pid: Option<u32>,
    since: Timestamp,
    idle_seconds: u64,
    job: String,
    instance: String,
}

/// Lists them.
pub fn run(args: &SessionsArgs, settings: &SettingsArgs) -> Result<(), Failure> {
    let settings = settings.resolve()?;
    let _log = output::start(&settings.log)?;
    let store = open_store(&settings.jobs_dir)?;
    let now = Timestamp::now();
    let rows = rows(&store, now).map_err(Failure::failed)?;
    args.output.print(&rows, |rows| text(rows, now))
}

fn rows(store: &ChatStore, now: Timestamp) -> Result<Vec<Row>, StoreError> {
    let sessions = store.sessions()?.into_iter();
    let rows = sessions.map(|session| row(store, session, now));
    // A workspace may have gone between the two looks.
    Ok(rows
        .collect::<Result<Vec<_>, _>>()?
        .into_iter()
        .flatten()
        .collect())
}

fn row(
    store: &ChatStore,
    found: SessionSummary,
    now: Timestamp,
) -> Result<Option<Row>, StoreError> {
    let Some(summary) = store.chat(found.job)? else {
        return Ok(None);
    };
    let (session, metadata) = (found.session, summary.metadata);
    let used = metadata.last_call_at.unwrap_or(session.started_at);
    let key = metadata.session_keys.first();
    Ok(Some(Row {
        server: session.server,
        chat: key.map(|key| key.chars().take(DIGEST).collect()),
        pid: session.pid,
        since: session.started_at,
        idle_seconds: seconds_since(used.max(session.started_at), now),
        job: found.job.to_string(),
        instance: found.instance.to_string(),
    }))
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
