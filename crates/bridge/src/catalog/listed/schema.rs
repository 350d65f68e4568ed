//! The two schemas of a tool. Clients want both to be of an object, and the TypeScript client compiles
//! each `outputSchema` when it lists tools: one that does not compile costs it the whole list.

use bridge_protocol::RawJson;
use serde_json::Value;

use super::shape::{Fit, Rule, each, shaped, wrong};

/// Branches of an `outputSchema` that are looked at; nobody writes more by hand.
const PARTS: usize = 10_000;

const OBJECT: &[Rule] = &[
    ("type", object_type),
    ("properties", properties),
    ("required", required),
];

/// `inputSchema`: what is no schema of an object takes any object.
pub fn input(raw: &RawJson) -> Fit {
    let mut faults = Vec::new();
    let Some(schema) = of_object(raw, &mut faults) else {
        let any = RawJson::of(&serde_json::json!({"type": "object"}));
        return Fit::Instead(any, wrong(raw));
    };
    fit(schema, &faults)
}

/// `outputSchema`, which a tool can do without.
pub fn output(raw: &RawJson) -> Fit {
    if raw.members().is_none() {
        return Fit::Leave(wrong(raw));
    }
    let kind = raw.member("type").map(|kind| kind.approximate());
    if kind.is_some_and(|kind| kind != "object" && !kind.is_null()) {
        return Fit::Leave("is no schema of an object".to_owned());
    }
    let mut faults = Vec::new();
    let Some(mut schema) = of_object(raw, &mut faults) else {
        return Fit::Leave(wrong(raw));
    };
    // A client that has read two of one name takes the first for both. Nothing refers to it: what
    // does is left out below.
    if schema.member("$id").is_some() {
        schema = without(&schema, "$id");
        faults.push("has an $id".to_owned());
    }
    let compiles = match schema.read::<Value>() {
        Ok(value) => compiles(&value),
        Err(_) => Err("cannot be read".to_owned()),
    };
    match compiles {
        Ok(()) => fit(schema, &faults),
        Err(why) => Fit::Leave(why),
    }
}

fn fit(schema: RawJson, faults: &[String]) -> Fit {
    if faults.is_empty() {
        Fit::Fits
    } else {
        Fit::Instead(schema, faults.join(", "))
    }
}

/// The schema with `"type": "object"`, and the rest of it as clients want it; `None` for what is no
/// object.
fn of_object(raw: &RawJson, faults: &mut Vec<String>) -> Option<RawJson> {
    let shaped = shaped(raw, OBJECT, faults)?;
    if shaped.member("type").is_some() {
        return Some(shaped);
    }
    faults.push("has no \"type\": \"object\"".to_owned());
    Some(shaped.with_member("type", &RawJson::of(&"object".into())))
}

fn without(object: &RawJson, name: &str) -> RawJson {
    let members = object.members().unwrap_or_default();
    let other = |member: &bridge_protocol::Member| {
        let found = member.name.read::<String>();
        found.is_ok_and(|found| found != name)
    };
    let kept: Vec<_> = members.into_iter().filter(other).collect();
    RawJson::of_members(&kept)
}

fn object_type(raw: &RawJson) -> Fit {
    if raw.read::<String>().is_ok_and(|kind| kind == "object") {
        return Fit::Fits;
    }
    let object = RawJson::of(&"object".into());
    Fit::Instead(object, "is not \"object\"".to_owned())
}

