//! Rejects schemas that a validator could not finish. They come from servers, and one of them
//! must not stop the bridge: a reference to itself at the same level of the value, or references
//! that double at every step.

use std::collections::HashMap;

use serde_json::Value;

use super::meter::size;
use crate::schema::{Refs, SOURCE_DEPTH, Target, deeper_than};

/// Maximum length of a chain of references and branches. The validator recurses this often at
/// every level of the body, and a thread has 2 MiB of stack.
const CHAIN: usize = 40;

/// Maximum number of schemas that apply to one value.
const WORK: u64 = 50_000;

/// Maximum number of values in a schema: some seconds of compiling.
const PARTS: u64 = 200_000;

/// Returns the reason if a schema must not be compiled.
pub fn check(schema: &Value) -> Result<(), String> {
    if deeper_than(schema, SOURCE_DEPTH) {
        return Err(format!("inputSchema nests more than {SOURCE_DEPTH} levels"));
    }
    if size(schema) > PARTS {
        return Err(format!("inputSchema has more than {PARTS} parts"));
    }
    let refs = Refs::read(schema);
    let mut search = Search {
        refs: &refs,
        known: HashMap::new(),
    };
    let mut open = vec![Target {
        schema,
        resource: schema,
    }];
    while let Some(place) = open.pop() {
        match place.schema {
            Value::Array(items) => open.extend(items.iter().map(|item| place.inside(item))),
            Value::Object(map) => {
                search.work(place, 0)?;
                open.extend(map.values().map(|item| place.inside(item)));
            }
            _ => {}
        }
    }
    Ok(())
}

struct Search<'a> {
    refs: &'a Refs<'a>,
    /// By address; `None` while the schema is being visited.
    known: HashMap<*const Value, Option<u64>>,
}

impl<'a> Search<'a> {
    /// The number of schemas that apply to the same value, including this one.
    fn work(&mut self, place: Target<'a>, chain: usize) -> Result<u64, String> {
        let address = std::ptr::from_ref(place.schema);
        match self.known.get(&address) {
            Some(Some(work)) => return Ok(*work),
            Some(None) => return Err("inputSchema contains an infinite reference loop".into()),
            None if chain > CHAIN => {
                return Err(format!("inputSchema chains more than {CHAIN} references"));
            }
            None => self.known.insert(address, None),
        };
        let mut work = 1_u64;
        for inner in self.in_place(place) {
            work = work.saturating_add(self.work(inner, chain + 1)?);
        }
        if work > WORK {
            return Err("inputSchema validates each value against too many schemas".into());
        }
        self.known.insert(address, Some(work));
        Ok(work)
    }

    fn in_place(&self, place: Target<'a>) -> Vec<Target<'a>> {
        let mut inner = Vec::new();
        for (key, value) in place.schema.as_object().into_iter().flatten() {
            match (key.as_str(), value) {
                ("$ref" | "$dynamicRef" | "$recursiveRef", Value::String(reference)) => {
                    inner.extend(self.refs.resolve(reference, place.own_resource()));
                }
                ("allOf" | "anyOf" | "oneOf", Value::Array(parts)) => {
                    inner.extend(parts.iter().map(|part| place.inside(part)));
                }
                ("not" | "if" | "then" | "else", part) => inner.push(place.inside(part)),
                ("dependentSchemas" | "dependencies", Value::Object(parts)) => {
                    inner.extend(parts.values().map(|part| place.inside(part)));
                }
                _ => {}
            }
        }
        inner
    }
}
