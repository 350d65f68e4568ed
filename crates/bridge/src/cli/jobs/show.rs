//! `mcpo-bridge jobs show`

use std::{fmt::Write as _, fs, path::PathBuf};

use bridge_state::{Artifact, ChatStore, ChatSummary, Metadata};
use clap::Args;
use indicatif::HumanBytes;
use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;

use super::{find, journal, link_state, list::status};
use crate::{
    artifacts::Snapshot,
    call::snapshot_limits,
    cli::{
        Failure, SettingsArgs,
        local::open_store,
        log,
        output::OutputArgs,
        text::{BOLD, indented, one_line, plain, table, time},
    },
    config::Settings,
};

/// What `--help` adds.
pub const HELP: &str = "\
Everyone who has a link can open its file, so URLs are shown with --links only. The journal contains what \
users sent and received, so it is shown in full with --json only.

Examples:
  mcpo-bridge jobs show 1b4e28ba
  mcpo-bridge jobs show 1b4e28ba --links
  mcpo-bridge jobs show 1b4e28ba --json --calls 1 | jq '.journal[].request'";

/// Characters of an error in the list of calls.
const SHOWN: usize = 80;

/// The arguments of `jobs show`.
#[derive(Args)]
pub struct ShowArgs {
    /// Workspace id or unique prefix
    #[arg(value_name = "JOB")]
    job: String,
    /// Show the URLs of links
    #[arg(long)]
    links: bool,
    /// Number of recent calls to show
    #[arg(long, value_name = "COUNT", default_value_t = 10)]
    calls: usize,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Serialize)]
struct Shown {
    folder: PathBuf,
    #[serde(flatten)]
    metadata: Metadata,
    leased_by: Option<String>,
    files: Vec<File>,
    links: Vec<LinkRow>,
    /// The last calls, oldest first, as they were written.
    journal: Vec<Value>,
}

#[derive(Serialize)]
struct File {
    name: String,
    size: Option<u64>,
}

#[derive(Serialize)]
struct LinkRow {
    name: String,
    state: &'static str,
    size: u64,
    sha256: String,
    server: String,
    tool: String,
    created_at: Timestamp,
    expires_at: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    url: Option<String>,
}

/// Shows it.
pub fn run(args: &ShowArgs, settings: &SettingsArgs) -> Result<(), Failure> {
    let settings = settings.resolve()?;
    let _log = log::start(&settings.log)?;
    let store = open_store(&settings.jobs_dir)?;
    let now = Timestamp::now();
    let found = find(&store, args.job.trim(), "workspace")?;
    let links = links(&store, &found, &settings, args.links, now)?;
    let shown = Shown {
        files: files(&found, &settings)?,
        links,
        journal: journal::tail(found.job.folder(), args.calls).map_err(Failure::failed)?,
        folder: found.job.folder().to_owned(),
        metadata: found.metadata,
        leased_by: found.leased_by.map(|instance| instance.to_string()),
    };
    args.output.print(&shown, Shown::text)
}

fn files(found: &ChatSummary, settings: &Settings) -> Result<Vec<File>, Failure> {
    let work = found.job.work();
    let snapshot = Snapshot::take(&work, &snapshot_limits(settings));
    let snapshot = snapshot.map_err(Failure::failed)?;
    let file = |path: &crate::artifacts::RelativePath| File {
        name: path.display().into_owned(),
        size: fs::symlink_metadata(work.join(path.as_path()))
            .ok()
            .map(|found| found.len()),
    };
    Ok(snapshot.files().map(file).collect())
}

fn links(
    store: &ChatStore,
    found: &ChatSummary,
    settings: &Settings,
    urls: bool,
    now: Timestamp,
) -> Result<Vec<LinkRow>, Failure> {
    let links = store.links_of(found.job.id()).map_err(Failure::failed)?;
    let base = settings.listen.base_url.to_string();
    let row = |link: Artifact| LinkRow {
        state: link_state(&link, now),
        url: urls.then(|| link.url(&base)),
        name: link.path,
        size: link.size,
        sha256: link.sha256,
        server: link.server,
        tool: link.tool,
        created_at: link.created_at,
        expires_at: link.expires_at,
    };
    Ok(links.into_iter().map(row).collect())
}

impl Shown {
    fn text(&self) -> String {
        let mut text = String::new();
        self.write_life(&mut text);
        self.write_files(&mut text);
        self.write_links(&mut text);
        self.write_calls(&mut text);
        text
    }

    fn write_life(&self, text: &mut String) {
        let known = &self.metadata;
        let mut line = |name: &str, value: &str| {
            let _ = writeln!(text, "{BOLD}{name:10}{BOLD:#} {}", indented(value, 11));
        };
        line("job", &known.job_id.to_string());
        line("folder", &self.folder.to_string_lossy());
        line("status", status(known.status));
        line("servers", &known.server_names.join(", "));
        line("created", &time(known.created_at));
        if let Some(at) = known.last_call_at {
            line("last call", &time(at));
        }
        if let Some(instance) = &self.leased_by {
            line("in use by", instance);
        }
        for session in &known.live_sessions {
            match session.pid {
                Some(pid) => line("process", &format!("{pid} ({})", session.server)),
                None => line("remote", &session.server),
            }
        }
        if let Some(error) = &known.error {
            line("error", error);
        }
    }

    fn write_files(&self, text: &mut String) {
        let rows = self.files.iter().map(|file| {
            let size = file.size.map(|size| HumanBytes(size).to_string());
            [plain(&file.name).into_owned(), size.unwrap_or_default()]
        });
        write_table(text, ["FILE", "SIZE"], &rows.collect::<Vec<_>>());
    }

    fn write_links(&self, text: &mut String) {
        let rows = self.links.iter().map(|link| {
            [
                plain(&link.name).into_owned(),
                link.state.to_owned(),
                time(link.expires_at),
                HumanBytes(link.size).to_string(),
                link.url.clone().unwrap_or_default(),
            ]
        });
        let headings = ["LINK", "STATE", "EXPIRES", "SIZE", ""];
        write_table(text, headings, &rows.collect::<Vec<_>>());
    }

    fn write_calls(&self, text: &mut String) {
        let rows = self.journal.iter().map(|call| {
            let word = |key: &str| plain(call[key].as_str().unwrap_or_default()).into_owned();
            [
                word("at").chars().take(19).collect::<String>() + "Z",
                format!("{}.{}", word("server"), word("tool")),
                word("outcome"),
                format!("{} ms", call["duration_ms"]),
                one_line(call["error"].as_str().unwrap_or_default(), SHOWN),
            ]
        });
        let headings = ["CALL", "TOOL", "OUTCOME", "TIME", ""];
        write_table(text, headings, &rows.collect::<Vec<_>>());
    }
}

fn write_table<const N: usize>(text: &mut String, headings: [&str; N], rows: &[[String; N]]) {
    if !rows.is_empty() {
        let _ = write!(text, "\n{}", table(headings, rows));
    }
}
