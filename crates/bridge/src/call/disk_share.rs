//! How much of the disk one chat's folder may take: what a folder may, and what is left of its
//! user's share.

use std::sync::Arc;

use bridge_model::{JobId, Principal};
use bridge_state::{ChatStore, DiskUsage, PrincipalHash};
use parking_lot::{Mutex, MutexGuard};

use crate::config::Settings;

/// What users have of the disk.
pub struct DiskShares {
    settings: Arc<Settings>,
    store: Arc<ChatStore>,
    usage: Mutex<DiskUsage>,
}

/// The bytes that a chat's folder may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskLimit {
    /// Of this folder.
    pub bytes: u64,
    /// Where it is what is left of the user's share.
    pub share: Option<UsedShare>,
}

/// A user's share of the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UsedShare {
    /// Bytes for all of his chats and links.
    pub bytes: u64,
    /// What his links and his other chats take.
    pub elsewhere: u64,
}

impl DiskShares {
    /// Nothing is counted yet.
    pub fn new(settings: Arc<Settings>, store: Arc<ChatStore>) -> Self {
        Self {
            settings,
            store,
            usage: Mutex::default(),
        }
    }

    /// What was counted takes the place of what was known.
    pub fn counted(&self, usage: DiskUsage) {
        *self.lock() = usage;
    }

    /// A folder takes so many bytes now.
    pub fn note_folder(&self, owner: &Principal, job: JobId, bytes: u64) {
        self.lock()
            .note_job(&PrincipalHash::from(owner), job, bytes);
    }

    /// The same, and what it may take.
    pub fn limit_with(&self, owner: &Principal, job: JobId, bytes: u64) -> DiskLimit {
        let hash = PrincipalHash::from(owner);
        self.lock().note_job(&hash, job, bytes);
        self.limit_of(owner, &hash, job)
    }

    /// Links with so many bytes were made.
    pub fn note_links(&self, owner: &Principal, bytes: u64) {
        if bytes > 0 {
            let owner = PrincipalHash::from(owner);
            self.lock().note_link(&owner, bytes);
        }
    }

    /// What a folder was seen to take, if it was looked at.
    pub fn of_folder(&self, job: JobId) -> Option<u64> {
        self.lock().of_job(job)
    }

    /// What a folder may take.
    pub fn limit(&self, owner: &Principal, job: JobId) -> DiskLimit {
        self.limit_of(owner, &PrincipalHash::from(owner), job)
    }

    fn limit_of(&self, owner: &Principal, hash: &PrincipalHash, job: JobId) -> DiskLimit {
        let of_folder = self.settings.files.max_workspace_bytes;
        let share = match owner {
            Principal::User(_) => self.share_of(hash, job),
            // Each of them may be many people.
            Principal::Key(_) | Principal::Anonymous => None,
        };
        let left = share.map(|share| share.bytes.saturating_sub(share.elsewhere));
        match left {
            Some(left) if left < of_folder => DiskLimit { bytes: left, share },
            _ => DiskLimit {
                bytes: of_folder,
                share: None,
            },
        }
    }

    fn share_of(&self, owner: &PrincipalHash, job: JobId) -> Option<UsedShare> {
        let (elsewhere, all) = {
            let usage = self.lock();
            let elsewhere = usage
                .of_owner(owner)
                .saturating_sub(usage.of_job(job).unwrap_or_default());
            (elsewhere, usage.all())
        };
        let bytes = match self.settings.files.max_user_bytes {
            Some(bytes) => bytes,
            None => self.default_share(all)?,
        };
        Some(UsedShare { bytes, elsewhere })
    }

    /// Three quarters of what there is for chats and links: what is free above the floor, and what
    /// they take already.
    fn default_share(&self, all: u64) -> Option<u64> {
        let free = self.store.free_bytes().ok()?;
        let free = free.saturating_sub(self.settings.files.min_free_disk_bytes);
        Some(free.saturating_add(all) / 4 * 3)
    }

    fn lock(&self) -> MutexGuard<'_, DiskUsage> {
        self.usage.lock()
    }
}

impl DiskLimit {
    /// Why a folder may not take `used` bytes.
    pub fn exceeded_by(&self, used: u64) -> String {
        match self.share {
            Some(share) => format!(
                "this user's chats and links use {} bytes, more than the limit of {} for one user \
                 (MCPO_MAX_USER_BYTES); {used} of them are in this chat's folder",
                share.elsewhere.saturating_add(used),
                share.bytes,
            ),
            None => format!(
                "this chat's folder uses {used} bytes, more than the limit of {} \
                 (MCPO_MAX_WORKSPACE_BYTES)",
                self.bytes
            ),
        }
    }
}
