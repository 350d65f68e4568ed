//! Relative paths of a workspace, file names, and safe opening of files.

use std::{
    borrow::Cow,
    ffi::OsStr,
    fs::File,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Component, Path, PathBuf},
};

use bridge_model::Job;
use rustix::{
    fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, openat, openat2, unlinkat},
    io::Errno,
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// One or more ordinary names: not absolute, no `..`, no `.`, no NUL. May not be UTF-8.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RelativePath(PathBuf);

/// The path leaves its folder or names nothing in it.
#[derive(Debug, thiserror::Error)]
#[error("expected a path within the workspace, without '..'")]
pub struct InvalidRelativePath;

impl RelativePath {
    /// Checks the path; `./a//b` becomes `a/b`.
    pub fn parse(path: impl AsRef<Path>) -> Result<Self, InvalidRelativePath> {
        let mut clean = PathBuf::new();
        for part in path.as_ref().components() {
            match part {
                Component::Normal(name) if !name.as_encoded_bytes().contains(&0) => {
                    clean.push(name);
                }
                Component::CurDir => {}
                _ => return Err(InvalidRelativePath),
            }
        }
        if clean.as_os_str().is_empty() {
            return Err(InvalidRelativePath);
        }
        Ok(Self(clean))
    }

    /// The path, relative.
    pub fn as_path(&self) -> &Path {
        &self.0
    }

    /// For display: UTF-8 without control characters. Not for opening the file.
    pub fn display(&self) -> Cow<'_, str> {
        let mut parts = self.0.iter().map(display_name);
        let first = parts.next().unwrap_or_default();
        parts.fold(first, |path, part| Cow::Owned(format!("{path}/{part}")))
    }

    /// The last segment, for display.
    pub fn name(&self) -> Cow<'_, str> {
        self.0.file_name().map(display_name).unwrap_or_default()
    }

    /// The path of another name in the same folder.
    pub(super) fn sibling(&self, name: &OsStr) -> Self {
        Self(self.0.with_file_name(name))
    }

    /// The path of an entry of the folder `parent`, or of the top folder, as returned by a directory
    /// listing.
    pub(super) fn entry(parent: Option<&Self>, name: &OsStr) -> Self {
        Self(parent.map_or_else(|| name.into(), |parent| parent.0.join(name)))
    }
}

// File names for display and in URLs, and media types.

/// Short, because a model has to copy the whole URL.
const ASCII_LIMIT: usize = 64;

const EXTENSION_LIMIT: usize = 10;

/// In bytes: a filesystem has 255 for the whole name.
const STEM_LIMIT: usize = 200;

/// A name for display: UTF-8, without separators, control characters and bidirectional marks (which let a
/// `.exe` look like a `.pdf`).
fn display_name(name: &OsStr) -> Cow<'_, str> {
    let text = name.to_string_lossy();
    if text.contains(is_unsafe) {
        Cow::Owned(text.replace(is_unsafe, "_"))
    } else {
        text
    }
}

fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c, '/' | '\\')
        || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// The name for the URL: `[A-Za-z0-9._-]` only, with its extension, never empty, at most 64 letters.
/// Other characters are removed: `売上.xlsx` is `file.xlsx`.
pub fn ascii(name: &str) -> String {
    let (stem, extension) = match name.rsplit_once('.') {
        Some((stem, extension)) if is_extension(extension) => (stem, Some(extension)),
        _ => (name, None),
    };
    let room = ASCII_LIMIT - extension.map_or(0, |extension| extension.len() + 1);
    let mut clean = String::new();
    for c in stem.chars() {
        if c.is_ascii_alphanumeric() || matches!(c, '.' | '-') {
            clean.push(c);
        } else if !clean.ends_with('_') {
            clean.push('_');
        }
    }
    clean.truncate(room);
    let clean = clean.trim_matches(['_', '.', '-']);
    let stem = if clean.is_empty() { "file" } else { clean };
    joined(stem, extension)
}

fn is_extension(text: &str) -> bool {
    (1..=EXTENSION_LIMIT).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric())
}

/// A safe name for an uploaded file in a workspace: one segment of a path, not hidden, and with room for
/// a number.
pub fn safe(name: &str) -> String {
    let last = name.rsplit(['/', '\\']).next().unwrap_or_default();
    let clean = display_name(OsStr::new(last));
    let clean = clean.trim().trim_start_matches(['.', '~']);
    let (stem, extension) = split(clean);
    let stem = stem.trim();
    let stem = &stem[..stem.floor_char_boundary(STEM_LIMIT)];
    let stem = if stem.is_empty() { "file" } else { stem };
    joined(stem, extension)
}

