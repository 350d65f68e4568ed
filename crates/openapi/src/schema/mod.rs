//! Converts the JSON Schemas of servers to self-contained schemas for an OpenAPI document, which
//! Open WebUI's converter can process.
//!
//! Open WebUI resolves only `#/components/schemas` references, treats a schema without `type` as
//! `string`, and throws on boolean schemas, which breaks every other server as well. So references
//! are inlined, recursion is cut, booleans are replaced and types are made explicit. The result is
//! for the model only; calls are validated against the tool's own schema (`arguments`).

mod inline;
mod merge;
mod root;
#[cfg(test)]
pub(crate) mod tests;

pub use root::{request_schema_of, response_schema};

use std::collections::{HashMap, HashSet};

use bridge_protocol::Tool;
use indexmap::IndexSet;
use percent_encoding::percent_decode_str;
use serde_json::{Map, Value, json};
use url::Url;

/// A schema without references or boolean subschemas in places that Open WebUI reads.
#[derive(Debug, Clone, PartialEq)]
pub struct Converted {
    /// The schema, at most 256 KiB of text.
    pub schema: Value,
    /// The parts that could not be kept, described for the server's administrator; at most 20.
    pub warnings: Vec<String>,
}

/// The request body of a tool: always `type: object` with `properties` at the root. A part that
/// cannot be converted becomes permissive, with a warning.
pub fn request_schema(tool: &Tool) -> Converted {
    request_schema_of(tool.input_schema())
}

// The limits of a schema's size while its references are inlined.

/// Maximum nesting of a source schema; the limit of `serde_json`.
pub const SOURCE_DEPTH: usize = 128;

/// Maximum number of schema objects in one converted schema.
const NODES: usize = 8_000;

/// Maximum number of bytes of one converted schema: some 60,000 tokens.
pub const BYTES: usize = 256 * 1024;

/// Maximum number of warnings per schema, also for a schema with very many faults.
const WARNINGS: usize = 20;

/// The limits of one attempt.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Maximum number of times that a target is inlined within itself.
    pub repeats: usize,
    /// Maximum nesting of references.
    pub refs: usize,
    /// Maximum nesting of schemas.
    pub depth: usize,
}

/// Tried in order until the result fits. Mutual recursion of many types grows with every level, so the later
/// limits are smaller; under the last, only the names and types of the arguments remain.
pub const LADDER: [Limits; 5] = [
    Limits::new(2, 32, 48),
    Limits::new(1, 32, 48),
    Limits::new(1, 3, 24),
    Limits::new(1, 1, 8),
    Limits::new(0, 0, 2),
];

impl Limits {
    const fn new(repeats: usize, refs: usize, depth: usize) -> Self {
        Self {
            repeats,
            refs,
            depth,
        }
    }
}

/// The converted schema would be larger than any model could use.
#[derive(Debug)]
pub struct TooLarge;

/// The remaining size of one attempt.
pub struct Budget {
    nodes: usize,
    bytes: usize,
}

impl Budget {
    pub const WHOLE: Self = Self {
        nodes: NODES,
        bytes: BYTES,
    };

    pub fn node(&mut self) -> Result<(), TooLarge> {
        self.nodes = self.nodes.checked_sub(1).ok_or(TooLarge)?;
        self.bytes(24)
    }

    pub fn bytes(&mut self, count: usize) -> Result<(), TooLarge> {
        self.bytes = self.bytes.checked_sub(count).ok_or(TooLarge)?;
        Ok(())
    }

    /// Counts a value that is copied unchanged.
    pub fn value(&mut self, value: &Value) -> Result<(), TooLarge> {
        match value {
            Value::String(text) => self.bytes(text.len() + 3),
            Value::Array(items) => items.iter().try_for_each(|item| self.value(item)),
            Value::Object(map) => map.iter().try_for_each(|(key, item)| {
                self.bytes(key.len() + 4)?;
                self.value(item)
            }),
            _ => self.bytes(8),
        }
    }
}

/// Distinct warnings, up to the maximum.
#[derive(Default)]
pub struct Warnings(pub Vec<String>);

