//! Files embedded in an answer as base64.

use std::borrow::Cow;

use base64::{
    Engine as _,
    alphabet::{STANDARD, URL_SAFE},
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use bridge_protocol::{RawJson, last_members, text};
use percent_encoding::percent_decode_str;
use serde_json::value::RawValue;

use super::paths;

/// A file in an answer.
#[derive(Debug, PartialEq, Eq)]
pub struct Embedded {
    /// Its name, one segment of a path.
    pub name: String,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// Image types that every client shows: they get no link.
const SHOWN: &[&str] = &[
    "image/png",
    "image/jpeg",
    "image/jpg",
    "image/gif",
    "image/webp",
    "image/svg+xml",
];

/// The preferred extensions of types that have several.
const EXTENSIONS: &[(&str, &str)] = &[
    ("application/octet-stream", "bin"),
    ("application/xml", "xml"),
    ("audio/mpeg", "mp3"),
    ("audio/wav", "wav"),
    ("audio/ogg", "ogg"),
    ("image/jpeg", "jpg"),
    ("image/tiff", "tiff"),
    ("image/svg+xml", "svg"),
    ("text/html", "html"),
    ("text/markdown", "md"),
    ("text/plain", "txt"),
    ("video/mp4", "mp4"),
];

/// The embedded resources of a result, and those of its images that no client shows. Invalid base64
/// is left out.
pub fn embedded(result: &RawJson) -> Vec<Embedded> {
    // Most results have none, and are not parsed again.
    let has =
        |word: &str| memchr::memmem::find(result.as_str().as_bytes(), word.as_bytes()).is_some();
    if !has("\"blob\"") && !has("\"data\"") {
        return Vec::new();
    }
    let content = last_members(result.as_bytes(), ["content"]);
    let Some([Some(content)]) = content else {
        return Vec::new();
    };
    let blocks: Vec<&RawValue> = serde_json::from_str(content.get()).unwrap_or_default();
    blocks.into_iter().filter_map(file).collect()
}

fn file(block: &RawValue) -> Option<Embedded> {
    let names = ["type", "data", "mimeType", "resource"];
    let [kind, data, mime_type, resource] = last_members(block.get().as_bytes(), names)?;
    let (data, uri, mime_type) = match &*text(kind?)? {
        "resource" => {
            let names = ["blob", "uri", "mimeType"];
            let [blob, uri, mime_type] = last_members(resource?.get().as_bytes(), names)?;
            (blob?, uri, mime_type)
        }
        "image" if !SHOWN.contains(&&*text(mime_type?)?.to_lowercase()) => (data?, None, mime_type),
        _ => return None,
    };
    let read = |part: Option<_>| part.and_then(text).unwrap_or_default();
    Some(Embedded {
        bytes: decode(&text(data)?)?,
        name: name(&read(uri), &read(mime_type)),
    })
}

/// Decodes base64 in either alphabet, with or without padding or line breaks, optionally behind a
/// `data:` prefix.
fn decode(text: &str) -> Option<Vec<u8>> {
    let text = match text.strip_prefix("data:") {
        Some(rest) => rest.split_once(',')?.1,
        None => text,
    };
    let text: Cow<'_, str> = if text.contains(char::is_whitespace) {
        text.split_whitespace().collect::<String>().into()
    } else {
        text.into()
    };
    let config =
        GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    let alphabet = if text.contains(['-', '_']) {
        &URL_SAFE
    } else {
        &STANDARD
    };
    GeneralPurpose::new(alphabet, config).decode(&*text).ok()
}

/// The last segment of the URI, with an extension.
fn name(uri: &str, mime_type: &str) -> String {
    let path = uri.split(['?', '#']).next().unwrap_or_default();
    let path = path.split_once("://").map_or(path, |(_, path)| path);
    let path = path.trim_end_matches('/');
    let last = path.rsplit('/').next().unwrap_or_default();
    let last = percent_decode_str(last).decode_utf8_lossy();
    let name = paths::safe(&last);
    let kind = mime_type.split(';').next().unwrap_or_default();
    let kind = kind.trim().to_lowercase();
    if name.contains('.') || kind.is_empty() {
        return name;
    }
    let known = EXTENSIONS.iter().find(|(known, _)| *known == kind);
    let extension = known.map(|(_, extension)| *extension).or_else(|| {
        let all = mime_guess::get_mime_extensions_str(&kind)?;
        all.first().copied()
    });
    match extension {
        Some(extension) => format!("{name}.{extension}"),
        None => name,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn found(content: &Value) -> Vec<(String, Vec<u8>)> {
        let files = embedded(&RawJson::from_json(&json!({ "content": content })));
        files
            .into_iter()
            .map(|file| (file.name, file.bytes))
            .collect()
    }

    #[test]
    fn resources_become_files_under_safe_names() {
        for (uri, kind, name) in [
            ("demo://a/x.gz", "application/gzip", "x.gz"),
            (
                "file:///tmp/r%20%E5%A3%B2.pdf?v=1",
                "application/pdf",
                "r 売.pdf",
            ),
            (
                "demo://a/%2e%2e%2fpasswd",
                "text/plain; charset=x",
                "passwd.txt",
            ),
            ("", "application/pdf", "file.pdf"),
            ("demo://host/", "", "host"),
            ("demo://a/.bashrc", "", "bashrc"),
        ] {
            let block = json!({"type": "resource", "resource":
                {"uri": uri, "mimeType": kind, "blob": "AAEC"}});
            assert_eq!(
                found(&json!([{"type": 5}, block])),
                [(name.to_owned(), vec![0, 1, 2])],
                "{uri}"
            );
        }
    }

    #[test]
    fn pictures_that_clients_show_stay_where_they_are_and_others_become_files() {
        let image = |kind: &str| json!([{"type": "image", "mimeType": kind, "data": "AAEC"}]);
        assert_eq!(found(&image("image/png")), []);
        let sheet = "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet";
        assert_eq!(
            found(&image(sheet)),
            [("file.xlsx".to_owned(), vec![0, 1, 2])]
        );
        let text = json!([{"type": "resource", "resource": {"uri": "a:b", "text": "x"}}]);
        assert_eq!(found(&text), []);
    }

    #[test]
    fn base64_is_read_in_each_of_its_forms() {
        for text in ["+/8=", "-_8", "+/8", "+/\n8=", "data:a/b;base64,+/8="] {
            assert_eq!(decode(text), Some(vec![0xfb, 0xff]), "{text}");
        }
        assert_eq!(decode("not base64!"), None);
    }
}