fn joined(stem: &str, extension: Option<&str>) -> String {
    match extension {
        Some(extension) => format!("{stem}.{extension}"),
        None => stem.to_owned(),
    }
}

/// The name, then the name with numbers: `a.xlsx`, `a-2.xlsx`, `a-3.xlsx` …
pub fn numbered(name: &str) -> impl Iterator<Item = String> + use<> {
    let name = name.to_owned();
    (1_usize..).map(move |number| match (number, split(&name)) {
        (1, _) => name.clone(),
        (_, (stem, extension)) => joined(&format!("{stem}-{number}"), extension),
    })
}

fn split(name: &str) -> (&str, Option<&str>) {
    match name.rsplit_once('.') {
        Some((stem, extension)) if !stem.is_empty() && is_extension(extension) => {
            (stem, Some(extension))
        }
        _ => (name, None),
    }
}

/// The media type of the name's extension; else `application/octet-stream`.
pub fn mime_type(name: &str) -> String {
    let guess = mime_guess::from_path(Path::new(name));
    guess.first_or_octet_stream().essence_str().to_owned()
}

/// Whether the type is compressed already, so that compressing it again only costs time.
pub fn is_compressed(mime_type: &str) -> bool {
    let (kind, subtype) = mime_type.split_once('/').unwrap_or_default();
    match kind {
        "image" => !["svg+xml", "bmp", "x-ms-bmp", "tiff"].contains(&subtype),
        "audio" | "video" => true,
        "application" => {
            let office = [
                "vnd.openxmlformats-officedocument.",
                "vnd.oasis.opendocument.",
            ];
            office.iter().any(|start| subtype.starts_with(start))
                || matches!(subtype, "pdf" | "zip" | "gzip" | "epub+zip")
                || matches!(subtype, "x-7z-compressed" | "x-bzip2" | "x-xz")
        }
        _ => false,
    }
}

// The location of a file in a workspace.

/// The folders of a workspace that its children write to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Area {
    /// Their working directory.
    Work,
    /// Their `HOME`.
    Home,
    /// Their `TMPDIR`.
    Tmp,
}

impl Area {
    /// The path of this folder in a workspace.
    pub fn folder_in(self, job: &Job) -> PathBuf {
        match self {
            Self::Work => job.work(),
            Self::Home => job.home(),
            Self::Tmp => job.tmp(),
        }
    }

    /// The area of the folder with this name in a workspace.
    pub(super) fn named(name: &OsStr) -> Option<Self> {
        match name.as_encoded_bytes() {
            b"work" => Some(Self::Work),
            b"home" => Some(Self::Home),
            b"tmp" => Some(Self::Tmp),
            _ => None,
        }
    }

    /// A file in this folder.
    pub fn file(self, path: RelativePath) -> Place {
        Place { area: self, path }
    }

    /// The name in messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Work => "work/",
            Self::Home => "home/",
            Self::Tmp => "tmp/",
        }
    }
}

/// A file of a workspace.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// The folder of the workspace.
    pub area: Area,
    /// The path within that folder.
    pub path: RelativePath,
}

impl Place {
    /// A file in the working directory.
    pub fn work(path: RelativePath) -> Self {
        Area::Work.file(path)
    }

    /// For display, and for a zip: never absolute, and without `..`.
    pub fn display(&self) -> String {
        let path = self.path.display();
        match self.area {
            Area::Work => path.into_owned(),
            Area::Home | Area::Tmp => format!("{}{path}", self.area.name()),
        }
    }
}

// Opens files of a folder that a child may change at the same time.

/// Number of attempts if a path is renamed while it is resolved.
const ATTEMPTS: usize = 8;

/// Opens a folder. Its last segment must not be a link.
pub fn open_dir(path: &Path) -> io::Result<OwnedFd> {
    dir_at(CWD, path).map_err(Into::into)
}

/// Opens a folder in a folder; a link is refused.
pub fn dir_at<P: rustix::path::Arg>(
    parent: BorrowedFd<'_>,
    name: P,
) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::RDONLY | OFlags::CLOEXEC;
    openat(parent, name, flags, Mode::empty())
}

