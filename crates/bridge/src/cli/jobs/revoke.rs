//! `mcpo-bridge jobs revoke`

use std::fmt::Write as _;

use bridge_model::{JobId, LinkToken, Principal};
use bridge_state::{Artifact, ChatStore, Link};
use clap::Args;
use serde::Serialize;

use super::find;
use crate::{
    cli::{
        Failure, SettingsArgs,
        local::open_store,
        log,
        output::OutputArgs,
        text::{counted, plain},
    },
    telemetry::{Action, AuditEvent, AuditFile, audit},
};

/// What `--help` adds.
pub const HELP: &str = "\
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

/// What was named.
#[derive(Debug, PartialEq, Eq)]
enum What {
    Link(LinkToken),
    Job(JobId),
    /// Perhaps a prefix of an id.
    Other(String),
}

#[derive(Serialize)]
struct Revoked {
    revoked: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    job: String,
    name: String,
    size: u64,
}

/// Revokes, and fails if there was no live link.
pub fn run(args: &RevokeArgs, settings: &SettingsArgs) -> Result<(), Failure> {
    let settings = settings.resolve()?;
    let _log = log::start(&settings.log)?;
    let store = open_store(&settings.jobs_dir)?;
    let links = links(&store, What::parse(args.what.trim()))?;
    let mut revoked = Vec::new();
    for link in links {
        if store.revoke(&link.token).map_err(Failure::failed)? {
            write_audit(&link);
            revoked.push(Row {
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

/// Links that may be live. A workspace's links outlive its folder.
fn links(store: &ChatStore, what: What) -> Result<Vec<Artifact>, Failure> {
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

#[cfg(test)]
mod tests {
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