/// Each must be an object; `true` and `false` say the same in one word.
fn properties(raw: &RawJson) -> Fit {
    let Some(members) = raw.members() else {
        return Fit::Leave(wrong(raw));
    };
    let mut changed = false;
    let as_objects = members.into_iter().map(|mut member| {
        if !member.value.as_bytes().starts_with(b"{") {
            changed = true;
            let never = member.value.as_str() == "false";
            let schema = if never { r#"{"not":{}}"# } else { "{}" };
            let schema = RawJson::parse(bytes::Bytes::from_static(schema.as_bytes()));
            member.value = schema.unwrap_or_else(|_| RawJson::empty_object());
        }
        member
    });
    let members: Vec<_> = as_objects.collect();
    if changed {
        let why = "has members that are no schemas";
        Fit::Instead(RawJson::of_members(&members), why.to_owned())
    } else {
        Fit::Fits
    }
}

fn required(raw: &RawJson) -> Fit {
    each(raw, |name| {
        name.as_bytes().starts_with(b"\"").then(|| name.clone())
    })
}

/// Why the TypeScript client's validator (Ajv, draft-07 and 2020-12 mixed, schemas unchecked) would
/// refuse to compile this. What it might refuse counts, too: the tool loses a check of its answers,
/// and nothing else.
fn compiles(schema: &Value) -> Result<(), String> {
    let mut plain = schema.clone();
    if let Value::Object(members) = &mut plain {
        // It decides what the check below goes by, and the client goes by neither.
        members.shift_remove("$schema");
    }
    let valid = jsonschema::draft202012::meta::is_valid(&plain)
        || jsonschema::draft7::meta::is_valid(&plain);
    if !valid {
        return Err("is no valid JSON Schema".to_owned());
    }
    let mut parts = 0;
    let mut open = vec![(&plain, true)];
    while let Some((part, is_root)) = open.pop() {
        parts += 1;
        if parts > PARTS {
            return Err("is too large".to_owned());
        }
        let Value::Object(members) = part else {
            continue;
        };
        keywords(&plain, members, is_root)?;
        open.extend(below(members).map(|part| (part, false)));
    }
    Ok(())
}

/// Keywords whose value is a schema, or a list of some.
const SCHEMAS: &[&str] = &[
    "additionalItems",
    "additionalProperties",
    "allOf",
    "anyOf",
    "contains",
    "contentSchema",
    "else",
    "if",
    "items",
    "not",
    "oneOf",
    "prefixItems",
    "propertyNames",
    "then",
    "unevaluatedItems",
    "unevaluatedProperties",
];

/// Keywords whose value is an object of schemas.
const MAPS: &[&str] = &[
    "$defs",
    "definitions",
    "dependencies",
    "dependentSchemas",
    "patternProperties",
    "properties",
];

/// The schemas right below one.
fn below(members: &serde_json::Map<String, Value>) -> impl Iterator<Item = &Value> {
    members.iter().flat_map(|(name, value)| match value {
        Value::Array(several) if SCHEMAS.contains(&&**name) => several.iter().collect(),
        Value::Object(several) if MAPS.contains(&&**name) => several.values().collect(),
        Value::Object(_) if SCHEMAS.contains(&&**name) => vec![value],
        _ => Vec::new(),
    })
}

fn keywords(
    root: &Value,
    members: &serde_json::Map<String, Value>,
    is_root: bool,
) -> Result<(), String> {
    for (name, value) in members {
        match (&**name, value) {
            ("$ref", Value::String(target)) => {
                let found = target.strip_prefix('#').and_then(|pointer| {
                    let pointer = percent_encoding::percent_decode_str(pointer);
                    root.pointer(&pointer.decode_utf8().ok()?)
                });
                if !found.is_some_and(|found| found.is_object() || found.is_boolean()) {
                    let short: String = target.chars().take(60).collect();
                    return Err(format!("refers to '{short}', which is not in it"));
                }
            }
            ("$dynamicRef" | "$recursiveRef" | "$anchor" | "$dynamicAnchor" | "id", _) => {
                return Err(format!("uses {name}"));
            }
            ("$id", _) if !is_root => return Err("uses $id within".to_owned()),
            ("nullable", Value::Bool(true)) if !members.contains_key("type") => {
                return Err("uses nullable without type".to_owned());
            }
            ("enum", Value::Array(values)) if values.is_empty() => {
                return Err("has an empty enum".to_owned());
            }
            ("pattern", Value::String(pattern)) => javascript(pattern)?,
            ("patternProperties", Value::Object(patterns)) => {
                patterns
                    .keys()
                    .try_for_each(|pattern| javascript(pattern))?;
            }
            _ => {}
        }
    }
    Ok(())
}

/// Whether JavaScript takes a pattern, with its flag `u` as Ajv sets it. Only what the languages have in
/// common is let through.
fn javascript(pattern: &str) -> Result<(), String> {
    let refused = || {
        let short: String = pattern.chars().take(60).collect();
        Err(format!(
            "has the pattern '{short}', which may be none in JavaScript"
        ))
    };
    if regex::Regex::new(pattern).is_err() {
        return refused();
    }
    let mut class = false;
    let mut rest = pattern.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            '\\' => match rest.next() {
                Some('d' | 'D' | 'w' | 'W' | 's' | 'S') if class => {
                    // A range to or from a class is an error there.
                    if rest.peek() == Some(&'-') {
                        return refused();
                    }
                }
                Some('d' | 'D' | 'w' | 'W' | 's' | 'S' | 't' | 'n' | 'r' | 'f' | 'v') => {}
                Some('b' | 'B') if !class => {}
                Some('-') if class => {}
                Some(c) if "^$\\.*+?()[]{}|/".contains(c) => {}
                _ => return refused(),
            },
            '[' if class => return refused(),
            '[' => class = true,
            ']' if class => class = false,
            ']' | '}' => return refused(),
            '&' | '~' if class && rest.peek() == Some(&c) => return refused(),
            '-' if class && matches!(rest.peek(), Some('\\' | '-')) => return refused(),
            '(' if !class && rest.peek() == Some(&'?') => {
                rest.next();
                if rest.next() != Some(':') {
                    return refused();
                }
            }
            '{' if !class => {
                let count: String = std::iter::from_fn(|| rest.next_if(|c| *c != '}')).collect();
                let usual = |c: char| c.is_ascii_digit() || c == ',';
                let counts = count.starts_with(|c: char| c.is_ascii_digit());
                if !counts || !count.chars().all(usual) || rest.next() != Some('}') {
                    return refused();
                }
            }
            _ => {}
        }
    }
    Ok(())
}
