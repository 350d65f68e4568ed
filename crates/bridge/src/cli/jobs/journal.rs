//! The end of a workspace's `journal.jsonl`.

use std::{
    fs::OpenOptions,
    io::{self, Read as _, Seek as _, SeekFrom},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use rustix::fs::OFlags;
use serde_json::Value;

/// Bytes that are read of it: a line may take 128 KiB and more.
const READ: u64 = 4 * 1024 * 1024;

/// The last `count` calls, oldest first. No journal is an empty one; broken lines are left out.
pub fn tail(folder: &Path, count: usize) -> io::Result<Vec<Value>> {
    // A child that got at the folder may have put a link or a FIFO in its place.
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits().cast_signed())
        .open(folder.join("journal.jsonl"));
    let mut file = match opened {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        opened => opened?,
    };
    let found = file.metadata()?;
    if !found.is_file() {
        return Err(io::Error::other("journal.jsonl is not a regular file"));
    }
    let start = found.len().saturating_sub(READ);
    file.seek(SeekFrom::Start(start))?;
    let mut text = Vec::new();
    file.take(READ).read_to_end(&mut text)?;
    let mut lines: Vec<&[u8]> = text.split(|byte| *byte == b'\n').collect();
    if start > 0 {
        lines.remove(0);
    }
    let calls = lines
        .into_iter()
        .filter_map(|line| serde_json::from_slice(line).ok());
    let calls: Vec<Value> = calls.collect();
    Ok(calls[calls.len().saturating_sub(count)..].to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_whole_lines_are_read() {
        let folder = tempfile::tempdir().unwrap();
        assert!(tail(folder.path(), 2).unwrap().is_empty());
        let path = folder.path().join("journal.jsonl");
        std::fs::write(&path, "{\"n\":1}\nbroken\n{\"n\":2}\n{\"n\":3}\n{\"n\":").unwrap();
        let calls = tail(folder.path(), 2).unwrap();
        assert_eq!(
            calls,
            [serde_json::json!({"n": 2}), serde_json::json!({"n": 3})]
        );
    }

    #[test]
    fn a_link_in_its_place_is_not_read() {
        let folder = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/etc/passwd", folder.path().join("journal.jsonl")).unwrap();
        assert!(tail(folder.path(), 2).is_err());
    }
}
