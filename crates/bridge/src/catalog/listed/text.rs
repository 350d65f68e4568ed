//! JSON that some readers refuse as a whole, wherever it stands in a message: half of a surrogate
//! pair (Python's client), and nesting without measure (all of them, sooner or later).

use std::borrow::Cow;

use bridge_protocol::RawJson;

/// Levels that an item may nest; readers give up from 128 or 200 on.
const DEPTH: usize = 100;

/// The value without what a reader may refuse the whole message for, and what that was; `None` where
/// there is no such thing.
pub fn sound(raw: &RawJson) -> Option<(RawJson, &'static str)> {
    if depth(raw.as_bytes()) > DEPTH {
        return Some((RawJson::null(), "nests too deep"));
    }
    let Cow::Owned(mended) = with_whole_pairs(raw.as_str()) else {
        return None;
    };
    let mended = RawJson::parse(mended.into()).ok()?;
    Some((mended, "holds half of a surrogate pair"))
}

/// How deep valid JSON nests.
fn depth(json: &[u8]) -> usize {
    let (mut depth, mut deepest, mut quoted, mut escaped) = (0_usize, 0, false, false);
    for byte in json {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = quoted,
            b'"' => quoted = !quoted,
            b'[' | b'{' if !quoted => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b']' | b'}' if !quoted => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

/// Valid JSON with `\ufffd` for each half of a surrogate pair.
fn with_whole_pairs(json: &str) -> Cow<'_, str> {
    let mut out = String::new();
    let (mut done, mut at) = (0, 0);
    while let Some(found) = memchr::memchr(b'\\', &json.as_bytes()[at..]) {
        let start = at + found;
        // Any other escape has one character after the backslash.
        at = (start + 2).min(json.len());
        let Some(unit) = unit(json, start) else {
            continue;
        };
        at = start + 6;
        let is_pair = (0xD800..0xDC00).contains(&unit)
            && self::unit(json, at).is_some_and(|low| (0xDC00..0xE000).contains(&low));
        if is_pair {
            at += 6;
        } else if (0xD800..0xE000).contains(&unit) {
            out.push_str(&json[done..start]);
            out.push_str("\\ufffd");
            done = at;
        }
    }
    if done == 0 {
        return Cow::Borrowed(json);
    }
    out.push_str(&json[done..]);
    Cow::Owned(out)
}

/// The code unit that a `\uXXXX` here stands for.
fn unit(json: &str, at: usize) -> Option<u32> {
    let digits = json.get(at..at + 6)?.strip_prefix("\\u")?;
    u32::from_str_radix(digits, 16).ok()
}
