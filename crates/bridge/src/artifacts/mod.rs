//! Publishes the files that tools write to a workspace as links: finds changes on disk, copies the
//! files, and makes paths in answers relative. All functions block on the disk.

mod archive;
mod embedded;
mod mentions;
mod paths;
mod publish;
mod snapshot;
mod sqlite;
mod tracked;

pub use archive::open_link;
pub use embedded::{Embedded, embedded};
pub use mentions::Mentions;
pub use paths::{
    Area, Patience, Place, RelativePath, mime_type, numbered, remove_file, safe as safe_name,
};
pub use publish::{PublishError, Publisher};
pub use snapshot::{Limits, Snapshot, SnapshotError};
pub use tracked::{TrackedFiles, Watcher};
