//! `mcpo-bridge jobs list`

use bridge_state::{ChatSummary, JobStatus};
use clap::Args;
use jiff::Timestamp;
use serde::Serialize;

use crate::cli::{
    Failure, SettingsArgs,
    local::open_store,
    log,
    output::OutputArgs,
    text::{ago, table, time},
};

/// What `--help` adds.
pub const HELP: &str = "\
Examples:
  mcpo-bridge jobs list
  mcpo-bridge jobs list --json | jq -r '.[] | select(.status == \"failed\") | .job'";

/// The arguments of `jobs list`.
#[derive(Args)]
pub struct ListArgs {
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Serialize)]
struct Row {
    job: String,
    status: JobStatus,
    servers: Vec<String>,
    created_at: Timestamp,
    last_call_at: Option<Timestamp>,
    /// The bridge that uses it.
    leased_by: Option<String>,
    error: Option<String>,
}

/// Lists them.
pub fn run(args: &ListArgs, settings: &SettingsArgs) -> Result<(), Failure> {
    let settings = settings.resolve()?;
    let _log = log::start(&settings.log)?;
    let store = open_store(&settings.jobs_dir)?;
    let now = Timestamp::now();
    let jobs = store.chats().map_err(Failure::failed)?;
    let rows: Vec<Row> = jobs.into_iter().map(row).collect();
    args.output.print(&rows, |rows| text(rows, now))
}

fn row(found: ChatSummary) -> Row {
    Row {
        job: found.job.id().to_string(),
        status: found.metadata.status,
        servers: found.metadata.server_names,
        created_at: found.metadata.created_at,
        last_call_at: found.metadata.last_call_at,
        leased_by: found.leased_by.map(|instance| instance.to_string()),
        error: found.metadata.error,
    }
}

fn text(rows: &[Row], now: Timestamp) -> String {
    if rows.is_empty() {
        return "no workspaces\n".to_owned();
    }
    let cells = rows.iter().map(|row| {
        let last = row.last_call_at.map(|at| format!("{} ago", ago(at, now)));
        [
            row.job.clone(),
            status(row.status).to_owned(),
            if row.leased_by.is_some() { "yes" } else { "no" }.to_owned(),
            time(row.created_at),
            last.unwrap_or_else(|| "-".to_owned()),
            row.servers.join(", "),
        ]
    });
    let headings = ["JOB", "STATUS", "IN USE", "CREATED", "LAST CALL", "SERVERS"];
    table(headings, &cells.collect::<Vec<_>>())
}

/// As in the metadata.
pub fn status(status: JobStatus) -> &'static str {
    match status {
        JobStatus::Created => "created",
        JobStatus::Running => "running",
        JobStatus::Idle => "idle",
        JobStatus::Ended => "ended",
        JobStatus::Failed => "failed",
    }
}
