//! `SQLite` databases: their companion files, and a copy that is complete without them.
//!
//! In WAL mode a database's newest pages are in a log (`X-wal`) until a checkpoint moves them. The format
//! of the log is fixed and documented (<https://www.sqlite.org/fileformat2.html#walformat>), so a copy of
//! the database is completed here, without `SQLite`, which would have to write to the original's folder.

use std::{
    ffi::OsStr,
    fs::File,
    io::{self, BufReader, Read, Seek, SeekFrom, Write},
    os::{
        fd::BorrowedFd,
        unix::{ffi::OsStrExt, fs::FileExt},
    },
};

use super::{RelativePath, paths, paths::Patience};

const HEADER: &[u8; 16] = b"SQLite format 3\0";
/// Magic number; the last bit selects the byte order of the checksums.
const WAL: u32 = 0x377f_0682;
const JOURNAL: [u8; 8] = [0xd9, 0xd5, 0x05, 0xf9, 0x20, 0xa1, 0x63, 0xd7];
/// The first word of a log's index, in the machine's byte order.
const INDEX_VERSION: u32 = 3_007_000;
const SUFFIXES: [&str; 3] = [WAL_SUFFIX, INDEX_SUFFIX, JOURNAL_SUFFIX];
/// The log.
pub const WAL_SUFFIX: &str = "-wal";
const INDEX_SUFFIX: &str = "-shm";
/// The rollback journal of an unfinished transaction.
pub const JOURNAL_SUFFIX: &str = "-journal";

/// The kind of a file of `SQLite`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A database.
    Database,
    /// A log, its index, or a journal.
    Companion,
}

/// The database that a file of this name would belong to.
pub fn main_name(path: &RelativePath) -> Option<&OsStr> {
    let name = path.as_path().file_name()?.as_bytes();
    let strip = |suffix: &&str| name.strip_suffix(suffix.as_bytes());
    let main = SUFFIXES.iter().find_map(strip)?;
    (!main.is_empty()).then(|| OsStr::from_bytes(main))
}

/// Whether a file of this name would be a log's index.
pub fn is_index(path: &RelativePath) -> bool {
    let name = path.as_path().file_name().unwrap_or_default();
    name.as_bytes().ends_with(INDEX_SUFFIX.as_bytes())
}

/// Determines the kind from the first bytes of a file.
pub fn kind(root: BorrowedFd<'_>, path: &RelativePath) -> Option<Kind> {
    let file = paths::open_file(root, path).ok()?;
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    if is_database(&file) {
        return Some(Kind::Database);
    }
    let word: [u8; 4] = first(&file)?;
    let companion = u32::from_be_bytes(word) & !1 == WAL
        || u32::from_ne_bytes(word) == INDEX_VERSION && is_index(path)
        || is_hot(&file);
    companion.then_some(Kind::Companion)
}

/// Whether the file begins like a database.
pub fn is_database(file: &File) -> bool {
    first(file).as_ref() == Some(HEADER)
}

/// Whether a journal contains the data to undo a transaction; after a finished one it is removed,
/// truncated or overwritten with zeros.
pub fn is_hot(journal: &File) -> bool {
    first(journal) == Some(JOURNAL)
}

fn first<const N: usize>(file: &File) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    file.read_exact_at(&mut bytes, 0).ok()?;
    Some(bytes)
}

/// Writes the finished transactions of the log into a copy of its database, which then needs no log.
pub fn complete(copy: &mut File, log: &File, patience: &Patience) -> io::Result<()> {
    let Some(mut frames) = Frames::open(log)? else {
        return Ok(());
    };
    let (mut index, mut committed) = (0_u64, None);
    while let Some(frame) = frames.next()? {
        patience.check()?;
        index += 1;
        if frame.pages > 0 {
            committed = Some((index, frame.pages));
        }
    }
    let Some((count, pages)) = committed else {
        return Ok(());
    };
    let size = u64::from(frames.page_size);
    let mut frames = Frames::open(log)?.ok_or(io::ErrorKind::InvalidData)?;
    for _ in 0..count {
        patience.check()?;
        // The log may have been restarted: then the copy is made again, too.
        let frame = frames.next()?.ok_or(io::ErrorKind::UnexpectedEof)?;
        let at = u64::from(frame.number.saturating_sub(1)) * size;
        copy.seek(SeekFrom::Start(at))?;
        copy.write_all(&frames.page)?;
    }
    copy.set_len(u64::from(pages) * size)?;
    if is_database(copy) {
        // From now on the copy is read and written without a log.
        copy.write_all_at(&[1, 1], 18)?;
    }
    Ok(())
}

/// A frame of the log: one page.
struct Frame {
    /// Number of the page, starting at 1.
    number: u32,
    /// Number of pages of the database after this frame, at the end of a transaction; otherwise 0.
    pages: u32,
}

/// The valid frames of a log since it was last restarted.
struct Frames<'a> {
    log: BufReader<&'a File>,
    page_size: u32,
    salt: [u8; 8],
    big_endian: bool,
    sum: (u32, u32),
    page: Vec<u8>,
}

impl<'a> Frames<'a> {
    /// `None` if this is no valid log.
    fn open(log: &'a File) -> io::Result<Option<Self>> {
        let mut reader = BufReader::new(log);
        reader.seek(SeekFrom::Start(0))?;
        let mut header = [0; 32];
        if !filled(&mut reader, &mut header)? || word(&header, 0) & !1 != WAL {
            return Ok(None);
        }
        let page_size = word(&header, 8);
        if !page_size.is_power_of_two() || !(512..=65_536).contains(&page_size) {
            return Ok(None);
        }
        let big_endian = word(&header, 0) & 1 == 1;
        let sum = sum((0, 0), &header[..24], big_endian);
        if sum != (word(&header, 24), word(&header, 28)) {
            return Ok(None);
        }
        Ok(Some(Self {
            log: reader,
            page_size,
            salt: header[16..24].try_into().unwrap_or_default(),
            big_endian,
            sum,
            page: vec![0; page_size as usize],
        }))
    }

    /// Reads the next frame; its page is then in `page`.
    fn next(&mut self) -> io::Result<Option<Frame>> {
        let mut header = [0; 24];
        if !filled(&mut self.log, &mut header)? || !filled(&mut self.log, &mut self.page)? {
            return Ok(None);
        }
        let partial = sum(self.sum, &header[..8], self.big_endian);
        self.sum = sum(partial, &self.page, self.big_endian);
        let whole = header[8..16] == self.salt
            && self.sum == (word(&header, 16), word(&header, 20))
            && word(&header, 0) > 0;
        Ok(whole.then(|| Frame {
            number: word(&header, 0),
            pages: word(&header, 4),
        }))
    }
}

fn filled(from: &mut impl Read, into: &mut [u8]) -> io::Result<bool> {
    match from.read_exact(into) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap_or_default())
}

/// The checksum used in `SQLite`'s logs.
fn sum((mut one, mut two): (u32, u32), bytes: &[u8], big_endian: bool) -> (u32, u32) {
    let read = |bytes: &[u8]| {
        let bytes = bytes.try_into().unwrap_or_default();
        if big_endian {
            u32::from_be_bytes(bytes)
        } else {
            u32::from_le_bytes(bytes)
        }
    };
    for pair in bytes.chunks_exact(8) {
        one = one.wrapping_add(read(&pair[..4])).wrapping_add(two);
        two = two.wrapping_add(read(&pair[4..])).wrapping_add(one);
    }
    (one, two)
}
