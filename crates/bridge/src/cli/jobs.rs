//! `mcpo-bridge jobs`: workspaces, their files and their links.

use std::{
    fmt::Write as _,
    fs,
    io::{self, Read as _, Seek as _, SeekFrom},
    path::{Path, PathBuf},
};

use bridge_model::{JobId, LinkToken, Principal, open_read};
use bridge_state::{Artifact, ChatStore, ChatSummary, GoneReason, JobStatus, Link, Metadata};
use clap::{Args, Subcommand};
use indicatif::HumanBytes;
use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;

use super::{
    Failure, SettingsArgs,
    local::open,
    output::{BOLD, OutputArgs, ago, counted, indented, one_line, plain, table, time},
};
use crate::{
    artifacts::{RelativePath, Snapshot},
    call::snapshot_limits,
    config::Settings,
    telemetry::{Action, AuditEvent, AuditFile, audit},
};

/// The commands.
#[derive(Subcommand)]
pub enum JobsCommand {
    /// List the workspaces, oldest first
    #[command(after_help = LIST_HELP)]
    List(ListArgs),
    /// Show one workspace: status, files, links, recent calls
    #[command(after_help = SHOW_HELP)]
    Show(ShowArgs),
    /// Revoke one link, or all links of a workspace
    #[command(after_help = REVOKE_HELP)]
    Revoke(RevokeArgs),
}

/// Runs one of the commands.
pub fn run(command: JobsCommand, settings: &SettingsArgs) -> Result<(), Failure> {
    match command {
        JobsCommand::List(args) => list(&args, settings),
        JobsCommand::Show(args) => show(&args, settings),
        JobsCommand::Revoke(args) => revoke(&args, settings),
    }
}

/// The minimum length of an id's prefix.
const PREFIX: usize = 4;

/// Finds a workspace by its id or a unique prefix; `what` names the alternatives for the error message.
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

/// The status of a link, in one word.
fn link_state(artifact: &Artifact, now: Timestamp) -> &'static str {
    match (artifact.gone_at, artifact.gone) {
        (Some(_), Some(GoneReason::Revoked)) => "revoked",
        (Some(_), _) => "expired",
        (None, _) if artifact.expires_at <= now => "expired",
        (None, _) => "live",
    }
}

// Reads the end of a workspace's `journal.jsonl`.

/// Maximum number of bytes to read: a line may take 128 KiB and more.
const READ: u64 = 4 * 1024 * 1024;

/// The last `count` calls, oldest first. A missing journal counts as empty; invalid lines are omitted.
fn journal_tail(folder: &Path, count: usize) -> io::Result<Vec<Value>> {
    let mut file = match open_read(&folder.join("journal.jsonl")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            return Err(io::Error::other("journal.jsonl is not a regular file"));
        }
        opened => opened?,
    };
    let start = file.metadata()?.len().saturating_sub(READ);
    file.seek(SeekFrom::Start(start))?;
    let mut text = Vec::new();
    file.take(READ).read_to_end(&mut text)?;
    let mut lines: Vec<&[u8]> = text.split(|byte| *byte == b'\n').collect();
    if start > 0 {
        lines.remove(0);
    }
    let calls = lines.into_iter();
    let calls: Vec<Value> = calls
        .filter_map(|line| serde_json::from_slice(line).ok())
        .collect();
    Ok(calls[calls.len().saturating_sub(count)..].to_vec())
}

// `mcpo-bridge jobs list`

/// Text after the options in `--help`.
const LIST_HELP: &str = "\
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
struct ListedChat {
    job: String,
    status: JobStatus,
    servers: Vec<String>,
    created_at: Timestamp,
    last_call_at: Option<Timestamp>,
    /// The bridge that holds its lease.
    leased_by: Option<String>,
    error: Option<String>,
}

/// Lists the workspaces.
pub fn list(args: &ListArgs, settings: &SettingsArgs) -> Result<(), Failure> {
    let (_, _log, store) = open(settings)?;
    let now = Timestamp::now();
    let row = |found: ChatSummary| ListedChat {
        job: found.job.id().to_string(),
        status: found.status(),
        servers: found.metadata.server_names,
        created_at: found.metadata.created_at,
        last_call_at: found.metadata.last_call_at,
        leased_by: found.leased_by.map(|instance| instance.to_string()),
        error: found.metadata.error,
    };
    let jobs = store.chats().map_err(Failure::failed)?;
    let rows: Vec<ListedChat> = jobs.into_iter().map(row).collect();
    args.output.print(&rows, |rows| text(rows, now))
}

