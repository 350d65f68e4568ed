//! What a call left on disk becomes links.

use std::{path::Path, sync::Arc};

use serde::Serialize;
use serde_json::Value;

use super::{CallEngine, CallError, Notice};
use crate::{
    artifacts::{
        self, ChangedFile, Origin, RelativePath, Snapshot, SnapshotError, publish, publish_archive,
    },
    config::{Lang, ServerSpec, Settings},
    model::{Principal, RawJson, last_members, link_text},
    store::{Artifact, Job},
};

/// The name of the zip that holds several files of one call.
const ARCHIVE: &str = "files.zip";
/// Names that a notice lists before it only counts.
const LISTED: usize = 20;

/// The links of one call.
#[derive(Debug, Default)]
pub struct Published {
    /// One for each file.
    pub files: Vec<Artifact>,
    /// One for all of them, where there are several.
    pub archive: Option<Box<Artifact>>,
}

/// A link as callers see it.
#[derive(Debug, Clone, Serialize)]
pub struct Link {
    /// The file's name within the workspace.
    pub name: String,
    /// Opens this version of it, without a key, until it expires.
    pub url: String,
    /// Bytes.
    pub size: u64,
    /// MIME type.
    pub mime_type: String,
    /// RFC 3339.
    pub expires_at: String,
}

impl Link {
    /// The link of an artifact below the public base URL.
    pub fn of(artifact: &Artifact, settings: &Settings) -> Self {
        Self {
            name: artifact.path.clone(),
            url: artifact.url(&settings.listen.base_url.to_string()),
            size: artifact.size,
            mime_type: artifact.mime_type.clone(),
            expires_at: artifact
                .expires_at
                .strftime("%Y-%m-%dT%H:%M:%SZ")
                .to_string(),
        }
    }

    fn markdown(&self) -> String {
        format!("[{}]({})", link_text(&self.name), self.url)
    }
}

impl Published {
    /// All links, the archive's last.
    pub fn all(&self) -> impl Iterator<Item = &Artifact> {
        self.files.iter().chain(self.archive.as_deref())
    }

    /// A ready sentence with the links, as markdown.
    pub fn message(&self, settings: &Settings) -> String {
        let links: Vec<String> = self
            .files
            .iter()
            .map(|file| Link::of(file, settings).markdown())
            .collect();
        let links = links.join(", ");
        let archive = self
            .archive
            .as_ref()
            .map(|file| Link::of(file, settings).markdown());
        let minutes = settings.files.expiry.as_secs().div_ceil(60);
        match (settings.lang, archive) {
            (Lang::En, None) => {
                format!("Download: {links} (the link expires in {minutes} minutes)")
            }
            (Lang::En, Some(zip)) => {
                format!(
                    "Download: {links}; all together: {zip} (the links expire in {minutes} minutes)"
                )
            }
            (Lang::Ja, None) => {
                format!("ダウンロード: {links}（リンクの有効期限は {minutes} 分です）")
            }
            (Lang::Ja, Some(zip)) => format!(
                "ダウンロード: {links}、まとめて: {zip}（リンクの有効期限は {minutes} 分です）"
            ),
        }
    }
}

/// A look at the folder after a call.
pub struct Found {
    /// What lies there now; the next look compares with it.
    pub snapshot: Snapshot,
    /// The links.
    pub published: Published,
    /// What got none, and why.
    pub notice: Option<Notice>,
    /// The call has left more than is looked at, and why it fails for that.
    pub refused: Option<String>,
}

impl Found {
    /// The folder holds more than is looked at, and nothing is linked. The call that made it so
    /// fails; later ones may be about to delete files, and have their answer.
    fn over(before: &Snapshot, why: String) -> Self {
        let (notice, refused) = if before.is_over() {
            (Some(Notice::NotLinked(vec![why])), None)
        } else {
            (None, Some(why))
        };
        Self {
            snapshot: Snapshot::over(),
            published: Published::default(),
            notice,
            refused,
        }
    }
}

/// Which call left the files.
#[derive(Clone)]
pub struct Maker {
    /// Whose call it was.
    pub principal: Principal,
    /// The server.
    pub spec: Arc<ServerSpec>,
    /// The tool.
    pub tool: Box<str>,
}

