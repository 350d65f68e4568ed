//! What tools leave in a workspace, as links: found by what changed on disk, copied aside, named
//! relative in answers. All calls block on the disk.

mod archive;
mod beneath;
mod embedded;
mod mentions;
mod names;
mod patience;
mod place;
mod publish;
mod relative_path;
mod snapshot;
mod sqlite;

pub use archive::publish_archive;
pub use beneath::remove_file;
pub use embedded::{Embedded, embedded};
pub use mentions::Mentions;
pub use names::{mime_type, numbered, safe as safe_name};
pub use patience::Patience;
pub use place::{Area, Place};
pub use publish::{Origin, PublishError, publish};
pub use relative_path::RelativePath;
pub use snapshot::{ChangedFile, Limits, Snapshot, SnapshotError, changed, changed_aside};
