//! What a part is called, in the forms in which clients write it.
//!
//! RFC 7578 wants UTF-8 in `filename`. Some send `filename*` (RFC 5987) all the same, some percent-encode
//! `filename`, and some send the bytes of their own code page.

use encoding_rs::{Encoding, SHIFT_JIS, UTF_8, WINDOWS_1252};
use percent_encoding::percent_decode;

/// What a `Content-Disposition` says.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Disposition {
    /// The part's own name.
    pub name: String,
    /// Set where the part is a file.
    pub file_name: Option<String>,
}

impl Disposition {
    /// Reads the header's value; what cannot be read is left out.
    pub fn read(header: &[u8]) -> Self {
        let mut found = Self::default();
        let (mut plain, mut extended) = (None, None);
        for (name, value) in Parameters(header) {
            match name.to_ascii_lowercase().as_slice() {
                b"name" => found.name = text(&value),
                b"name*" => found.name = extended_text(&value).unwrap_or(found.name),
                b"filename" => plain = Some(text(&value)),
                b"filename*" => extended = extended_text(&value).or(Some(text(&value))),
                _ => {}
            }
        }
        let percent = plain.as_deref().and_then(percent_encoded);
        found.file_name = extended.or(percent).or(plain);
        found
    }
}

/// A parameter of a header; its name in lower case.
pub fn parameter(header: &[u8], name: &[u8]) -> Option<Vec<u8>> {
    let found = Parameters(header).find(|(found, _)| found.eq_ignore_ascii_case(name));
    found.map(|(_, value)| value)
}

/// The parameters behind the first semicolon, unquoted.
struct Parameters<'h>(&'h [u8]);

impl Iterator for Parameters<'_> {
    type Item = (Vec<u8>, Vec<u8>);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let start = memchr::memchr(b';', self.0)?;
            self.0 = &self.0[start + 1..];
            let end = memchr::memchr2(b'=', b';', self.0)?;
            if self.0[end] == b';' {
                continue;
            }
            let name = self.0[..end].trim_ascii().to_vec();
            self.0 = self.0[end + 1..].trim_ascii_start();
            return Some((name, self.value()));
        }
    }
}

impl Parameters<'_> {
    fn value(&mut self) -> Vec<u8> {
        let Some(quoted) = self.0.strip_prefix(b"\"") else {
            let end = memchr::memchr(b';', self.0).unwrap_or(self.0.len());
            let value = self.0[..end].trim_ascii().to_vec();
            self.0 = &self.0[end..];
            return value;
        };
        let (mut value, mut at) = (Vec::new(), 0);
        while let Some(&byte) = quoted.get(at) {
            match (byte, quoted.get(at + 1)) {
                (b'"', _) => break,
                // A backslash may as well be part of a path, or of a letter in Shift-JIS.
                (b'\\', Some(&escaped @ (b'"' | b'\\'))) if !is_lead(&value) => {
                    value.push(escaped);
                    at += 2;
                }
                _ => {
                    value.push(byte);
                    at += 1;
                }
            }
        }
        self.0 = quoted.get(at..).unwrap_or_default();
        value
    }
}

/// Whether a letter of Shift-JIS has begun and its second byte, which may be a backslash, is to come.
fn is_lead(value: &[u8]) -> bool {
    if std::str::from_utf8(value).is_ok() {
        return false;
    }
    let (mut at, mut open) = (0, false);
    while let Some(&byte) = value.get(at) {
        open = !open && matches!(byte, 0x81..=0x9f | 0xe0..=0xfc);
        at += 1;
    }
    open
}

fn text(bytes: &[u8]) -> String {
    if let Ok(text) = std::str::from_utf8(bytes) {
        return text.to_owned();
    }
    // 0x81 to 0x9F begin most letters of Japanese, and are no letters of Western Europe.
    if bytes.iter().any(|byte| matches!(byte, 0x81..=0x9f))
        && let Some(text) = SHIFT_JIS.decode_without_bom_handling_and_without_replacement(bytes)
    {
        return text.into_owned();
    }
    WINDOWS_1252
        .decode_without_bom_handling(bytes)
        .0
        .into_owned()
}