/// Opens a file for reading, without blocking and without following a link in any segment. It may be a
/// special file: check its type before reading.
pub fn open_file(root: BorrowedFd<'_>, path: &RelativePath) -> io::Result<File> {
    let resolve = ResolveFlags::BENEATH
        | ResolveFlags::NO_SYMLINKS
        | ResolveFlags::NO_MAGICLINKS
        | ResolveFlags::NO_XDEV;
    for _ in 0..ATTEMPTS {
        match openat2(root, path.as_path(), file_flags(), Mode::empty(), resolve) {
            Ok(file) => return Ok(file.into()),
            Err(Errno::AGAIN | Errno::INTR) => {}
            // Old container runtimes block this system call.
            Err(Errno::NOSYS | Errno::PERM) => return step_by_step(root, path),
            Err(error) => return Err(error.into()),
        }
    }
    Err(Errno::AGAIN.into())
}

/// Removes a file. No segment of its path may be a link, and the last one must not be a folder.
pub fn remove_file(work: &Path, path: &RelativePath) -> io::Result<()> {
    let (parent, name) = open_parent(open_dir(work)?, path)?;
    Ok(unlinkat(parent, name, AtFlags::empty())?)
}

/// The folder of a path and its last segment. Each folder is opened relative to the previous one, so that
/// a folder replaced by a link is rejected.
fn open_parent(root: OwnedFd, path: &RelativePath) -> io::Result<(OwnedFd, &OsStr)> {
    let (mut parent, mut parts) = (root, path.as_path().iter());
    let name = parts.next_back().ok_or(io::ErrorKind::NotFound)?;
    for part in parts {
        parent = dir_at(parent.as_fd(), part)?;
    }
    Ok((parent, name))
}

fn file_flags() -> OFlags {
    OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::NOCTTY | OFlags::CLOEXEC
}

/// The same without `openat2`.
fn step_by_step(root: BorrowedFd<'_>, path: &RelativePath) -> io::Result<File> {
    let (parent, name) = open_parent(root.try_clone_to_owned()?, path)?;
    Ok(openat(parent, name, file_flags(), Mode::empty())?.into())
}

// Conditions that stop copying.

/// Time limit and cancellation of a copy; checked between blocks.
#[derive(Debug, Clone)]
pub struct Patience {
    until: Instant,
    given_up: CancellationToken,
}

impl Patience {
    /// Stops at a time, or when `given_up` is cancelled.
    pub fn until(until: Instant, given_up: CancellationToken) -> Self {
        Self { until, given_up }
    }

    /// Never stops.
    #[cfg(test)]
    pub fn endless() -> Self {
        let later = Instant::now() + std::time::Duration::from_hours(1);
        Self::until(later, CancellationToken::new())
    }

    /// [`io::ErrorKind::TimedOut`] if copying must stop.
    pub fn check(&self) -> io::Result<()> {
        if Instant::now() >= self.until || self.given_up.is_cancelled() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_below_the_folder_pass() {
        for (path, clean) in [("a", "a"), ("./a//b/", "a/b"), ("..a/b..", "..a/b..")] {
            let parsed = RelativePath::parse(path).unwrap();
            assert_eq!(parsed.as_path(), Path::new(clean));
            assert_eq!(parsed.display(), clean);
        }
        for bad in [
            "",
            ".",
            "/",
            "/etc/passwd",
            "..",
            "a/../../b",
            "a/..",
            "a\0b",
        ] {
            assert!(RelativePath::parse(bad).is_err(), "{bad}");
        }
    }
}

#[cfg(test)]
mod names_tests {
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    #[test]
    fn url_names_are_short_ascii_and_keep_the_extension() {
        for (name, expected) in [
            ("売上.xlsx", "file.xlsx"),
            ("売上 2024 Q1.xlsx", "2024_Q1.xlsx"),
            ("report (final).PDF", "report_final.PDF"),
            ("a.tar.gz", "a.tar.gz"),
            ("no extension", "no_extension"),
            ("..", "file"),
            ("a.売上", "a"),
            ("x\r\nSet-Cookie: a=b.txt", "x_Set-Cookie_a_b.txt"),
        ] {
            assert_eq!(ascii(name), expected, "{name}");
        }
        assert!(ascii(&"長い名前long".repeat(99)).len() <= ASCII_LIMIT);
    }

