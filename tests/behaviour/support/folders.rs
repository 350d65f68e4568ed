//! The layout of a bridge's folders, as far as it is visible from outside.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// The workspace folders, which are named by their job ids.
pub fn workspaces(jobs: &Path) -> Vec<PathBuf> {
    let mut names = listing(jobs);
    names.retain(|name| name != OURS);
    names.iter().map(|name| jobs.join(name)).collect()
}

/// Fails the test if a bridge that has ended left more than workspaces and its own records.
#[track_caller]
pub fn assert_clean(jobs: &Path, temporary: &Path) {
    let nothing = Vec::<String>::new();
    assert_eq!(listing(temporary), nothing, "temporary files");
    let ours = jobs.join(OURS).join("tmp");
    assert_eq!(listing(&ours), nothing, "files begun in {}", ours.display());
    let mut strangers = listing(jobs);
    strangers.retain(|name| !may_stay(name));
    assert_eq!(strangers, nothing, "neither a workspace nor {OURS}");
    let mut halves = Vec::new();
    half_written(jobs, &mut halves);
    assert_eq!(halves, Vec::<PathBuf>::new(), "half-written files");
}

/// The bridge's own records, beside the workspaces.
const OURS: &str = ".bridge";

/// Whether it is `.bridge`, or a workspace, which is named by a UUID.
fn may_stay(name: &str) -> bool {
    name == OURS || uuid::Uuid::parse_str(name).is_ok()
}

fn listing(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    let names = entries.map(|entry| entry.expect("an entry").file_name());
    names
        .map(|name| name.to_string_lossy().into_owned())
        .collect()
}

/// Finds files named `*.tmp` at any depth, except in `work/`, where children choose the names.
fn half_written(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let kind = entry.file_type().expect("a file type");
        if kind.is_dir() && entry.file_name() != "work" {
            half_written(&path, found);
        } else if path.extension().is_some_and(|end| end == "tmp") {
            found.push(path);
        }
    }
}
