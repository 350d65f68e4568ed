//! Process trees, read from `/proc`.

use std::{collections::HashMap, ffi::OsStr, os::unix::ffi::OsStrExt as _, time::Duration};

use rustix::process::{Pid, Signal, kill_process};

/// The number that the rest of the world uses.
pub fn number(pid: Pid) -> u32 {
    pid.as_raw_nonzero().get().unsigned_abs()
}

/// Every process that we may see.
fn processes() -> impl Iterator<Item = Entry> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    numbers.filter_map(read)
}

/// What we read of a process.
pub struct Entry {
    /// Its number.
    pub pid: u32,
    /// Its parent's.
    pub parent: u32,
    /// Its process group's.
    pub group: u32,
    /// It ended and waits to be reaped.
    pub zombie: bool,
}

/// Field 4 of `/proc/PID/stat`. The name in field 2 may hold anything, so count from its end.
pub fn read(pid: u32) -> Option<Entry> {
    let stat = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
    let after_name = &stat[stat.iter().rposition(|byte| *byte == b')')? + 1..];
    let mut fields = std::str::from_utf8(after_name)
        .ok()?
        .split_ascii_whitespace();
    let (state, parent, group) = (fields.next()?, fields.next()?, fields.next()?);
    Some(Entry {
        pid,
        parent: parent.parse().ok()?,
        group: group.parse().ok()?,
        zombie: state == "Z",
    })
}

/// Every living process below `root`, parents before their children; `root` itself not included.
pub fn descendants(root: u32) -> Vec<u32> {
    let found = entries_below(root).into_iter();
    found.map(|process| process.pid).collect()
}

fn entries_below(root: u32) -> Vec<Entry> {
    let mut below: HashMap<u32, Vec<Entry>> = HashMap::new();
    for process in processes().filter(|process| !process.zombie) {
        below.entry(process.parent).or_default().push(process);
    }
    let mut found = below.remove(&root).unwrap_or_default();
    let mut next = 0;
    while let Some(process) = found.get(next) {
        let children = below.remove(&process.pid).unwrap_or_default();
        found.extend(children);
        next += 1;
    }
    found
}

/// Direct children of `root`, those included that ended and wait to be reaped.
pub fn children_and_zombies(root: u32) -> Vec<u32> {
    processes()
        .filter(|process| process.parent == root)
        .map(|process| process.pid)
        .collect()
}

/// Signals everything below this process.
pub fn signal_descendants(signal: Signal) {
    for pid in descendants(std::process::id()) {
        send(pid, signal);
    }
}

/// Kills what left the process group `group` of everything below this process.
pub fn kill_descendants_outside(group: u32) {
    let below = entries_below(std::process::id()).into_iter();
    for process in below.filter(|process| process.group != group) {
        send(process.pid, Signal::KILL);
    }
}

/// Kills everything below `root`, in rounds: a process that forks fast may be seen only by the next.
pub fn kill_below(root: u32) {
    const ROUNDS: usize = 20;
    for _ in 0..ROUNDS {
        let found = descendants(root);
        if found.is_empty() {
            return;
        }
        for pid in found {
            send(pid, Signal::KILL);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Signals one process; gone already is as good.
pub fn send(pid: u32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid.cast_signed()) {
        let _ = kill_process(pid, signal);
    }
}

/// Whether a process is a supervisor. Another one's program can only be looked at with rights over it
/// (supervisors are not dumpable), and of the rest the command line tells: it can be made up, but who
/// could be taken for a supervisor so could as well be one.
pub fn is_supervisor(pid: u32) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    let program = |pid: &str| std::fs::metadata(format!("/proc/{pid}/exe"));
    let same = match (program("self"), program(&pid.to_string())) {
        (Ok(own), Ok(other)) => (own.dev(), own.ino()) == (other.dev(), other.ino()),
        (_, Err(error)) => error.kind() == std::io::ErrorKind::PermissionDenied,
        (Err(_), _) => false,
    };
    same && has_duty(pid)
}

fn has_duty(pid: u32) -> bool {
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let word = line.split(|byte| *byte == 0).nth(1);
    word.is_some_and(|word| super::control::Duty::named(OsStr::from_bytes(word)).is_some())
}

/// The command's name, cut by the kernel to 15 bytes.
pub fn name(pid: u32) -> String {
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    name.trim_end().to_owned()
}

/// Processor time that a process and everything below it used so far, in the kernel's ticks.
pub fn processor_time(root: u32) -> u64 {
    let one = |pid: u32| {
        let stat = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
        let after_name = &stat[stat.iter().rposition(|byte| *byte == b')')? + 1..];
        let fields = std::str::from_utf8(after_name)
            .ok()?
            .split_ascii_whitespace();
        // Fields 14 and 15, user and system time; the first here is field 3.
        Some(
            fields
                .skip(11)
                .take(2)
                .filter_map(|ticks| ticks.parse::<u64>().ok())
                .sum::<u64>(),
        )
    };
    std::iter::once(root)
        .chain(descendants(root))
        .filter_map(one)
        .sum()
}

/// Proportional set size of a process and everything below it, in bytes. 0 where the kernel does
/// not tell.
pub fn memory(root: u32) -> u64 {
    let one = |pid: u32| {
        let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix("Pss:"))?;
        let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
        Some(kib * 1024)
    };
    std::iter::once(root)
        .chain(descendants(root))
        .filter_map(one)
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn a_grandchild_is_a_descendant() {
        let script = "sleep 60 & echo $!; wait";
        let mut shell = Command::new("sh")
            .args(["-c", script])
            .stdout(Stdio::piped())
            .spawn()
            .expect("sh runs");
        let mut line = String::new();
        let output = shell.stdout.take().unwrap();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(output), &mut line).unwrap();
        let grandchild: u32 = line.trim().parse().unwrap();
        let found = descendants(std::process::id());
        let position = |pid| found.iter().position(|other| *other == pid);
        assert!(position(shell.id()).unwrap() < position(grandchild).unwrap());
        assert!(children_and_zombies(std::process::id()).contains(&shell.id()));
        assert!(memory(shell.id()) > 0);
        let _ = kill_process(
            Pid::from_raw(grandchild.cast_signed()).unwrap(),
            Signal::KILL,
        );
        shell.wait().unwrap();
    }
}