impl CallEngine {
    /// Publishes what differs from `before`, and what the result names in `file_path_fields`.
    pub(super) async fn publish(
        self: &Arc<Self>,
        job: &Job,
        before: Snapshot,
        maker: Maker,
        result: &RawJson,
    ) -> Result<Found, CallError> {
        let named = named_files(&maker.spec.file_path_fields, result);
        let (engine, job) = (self.clone(), job.clone());
        let look = move || engine.publish_now(&job, &before, &maker, named);
        tokio::task::spawn_blocking(look)
            .await
            .expect("publishing does not panic")
    }

    fn publish_now(
        &self,
        job: &Job,
        before: &Snapshot,
        maker: &Maker,
        named: Vec<RelativePath>,
    ) -> Result<Found, CallError> {
        let limits = snapshot_limits(&self.settings);
        let snapshot = match Snapshot::take(&job.work(), &limits) {
            Ok(snapshot) => snapshot,
            Err(SnapshotError::Io(error)) => return Err(CallError::Internal(error.to_string())),
            Err(over) => return Ok(Found::over(before, over.to_string())),
        };
        self.check_quota(job, &snapshot)?;
        let mut paths: Vec<RelativePath> = artifacts::changed(before, &snapshot)
            .into_iter()
            .map(|ChangedFile { path, .. }| path)
            .collect();
        let known: Vec<&RelativePath> = snapshot.files().collect();
        let extra = named
            .into_iter()
            .filter(|path| known.binary_search(&path).is_ok());
        for path in extra {
            if !paths.contains(&path) {
                paths.push(path);
            }
        }
        let mut refused = Vec::new();
        let limit = self.settings.files.max_per_call;
        if paths.len() > limit {
            refused.push(format!(
                "{} more files (MCPO_MAX_FILES_PER_CALL)",
                paths.len() - limit
            ));
            paths.truncate(limit);
        }
        let origin = Origin {
            principal: &maker.principal,
            server: &maker.spec.name,
            tool: &maker.tool,
            ttl: self.settings.files.expiry,
            max_bytes: self.settings.files.max_workspace_bytes,
        };
        let published = self.link(job, &paths, &snapshot, &origin, &mut refused)?;
        let notice = (!refused.is_empty()).then_some(Notice::NotLinked(refused));
        Ok(Found {
            snapshot,
            published,
            notice,
            refused: None,
        })
    }

    fn link(
        &self,
        job: &Job,
        paths: &[RelativePath],
        snapshot: &Snapshot,
        origin: &Origin<'_>,
        refused: &mut Vec<String>,
    ) -> Result<Published, CallError> {
        let mut published = Published::default();
        for path in paths {
            match publish(&self.store, job, path, snapshot, origin, self.store.now()) {
                Ok(artifact) => published.files.push(artifact),
                Err(error) if error.is_disk_full() => {
                    self.take_back(&published);
                    return Err(error.into());
                }
                Err(error) => refused.push(error.to_string()),
            }
        }
        if published.files.len() > 1 {
            let now = self.store.now();
            match publish_archive(&self.store, job, ARCHIVE, &published.files, origin, now) {
                Ok(archive) => published.archive = Some(Box::new(archive)),
                Err(error) => refused.push(error.to_string()),
            }
        }
        Ok(published)
    }

    /// A call that failed for want of disk leaves no copies behind.
    fn take_back(&self, published: &Published) {
        for artifact in &published.files {
            if let Err(error) = self.store.remove_link(&artifact.token) {
                tracing::warn!(%error, "link not taken back");
            }
        }
    }

