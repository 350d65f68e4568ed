//! Reads the processes that a test caused from `/proc`.

use std::{fmt, fs, path::Path};

use rustix::process::{Pid, Signal, kill_process as send};

/// A process that belongs to a test.
#[derive(Debug)]
pub struct Process {
    pub pid: i32,
    pub command: String,
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.pid, self.command)
    }
}

/// Every running process whose environment contains `root`, or whose working folder is below it.
pub fn processes_of(root: &Path) -> Vec<Process> {
    let entries = fs::read_dir("/proc").expect("/proc is mounted");
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid| belongs(*pid, root) && alive(*pid))
        .map(|pid| Process {
            pid,
            command: command(pid),
        })
        .collect()
}

fn belongs(pid: i32, root: &Path) -> bool {
    let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    let name = root.as_os_str().as_encoded_bytes();
    let named = environment.windows(name.len()).any(|part| part == name);
    let folder = fs::read_link(format!("/proc/{pid}/cwd"));
    named || folder.is_ok_and(|folder| folder.starts_with(root))
}

fn command(pid: i32) -> String {
    let raw = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&raw).replace('\0', " ")
}

/// Whether the process runs; a zombie does not.
pub fn alive(pid: i32) -> bool {
    !matches!(state(&format!("/proc/{pid}")), None | Some('Z' | 'X'))
}

/// Whether all threads of the process are stopped: a stop signal reaches each at its own time.
pub fn is_stopped(pid: i32) -> bool {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).expect("the process lives");
    let folders = threads.filter_map(|thread| Some(thread.ok()?.path().display().to_string()));
    folders
        .map(|folder| state(&folder))
        .all(|state| state == Some('T'))
}

fn state(folder: &str) -> Option<char> {
    let stat = fs::read_to_string(format!("{folder}/stat")).ok()?;
    // The command's name is in brackets and may contain any character: the state follows the last
    // bracket.
    stat.rsplit_once(") ")?.1.chars().next()
}

/// SIGKILL, as sent by the kernel's memory killer. It is no error if the process has already ended.
pub fn kill_process(pid: i32) {
    let pid = Pid::from_raw(pid).expect("a process id is positive");
    let _ = send(pid, Signal::KILL);
}
