//! Files that come into a workspace from outside: no call made them, so no call links them.

use tokio::sync::MutexGuard;

use super::{CallEngine, CallError, run::blocking};
use crate::{
    artifacts::{RelativePath, Snapshot, numbered, safe_name},
    session::Workspace,
    store::{Job, StagedFile},
};

/// A file that came, and what it is to be called.
pub struct Incoming {
    /// As its sender calls it.
    pub name: String,
    /// Its bytes.
    pub file: StagedFile,
    /// How many.
    pub size: u64,
}

impl CallEngine {
    /// Puts files into a workspace and returns the names that they got there.
    pub async fn take_in(
        &self,
        workspace: &Workspace,
        files: Vec<Incoming>,
    ) -> Result<Vec<String>, CallError> {
        // While a call's changes are looked for, nothing of somebody else's appears.
        let mut seen: MutexGuard<'_, Snapshot> = workspace.files.lock().await;
        self.put(&workspace.job, &mut seen, files).await
    }

    /// The same for a folder at which nobody else looks.
    pub(super) async fn put(
        &self,
        job: &Job,
        seen: &mut Snapshot,
        files: Vec<Incoming>,
    ) -> Result<Vec<String>, CallError> {
        self.check_room(seen, &files)?;
        self.check_free_disk()?;
        let (job, mut now) = (job.clone(), std::mem::take(seen));
        let (names, now) = blocking(move || {
            let names = put_all(&job, &mut now, files);
            (names, now)
        })
        .await;
        *seen = now;
        names
    }

    fn check_room(&self, seen: &Snapshot, files: &[Incoming]) -> Result<(), CallError> {
        let limits = &self.settings.files;
        let (usage, coming) = (seen.usage(), files.iter().map(|file| file.size));
        let bytes = coming.fold(usage.bytes, u64::saturating_add);
        if bytes > limits.max_workspace_bytes {
            return Err(CallError::DiskFull(format!(
                "with these files this chat's folder would take {bytes} bytes of the {} allowed \
                 (MCPO_MAX_WORKSPACE_BYTES)",
                limits.max_workspace_bytes
            )));
        }
        let entries = usage.entries + files.len() as u64;
        if entries > limits.max_workspace_files as u64 {
            return Err(CallError::DiskFull(format!(
                "with these files this chat's folder would have {entries} entries of the {} \
                 allowed (MCPO_MAX_WORKSPACE_FILES)",
                limits.max_workspace_files
            )));
        }
        Ok(())
    }
}

fn put_all(job: &Job, seen: &mut Snapshot, files: Vec<Incoming>) -> Result<Vec<String>, CallError> {
    let mut names = Vec::with_capacity(files.len());
    for incoming in files {
        let wanted = safe_name(&incoming.name);
        let name = incoming.file.place(job, numbered(&wanted))?;
        let path = RelativePath::parse(&name);
        let path = path.map_err(|error| CallError::Internal(error.to_string()))?;
        // A child may have taken it away already.
        if let Err(error) = seen.note(&job.work(), &path) {
            tracing::debug!(%error, "a file that came is gone");
        }
        names.push(name);
    }
    Ok(names)
}
