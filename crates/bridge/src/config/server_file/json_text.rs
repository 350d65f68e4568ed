//! JSON in which a key stands once. `serde_json` alone would silently keep the last one, and
//! whoever reads the file would look at the first.

use std::{cell::RefCell, fmt};

use bridge_protocol::utf8;
use bytes::Bytes;
use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::path::Path;

/// A value, and the paths of the keys that were there before.
#[derive(Debug)]
pub(super) struct Parsed {
    pub value: Value,
    pub duplicates: Vec<String>,
}

/// Parses one value, in any encoding that a mark in front names.
pub(super) fn parse(bytes: &[u8]) -> Result<Parsed, serde_json::Error> {
    let bytes = &utf8(Bytes::copy_from_slice(bytes));
    let duplicates = RefCell::new(Vec::new());
    let mut text = serde_json::Deserializer::from_slice(bytes);
    let node = Node {
        path: Path::root(),
        duplicates: &duplicates,
    };
    let value = node.deserialize(&mut text)?;
    text.end()?;
    Ok(Parsed {
        value,
        duplicates: duplicates.into_inner(),
    })
}

/// One value at one place.
struct Node<'a> {
    path: Path,
    duplicates: &'a RefCell<Vec<String>>,
}

impl<'a> Node<'a> {
    fn child(&self, key: &str) -> Node<'a> {
        Node {
            path: self.path.key(key),
            duplicates: self.duplicates,
        }
    }
}

impl<'de> DeserializeSeed<'de> for Node<'_> {
    type Value = Value;
    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Value, D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Node<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut from: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        let item = |index: usize| Node {
            path: self.path.index(index),
            duplicates: self.duplicates,
        };
        while let Some(value) = from.next_element_seed(item(list.len()))? {
            list.push(value);
        }
        Ok(list.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut from: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(key) = from.next_key::<String>()? {
            let node = self.child(&key);
            // Comments may repeat: that is how several lines are written.
            if object.contains_key(&key) && !super::keys::is_comment(&key) {
                self.duplicates.borrow_mut().push(node.path.to_string());
            }
            let value = from.next_value_seed(node)?;
            object.insert(key, value);
        }
        Ok(object.into())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_every_key_that_stands_twice() {
        let text = br#"{"a":{"b":1,"b":2},"l":[{"c":1},{"c":1,"c":1}],"a":3,"//":1,"//":2}"#;
        let parsed = parse(text).unwrap();
        assert_eq!(parsed.duplicates, ["a.b", "l[1].c", "a"]);
    }

    #[test]
    fn a_byte_order_mark_is_no_fault_and_a_second_value_is() {
        assert!(parse(b"\xef\xbb\xbf{}").is_ok());
        assert!(parse(b"\xff\xfe{\0}\0").is_ok());
        assert!(parse(b"{} {}").is_err());
        assert!(parse("[".repeat(100_000).as_bytes()).is_err());
    }

    proptest! {
        #[test]
        fn reads_what_serde_json_reads(text in r#"[\[\]{},:" a0-9.\\]{0,30}"#) {
            let ours = parse(text.as_bytes()).ok().map(|parsed| parsed.value);
            let theirs = serde_json::from_str::<Value>(&text).ok();
            prop_assert_eq!(ours, theirs);
        }
    }
}
