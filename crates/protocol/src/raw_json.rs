//! JSON text that keeps its bytes, and the removal of byte order marks before it.

use std::{borrow::Cow, fmt};

use bytes::Bytes;
use serde::{
    Deserializer as _, Serialize, Serializer,
    de::{DeserializeOwned, Error, MapAccess, Visitor},
};
use serde_json::{Deserializer, Map, Value, de::Read, value::RawValue};

/// Nesting levels in which [`RawJson::approximate`] replaces values that no Rust type can hold.
const LEVELS: usize = 32;

/// One valid JSON value as its original bytes (UTF-8): numbers, key order and escapes survive.
/// Cloning is cheap.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct RawJson(Bytes);

impl RawJson {
    /// Checks that `bytes` is exactly one JSON value.
    #[expect(
        clippy::needless_pass_by_value,
        reason = "the value keeps the buffer alive"
    )]
    pub fn parse(bytes: Bytes) -> Result<Self, serde_json::Error> {
        let value: &RawValue = serde_json::from_slice(&bytes)?;
        let trimmed = bytes.slice_ref(value.get().as_bytes());
        Ok(Self(trimmed))
    }

    /// A part of a line that was already parsed. `part` must lie within `line`.
    pub fn within(line: &Bytes, part: &RawValue) -> Self {
        Self(line.slice_ref(part.get().as_bytes()))
    }

    /// `null`.
    pub fn null() -> Self {
        Self(Bytes::from_static(b"null"))
    }

    /// `{}`.
    pub fn empty_object() -> Self {
        Self(Bytes::from_static(b"{}"))
    }

    /// Serialises a value.
    pub fn from_json(value: &Value) -> Self {
        Self(value.to_string().into())
    }

    /// Serialises a value. Fails only for maps whose keys are not strings.
    pub fn from_value(value: &impl Serialize) -> Result<Self, serde_json::Error> {
        serde_json::to_vec(value).map(|text| Self(text.into()))
    }

    /// The bytes, valid JSON in UTF-8.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The bytes, without copying.
    pub fn into_bytes(self) -> Bytes {
        self.0
    }

    /// The text. Parsed JSON is always valid UTF-8.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or("null")
    }

    /// Deserialises the value; the error names the mismatch.
    pub fn read<T: DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        serde_json::from_slice(&self.0)
    }

    /// Keeps `body` alive as long as this value, which was derived from it: `body` holds the memory
    /// permit for both.
    #[must_use]
    pub fn kept_with(self, body: &Bytes) -> Self {
        Self(keep_with(self.0, body))
    }

    /// The same JSON with each unpaired surrogate escape replaced by U+FFFD: valid in JSON, but not
    /// in a Rust string.
    #[must_use]
    pub fn with_whole_letters(&self) -> Self {
        let text = self.as_bytes();
        let mut out = Vec::new();
        let (mut copied, mut at) = (0, 0);
        while let Some(found) = memchr::memchr(b'\\', &text[at..]) {
            let here = at + found;
            at = here + 2;
            match half(&text[here..]) {
                None => {}
                Some(first) => {
                    at = here + ESCAPE;
                    let low = |next| (0xDC00..0xE000).contains(&next);
                    if first < 0xDC00 && half(&text[at..]).is_some_and(low) {
                        at += ESCAPE;
                        continue;
                    }
                    out.extend_from_slice(&text[copied..here]);
                    out.extend_from_slice(br"\ufffd");
                    copied = at;
                }
            }
        }
        if copied == 0 {
            return self.clone();
        }
        out.extend_from_slice(&text[copied..]);
        Self(out.into())
    }

    /// The nearest [`Value`]: parts that no Rust type can hold (1e400, an unpaired surrogate, too
    /// many levels) become `null`, and members with such names are omitted.
    pub fn approximate(&self) -> Value {
        near(&self.0, LEVELS)
    }

    /// The members of an object in their order, including duplicates; `None` for other values.
    pub fn members(&self) -> Option<Vec<Member>> {
        let mut members = Vec::new();
        let push = |name, value| {
            members.push(Member {
                name: Self::within(&self.0, name),
                value: Self::within(&self.0, value),
            });
            Ok(())
        };
        each_member(Deserializer::from_slice(&self.0), push).ok()?;
        Some(members)
    }

    /// The elements of an array, as parts of this buffer; `None` for other values.
    pub fn elements(&self) -> Option<Vec<Self>> {
        let elements: Vec<&RawValue> = serde_json::from_slice(&self.0).ok()?;
        let within = elements.into_iter().map(|it| Self::within(&self.0, it));
        Some(within.collect())
    }

    /// An object with these members.
    pub fn of_members(members: &[Member]) -> Self {
        let members = members
            .iter()
            .map(|member| format!("{}:{}", member.name.as_str(), member.value.as_str()));
        let members: Vec<String> = members.collect();
        Self(format!("{{{}}}", members.join(",")).into())
    }

    /// An array with these elements.
    pub fn of_elements(elements: &[Self]) -> Self {
        let elements: Vec<&str> = elements.iter().map(Self::as_str).collect();
        Self(format!("[{}]", elements.join(",")).into())
    }

    /// A member of an object, as a part of this buffer; the last if the name is duplicated.
    pub fn member(&self, name: &str) -> Option<Self> {
        let [found] = last_members(&self.0, [name])?;
        found.map(|value| Self::within(&self.0, value))
    }

    /// A nested value, by the names of the members on its path.
    pub fn at(&self, path: &[&str]) -> Option<Self> {
        let mut names = path.iter();
        names.try_fold(self.clone(), |object, name| object.member(name))
    }

    /// The object with this member: it replaces the member of the same name, or becomes the first
    /// member. All other bytes stay unchanged, and so does a value that is not an object.
    #[must_use]
    pub fn with_member(&self, name: &str, value: &Self) -> Self {
        let Some(members) = self.members() else {
            return self.clone();
        };
        if let Some(before) = self.member(name) {
            return self.exchange(&before, value);
        }
        let (name, value, rest) = (Value::from(name), value.as_str(), &self.as_str()[1..]);
        let comma = if members.is_empty() { "" } else { "," };
        Self(format!("{{{name}:{value}{comma}{rest}").into())
    }

    /// The value with one part replaced; all other bytes stay unchanged.
    #[must_use]
    pub fn exchange(&self, part: &Self, new: &Self) -> Self {
        Self(splice(&self.0, &[(part, new.as_bytes())]))
    }
}