impl Warnings {
    pub fn add(&mut self, text: String) {
        if self.0.len() < WARNINGS && !self.0.contains(&text) {
            self.0.push(text);
        }
    }
}

/// Whether a value nests more than `limit` levels; not recursive.
pub fn deeper_than(value: &Value, limit: usize) -> bool {
    let mut open = vec![(value, 0)];
    while let Some((value, depth)) = open.pop() {
        if depth > limit {
            return true;
        }
        match value {
            Value::Array(items) => open.extend(items.iter().map(|item| (item, depth + 1))),
            Value::Object(map) => open.extend(map.values().map(|item| (item, depth + 1))),
            _ => {}
        }
    }
    false
}

// The targets of the references in one schema. Nothing outside the schema is fetched.

/// The base of relative `$id`s if the root has none.
const NO_BASE: &str = "json-schema:///";

/// The parts of one schema that references can name.
pub struct Refs<'a> {
    root: &'a Value,
    base: Url,
    ids: HashMap<String, &'a Value>,
    anchors: HashMap<&'a str, &'a Value>,
}

/// The target of a reference, and the resource to which *its* references are relative.
#[derive(Clone, Copy)]
pub struct Target<'a> {
    pub schema: &'a Value,
    pub resource: &'a Value,
}

impl<'a> Target<'a> {
    /// A part of this schema, in the same resource.
    pub fn inside(self, schema: &'a Value) -> Self {
        Self {
            schema,
            resource: self.own_resource(),
        }
    }

    /// The target of `#` within this schema: the schema itself if it has an `$id`.
    pub fn own_resource(self) -> &'a Value {
        match self.schema.get("$id") {
            Some(Value::String(id)) if !id.starts_with('#') => self.schema,
            _ => self.resource,
        }
    }
}

impl<'a> Refs<'a> {
    /// Reads all `$id`s and anchors. Time and memory are linear in the size of the schema.
    pub fn read(root: &'a Value) -> Self {
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
                // The form of anchors in drafts 6 and 7.
                self.anchors.entry(anchor).or_insert(schema);
            } else {
                self.ids.entry(id.into()).or_insert(schema);
                self.ids.entry(self.absolute(id)).or_insert(schema);
            }
        }
        for anchor in ["$anchor", "$dynamicAnchor"].into_iter().filter_map(text) {
            self.anchors.entry(anchor).or_insert(schema);
        }
    }

    fn absolute(&self, id: &str) -> String {
        let joined = self.base.join(id).map(String::from);
        let joined = joined.unwrap_or_else(|_| id.into());
        joined.trim_end_matches('#').into()
    }

    /// Resolves `reference` as written within `resource`; `None` if its target is outside or is not a
    /// schema.
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
                // Generators move definitions to the root and ignore inner `$id`s.
                inside.or_else(|| Some((self.root.pointer(pointer)?, self.root)))
            }
            anchor => self.anchors.get(anchor).map(|found| (*found, resource)),
        };
        let (schema, resource) = target?;
        (schema.is_object() || schema.is_boolean()).then_some(Target { schema, resource })
    }
}

// Adds missing types: Open WebUI treats a schema without a type as a string.

const TYPES: [&str; 7] = [
    "string", "number", "integer", "boolean", "object", "array", "null",
];

/// A schema that accepts any value, in a form that Open WebUI and strict model APIs (an array needs `items`) accept.
pub fn any() -> Value {
    json!({
        "type": ["string", "number", "boolean", "object", "array", "null"],
        "items": {"type": ["string", "number", "boolean", "object", "null"]},
    })
}

/// A schema that accepts no value.
pub fn never() -> Value {
    json!({"not": {}})
}

pub fn is_never(schema: &Value) -> bool {
    *schema == never()
}

/// The known types in a schema.
pub fn named(schema: &Map<String, Value>) -> Vec<&str> {
    let known = |value: &Value| TYPES.iter().find(|name| value == *name).copied();
    match schema.get("type") {
        Some(Value::Array(several)) => several.iter().filter_map(known).collect(),
        Some(one) => known(one).into_iter().collect(),
        None => Vec::new(),
    }
}

