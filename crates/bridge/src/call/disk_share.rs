//! The disk limit of a chat's folder: the limit of a folder, or the rest of its user's share.

use std::sync::Arc;

use bridge_model::{JobId, Principal};
use bridge_state::{ChatStore, DiskUsage, PrincipalHash};
use parking_lot::Mutex;

use crate::config::Settings;

/// The disk usage of users.
pub struct DiskShares {
    settings: Arc<Settings>,
    store: Arc<ChatStore>,
    usage: Mutex<DiskUsage>,
}

/// The limit of a chat's folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskLimit {
    /// In bytes.
    pub bytes: u64,
    /// Set if the limit is the rest of the user's share.
    pub share: Option<UsedShare>,
}

/// A user's share of the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UsedShare {
    /// The bytes for all chats and links of the user.
    pub bytes: u64,
    /// The bytes of the links and the other chats.
    pub elsewhere: u64,
}

impl DiskShares {
    /// Starts without usage, until it is counted.
    pub fn new(settings: Arc<Settings>, store: Arc<ChatStore>) -> Self {
        Self {
            settings,
            store,
            usage: Mutex::default(),
        }
    }

    /// Replaces the usage by a new measurement.
    pub fn counted(&self, usage: DiskUsage) {
        *self.usage.lock() = usage;
    }

    /// Records the size of a folder.
    pub fn note_folder(&self, owner: &Principal, job: JobId, bytes: u64) {
        self.usage
            .lock()
            .note_job(&PrincipalHash::from(owner), job, bytes);
    }

    /// Records the size of new links.
    pub fn note_links(&self, owner: &Principal, bytes: u64) {
        if bytes > 0 {
            let owner = PrincipalHash::from(owner);
            self.usage.lock().note_link(&owner, bytes);
        }
    }

    /// The last known size of a folder.
    pub fn of_folder(&self, job: JobId) -> Option<u64> {
        self.usage.lock().of_job(job)
    }

    /// The limit of a folder.
    pub fn limit(&self, owner: &Principal, job: JobId) -> DiskLimit {
        let of_folder = self.settings.files.max_workspace_bytes;
        let share = match owner {
            Principal::User(_) => self.share_of(&PrincipalHash::from(owner), job),
            // Each of them may stand for many users.
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
            let usage = self.usage.lock();
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

    /// Three quarters of the space for chats and links: the free space above the minimum, and the space
    /// that they already use.
    fn default_share(&self, all: u64) -> Option<u64> {
        let free = self.store.free_bytes().ok()?;
        let free = free.saturating_sub(self.settings.files.min_free_disk_bytes);
        Some(free.saturating_add(all) / 4 * 3)
    }
}

impl DiskLimit {
    /// The message for a folder of `used` bytes.
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
