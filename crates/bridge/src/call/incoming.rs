//! Files that come into a workspace from outside: no call made them, so no call links them.

use bridge_model::{Job, Principal};
use bridge_state::{ChatStore, Lease, StagedFile, StoreError};
use tokio::sync::MutexGuard;

use super::{CallEngine, CallError, disk_share::DiskShares};
use crate::{
    artifacts::{RelativePath, Snapshot, numbered, safe_name},
    call::detached::blocking,
    session::Workspace,
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
        owner: &Principal,
        workspace: &Workspace,
        files: Vec<Incoming>,
    ) -> Result<Vec<String>, CallError> {
        // While a call's changes are looked for, nothing of somebody else's appears.
        let mut seen: MutexGuard<'_, Snapshot> = workspace.files.lock().await;
        let (job, lease) = (&workspace.job, &workspace.lease);
        self.put(owner, (job, lease), &mut seen, files).await
    }

    /// The same for a folder at which nobody else looks.
    pub(super) async fn put(
        &self,
        owner: &Principal,
        (job, lease): (&Job, &Lease),
        seen: &mut Snapshot,
        files: Vec<Incoming>,
    ) -> Result<Vec<String>, CallError> {
        if files.is_empty() {
            return Ok(Vec::new());
        }
        self.check_entries(seen, &files)?;
        self.check_free_disk()?;
        let (store, disk, owner) = (self.store.clone(), self.disk.clone(), owner.clone());
        let (job, lease, mut now) = (job.clone(), lease.clone(), std::mem::take(seen));
        let (names, now) = blocking(move || {
            let names = check_bytes(&disk, &owner, &job, &now, &files)
                .and_then(|()| put_all(&store, (&job, &lease), &mut now, files));
            disk.note_folder(&owner, job.id(), now.usage().bytes);
            (names, now)
        })
        .await;
        *seen = now;
        names
    }

    fn check_entries(&self, seen: &Snapshot, files: &[Incoming]) -> Result<(), CallError> {
        let (limits, usage) = (&self.settings.files, seen.usage());
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

fn check_bytes(
    disk: &DiskShares,
    owner: &Principal,
    job: &Job,
    seen: &Snapshot,
    files: &[Incoming],
) -> Result<(), CallError> {
    let coming = files.iter().map(|file| file.size);
    let bytes = coming.fold(seen.usage().bytes, u64::saturating_add);
    let limit = disk.limit(owner, job.id());
    if bytes <= limit.bytes {
        return Ok(());
    }
    let why = limit.exceeded_by(bytes);
    Err(CallError::DiskFull(format!("with these files {why}")))
}

fn put_all(
    store: &ChatStore,
    (job, lease): (&Job, &Lease),
    seen: &mut Snapshot,
    files: Vec<Incoming>,
) -> Result<Vec<String>, CallError> {
    let mut names = Vec::with_capacity(files.len());
    for incoming in files {
        let wanted = safe_name(&incoming.name);
        let name = place(store, lease, &incoming.file, numbered(&wanted))?;
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

/// How many names are tried for a file.
const ATTEMPTS: usize = 1000;

/// Puts a file into a chat's folder under the first of the names that is free, and returns that one.
pub(super) fn place(
    store: &ChatStore,
    lease: &Lease,
    file: &StagedFile,
    names: impl Iterator<Item = String>,
) -> Result<String, CallError> {
    for name in names.take(ATTEMPTS) {
        if store.put_file(lease, file, &name)? {
            return Ok(name);
        }
    }
    Err(CallError::from(StoreError::Io {
        action: "put a file into",
        path: "work".into(),
        source: std::io::ErrorKind::AlreadyExists.into(),
    }))
}