/// One type as a string, several as a list without duplicates.
pub fn write<'a>(types: impl IntoIterator<Item = &'a str>) -> Option<Value> {
    let distinct: IndexSet<&str> = types.into_iter().collect();
    let distinct = Vec::from_iter(distinct);
    match *distinct {
        [] => None,
        [one] => Some(one.into()),
        _ => Some(distinct.into()),
    }
}

/// Adds the types that follow from the other keywords.
pub fn complete(schema: &mut Map<String, Value>) {
    let only_null = |branches: &Value| {
        let branches = branches.as_array().filter(|branches| !branches.is_empty());
        branches.is_some_and(|all| all.iter().all(|branch| branch["type"] == "null"))
    };
    if schema.get("anyOf").is_some_and(only_null) {
        // Open WebUI removes `null`, and would leave an empty list, which no model API accepts.
        schema.shift_remove("anyOf");
        schema.entry("type").or_insert("null".into());
    }
    if let Some(Value::Array(parts)) = schema.get_mut("allOf") {
        // Parts that could not be merged must be complete as well.
        let parts = parts.iter_mut().filter_map(Value::as_object_mut);
        parts.for_each(complete);
    }
    if !schema.contains_key("type") && !schema.contains_key("anyOf") {
        if let Some(types) = derived(schema) {
            schema.insert("type".into(), types);
        } else {
            let Value::Object(any) = any() else { return };
            for (key, value) in any {
                schema.entry(key).or_insert(value);
            }
        }
    }
    if named(schema).contains(&"array") && !schema.contains_key("items") {
        let items = tuple_items(schema).unwrap_or_else(any);
        schema.insert("items".into(), items);
    }
}

/// One schema for all items of a closed tuple: model APIs require `items`, and beyond `maxItems`
/// it rejects nothing.
fn tuple_items(schema: &Map<String, Value>) -> Option<Value> {
    let places = schema.get("prefixItems")?.as_array()?;
    let closed = schema.get("maxItems")?.as_u64()? <= places.len() as u64;
    let mut distinct = Vec::new();
    if closed {
        merge::union(&mut distinct, places.clone());
    }
    match distinct.len() {
        0 => None,
        1 => distinct.pop(),
        _ => Some(json!({ "anyOf": distinct })),
    }
}

fn derived(schema: &Map<String, Value>) -> Option<Value> {
    if let Some(value) = schema.get("const") {
        return write([type_of(value)]);
    }
    if let Some(Value::Array(values)) = schema.get("enum") {
        return write(values.iter().map(type_of));
    }
    if let Some(Value::Array(branches)) = schema.get("oneOf") {
        let maps: Option<Vec<_>> = branches.iter().map(Value::as_object).collect();
        let types: Vec<Vec<&str>> = maps?.into_iter().map(branch_types).collect();
        let all_known = types.iter().all(|types| !types.is_empty());
        return write(types.into_iter().flatten()).filter(|_| all_known);
    }
    let implied: HashSet<&str> = schema.keys().filter_map(|key| implied_type(key)).collect();
    let kinds = ["object", "array", "string", "number"];
    write(kinds.into_iter().filter(|kind| implied.contains(kind)))
}

/// The type to which a keyword applies.
fn implied_type(keyword: &str) -> Option<&'static str> {
    Some(match keyword {
        "properties"
        | "required"
        | "additionalProperties"
        | "patternProperties"
        | "propertyNames"
        | "dependentRequired"
        | "minProperties"
        | "maxProperties" => "object",
        "items" | "prefixItems" | "contains" | "uniqueItems" | "minItems" | "maxItems" => "array",
        "pattern" | "format" | "contentEncoding" | "minLength" | "maxLength" => "string",
        "minimum" | "maximum" | "multipleOf" | "exclusiveMinimum" | "exclusiveMaximum" => "number",
        _ => return None,
    })
}

fn branch_types(branch: &Map<String, Value>) -> Vec<&str> {
    let Some(Value::Array(inner)) = branch.get("anyOf") else {
        return named(branch);
    };
    let inner = inner.iter().filter_map(Value::as_object);
    inner.flat_map(named).collect()
}

fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}