/// `UTF-8''%e2%82%ac.txt`
fn extended_text(bytes: &[u8]) -> Option<String> {
    let (charset, rest) = split(bytes)?;
    let (_language, encoded) = split(rest)?;
    let decoded: Vec<u8> = percent_decode(encoded).collect();
    let encoding = Encoding::for_label(charset).unwrap_or(UTF_8);
    let text = encoding.decode_without_bom_handling_and_without_replacement(&decoded);
    Some(text.map_or_else(|| self::text(&decoded), std::borrow::Cow::into_owned))
}

fn split(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = memchr::memchr(b'\'', bytes)?;
    Some((&bytes[..at], &bytes[at + 1..]))
}

/// A name that was percent-encoded, as some clients do with all that is not ASCII. `100%25.txt` and
/// `50%20off` may be meant as they stand.
fn percent_encoded(name: &str) -> Option<String> {
    if !name.is_ascii() || !name.contains('%') {
        return None;
    }
    let decoded = percent_decode(name.as_bytes()).decode_utf8().ok()?;
    (!decoded.is_ascii()).then(|| decoded.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file_name(header: &[u8]) -> Option<String> {
        let read = Disposition::read(header);
        assert_eq!(read.name, "file", "{}", header.escape_ascii());
        read.file_name
    }

    #[test]
    fn a_name_is_read_in_each_form_that_clients_send() {
        for (parameters, expected) in [
            (&b"filename=\"a.txt\""[..], "a.txt"),
            (b"FileName=\"a.txt\"", "a.txt"),
            (b"filename = a.txt ", "a.txt"),
            (b"filename=\"a;b=\\\"c\\\".txt\"; x=1", "a;b=\"c\".txt"),
            ("filename=\"レポート.xlsx\"".as_bytes(), "レポート.xlsx"),
            (b"filename*=UTF-8''%E3%83%AC.xlsx", "レ.xlsx"),
            (
                b"filename*=utf-8'ja'%E3%83%AC.xlsx; filename=\"x.xlsx\"",
                "レ.xlsx",
            ),
            (
                b"filename=\"x.xlsx\"; FILENAME*=UTF-8''%E3%83%AC.xlsx",
                "レ.xlsx",
            ),
            (b"filename*=iso-8859-1''caf%E9.txt", "café.txt"),
            (b"filename*=\"UTF-8''caf%C3%A9.txt\"", "café.txt"),
            (b"filename*=plain.txt", "plain.txt"),
            (b"filename=\"caf\xe9.txt\"", "café.txt"),
            (b"filename=\"r\xe9sum\xe9.txt\"", "résumé.txt"),
            // レポート表.xlsx in Shift-JIS; the second byte of the last letter is a backslash.
            (
                b"filename=\"\x83\x8c\x83|\x81[\x83g\x95\\.xlsx\"",
                "レポート表.xlsx",
            ),
            (b"filename=\"\x95\\\"", "表"),
            (b"filename=\"%E3%83%AC.xlsx\"", "レ.xlsx"),
            (b"filename=\"50%20off.txt\"", "50%20off.txt"),
            (b"filename=\"C:\\dir\\a.txt\"", "C:\\dir\\a.txt"),
            (b"filename=\"no end", "no end"),
            (b"filename=\"\"", ""),
        ] {
            let header = [b"form-data; name=\"file\"; ", parameters].concat();
            assert_eq!(file_name(&header).as_deref(), Some(expected));
        }
    }

    #[test]
    fn a_part_without_a_file_name_is_none() {
        for header in [
            "form-data; name=file",
            "form-data;Name=\"file\";;x;y=",
            "a;name*=''file",
        ] {
            assert_eq!(file_name(header.as_bytes()), None, "{header}");
        }
        assert_eq!(Disposition::read(b""), Disposition::default());
        let empty = Disposition::read(b"form-data; name=\"\"; filename");
        assert_eq!(empty.file_name, None);
    }
}
