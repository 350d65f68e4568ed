//! What each member must be. An object's other members are nobody's business: clients pass over
//! them.

use bridge_protocol::RawJson;
use serde_json::Value;

use super::{
    schema,
    shape::{Fit, Rule, each, leave, shaped},
};

/// A tool, as `tools/list` has it.
pub const TOOL: &[Rule] = &[
    ("name", string),
    ("title", string),
    ("description", string),
    ("icons", icons),
    ("inputSchema", schema::input),
    ("outputSchema", schema::output),
    ("annotations", hints),
    ("execution", execution),
    ("_meta", object),
];

/// A prompt, as `prompts/list` has it.
pub const PROMPT: &[Rule] = &[
    ("name", string),
    ("title", string),
    ("description", string),
    ("icons", icons),
    ("arguments", arguments),
    ("_meta", object),
];

/// A resource, as `resources/list` has it.
pub const RESOURCE: &[Rule] = &[
    ("uri", string),
    ("name", string),
    ("title", string),
    ("description", string),
    ("mimeType", string),
    ("size", size),
    ("icons", icons),
    ("annotations", annotations),
    ("_meta", object),
];

/// A resource template, as `resources/templates/list` has it.
pub const TEMPLATE: &[Rule] = &[
    ("uriTemplate", string),
    ("name", string),
    ("title", string),
    ("description", string),
    ("mimeType", string),
    ("icons", icons),
    ("annotations", annotations),
    ("_meta", object),
];

/// `completion`, as the result of `completion/complete` has it.
const COMPLETION: &[Rule] = &[("values", values), ("total", size), ("hasMore", boolean)];

const ARGUMENT: &[Rule] = &[
    ("name", string),
    ("title", string),
    ("description", string),
    ("required", boolean),
];

const ICON: &[Rule] = &[
    ("src", string),
    ("mimeType", string),
    ("sizes", strings),
    ("theme", |raw| one_of(raw, &["light", "dark"])),
];

const HINTS: &[Rule] = &[
    ("title", string),
    ("readOnlyHint", boolean),
    ("destructiveHint", boolean),
    ("idempotentHint", boolean),
    ("openWorldHint", boolean),
];

const EXECUTION: &[Rule] = &[("taskSupport", |raw| {
    one_of(raw, &["required", "optional", "forbidden"])
})];

const ANNOTATIONS: &[Rule] = &[
    ("audience", audience),
    ("priority", priority),
    ("lastModified", moment),
];

fn fits_if(fits: bool, raw: &RawJson) -> Fit {
    if fits { Fit::Fits } else { leave(raw) }
}

fn begins_with(raw: &RawJson, first: &[u8]) -> bool {
    let begin = raw.as_bytes().first();
    begin.is_some_and(|begin| first.contains(begin))
}

fn string(raw: &RawJson) -> Fit {
    fits_if(begins_with(raw, b"\""), raw)
}

fn boolean(raw: &RawJson) -> Fit {
    fits_if(begins_with(raw, b"tf"), raw)
}

fn object(raw: &RawJson) -> Fit {
    fits_if(begins_with(raw, b"{"), raw)
}

fn one_of(raw: &RawJson, words: &[&str]) -> Fit {
    let word: Option<String> = raw.read().ok();
    fits_if(word.is_some_and(|word| words.contains(&&*word)), raw)
}

fn number(raw: &RawJson) -> Option<f64> {
    match raw.read().ok()? {
        Value::Number(number) => number.as_f64().filter(|number| number.is_finite()),
        _ => None,
    }
}

/// Bytes: Python's client takes no fractions.
fn size(raw: &RawJson) -> Fit {
    fits_if(number(raw).is_some_and(|size| size.fract() == 0.0), raw)
}

fn priority(raw: &RawJson) -> Fit {
    let fits = number(raw).is_some_and(|priority| (0.0..=1.0).contains(&priority));
    fits_if(fits, raw)
}

/// As ISO 8601 has it, with seconds and an offset.
fn moment(raw: &RawJson) -> Fit {
    let text: String = raw.read().unwrap_or_default();
    let zone = text.strip_suffix('Z').map(|_| 1).or_else(|| {
        let offset = text.get(text.len().checked_sub(6)?..)?;
        let digits = |at: std::ops::Range<usize>| {
            let part = offset.get(at);
            part.is_some_and(|part| part.bytes().all(|byte| byte.is_ascii_digit()))
        };
        let signed = offset.starts_with(['+', '-']) && &offset[3..4] == ":";
        (signed && digits(1..3) && digits(4..6)).then_some(6)
    });
    let time = zone.map(|zone| &text[..text.len() - zone]);
    let usual = |byte: u8| byte.is_ascii_digit() || b"-T:.".contains(&byte);
    let shape = time.is_some_and(|time| {
        let bytes = time.as_bytes();
        bytes.len() >= 19 && bytes[10] == b'T' && bytes.iter().copied().all(usual)
    });
    fits_if(shape && text.parse::<jiff::Timestamp>().is_ok(), raw)
}

fn audience(raw: &RawJson) -> Fit {
    each(raw, |role| match one_of(role, &["user", "assistant"]) {
        Fit::Fits => Some(role.clone()),
        _ => None,
    })
}

fn strings(raw: &RawJson) -> Fit {
    // Revision 2025-06-18 had one string here.
    if begins_with(raw, b"\"") {
        let list = RawJson::of_elements(std::slice::from_ref(raw));
        return Fit::Instead(list, "is no list".to_owned());
    }
    each(raw, |text| begins_with(text, b"\"").then(|| text.clone()))
}

/// The result of `completion/complete` as clients want it.
pub fn completion(result: &RawJson) -> RawJson {
    let completion = result.member("completion");
    let shaped = completion.and_then(|raw| shaped(&raw, COMPLETION, &mut Vec::new()));
    let mut completion = shaped.unwrap_or_else(RawJson::empty_object);
    if completion.member("values").is_none() {
        completion = completion.with_member("values", &RawJson::of_elements(&[]));
    }
    result.with_member("completion", &completion)
}

/// Texts, as many as a client takes.
fn values(raw: &RawJson) -> Fit {
    let left = std::cell::Cell::new(100_u32);
    each(raw, |value| {
        let room = left.get().checked_sub(1)?;
        begins_with(value, b"\"").then(|| {
            left.set(room);
            value.clone()
        })
    })
}

fn icons(raw: &RawJson) -> Fit {
    each(raw, |icon| with(icon, ICON, "src"))
}

fn arguments(raw: &RawJson) -> Fit {
    each(raw, |argument| with(argument, ARGUMENT, "name"))
}

/// The object, if it has the member that it cannot do without.
fn with(raw: &RawJson, rules: &[Rule], needed: &str) -> Option<RawJson> {
    let shaped = shaped(raw, rules, &mut Vec::new())?;
    shaped.member(needed).is_some().then_some(shaped)
}

fn hints(raw: &RawJson) -> Fit {
    nested(raw, HINTS)
}

fn execution(raw: &RawJson) -> Fit {
    nested(raw, EXECUTION)
}

fn annotations(raw: &RawJson) -> Fit {
    nested(raw, ANNOTATIONS)
}

fn nested(raw: &RawJson, rules: &[Rule]) -> Fit {
    let mut faults = Vec::new();
    match shaped(raw, rules, &mut faults) {
        None => leave(raw),
        Some(_) if faults.is_empty() => Fit::Fits,
        Some(shaped) => Fit::Instead(
            shaped,
            format!("holds what does not fit ({})", faults.join(", ")),
        ),
    }
}