/// The line with some parts replaced; all other bytes stay unchanged. `edits` are parts of the
/// line, in any order, with their replacements; parts of other buffers are ignored.
pub fn splice(line: &Bytes, edits: &[(&RawJson, &[u8])]) -> Bytes {
    let mut places: Vec<_> = edits
        .iter()
        .filter_map(|(part, new)| Some((range_within(line, part.as_bytes())?, *new)))
        .collect();
    if places.is_empty() {
        return line.clone();
    }
    places.sort_by_key(|(range, _)| range.start);
    let mut out = Vec::with_capacity(line.len() + 64);
    let mut done = 0;
    for (range, new) in places {
        out.extend_from_slice(&line[done..range.start]);
        out.extend_from_slice(new);
        done = range.end;
    }
    out.extend_from_slice(&line[done..]);
    out.into()
}

fn range_within(line: &Bytes, part: &[u8]) -> Option<std::ops::Range<usize>> {
    let start = part.as_ptr().addr().checked_sub(line.as_ptr().addr())?;
    let end = start.checked_add(part.len())?;
    (end <= line.len()).then_some(start..end)
}

/// The members with these names. Fails if the JSON is not an object or if one of the names is
/// duplicated: two readers would disagree about which member counts.
pub fn members<'a, const N: usize>(
    json: &'a str,
    names: [&str; N],
) -> Result<[Option<&'a RawValue>; N], serde_json::Error> {
    find_members(Deserializer::from_str(json), names, true)
}

/// The members with these names, the last one of each name, whatever the other members contain.
/// `None` if the JSON is not an object.
pub fn last_members<'a, const N: usize>(
    json: &'a [u8],
    names: [&str; N],
) -> Option<[Option<&'a RawValue>; N]> {
    find_members(Deserializer::from_slice(json), names, false).ok()
}