    #[test]
    fn safe_names_are_one_part_of_a_path_and_are_seen() {
        for (name, expected) in [
            ("売上 2024.xlsx", "売上 2024.xlsx"),
            ("../../etc/passwd", "passwd"),
            ("C:\\Users\\a\\b.docx", "b.docx"),
            ("..", "file"),
            ("", "file"),
            (".bashrc", "bashrc"),
            ("~$lock.xlsx", "$lock.xlsx"),
            ("a\0b\n.txt", "a_b_.txt"),
            (".xlsx", "xlsx"),
        ] {
            assert_eq!(safe(name), expected, "{name}");
        }
        let long = safe(&format!("{}.xlsx", "長".repeat(500)));
        assert!(long.len() <= 210 && long.ends_with("長.xlsx"), "{long}");
    }

    #[test]
    fn a_taken_name_gets_a_number_before_its_extension() {
        let names = |name: &str| numbered(name).take(3).collect::<Vec<_>>();
        assert_eq!(names("a.b.xlsx"), ["a.b.xlsx", "a.b-2.xlsx", "a.b-3.xlsx"]);
        assert_eq!(names("README"), ["README", "README-2", "README-3"]);
    }

    #[test]
    fn display_names_have_nothing_that_breaks_a_header_or_deceives() {
        for (name, expected) in [
            ("売上.xlsx".as_bytes(), "売上.xlsx"),
            (b"a\r\nb\0.txt", "a__b_.txt"),
            (b"bad\xff.txt", "bad\u{fffd}.txt"),
            (b"a\\..\\b", "a_.._b"),
            ("x\u{202e}fdp.exe".as_bytes(), "x_fdp.exe"),
        ] {
            assert_eq!(display_name(OsStr::from_bytes(name)), expected);
        }
    }

    #[test]
    fn office_files_have_their_types() {
        let sheet = "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet";
        assert_eq!(mime_type("a.xlsx"), sheet);
        assert!(mime_type("a.pptx").ends_with("presentationml.presentation"));
        assert!(mime_type("a.docx").ends_with("wordprocessingml.document"));
        assert_eq!(mime_type("a.unheard-of"), "application/octet-stream");
        assert!(is_compressed(sheet) && !is_compressed("text/csv"));
        assert!(is_compressed("image/png") && !is_compressed("image/svg+xml"));
    }
}

#[cfg(test)]
mod beneath_tests {
    use std::{fs, io::Read, os::unix::fs::symlink};

    use super::*;

    fn read(opened: io::Result<File>) -> io::Result<String> {
        let mut text = String::new();
        opened?.read_to_string(&mut text)?;
        Ok(text)
    }

    #[test]
    fn both_ways_open_plain_files_and_refuse_links_in_any_part() {
        let dir = tempfile::tempdir().unwrap();
        let work = dir.path().join("work");
        fs::create_dir_all(work.join("a/b")).unwrap();
        fs::create_dir(dir.path().join("workbook")).unwrap();
        fs::write(work.join("a/b/file"), "inside").unwrap();
        fs::write(dir.path().join("secret"), "outside").unwrap();
        fs::write(dir.path().join("workbook/secret"), "outside").unwrap();
        symlink("../secret", work.join("link")).unwrap();
        symlink("..", work.join("up")).unwrap();
        symlink("../workbook", work.join("sibling")).unwrap();
        symlink("a/b/file", work.join("inner")).unwrap();
        let root = open_dir(&work).unwrap();
        for way in [open_file, step_by_step] {
            let open = |path: &str| read(way(root.as_fd(), &RelativePath::parse(path).unwrap()));
            assert_eq!(open("a/b/file").unwrap(), "inside");
            for bad in [
                "link",
                "up/secret",
                "sibling/secret",
                "inner",
                "missing",
                "a/b/file/x",
            ] {
                assert!(open(bad).is_err(), "{bad}");
            }
        }
    }

    #[test]
    fn a_fifo_does_not_make_us_wait() {
        let dir = tempfile::tempdir().unwrap();
        rustix::fs::mkfifoat(CWD, dir.path().join("fifo"), Mode::RUSR | Mode::WUSR).unwrap();
        let root = open_dir(dir.path()).unwrap();
        let path = RelativePath::parse("fifo").unwrap();
        let opened = open_file(root.as_fd(), &path).unwrap();
        assert!(!opened.metadata().unwrap().is_file());
    }

    #[test]
    fn a_linked_work_folder_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        symlink("/etc", dir.path().join("work")).unwrap();
        assert!(open_dir(&dir.path().join("work")).is_err());
    }
}
