//! Types where the author left them out: Open WebUI reads an untyped schema as a string.

use serde_json::{Map, Value, json};

const TYPES: [&str; 7] = [
    "string", "number", "integer", "boolean", "object", "array", "null",
];

/// Anything, said so that Open WebUI and strict model APIs (an array needs `items`) take it.
pub fn any() -> Value {
    json!({
        "type": ["string", "number", "boolean", "object", "array", "null"],
        "items": {"type": ["string", "number", "boolean", "object", "null"]},
    })
}

/// An object with whatever in it.
pub fn any_object() -> Value {
    json!({"type": "object", "additionalProperties": true})
}

/// Nothing is valid.
pub fn never() -> Value {
    json!({"not": {}})
}

pub fn is_never(schema: &Value) -> bool {
    schema.as_object().is_some_and(|map| {
        map.len() == 1
            && map
                .get("not")
                .and_then(Value::as_object)
                .is_some_and(Map::is_empty)
    })
}

/// The types a schema names, known ones only.
pub fn named(schema: &Map<String, Value>) -> Vec<&str> {
    let known = |value: &Value| TYPES.iter().find(|name| value == *name).copied();
    match schema.get("type") {
        Some(Value::Array(several)) => several.iter().filter_map(known).collect(),
        Some(one) => known(one).into_iter().collect(),
        None => Vec::new(),
    }
}

/// One type as a string, several as a list without repeats.
pub fn write<'a>(types: impl IntoIterator<Item = &'a str>) -> Option<Value> {
    let mut distinct: Vec<&str> = Vec::new();
    for name in types {
        if !distinct.contains(&name) {
            distinct.push(name);
        }
    }
    match *distinct {
        [] => None,
        [one] => Some(one.into()),
        _ => Some(distinct.into()),
    }
}

/// Writes out what follows from the other keywords.
pub fn settle(schema: &mut Map<String, Value>) {
    let only_null = |branches: &Value| {
        let branches = branches.as_array().filter(|branches| !branches.is_empty());
        branches.is_some_and(|all| all.iter().all(|branch| branch["type"] == "null"))
    };
    if schema.get("anyOf").is_some_and(only_null) {
        // Open WebUI takes `null` out, and would leave an empty list, which no model API takes.
        schema.shift_remove("anyOf");
        schema.entry("type").or_insert("null".into());
    }
    if let Some(Value::Array(parts)) = schema.get_mut("allOf") {
        // What could not be merged stands beside the rest, and must be complete as well.
        parts
            .iter_mut()
            .filter_map(Value::as_object_mut)
            .for_each(settle);
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

/// One schema for all places of a closed tuple: model APIs want `items`, and beyond `maxItems`
/// it rejects nothing.
fn tuple_items(schema: &Map<String, Value>) -> Option<Value> {
    let places = schema.get("prefixItems")?.as_array()?;
    let closed = schema.get("maxItems")?.as_u64()? <= places.len() as u64;
    let mut distinct: Vec<Value> = Vec::new();
    for place in places.iter().filter(|_| closed) {
        if !distinct.contains(place) {
            distinct.push(place.clone());
        }
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
    let has = |keys: &[&str]| keys.iter().any(|key| schema.contains_key(*key));
    let hints: [(&str, &[&str]); 4] = [
        (
            "object",
            &[
                "properties",
                "required",
                "additionalProperties",
                "patternProperties",
                "minProperties",
                "maxProperties",
                "propertyNames",
                "dependentRequired",
            ],
        ),
        (
            "array",
            &[
                "items",
                "prefixItems",
                "minItems",
                "maxItems",
                "uniqueItems",
                "contains",
            ],
        ),
        (
            "string",
            &[
                "pattern",
                "minLength",
                "maxLength",
                "format",
                "contentEncoding",
            ],
        ),
        (
            "number",
            &[
                "minimum",
                "maximum",
                "exclusiveMinimum",
                "exclusiveMaximum",
                "multipleOf",
            ],
        ),
    ];
    write(
        hints
            .iter()
            .filter(|(_, keys)| has(keys))
            .map(|(name, _)| *name),
    )
}

fn branch_types(branch: &Map<String, Value>) -> Vec<&str> {
    let Some(Value::Array(inner)) = branch.get("anyOf") else {
        return named(branch);
    };
    inner
        .iter()
        .filter_map(Value::as_object)
        .flat_map(named)
        .collect()
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
