//! Makes sure that the jobs folder is one that can be trusted with people's files.

use std::{
    fs::{self, DirBuilder, Permissions},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use super::{StoreError, files};

/// What is made below `.bridge`.
const PARTS: [&str; 6] = ["", "bindings", "artifacts", "catalog", "instances", "tmp"];

/// Returns the canonical and the configured absolute path.
pub fn prepare(jobs_dir: &Path) -> Result<(PathBuf, PathBuf), StoreError> {
    let unusable = |problem: String| StoreError::Unusable {
        path: jobs_dir.to_owned(),
        problem,
    };
    let failed = |error: io::Error| unusable(explain(&error));
    // Collecting the parts drops a trailing slash, behind which a link would not be seen.
    let configured: PathBuf = std::path::absolute(jobs_dir)
        .map_err(failed)?
        .components()
        .collect();
    if fs::symlink_metadata(&configured).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
    {
        let mut builder = DirBuilder::new();
        let made = builder.recursive(true).mode(0o700).create(&configured);
        made.map_err(failed)?;
    }
    let found = fs::symlink_metadata(&configured).map_err(failed)?;
    let own = rustix::process::geteuid().as_raw();
    if found.is_symlink() {
        let problem = "is a symbolic link: set MCPO_JOBS_DIR to the folder that it points to";
        return Err(unusable(problem.into()));
    }
    if !found.is_dir() {
        let problem = "is not a folder: move it away or set MCPO_JOBS_DIR to another one";
        return Err(unusable(problem.into()));
    }
    if found.uid() == own {
        if found.mode() & 0o777 != 0o700 {
            fs::set_permissions(&configured, Permissions::from_mode(0o700)).map_err(failed)?;
        }
    } else if anybody_moves_things(found.mode()) {
        return Err(unusable(format!(
            "belongs to user {}, and anybody may move what is in it (mode {:o}): take the right to \
             write from others, or set MCPO_JOBS_DIR to a folder inside it, which is then made",
            found.uid(),
            found.mode() & 0o7777
        )));
    }
    let root = configured.canonicalize().map_err(failed)?;
    let records = root.join(".bridge");
    // In a folder that is not ours alone somebody may have been there first.
    if let Ok(there) = fs::symlink_metadata(&records)
        && !files::is_own_dir(&records).map_err(failed)?
    {
        return Err(unusable(format!(
            "holds a '.bridge' that is no folder of user {own} (it is user {}'s): move it away, or \
             set MCPO_JOBS_DIR to another folder",
            there.uid()
        )));
    }
    for part in PARTS {
        files::make_dir(&root.join(".bridge").join(part)).map_err(failed)?;
    }
    Ok((root, configured))
}

/// Whether every folder of ours is there.
pub fn is_whole(root: &Path) -> bool {
    let there = |part: &&str| files::is_own_dir(&root.join(".bridge").join(part));
    PARTS.iter().all(|part| there(part).unwrap_or(true))
}

/// A folder of somebody else's is a volume that our group may write (Kubernetes mounts them so, with
/// `fsGroup`), or one where all may write but only move their own (sticky). What we make in it is
/// ours alone.
fn anybody_moves_things(mode: u32) -> bool {
    let (others_write, sticky) = (mode & 0o002 != 0, mode & 0o1000 != 0);
    others_write && !sticky
}

fn explain(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => format!(
            "is not writable ({error}): give user {} the right, or set MCPO_JOBS_DIR to another",
            rustix::process::geteuid().as_raw()
        ),
        _ => format!("cannot be used: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(path: &Path) -> String {
        prepare(path).unwrap_err().to_string()
    }

    #[test]
    fn makes_the_folder_private() {
        let dir = tempfile::tempdir().unwrap();
        let jobs = dir.path().join("deep/jobs");
        prepare(&jobs).unwrap();
        assert_eq!(fs::metadata(&jobs).unwrap().mode() & 0o777, 0o700);
        fs::set_permissions(&jobs, Permissions::from_mode(0o755)).unwrap();
        prepare(&jobs).unwrap();
        assert_eq!(fs::metadata(&jobs).unwrap().mode() & 0o777, 0o700);
    }

    #[test]
    fn refuses_files_and_links_with_the_fix() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link) = (dir.path().join("file"), dir.path().join("link"));
        fs::write(&file, "").unwrap();
        std::os::unix::fs::symlink(dir.path(), &link).unwrap();
        assert!(problem(&file).contains("not a folder"));
        assert!(problem(&link).contains("symbolic link"));
        assert!(problem(&link.join("")).contains("symbolic link"));
        assert!(problem(&file.join("below")).contains("cannot be used"));
    }

    #[test]
    fn of_others_folders_only_those_are_refused_where_anybody_moves_things() {
        for (mode, refused) in [
            (0o42775, false),
            (0o42770, false),
            (0o40755, false),
            (0o41777, false),
            (0o40777, true),
            (0o42777, true),
        ] {
            assert_eq!(anybody_moves_things(mode), refused, "{mode:o}");
        }
    }

    #[test]
    fn a_volume_of_somebody_elses_is_used_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let jobs = dir.path().join("volume");
        fs::create_dir(&jobs).unwrap();
        fs::set_permissions(&jobs, Permissions::from_mode(0o2775)).unwrap();
        // Only root can give a folder away; others see the rule in the test above.
        if std::os::unix::fs::chown(&jobs, Some(65534), None).is_err() {
            return;
        }
        prepare(&jobs).unwrap();
        let (mount, records) = (
            jobs.metadata().unwrap(),
            jobs.join(".bridge").metadata().unwrap(),
        );
        assert_eq!((mount.uid(), mount.mode() & 0o7777), (65534, 0o2775));
        assert_eq!(records.mode() & 0o777, 0o700);
        std::os::unix::fs::chown(jobs.join(".bridge"), Some(65534), None).unwrap();
        assert!(problem(&jobs).contains("'.bridge'"));
        fs::set_permissions(&jobs, Permissions::from_mode(0o777)).unwrap();
        assert!(problem(&jobs).contains("mode 777"));
    }

    #[test]
    fn links_in_place_of_our_own_folder_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let jobs = dir.path().join("jobs");
        prepare(&jobs).unwrap();
        fs::rename(jobs.join(".bridge"), dir.path().join("away")).unwrap();
        std::os::unix::fs::symlink(dir.path().join("away"), jobs.join(".bridge")).unwrap();
        assert!(problem(&jobs).contains("'.bridge'"));
    }

    #[test]
    fn remembers_both_spellings() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().canonicalize().unwrap().join("real");
        fs::create_dir(&real).unwrap();
        std::os::unix::fs::symlink(&real, dir.path().join("alias")).unwrap();
        let written = dir.path().join("alias/jobs");
        let (root, configured) = prepare(&written).unwrap();
        assert_eq!((root, configured), (real.join("jobs"), written));
    }
}
