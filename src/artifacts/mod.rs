//! What tools leave in a workspace, as links: found by what changed on disk, copied aside, named
//! relative in answers. All calls but [`relative()`] and [`relative_text()`] block on the disk.

mod archive;
mod beneath;
mod names;
mod publish;
mod relative;
mod relative_path;
mod snapshot;

pub use archive::publish_archive;
pub use beneath::remove_file;
pub use names::{mime_type, numbered, safe as safe_name};
pub use publish::{Origin, PublishError, publish};
pub use relative::{relative, relative_text};
pub use relative_path::RelativePath;
pub use snapshot::{ChangedFile, Limits, Snapshot, SnapshotError, changed};
