//! How much of the disk a chat's folder takes: looked at before, while and after a call.

use std::{sync::Arc, time::Duration};

use bridge_model::Job;
use tokio::time::Instant;

use super::{CallEngine, CallError, Notice, Running, disk_share::DiskLimit};
use crate::{
    artifacts::{Snapshot, SnapshotError},
    call::{
        detached::blocking,
        look::{Look, snapshot_limits},
    },
    config::ServerSpec,
    session::Workspace,
};

/// The first look while a call runs, and the least time between two.
const WATCH: Duration = Duration::from_secs(1);
/// A look is followed by this many times its own length without one, so that large folders and slow
/// disks are not kept busy.
const REST: u32 = 20;
/// While a call runs it may be over by one part in this many: programs that save a file have it twice
/// for a moment.
const LEEWAY: u64 = 4;

/// Whether the folder holds no more than it may.
pub(super) enum Room {
    /// It does not.
    Enough,
    /// It does, and this call did not make it more: it may be what makes room.
    Over(Notice),
    /// This call made it so.
    Refused(String),
}

impl CallEngine {
    /// Looks at what a call left. Only the one that took more than there is fails: whoever lists or
    /// deletes files of a full folder has the answer, and the built-in server always has.
    pub(super) fn room(&self, look: &Look, after: &Snapshot) -> Room {
        let (before, spec, owner) = (&look.before, &look.maker.spec, &look.maker.principal);
        let used = after.usage().bytes;
        let limit = self.disk.limit_with(owner, look.job.id(), used);
        let exempt = before.is_over() || spec.is_files_server();
        if let Some(what) = after.over_aside() {
            if !exempt && before.over_aside().is_none() {
                return Room::Refused(format!("{what}: {}", self.way_out()));
            }
            return Room::Over(Notice::NotLinked(vec![format!(
                "{what}: {}",
                self.way_out()
            )]));
        }
        if used <= limit.bytes {
            return Room::Enough;
        }
        if exempt || used <= before.usage().bytes {
            return Room::Over(Notice::Full { used, limit });
        }
        Room::Refused(self.too_much(&limit, after))
    }

    fn too_much(&self, limit: &DiskLimit, now: &Snapshot) -> String {
        let (used, aside) = (now.usage().bytes, now.aside_bytes());
        let why = limit.exceeded_by(used);
        let way_out = match limit.share {
            None => self.way_out(),
            Some(_) => "delete files here or in other chats, or wait until links to them end",
        };
        format!("{why} ({aside} in home/ and tmp/): {way_out}")
    }

    fn way_out(&self) -> &'static str {
        if self.settings.files.server && self.settings.stateful.enabled {
            "delete files (delete_file of the server files; clear_temporary_files for home/ and \
             tmp/), or start a new chat"
        } else {
            "delete files, or start a new chat"
        }
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

    /// The same for a call: the built-in server deletes files, and writes none.
    pub(super) fn check_free_disk_for(&self, spec: &ServerSpec) -> Result<(), CallError> {
        if spec.is_files_server() {
            return Ok(());
        }
        self.check_free_disk()
    }

    /// Notes what lies in a folder, so that the next call is held to what it writes itself.
    pub(super) async fn look_anew(self: &Arc<Self>, workspace: &Workspace) {
        let mut seen = workspace.files.lock().await;
        let (job, limits) = (workspace.job.clone(), snapshot_limits(&self.settings));
        match blocking(move || Snapshot::of(&job, &limits)).await {
            Ok(now) => *seen = now,
            Err(SnapshotError::Io(error)) => tracing::debug!(%error, "a folder was not looked at"),
            Err(_) => *seen = Snapshot::over(),
        }
    }

    /// What the folder takes, as far as it is looked through.
    async fn measure(self: &Arc<Self>, job: &Job) -> Result<Snapshot, SnapshotError> {
        // One look at a time: they are for nobody who waits.
        let Ok(_place) = self.measuring.acquire().await else {
            return Ok(Snapshot::default());
        };
        let (job, mut limits) = (job.clone(), snapshot_limits(&self.settings));
        limits.entries = limits.entries.saturating_add(limits.entries / LEEWAY);
        blocking(move || Snapshot::of(&job, &limits)).await
    }
}

impl Running {
    /// Whether the folder is looked at while the call runs.
    pub(super) fn is_watched(&self) -> bool {
        self.call.ask.is_tool_call() && !self.call.spec.is_files_server()
    }

    /// Ends when the folder holds far more than it may, and than it did `before`: a call that fills
    /// the disk is not waited for.
    pub(super) async fn overfull(&self, job: &Job, before: u64) -> CallError {
        let (engine, owner) = (&self.engine, &self.call.caller.principal);
        let limit = engine.disk.limit(owner, job.id());
        let most = before
            .max(limit.bytes)
            .saturating_add(engine.settings.files.max_workspace_bytes / LEEWAY);
        let mut pause = WATCH;
        loop {
            tokio::time::sleep(pause).await;
            let began = Instant::now();
            match engine.measure(job).await {
                Ok(now) => {
                    if now.usage().bytes > most {
                        return CallError::OverQuota(engine.too_much(&limit, &now));
                    }
                    if let Some(what) = now.over_aside() {
                        let why = format!("{what}: {}", engine.way_out());
                        return CallError::OverQuota(why);
                    }
                }
                Err(SnapshotError::Io(error)) => {
                    tracing::debug!(%error, "a folder was not measured");
                }
                Err(over) => return CallError::OverQuota(over.to_string()),
            }
            pause = WATCH.max(began.elapsed() * REST);
        }
    }
}
