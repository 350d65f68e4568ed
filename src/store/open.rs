//! Makes sure that the jobs folder is one that can be trusted with people's files.

use std::{
    fs::{self, DirBuilder, Permissions},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use super::{StoreError, files};

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
    if found.uid() != own {
        return Err(unusable(format!(
            "belongs to user {} and this is user {own}: chown it, or set MCPO_JOBS_DIR to a folder \
             inside it, which is then made",
            found.uid()
        )));
    }
    if found.mode() & 0o777 != 0o700 {
        fs::set_permissions(&configured, Permissions::from_mode(0o700)).map_err(failed)?;
    }
    let root = configured.canonicalize().map_err(failed)?;
    for part in ["", "bindings", "artifacts", "catalog", "instances", "tmp"] {
        files::make_dir(&root.join(".bridge").join(part)).map_err(failed)?;
    }
    Ok((root, configured))
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