/// `once`: a duplicate name is an error.
fn find_members<'a, const N: usize>(
    json: Deserializer<impl Read<'a>>,
    names: [&str; N],
    once: bool,
) -> Result<[Option<&'a RawValue>; N], serde_json::Error> {
    let mut found = [None; N];
    each_member(json, |name, value| {
        let name = text(name);
        let mut all = names.iter();
        let index = all.position(|wanted| name.as_deref() == Some(*wanted));
        match index {
            Some(index) if found[index].replace(value).is_some() && once => {
                Err(format!("duplicate key {:?}", names[index]))
            }
            _ => Ok(()),
        }
    })?;
    Ok(found)
}

/// Calls `each` with the members of an object, until it returns an error. Neither names nor values
/// are parsed: a value that no Rust type can hold must not affect the other members.
fn each_member<'a>(
    mut json: Deserializer<impl Read<'a>>,
    each: impl FnMut(&'a RawValue, &'a RawValue) -> Result<(), String>,
) -> Result<(), serde_json::Error> {
    json.deserialize_map(EachMember(each))?;
    json.end()
}

struct EachMember<F>(F);

impl<'de, F> Visitor<'de> for EachMember<F>
where
    F: FnMut(&'de RawValue, &'de RawValue) -> Result<(), String>,
{
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut object: A) -> Result<(), A::Error> {
        while let Some((name, value)) = object.next_entry()? {
            (self.0)(name, value).map_err(A::Error::custom)?;
        }
        Ok(())
    }
}

/// The content of a JSON string; `None` for other values and for text that no Rust string can hold.
pub fn text(json: &RawValue) -> Option<Cow<'_, str>> {
    let inside = json.get().strip_prefix('"')?.strip_suffix('"')?;
    if memchr::memchr(b'\\', inside.as_bytes()).is_none() {
        return Some(inside.into());
    }
    serde_json::from_str(json.get()).ok().map(Cow::Owned)
}

/// Bytes of an escape such as `\ud800`.
const ESCAPE: usize = 6;

/// The surrogate whose escape is at the start of `text`.
fn half(text: &[u8]) -> Option<u32> {
    let digits = text.get(..ESCAPE)?.strip_prefix(br"\u")?;
    let code = u32::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    (0xD800..0xE000).contains(&code).then_some(code)
}

fn near(json: &[u8], levels: usize) -> Value {
    let whole = serde_json::from_slice(json);
    if whole.is_ok() || levels == 0 {
        return whole.unwrap_or_default();
    }
    let mut members = Map::new();
    let insert = |name: &RawValue, value: &RawValue| {
        if let Ok(name) = serde_json::from_str(name.get()) {
            members.insert(name, near(value.get().as_bytes(), levels - 1));
        }
        Ok(())
    };
    if each_member(Deserializer::from_slice(json), insert).is_ok() {
        return Value::Object(members);
    }
    let items: Vec<&RawValue> = serde_json::from_slice(json).unwrap_or_default();
    if items.is_empty() {
        return Value::Null;
    }
    let near = items
        .into_iter()
        .map(|item| near(item.get().as_bytes(), levels - 1));
    Value::Array(near.collect())
}

/// One member of an object. Both parts lie within the object's buffer.
#[derive(Debug, Clone)]
pub struct Member {
    /// A JSON string, possibly one that no Rust string can hold.
    pub name: RawJson,
    /// Any JSON.
    pub value: RawJson,
}

impl fmt::Debug for RawJson {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RawJson({} bytes)", self.0.len())
    }
}

/// Only for `serde_json` serializers: writes the text through unchanged.
impl Serialize for RawJson {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let raw: &RawValue = serde_json::from_slice(&self.0).map_err(serde::ser::Error::custom)?;
        raw.serialize(to)
    }
}

/// Only for `serde_json` deserializers: keeps the text unchanged.
impl<'de> serde::Deserialize<'de> for RawJson {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text: Box<str> = <Box<RawValue> as serde::Deserialize>::deserialize(from)?.into();
        Ok(Self(String::from(text).into()))
    }
}