    /// A workspace over its quota takes no further files.
    fn check_quota(&self, job: &Job, snapshot: &Snapshot) -> Result<(), CallError> {
        let limits = &self.settings.files;
        // What cannot be looked through, because there is too much of it, is over the quota too.
        let beside = |folder: &Path| match Snapshot::take(folder, &snapshot_limits(&self.settings))
        {
            Ok(found) => found.usage().bytes,
            Err(SnapshotError::Io(_)) => 0,
            Err(_) => u64::MAX,
        };
        let used = [beside(&job.home()), beside(&job.tmp())]
            .into_iter()
            .fold(snapshot.usage().bytes, u64::saturating_add);
        if used > limits.max_workspace_bytes {
            return Err(CallError::DiskFull(format!(
                "this chat's folder takes {} bytes of the {} allowed (MCPO_MAX_WORKSPACE_BYTES): \
                 delete files, or start a new chat",
                used, limits.max_workspace_bytes
            )));
        }
        Ok(())
    }

    /// Below the floor nothing is begun: a full disk would hurt everybody.
    pub(super) fn check_free_disk(&self) -> Result<(), CallError> {
        let floor = self.settings.files.min_free_disk_bytes;
        let free = self.store.free_bytes()?;
        if free < floor {
            return Err(CallError::DiskFull(format!(
                "only {free} bytes are free where workspaces are kept, and {floor} must stay free \
                 (MCPO_MIN_FREE_DISK_BYTES)"
            )));
        }
        Ok(())
    }
}

/// What a look through a workspace may find.
pub fn snapshot_limits(settings: &Settings) -> artifacts::Limits {
    let entries = settings.files.max_workspace_files as u64;
    artifacts::Limits {
        entries,
        ..artifacts::Limits::default()
    }
}

/// Some names of what lies in a workspace, for a model that lost its place.
pub fn inventory(snapshot: &Snapshot) -> Notice {
    let names: Vec<String> = snapshot
        .files()
        .map(|path| path.display().into_owned())
        .collect();
    let more = names.len().saturating_sub(LISTED);
    Notice::MemoryLost {
        files: names.into_iter().take(LISTED).collect(),
        more,
    }
}

/// The files that the configured fields of a result name, wherever in it they are.
fn named_files(fields: &[String], result: &RawJson) -> Vec<RelativePath> {
    let mut found = Vec::new();
    if fields.is_empty() {
        return found;
    }
    let Ok(result) = result.read::<Value>() else {
        return found;
    };
    collect(fields, &result["structuredContent"], &mut found);
    for block in result["content"].as_array().into_iter().flatten() {
        let text = block["text"].as_str().unwrap_or_default();
        if let Ok(value) = serde_json::from_str::<Value>(text) {
            collect(fields, &value, &mut found);
        }
    }
    found
}

fn collect(fields: &[String], value: &Value, found: &mut Vec<RelativePath>) {
    match value {
        Value::Object(members) => {
            for (name, member) in members {
                if fields.contains(name) {
                    let one = member.as_str().into_iter();
                    let many = member
                        .as_array()
                        .into_iter()
                        .flatten()
                        .filter_map(Value::as_str);
                    let paths = one.chain(many).map(Path::new);
                    found.extend(paths.filter_map(|path| RelativePath::parse(path).ok()));
                }
                collect(fields, member, found);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| collect(fields, item, found)),
        _ => {}
    }
}

/// Whether the result says that the tool failed.
pub fn is_error(result: &RawJson) -> bool {
    let [flag] = last_members(result.as_bytes(), ["isError"]).unwrap_or_default();
    flag.is_some_and(|raw| raw.get() == "true")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn fields_are_found_in_text_and_structure_at_any_depth() {
        let result = RawJson::of(&json!({
            "content": [{"type": "text", "text": r#"{"saved":{"file_path":"a.xlsx"}}"#}],
            "structuredContent": {"all": [{"file_path": ["b/c.png", "/etc/passwd", "../x"]}]},
        }));
        let found = named_files(&["file_path".into()], &result);
        let names: Vec<_> = found
            .iter()
            .map(|path| path.display().into_owned())
            .collect();
        assert_eq!(names, ["b/c.png", "a.xlsx"]);
    }

    #[test]
    fn only_true_is_an_error() {
        let is = |text: &str| is_error(&RawJson::parse(text.to_owned().into()).unwrap());
        assert!(is(r#"{"content":[],"isError":true}"#));
        assert!(!is(r#"{"content":[],"isError":false}"#));
        assert!(!is(r#"{"isError":"true"}"#));
        assert!(!is("[]"));
    }
}
