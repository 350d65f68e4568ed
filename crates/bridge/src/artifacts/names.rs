//! What a file is called: to people, in a URL, and as a media type.

use std::{borrow::Cow, ffi::OsStr, path::Path};

/// A model has to copy the whole URL.
const ASCII_LIMIT: usize = 64;
const EXTENSION_LIMIT: usize = 10;
/// Bytes: a filesystem has 255 for the whole name.
const STEM_LIMIT: usize = 200;

/// One name for people: UTF-8, without separators, control characters and the marks that make
/// text run backwards (a `.exe` that reads as `.pdf`).
pub fn display(name: &OsStr) -> Cow<'_, str> {
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

/// The name for the URL: `[A-Za-z0-9._-]` only, extension kept, never empty, at most 64 letters.
/// What is not ASCII is left out: `売上.xlsx` is `file.xlsx`.
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
    extension.map_or_else(
        || stem.to_owned(),
        |extension| format!("{stem}.{extension}"),
    )
}

fn is_extension(text: &str) -> bool {
    (1..=EXTENSION_LIMIT).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric())
}

/// A name under which somebody else's file may lie in a workspace: one part of a path, seen by
/// whoever looks for files, and with room for a number.
pub fn safe(name: &str) -> String {
    let last = name.rsplit(['/', '\\']).next().unwrap_or_default();
    let clean = display(OsStr::new(last));
    let clean = clean.trim().trim_start_matches(['.', '~']);
    let (stem, extension) = split(clean);
    let stem = within(stem.trim(), STEM_LIMIT);
    let stem = if stem.is_empty() { "file" } else { stem };
    match extension {
        Some(extension) => format!("{stem}.{extension}"),
        None => stem.to_owned(),
    }
}

/// The name, and then the name with numbers: `a.xlsx`, `a-2.xlsx`, `a-3.xlsx` …
pub fn numbered(name: &str) -> impl Iterator<Item = String> + use<> {
    let name = name.to_owned();
    (1_usize..).map(move |number| match (number, split(&name)) {
        (1, _) => name.clone(),
        (_, (stem, Some(extension))) => format!("{stem}-{number}.{extension}"),
        (_, (stem, None)) => format!("{stem}-{number}"),
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

/// As many whole characters as fit.
fn within(text: &str, bytes: usize) -> &str {
    &text[..text.floor_char_boundary(bytes)]
}

/// The media type that the name's extension says; else `application/octet-stream`.
pub fn mime_type(name: &str) -> String {
    let guess = mime_guess::from_path(Path::new(name));
    guess.first_or_octet_stream().essence_str().to_owned()
}

/// Whether the bytes are compressed already, so that packing them again only costs time.
pub fn is_compressed(mime_type: &str) -> bool {
    let plain_picture = matches!(
        mime_type,
        "image/svg+xml" | "image/bmp" | "image/x-ms-bmp" | "image/tiff"
    );
    let media = ["image/", "audio/", "video/"];
    let packed = [
        "application/pdf",
        "application/zip",
        "application/gzip",
        "application/x-7z-compressed",
        "application/x-bzip2",
        "application/x-xz",
        "application/epub+zip",
    ];
    (media.iter().any(|kind| mime_type.starts_with(kind)) && !plain_picture)
        || packed.contains(&mime_type)
        || mime_type.starts_with("application/vnd.openxmlformats-officedocument.")
        || mime_type.starts_with("application/vnd.oasis.opendocument.")
}

#[cfg(test)]
mod tests {
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
            assert_eq!(display(OsStr::from_bytes(name)), expected);
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
