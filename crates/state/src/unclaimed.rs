//! Folders of nobody: made for processes that are ready before anybody calls.
//!
//! ```text
//! (none) ──create_unclaimed──▶ unclaimed ──claim──▶ a workspace of one principal
//!                                  └── its bridge ends ──▶ collected
//! ```
//! No key leads to such a folder and no list shows it. From its first moment its bridge holds the
//! lease, and with that bridge it goes.

use bridge_model::Job;
use jiff::Timestamp;

use super::{Lease, NewJob, Store, StoreError, files, lock::FileLock};

impl Store {
    /// Makes one.
    pub fn create_unclaimed(&self, now: Timestamp) -> Result<(Job, Lease), StoreError> {
        self.make_leased_job(|metadata| metadata.unclaimed = true, now)
    }

    /// Makes it the workspace of a principal, in one step and once.
    /// [`StoreError::JobGone`] where it is not to be had any more.
    pub fn claim(
        &self,
        job: &Job,
        lease: &Lease,
        new: &NewJob<'_>,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let _lock = FileLock::job(job)?;
        let mut metadata = self.metadata(job)?;
        if !metadata.unclaimed || !self.holds(lease)? {
            return Err(StoreError::JobGone);
        }
        metadata.unclaimed = false;
        metadata.created_at = now;
        new.note_in(&mut metadata);
        let path = job.folder().join("metadata.json");
        files::write_json(&path, &metadata, self.staging()).map_err(files::at("write", &path))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        Clocks, PrincipalHash,
        testing::{Folder, alice, key, new_job},
    };
    use bridge_model::Principal;

    const CLOCKS: Clocks = Clocks {
        retention: Duration::from_secs(3600),
        tombstone: Duration::from_secs(3600),
    };

    #[test]
    fn nobody_finds_one_and_a_living_bridge_keeps_it() {
        let folder = Folder::new();
        let (store, other) = (folder.open(), folder.open());
        let (job, lease) = store.create_unclaimed(folder.now).unwrap();
        assert!(store.holds(&lease).unwrap());
        for store in [&store, &other] {
            assert!(store.jobs().unwrap().is_empty());
            assert!(store.summary(job.id()).unwrap().is_none());
            let report = store.collect(&CLOCKS, None, folder.now);
            assert_eq!((report.removed_jobs, report.leased_jobs), (0, 1));
            store.collect(&CLOCKS, Some(&alice()), folder.now);
        }
        assert!(store.job(job.id()).unwrap().is_some());
        assert_eq!(store.metadata(&job).unwrap().principal, None);
    }

    #[test]
    fn it_goes_with_its_bridge_at_once() {
        let folder = Folder::new();
        let made = folder.crash(|store| store.create_unclaimed(folder.now).unwrap().0);
        let store = folder.open();
        let report = store.collect(&CLOCKS, None, folder.now);
        assert_eq!(report.removed_jobs, 1);
        assert!(store.job(made.id()).unwrap().is_none());
    }

    #[test]
    fn it_is_claimed_once() {
        let folder = Folder::new();
        let store = folder.open();
        let (job, lease) = store.create_unclaimed(folder.now).unwrap();
        store.claim(&job, &lease, &new_job(), folder.now).unwrap();
        let bob = NewJob {
            principal: PrincipalHash::from(&Principal::User("bob".into())),
            ..new_job()
        };
        let again = store.claim(&job, &lease, &bob, folder.now);
        assert!(matches!(again, Err(StoreError::JobGone)), "{again:?}");
        let metadata = store.metadata(&job).unwrap();
        assert_eq!(metadata.principal, Some(new_job().principal));
        assert!(!metadata.unclaimed);
        assert_eq!(store.jobs().unwrap().len(), 1);
    }

    #[test]
    fn the_folder_of_a_key_stays_what_it_is() {
        let folder = Folder::new();
        let store = folder.open();
        let (own, _) = store.bind(&key("c"), &new_job(), folder.now).unwrap();
        let (job, lease) = store.create_unclaimed(folder.now).unwrap();
        let adopt = |chat| store.adopt(&key(chat), &job, &lease, &new_job(), folder.now);
        assert!(!adopt("c").unwrap());
        assert_eq!(store.lookup(&key("c")).unwrap().unwrap().id(), own.id());
        assert!(store.metadata(&job).unwrap().unclaimed);
        assert!(adopt("d").unwrap());
        assert_eq!(store.lookup(&key("d")).unwrap().unwrap().id(), job.id());
        let keys = store.metadata(&job).unwrap().session_keys;
        assert_eq!(keys, [key("d").to_hex()]);
        assert!(matches!(adopt("e"), Err(StoreError::JobGone)));
        assert!(store.lookup(&key("e")).unwrap().is_none());
    }

    #[test]
    fn one_that_was_taken_over_cannot_be_claimed() {
        let folder = Folder::new();
        let (job, lease) = folder.crash(|store| store.create_unclaimed(folder.now).unwrap());
        let store = folder.open();
        store.acquire(&job, folder.now).unwrap();
        let refused = store.claim(&job, &lease, &new_job(), folder.now);
        assert!(matches!(refused, Err(StoreError::JobGone)), "{refused:?}");
    }
}