fn text(rows: &[ListedChat], now: Timestamp) -> String {
    if rows.is_empty() {
        return "no workspaces\n".to_owned();
    }
    let cells = rows.iter().map(|row| {
        let last = row.last_call_at.map(|at| format!("{} ago", ago(at, now)));
        [
            row.job.clone(),
            status(row.status),
            if row.leased_by.is_some() { "yes" } else { "no" }.to_owned(),
            time(row.created_at),
            last.unwrap_or_else(|| "-".to_owned()),
            row.servers.join(", "),
        ]
    });
    let headings = ["JOB", "STATUS", "IN USE", "CREATED", "LAST CALL", "SERVERS"];
    table(headings, &cells.collect::<Vec<_>>())
}

/// The status as in the metadata.
fn status(status: JobStatus) -> String {
    let name = serde_json::to_value(status).unwrap_or_default();
    name.as_str().unwrap_or_default().to_owned()
}

// `mcpo-bridge jobs revoke`

/// Text after the options in `--help`.
const REVOKE_HELP: &str = "\
The linked copy is deleted at once, and the link returns 410 from then on. Files in the workspace are kept.

Examples:
  mcpo-bridge jobs revoke 1b4e28ba-2fa1-4d2e-883f-0016d3cca427
  mcpo-bridge jobs revoke https://chat.example.com/files/7dPq…/report.xlsx";

/// The actor in the audit log. No key can have this name, because it contains a space.
const OPERATOR: &str = "command line";

/// The arguments of `jobs revoke`.
#[derive(Args)]
pub struct RevokeArgs {
    /// Workspace id or unique prefix (all its links), or the token or URL of one link
    #[arg(value_name = "JOB|TOKEN|URL")]
    what: String,
    #[command(flatten)]
    output: OutputArgs,
}

/// The object to revoke.
#[derive(Debug, PartialEq, Eq)]
enum What {
    Link(LinkToken),
    Job(JobId),
    /// Possibly a prefix of an id.
    Other(String),
}

#[derive(Serialize)]
struct Revoked {
    revoked: Vec<RevokedLink>,
}

#[derive(Serialize)]
struct RevokedLink {
    job: String,
    name: String,
    size: u64,
}

/// Revokes links, and fails if no link was live.
pub fn revoke(args: &RevokeArgs, settings: &SettingsArgs) -> Result<(), Failure> {
    let (_, _log, store) = open(settings)?;
    let links = links_to_revoke(&store, What::parse(args.what.trim()))?;
    let mut revoked = Vec::new();
    for link in links {
        if store.revoke(&link.token).map_err(Failure::failed)? {
            write_audit(&link);
            revoked.push(RevokedLink {
                job: link.job.to_string(),
                name: link.path,
                size: link.size,
            });
        }
    }
    let none = revoked.is_empty();
    args.output.print(&Revoked { revoked }, Revoked::text)?;
    if none {
        return Err(Failure::failed(
            "no live link to revoke: it has expired, was revoked already, or never existed",
        ));
    }
    Ok(())
}

impl What {
    fn parse(text: &str) -> Self {
        if let Ok(id) = text.parse() {
            return Self::Job(id);
        }
        let in_url = text.rsplit_once("/files/").map(|(_, rest)| rest);
        let token = in_url.unwrap_or(text).split('/').next().unwrap_or(text);
        match token.parse() {
            Ok(token) => Self::Link(token),
            Err(_) => Self::Other(text.to_owned()),
        }
    }
}

/// Links that may be live. A workspace's links can outlive its folder.
fn links_to_revoke(store: &ChatStore, what: What) -> Result<Vec<Artifact>, Failure> {
    let job = match what {
        What::Link(token) => {
            return match store.link(&token).map_err(Failure::failed)? {
                Link::Live(artifact, _) => Ok(vec![*artifact]),
                Link::Gone(..) | Link::Unknown => Ok(Vec::new()),
            };
        }
        What::Job(id) => id,
        What::Other(text) => find(store, &text, "link or workspace")?.job.id(),
    };
    store.links_of(job).map_err(Failure::failed)
}

fn write_audit(link: &Artifact) {
    let file = AuditFile {
        name: &link.path,
        size: link.size,
        sha256: Some(&link.sha256),
    };
    audit(&AuditEvent {
        job: Some(link.job),
        server: Some(&link.server),
        tool: Some(&link.tool),
        files: &[file],
        ..AuditEvent::new(Action::Revoke, &Principal::Key(OPERATOR.into()), "ok")
    });
}

impl Revoked {
    fn text(&self) -> String {
        let mut text = String::new();
        for row in &self.revoked {
            let _ = writeln!(text, "revoked {}", plain(&row.name));
        }
        let _ = writeln!(text, "{} revoked", counted(self.revoked.len(), "link"));
        text
    }
}

// `mcpo-bridge jobs show`

