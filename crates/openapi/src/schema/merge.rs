//! Merges several schemas into one: all must match (`allOf`, siblings of `$ref`), or one of them.

use serde_json::{Map, Value, json};

use super::{any, is_never, named, write};

/// Makes `into` require what both require. Keywords that cannot be merged stay in `allOf`.
pub fn both(into: &mut Map<String, Value>, part: Value) {
    if is_never(&part) {
        into.insert("not".into(), json!({}));
        return;
    }
    let Value::Object(part) = part else { return };
    if into.is_empty() {
        *into = part;
        return;
    }
    let mut left_over = Map::new();
    for (key, value) in part {
        match into.get_mut(&key) {
            None => {
                into.insert(key, value);
            }
            Some(mine) if *mine == value => {}
            Some(mine) => {
                if let Some(value) = keyword(&key, mine, value) {
                    left_over.insert(key, value);
                }
            }
        }
    }
    if !left_over.is_empty() {
        match into.entry("allOf").or_insert_with(|| json!([])) {
            Value::Array(parts) => parts.push(left_over.into()),
            other => *other = json!([left_over]),
        }
    }
    // They apply to arrays only; without this, the merge of "any" and "string" would keep `items`.
    let types = named(into);
    if !types.is_empty() && !types.contains(&"array") {
        into.shift_remove("items");
        into.shift_remove("prefixItems");
    }
}

/// Merges `other` into `mine`; returns `other` if one keyword cannot express both.
fn keyword(key: &str, mine: &mut Value, other: Value) -> Option<Value> {
    match key {
        // The outer text describes this use, the inner one the type.
        "title" | "description" | "default" | "examples" | "example" | "deprecated"
        | "readOnly" | "writeOnly" | "$comment" => None,
        "properties" => {
            if let (Value::Object(mine), Value::Object(other)) = (mine, other) {
                both_properties(mine, other);
            }
            None
        }
        "items" | "additionalProperties" | "propertyNames" => inner_schema(mine, other),
        "required" => {
            if let (Value::Array(mine), Value::Array(other)) = (mine, other) {
                union(mine, other);
            }
            None
        }
        "type" => common_types(mine, other),
        "enum" => common_values(mine, other),
        "minimum" | "exclusiveMinimum" | "minLength" | "minItems" | "minProperties" => {
            stricter(mine, other, |mine, other| other > mine)
        }
        "maximum" | "exclusiveMaximum" | "maxLength" | "maxItems" | "maxProperties" => {
            stricter(mine, other, |mine, other| other < mine)
        }
        _ if key.starts_with("x-") => None,
        _ => Some(other),
    }
}

/// Makes each property satisfy both schemas.
pub fn both_properties(mine: &mut Map<String, Value>, other: Map<String, Value>) {
    for (name, schema) in other {
        match mine.get_mut(&name) {
            Some(Value::Object(known)) => both(known, schema),
            _ => {
                mine.insert(name, schema);
            }
        }
    }
}

fn inner_schema(mine: &mut Value, other: Value) -> Option<Value> {
    match (&mut *mine, other) {
        (Value::Bool(false), _) | (_, Value::Bool(true)) => {}
        (Value::Object(known), other @ Value::Object(_)) => both(known, other),
        (_, other) => *mine = other,
    }
    None
}

/// Adds the items that are missing.
pub fn union(mine: &mut Vec<Value>, other: Vec<Value>) {
    for item in other {
        if !mine.contains(&item) {
            mine.push(item);
        }
    }
}

fn common_types(mine: &mut Value, other: Value) -> Option<Value> {
    let (left, right) = (json!({"type": mine}), json!({"type": &other}));
    let (left, right) = (named(left.as_object()?), named(right.as_object()?));
    let within = |name: &str, types: &[&str]| {
        types.contains(&name) || (name == "integer" && types.contains(&"number"))
    };
    let both = left.iter().filter(|name| within(name, &right));
    let both = both.chain(right.iter().filter(|name| within(name, &left)));
    let Some(types) = write(both.copied()) else {
        return Some(other);
    };
    *mine = types;
    None
}

fn common_values(mine: &mut Value, other: Value) -> Option<Value> {
    let (Value::Array(values), Value::Array(allowed)) = (&mut *mine, &other) else {
        return Some(other);
    };
    if values.iter().any(|value| allowed.contains(value)) {
        values.retain(|value| allowed.contains(value));
        return None;
    }
    Some(other)
}

fn stricter(mine: &mut Value, other: Value, wins: fn(f64, f64) -> bool) -> Option<Value> {
    let (Some(left), Some(right)) = (mine.as_f64(), other.as_f64()) else {
        return None;
    };
    if wins(left, right) {
        *mine = other;
    }
    None
}

/// A schema for an argument whose schema differs between variants.
pub fn either(one: Value, other: Value) -> Value {
    if one == other || one == any() {
        return one;
    }
    if other == any() {
        return other;
    }
    if let Some(choice) = choice(&one, &other) {
        return choice;
    }
    let mut all = branches(one);
    union(&mut all, branches(other));
    json!({ "anyOf": all })
}

fn branches(schema: Value) -> Vec<Value> {
    match schema {
        Value::Object(mut map) if map.len() == 1 && map.contains_key("anyOf") => {
            match map.remove("anyOf") {
                Some(Value::Array(list)) => list,
                _ => Vec::new(),
            }
        }
        other => vec![other],
    }
}

/// Two constants, or lists of them, of one type: the tag that identifies variants.
fn choice(one: &Value, other: &Value) -> Option<Value> {
    let values = |schema: &Value| match (schema.get("const"), schema.get("enum")) {
        (Some(value), _) => Some(vec![value.clone()]),
        (None, list) => list?.as_array().cloned(),
    };
    if one.get("type")? != other.get("type")? {
        return None;
    }
    let (mut all, more) = (values(one)?, values(other)?);
    union(&mut all, more);
    let mut merged = json!({"type": one.get("type")?, "enum": all});
    let text = one.get("description").or_else(|| other.get("description"));
    if let Some(text) = text {
        merged["description"] = text.clone();
    }
    Some(merged)
}
