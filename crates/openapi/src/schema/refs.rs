//! Where the references of one schema point. Nothing outside the schema is ever fetched.

use std::collections::HashMap;

use percent_encoding::percent_decode_str;
use serde_json::Value;
use url::Url;

/// Where relative `$id`s start when the root has none.
const NO_BASE: &str = "json-schema:///";

/// The places of one schema that can be pointed at by name.
pub struct Refs<'a> {
    root: &'a Value,
    base: Url,
    ids: HashMap<String, &'a Value>,
    anchors: HashMap<&'a str, &'a Value>,
}

/// What a reference points at, and the resource within which *its* references are read.
#[derive(Clone, Copy)]
pub struct Target<'a> {
    pub schema: &'a Value,
    pub resource: &'a Value,
}

impl<'a> Target<'a> {
    /// A part of this schema.
    pub fn inside(self, schema: &'a Value) -> Self {
        Self {
            schema,
            resource: self.own_resource(),
        }
    }

    /// What `#` means within this schema: itself where it has an `$id`.
    pub fn own_resource(self) -> &'a Value {
        match self.schema.get("$id") {
            Some(Value::String(id)) if !id.starts_with('#') => self.schema,
            _ => self.resource,
        }
    }
}

impl<'a> Refs<'a> {
    /// Reads all `$id`s and anchors. Time and memory follow the size of the schema.
    pub fn of(root: &'a Value) -> Self {
        let id = root.get("$id").and_then(Value::as_str).unwrap_or(NO_BASE);
        let base = Url::parse(id).or_else(|_| Url::parse(NO_BASE)?.join(id));
        let base = base.unwrap_or_else(|_| Url::parse(NO_BASE).expect("a constant URL"));
        let mut refs = Self {
            root,
            base,
            ids: HashMap::new(),
            anchors: HashMap::new(),
        };
        let mut open = vec![root];
        while let Some(value) = open.pop() {
            match value {
                Value::Array(items) => open.extend(items),
                Value::Object(map) => {
                    refs.name(value);
                    let data = ["const", "enum", "default", "examples"];
                    let schemas = map.iter().filter(|(key, _)| !data.contains(&key.as_str()));
                    open.extend(schemas.map(|(_, item)| item));
                }
                _ => {}
            }
        }
        refs
    }

    fn name(&mut self, schema: &'a Value) {
        let text = |key: &str| schema.get(key).and_then(Value::as_str);
        if let Some(id) = text("$id") {
            if let Some(anchor) = id.strip_prefix('#') {
                // Drafts 6 and 7 spell an anchor so.
                self.anchors.entry(anchor).or_insert(schema);
            } else {
                self.ids.entry(id.into()).or_insert(schema);
                self.ids.entry(self.absolute(id)).or_insert(schema);
            }
        }
        for anchor in [text("$anchor"), text("$dynamicAnchor")]
            .into_iter()
            .flatten()
        {
            self.anchors.entry(anchor).or_insert(schema);
        }
    }

    fn absolute(&self, id: &str) -> String {
        let joined = self.base.join(id).map(String::from);
        joined
            .unwrap_or_else(|_| id.into())
            .trim_end_matches('#')
            .into()
    }

    /// Follows `reference` as written within `resource`; `None` where it leads outside or to
    /// something that is no schema.
    pub fn resolve(&self, reference: &str, resource: &'a Value) -> Option<Target<'a>> {
        let (document, fragment) = reference.split_once('#').unwrap_or((reference, ""));
        let resource = match document {
            "" => resource,
            named => *(self.ids.get(named)).or_else(|| self.ids.get(&self.absolute(named)))?,
        };
        let fragment = percent_decode_str(fragment).decode_utf8().ok()?;
        let target = match &*fragment {
            "" => Some((resource, resource)),
            pointer if pointer.starts_with('/') => {
                let inside = resource.pointer(pointer).map(|found| (found, resource));
                // Generators hoist definitions to the root and forget inner `$id`s.
                inside.or_else(|| Some((self.root.pointer(pointer)?, self.root)))
            }
            anchor => self.anchors.get(anchor).map(|found| (*found, resource)),
        };
        let (schema, resource) = target?;
        (schema.is_object() || schema.is_boolean()).then_some(Target { schema, resource })
    }
}
