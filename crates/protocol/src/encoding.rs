//! Byte order marks before JSON: some programs write one, and no JSON parser accepts it.

use bytes::Bytes;

/// The UTF-8 byte order mark.
const UTF_8: &[u8] = b"\xef\xbb\xbf";

/// The text without leading byte order marks and surrounding white space.
pub fn without_mark(text: &[u8]) -> &[u8] {
    let mut text = text.trim_ascii();
    while let Some(rest) = text.strip_prefix(UTF_8) {
        text = rest.trim_ascii_start();
    }
    text
}

/// A whole text as UTF-8 without a byte order mark. UTF-16 is converted if the text has its mark;
/// other bytes stay unchanged.
pub fn utf8(text: Bytes) -> Bytes {
    let units = |of: fn([u8; 2]) -> u16| {
        let (pairs, _) = text[2..].as_chunks::<2>();
        let units = pairs.iter().map(|pair| of(*pair));
        char::decode_utf16(units)
            .map(|unit| unit.unwrap_or(char::REPLACEMENT_CHARACTER))
            .collect::<String>()
    };
    match text.get(..2) {
        Some(b"\xff\xfe") => units(u16::from_le_bytes).into(),
        Some(b"\xfe\xff") => units(u16::from_be_bytes).into(),
        _ if text.starts_with(UTF_8) => text.slice_ref(without_mark(&text)),
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_taken_off_and_utf_16_is_read() {
        assert_eq!(without_mark(b" \xef\xbb\xbf\xef\xbb\xbf{} "), b"{}");
        let wide = |mark: &[u8], of: fn(u16) -> [u8; 2]| {
            let text = "{\"é\":\"😀\"}".encode_utf16().flat_map(of);
            Bytes::from([mark, &text.collect::<Vec<u8>>()].concat())
        };
        let expected = "{\"é\":\"😀\"}";
        assert_eq!(utf8(wide(b"\xff\xfe", u16::to_le_bytes)), expected);
        assert_eq!(utf8(wide(b"\xfe\xff", u16::to_be_bytes)), expected);
        assert_eq!(utf8(Bytes::from_static(b"\xef\xbb\xbf{}")), "{}");
        for same in [&b""[..], b"\xff", b"{}", b"\xff\xff{}"] {
            assert_eq!(utf8(Bytes::from_static(same)), same);
        }
    }
}