/// Bodies up to this size, in bytes, need not be kept alive for the values derived from them.
const SMALL: usize = 64 * 1024;

/// `bytes` as an owner of `body`: the memory permit of a body must last as long as everything
/// derived from it.
fn keep_with(bytes: Bytes, body: &Bytes) -> Bytes {
    struct Made(
        Bytes,
        #[expect(dead_code, reason = "its drop gives the memory back")] Bytes,
    );
    impl AsRef<[u8]> for Made {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }
    let within = body.as_ptr_range().contains(&bytes.as_ptr());
    if within || body.len() <= SMALL {
        bytes
    } else {
        Bytes::from_owner(Made(bytes, body.clone()))
    }
}

// Byte order marks before JSON: some programs write one, and no JSON parser accepts it.

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
    fn a_member_is_set_and_every_other_byte_stays() {
        let raw = |text: &str| RawJson::parse(text.to_owned().into()).unwrap();
        for (before, after) in [
            ("{}", r#"{"a":1.0}"#),
            (r#"{ "b" : 1e400 }"#, r#"{"a":1.0, "b" : 1e400 }"#),
            (r#"{ "b":[1],"a" : {"a":2} }"#, r#"{ "b":[1],"a" : 1.0 }"#),
            ("[1]", "[1]"),
        ] {
            let set = raw(before).with_member("a", &raw("1.0"));
            assert_eq!(set.as_str(), after);
        }
    }

    #[test]
    fn keeps_the_bytes() {
        let odd = r#"{"b":1.0,"a":1e400,"n":18446744073709551616,"s":"\ud83d\ude00"}"#;
        let raw = RawJson::parse(Bytes::from(format!("  {odd}\n"))).unwrap();
        assert_eq!(raw.as_str(), odd);
        assert_eq!(serde_json::to_string(&raw).unwrap(), odd);
    }

    #[test]
    fn members_keep_what_no_string_or_number_type_holds() {
        let raw = RawJson::parse(r#"{ "\ud800" : 1e400,"a":1.0,"a":{} }"#.into()).unwrap();
        let members = raw.members().unwrap();
        let members: Vec<_> = members
            .iter()
            .map(|member| (member.name.as_str(), member.value.as_str()))
            .collect();
        let expected = [
            (r#""\ud800""#, "1e400"),
            (r#""a""#, "1.0"),
            (r#""a""#, "{}"),
        ];
        assert_eq!(members, expected);
        assert!(RawJson::parse("[1]".into()).unwrap().members().is_none());
    }

    #[test]
    fn something_odd_costs_nothing_beside_it() {
        let raw = RawJson::parse(
            r#"{"a":{"x":1e400,"y":[1,"\ud800",{}]},"b":{},"\ud800":1,"deep":[]}"#.into(),
        );
        let expected =
            serde_json::json!({"a": {"x": null, "y": [1, null, {}]}, "b": {}, "deep": []});
        assert_eq!(raw.unwrap().approximate(), expected);
        let deep = format!("{}1e400{}", "[".repeat(1000), "]".repeat(1000));
        assert!(
            RawJson::parse(deep.into())
                .unwrap()
                .approximate()
                .is_array()
        );
    }

    #[test]
    fn the_last_of_several_members_counts_and_nothing_beside_it() {
        let json = br#"{"a":1,"\ud800":1e400,"b":null,"a":2}"#;
        let [a, b, c] = last_members(json, ["a", "b", "c"]).unwrap();
        let text = |raw: Option<&RawValue>| raw.map(|raw| raw.get().to_owned());
        assert_eq!(text(a).as_deref(), Some("2"));
        assert_eq!(text(b).as_deref(), Some("null"));
        assert_eq!(text(c), None);
        assert!(last_members(b"[]", ["a"]).is_none());
    }

    #[test]
    fn refuses_what_is_not_one_value() {
        for bad in ["", "{", "1 2", "nul", "\"\u{1}\""] {
            assert!(RawJson::parse(Bytes::from(bad)).is_err(), "{bad}");
        }
        assert!(RawJson::parse(Bytes::from_static(b"\"\xff\"")).is_err());
    }

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
