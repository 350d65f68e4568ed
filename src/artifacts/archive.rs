//! Several artifacts as one zip with a link of its own.

use jiff::Timestamp;

use super::{Origin, PublishError};
use crate::store::{Artifact, Job, Store};

/// Packs `artifacts` (live ones of `job`) into a zip called `name`. Entries keep their relative
/// paths; of two with the same path the later one gets a number. Over `origin.max_bytes`:
/// [`PublishError::TooLarge`].
pub fn publish_archive(
    store: &Store,
    job: &Job,
    name: &str,
    artifacts: &[Artifact],
    origin: &Origin<'_>,
    now: Timestamp,
) -> Result<Artifact, PublishError> {
    todo!("{store:?} {job:?} {name:?} {artifacts:?} {origin:?} {now}")
}
