//! JSON text that is passed on as it came.

use bytes::Bytes;
use serde::{Serialize, Serializer, de::DeserializeOwned};
use serde_json::value::RawValue;

/// One valid JSON value as its original bytes (UTF-8): numbers, key order and escapes survive.
/// Cloning is cheap.
#[derive(Clone, PartialEq, Eq)]
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

    /// Takes a part of a line that was already parsed. `part` must lie within `line`.
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

    /// Writes a value out.
    pub fn of(value: &serde_json::Value) -> Self {
        Self(value.to_string().into())
    }

    /// Writes a value out. Fails only for maps whose keys are not strings.
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

    /// The text. JSON that was parsed is valid UTF-8.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or("null")
    }

    /// Reads it as a typed value; the error says where the shape differs.
    pub fn read<T: DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        serde_json::from_slice(&self.0)
    }
}

impl std::fmt::Debug for RawJson {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_bytes() {
        let odd = r#"{"b":1.0,"a":1e400,"n":18446744073709551616,"s":"\ud83d\ude00"}"#;
        let raw = RawJson::parse(Bytes::from(format!("  {odd}\n"))).unwrap();
        assert_eq!(raw.as_str(), odd);
        assert_eq!(serde_json::to_string(&raw).unwrap(), odd);
    }

    #[test]
    fn refuses_what_is_not_one_value() {
        for bad in ["", "{", "1 2", "nul", "\"\u{1}\""] {
            assert!(RawJson::parse(Bytes::from(bad)).is_err(), "{bad}");
        }
        assert!(RawJson::parse(Bytes::from_static(b"\"\xff\"")).is_err());
    }
}