/// Text after the options in `--help`.
const SHOW_HELP: &str = "\
Everyone who has a link can open its file, so URLs are shown with --links only. The journal contains what \
users sent and received, so it is shown in full with --json only.

Examples:
  mcpo-bridge jobs show 1b4e28ba
  mcpo-bridge jobs show 1b4e28ba --links
  mcpo-bridge jobs show 1b4e28ba --json --calls 1 | jq '.journal[].request'";

/// Maximum length of an error in the list of calls.
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
struct WorkspaceDetails {
    folder: PathBuf,
    #[serde(flatten)]
    metadata: Metadata,
    leased_by: Option<String>,
    files: Vec<File>,
    links: Vec<LinkRow>,
    /// The last calls, oldest first, as recorded.
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

/// Shows the workspace.
pub fn show(args: &ShowArgs, settings: &SettingsArgs) -> Result<(), Failure> {
    let (settings, _log, store) = open(settings)?;
    let now = Timestamp::now();
    let found = find(&store, args.job.trim(), "workspace")?;
    let base = settings.listen.base_url.to_string();
    let row = |link: Artifact| LinkRow {
        state: link_state(&link, now),
        url: args.links.then(|| link.url(&base)),
        name: link.path,
        size: link.size,
        sha256: link.sha256,
        server: link.server,
        tool: link.tool,
        created_at: link.created_at,
        expires_at: link.expires_at,
    };
    let links = store.links_of(found.job.id()).map_err(Failure::failed)?;
    let shown = WorkspaceDetails {
        files: files(&found, &settings)?,
        links: links.into_iter().map(row).collect(),
        journal: journal_tail(found.job.folder(), args.calls).map_err(Failure::failed)?,
        folder: found.job.folder().to_owned(),
        metadata: found.metadata,
        leased_by: found.leased_by.map(|instance| instance.to_string()),
    };
    args.output.print(&shown, WorkspaceDetails::text)
}

fn files(found: &ChatSummary, settings: &Settings) -> Result<Vec<File>, Failure> {
    let work = found.job.work();
    let snapshot = Snapshot::take(&work, &snapshot_limits(settings));
    let snapshot = snapshot.map_err(Failure::failed)?;
    let file = |path: &RelativePath| {
        let found = fs::symlink_metadata(work.join(path.as_path())).ok();
        File {
            name: path.display().into_owned(),
            size: found.map(|found| found.len()),
        }
    };
    Ok(snapshot.files().map(file).collect())
}

impl WorkspaceDetails {
    fn text(&self) -> String {
        let mut text = String::new();
        self.write_status(&mut text);
        self.write_files(&mut text);
        self.write_links(&mut text);
        self.write_calls(&mut text);
        text
    }

    fn write_status(&self, text: &mut String) {
        let known = &self.metadata;
        let mut line = |name: &str, value: &str| {
            let _ = writeln!(text, "{BOLD}{name:10}{BOLD:#} {}", indented(value, 11));
        };
        line("job", &known.job_id.to_string());
        line("folder", &self.folder.to_string_lossy());
        line("status", &status(known.status));
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

#[cfg(test)]
mod journal_tests {
    use super::*;

    #[test]
    fn the_last_whole_lines_are_read() {
        let folder = tempfile::tempdir().unwrap();
        assert!(journal_tail(folder.path(), 2).unwrap().is_empty());
        let path = folder.path().join("journal.jsonl");
        std::fs::write(&path, "{\"n\":1}\nbroken\n{\"n\":2}\n{\"n\":3}\n{\"n\":").unwrap();
        let calls = journal_tail(folder.path(), 2).unwrap();
        assert_eq!(
            calls,
            [serde_json::json!({"n": 2}), serde_json::json!({"n": 3})]
        );
    }

    #[test]
    fn a_link_in_its_place_is_not_read() {
        let folder = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/etc/passwd", folder.path().join("journal.jsonl")).unwrap();
        assert!(journal_tail(folder.path(), 2).is_err());
    }
}

#[cfg(test)]
mod revoke_tests {
    use super::*;

    #[test]
    fn a_job_a_token_and_a_url_are_told_apart() {
        let (job, token) = (JobId::random(), LinkToken::random());
        let letters = token.as_str();
        assert_eq!(What::parse(&job.to_string()), What::Job(job));
        for text in [
            letters.to_owned(),
            format!("https://h/x/files/{letters}/a.xlsx"),
            format!("/files/{letters}/files.zip"),
            format!("http://h/files/{letters}"),
        ] {
            assert_eq!(What::parse(&text), What::Link(token.clone()), "{text}");
        }
        assert_eq!(What::parse("1b4e28ba"), What::Other("1b4e28ba".into()));
    }
}
