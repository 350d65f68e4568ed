//! Tests of the harness itself that need no bridge.

use crate::support::{PROMPT, processes_of, until};

#[test]
fn a_process_is_found_by_its_environment_and_by_its_folder() {
    let root = tempfile::tempdir().expect("a folder");
    let sleep = || {
        let mut command = std::process::Command::new("sleep");
        command.arg("1000").env_clear();
        command
    };
    let mut named = sleep()
        .env("MCPO_JOBS_DIR", root.path())
        .spawn()
        .expect("sleep");
    let mut inside = sleep().current_dir(root.path()).spawn().expect("sleep");
    let found = until(PROMPT, || {
        let found = processes_of(root.path());
        (found.len() == 2).then_some(found)
    });
    for child in [&mut named, &mut inside] {
        child.kill().expect("killed");
    }
    assert!(found.is_some(), "{:?}", processes_of(root.path()));
    // They are zombies until they are waited for, and zombies do not count.
    let gone = until(PROMPT, || {
        processes_of(root.path()).is_empty().then_some(())
    });
    for child in [&mut named, &mut inside] {
        child.wait().expect("reaped");
    }
    assert!(gone.is_some());
}
