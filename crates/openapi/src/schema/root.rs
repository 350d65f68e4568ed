//! The root of a request body. Open WebUI reads only `properties` and `required` there, so the arguments
//! in compositions are collected into those two.

use serde_json::{Map, Value, json};

use super::{
    BYTES, Converted, LADDER, Refs, SOURCE_DEPTH, TooLarge, Warnings, any, deeper_than,
    inline::Inliner,
    is_never,
    merge::{both_properties, either, union},
    named,
};

/// The request body of an `inputSchema`.
pub fn request_schema_of(schema: &Value) -> Converted {
    let warning = match schema {
        Value::Null | Value::Bool(true) => return unchecked(Vec::new()),
        Value::Object(_) => match attempt(schema, |inliner, schema| inliner.untyped(schema)) {
            Ok((root, warnings)) => return arguments(root, warnings),
            Err(warning) => warning,
        },
        _ => "inputSchema is not an object: any arguments are accepted".into(),
    };
    unchecked(vec![warning])
}

/// Converts any other schema of a tool (`outputSchema`) to a self-contained one.
pub fn response_schema(schema: &Value) -> Converted {
    let (schema, warnings) = match attempt(schema, |inliner, schema| inliner.convert(schema)) {
        Ok((schema, warnings)) => (schema, warnings.0),
        Err(warning) => (any(), vec![warning]),
    };
    Converted { schema, warnings }
}

fn unchecked(warnings: Vec<String>) -> Converted {
    let schema = json!({"type": "object", "properties": {}, "additionalProperties": true});
    Converted { schema, warnings }
}

/// Converts the schema within the first limits under which it fits.
fn attempt<F>(schema: &Value, convert: F) -> Result<(Value, Warnings), String>
where
    F: for<'a> Fn(&mut Inliner<'a>, &'a Value) -> Result<Value, TooLarge>,
{
    if deeper_than(schema, SOURCE_DEPTH) {
        return Err(format!(
            "the schema is nested more than {SOURCE_DEPTH} levels deep: any value is accepted"
        ));
    }
    let refs = Refs::read(schema);
    for (rung, limits) in LADDER.into_iter().enumerate() {
        let mut inliner = Inliner::new(schema, &refs, limits);
        let Ok(converted) = convert(&mut inliner, schema) else {
            continue;
        };
        // The budget counts the input; derived types are added to it.
        if converted.to_string().len() > BYTES {
            continue;
        }
        let mut warnings = inliner.warnings;
        if rung > 0 {
            warnings.add(format!(
                "the schema is too large with expanded references: they are truncated after {} \
                 levels",
                limits.refs
            ));
        }
        return Ok((converted, warnings));
    }
    Err("the schema is too large for any model: any value is accepted".into())
}

/// The members that a schema describes, including its compositions.
#[derive(Default)]
struct Members {
    properties: Map<String, Value>,
    required: Vec<Value>,
}

/// Keywords that were collected, or that do not describe single arguments.
const COMPOSITION: [&str; 9] = [
    "allOf",
    "anyOf",
    "oneOf",
    "not",
    "if",
    "then",
    "else",
    "dependentSchemas",
    "items",
];

fn arguments(root: Value, mut warnings: Warnings) -> Converted {
    let root = match root {
        Value::Object(map) if !is_never(&Value::Object(map.clone())) => map,
        _ => {
            warnings.add("no value satisfies inputSchema: any arguments are accepted".into());
            return unchecked(warnings.0);
        }
    };
    let types = named(&root);
    if !types.is_empty() && !types.contains(&"object") {
        warnings.add("inputSchema does not describe an object: any arguments are accepted".into());
        return unchecked(warnings.0);
    }
    let mut members = gather(&root);
    for name in members.required.iter().filter_map(Value::as_str) {
        // The model must know all required arguments.
        members.properties.entry(name).or_insert_with(any);
    }
    let mut schema = Map::new();
    schema.insert("type".into(), "object".into());
    schema.insert("properties".into(), members.properties.into());
    if !members.required.is_empty() {
        schema.insert("required".into(), members.required.into());
    }
    for (key, value) in root {
        if !COMPOSITION.contains(&&*key) {
            schema.entry(key).or_insert(value);
        }
    }
    Converted {
        schema: schema.into(),
        warnings: warnings.0,
    }
}

fn gather(schema: &Map<String, Value>) -> Members {
    let mut members = Members::default();
    if let Some(Value::Object(properties)) = schema.get("properties") {
        members.properties.clone_from(properties);
    }
    if let Some(Value::Array(required)) = schema.get("required") {
        members.require(required.clone());
    }
    for part in list(schema, "allOf") {
        let part = gather(part);
        members.require(part.required);
        both_properties(&mut members.properties, part.properties);
    }
    for key in ["anyOf", "oneOf"] {
        if let Some(variant) = one_of(&list(schema, key)) {
            members.require(variant.required);
            members.offer(variant.properties);
        }
    }
    let optional = ["then", "else"]
        .into_iter()
        .filter_map(|key| schema.get(key));
    let dependent = schema.get("dependentSchemas").and_then(Value::as_object);
    let dependent = dependent.into_iter().flat_map(Map::values);
    for branch in optional.chain(dependent).filter_map(Value::as_object) {
        members.offer(gather(branch).properties);
    }
    members
}

/// All arguments of any variant; required are those that every variant requires.
fn one_of(branches: &[&Map<String, Value>]) -> Option<Members> {
    let for_objects = branches.iter().filter(|branch| {
        let types = named(branch);
        types.is_empty() || types.contains(&"object")
    });
    let mut shapes = for_objects.map(|branch| gather(branch));
    let mut all = shapes.next()?;
    for shape in shapes {
        all.required.retain(|name| shape.required.contains(name));
        for (name, schema) in shape.properties {
            let known = all.properties.entry(name).or_insert_with(|| schema.clone());
            *known = either(known.take(), schema);
        }
    }
    Some(all)
}

impl Members {
    fn require(&mut self, names: Vec<Value>) {
        union(&mut self.required, names);
    }

    /// Adds arguments of a variant; the root's own schema of an argument has precedence.
    fn offer(&mut self, properties: Map<String, Value>) {
        for (name, schema) in properties {
            let known = self.properties.entry(name).or_insert_with(any);
            if *known == any() {
                *known = schema;
            }
        }
    }
}

fn list<'a>(schema: &'a Map<String, Value>, key: &str) -> Vec<&'a Map<String, Value>> {
    let parts = schema.get(key).and_then(Value::as_array);
    let parts = parts.into_iter().flatten();
    parts.filter_map(Value::as_object).collect()
}
