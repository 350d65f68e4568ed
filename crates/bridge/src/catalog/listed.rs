//! What a server lists, as the schemas of MCP's clients want it: a client that checks what it reads
//! gives up the whole list for one member of the wrong type. At `/mcp`, where the lists of all servers
//! are one, such a member is mended or left out; what is valid keeps its bytes. `/mcp/{server}` passes
//! on what the server said, and the warnings say what a strict client will refuse there.
//!
//! The rules are those of the official clients: the zod schemas of `@modelcontextprotocol/sdk`
//! (`types.js`) and the models of Python's `mcp.types`.

use std::{
    borrow::Cow,
    collections::{HashMap, HashSet},
    fmt::Write as _,
};

use bridge_model::ServerName;
use bridge_protocol::{Member, RawJson, Tool};
use serde_json::Value;

/// Faults that a warning names.
const NAMED: usize = 5;

/// Characters of a name that a warning quotes.
const QUOTED: usize = 60;

/// One thing that is listed.
pub struct Item {
    /// Its name, or its URI, as the server spells it.
    pub own: Box<str>,
    /// As clients may read it.
    pub raw: RawJson,
}

/// What one server adds to the lists of all.
#[derive(Default)]
pub struct Listed {
    /// By `name`.
    pub tools: Vec<Item>,
    /// By `name`.
    pub prompts: Vec<Item>,
    /// By `uri`.
    pub resources: Vec<Item>,
    /// By `uriTemplate`.
    pub templates: Vec<Item>,
    mended: Faults,
    left_out: Faults,
}

/// Faults: the first of them, and how many more there are.
#[derive(Default)]
pub struct Faults {
    first: Vec<String>,
    more: usize,
}

impl Faults {
    /// Notes one.
    pub fn push(&mut self, fault: String) {
        if self.first.len() < NAMED {
            self.first.push(fault);
        } else {
            self.more += 1;
        }
    }

    /// All in one text; `None` where there are none.
    pub fn text(&self) -> Option<String> {
        let mut text = self.first.join("; ");
        if self.more > 0 {
            let _ = write!(text, "; and {} more", self.more);
        }
        (!text.is_empty()).then_some(text)
    }
}

impl Listed {
    /// Looks through everything that a server lists, once; of the tools, through those that the config
    /// offers.
    pub fn inspect<'a>(
        tools: impl Iterator<Item = &'a Tool>,
        prompts: &[RawJson],
        resources: &[RawJson],
        templates: &[RawJson],
    ) -> Self {
        let mut listed = Self::default();
        for tool in tools {
            let mut item = listed.item("tool", &tool.raw, "name", TOOL);
            if let Some(item) = &mut item {
                listed.input_schema(item);
            }
            listed.tools.extend(item);
        }
        listed.prompts = listed.list("prompt", prompts, "name", PROMPT);
        listed.resources = listed.list("resource", resources, "uri", RESOURCE);
        listed.templates = listed.list("resource template", templates, "uriTemplate", TEMPLATE);
        listed
    }

    fn list(&mut self, kind: &str, said: &[RawJson], key: &str, rules: &[Rule]) -> Vec<Item> {
        let items = said
            .iter()
            .filter_map(|raw| self.item(kind, raw, key, rules));
        let items: Vec<Item> = items.collect();
        let mut known = HashSet::new();
        let (kept, again): (Vec<_>, Vec<_>) = items.into_iter().partition(|item| {
            // Nobody could ask for the second of two with one name.
            known.insert(item.own.clone())
        });
        for item in again {
            let name = quoted(&item.own);
            self.left_out.push(format!("duplicate {kind} {name}"));
        }
        kept
    }

    /// One item; `None` where it lacks what it is asked for by.
    fn item(&mut self, kind: &str, raw: &RawJson, key: &str, rules: &[Rule]) -> Option<Item> {
        let mut faults = Vec::new();
        let shaped = shaped(raw, rules, &mut faults);
        let own = shaped.as_ref().and_then(|shaped| shaped.member(key));
        let own = own.and_then(|own| own.read::<Box<str>>().ok());
        let Some((own, mut raw)) = own.zip(shaped) else {
            self.left_out.push(format!("a {kind} without \"{key}\""));
            return None;
        };
        if key != "name" && raw.member("name").is_none() {
            faults.push("name is missing".to_owned());
            raw = raw.with_member("name", &RawJson::from_json(&(*own).into()));
        }
        self.note(kind, &own, &faults);
        Some(Item { own, raw })
    }

    /// Every tool has one.
    fn input_schema(&mut self, item: &mut Item) {
        if item.raw.member("inputSchema").is_none() {
            let faults = ["inputSchema is missing or is not an object schema".to_owned()];
            self.note("tool", &item.own, &faults);
            let any = RawJson::from_json(&serde_json::json!({"type": "object"}));
            item.raw = item.raw.with_member("inputSchema", &any);
        }
    }

    fn note(&mut self, kind: &str, own: &str, faults: &[String]) {
        if !faults.is_empty() {
            let (name, faults) = (quoted(own), faults.join(", "));
            self.mended.push(format!("{kind} {name}: {faults}"));
        }
    }

    /// What the operator should know of it.
    pub fn warnings(&self, server: &ServerName) -> impl Iterator<Item = String> {
        let mended = self.mended.text().map(|faults| {
            format!(
                "server '{server}': parts of its lists violate the MCP schema: strict clients \
                 reject the whole list at /mcp/{server}; at /mcp these parts are corrected: \
                 {faults}"
            )
        });
        let left_out = self.left_out.text().map(|faults| {
            format!("server '{server}': parts of its lists are omitted at /mcp: {faults}")
        });
        mended.into_iter().chain(left_out)
    }
}

fn quoted(name: &str) -> String {
    let short: String = name.chars().take(QUOTED).collect();
    let end = if short.len() < name.len() { "…" } else { "" };
    format!("'{}{end}'", short.escape_debug())
}

// What each member must be. An object's other members are nobody's business: clients pass over
// them.

/// A tool, as `tools/list` has it.
pub const TOOL: &[Rule] = &[
    ("name", string),
    ("title", string),
    ("description", string),
    ("icons", icons),
    ("inputSchema", input_schema),
    ("outputSchema", output_schema),
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
const RESOURCE: &[Rule] = &[
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
const TEMPLATE: &[Rule] = &[
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
        return Fit::Instead(list, "is not a list".to_owned());
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
            format!("contains invalid parts ({})", faults.join(", ")),
        ),
    }
}

// The two schemas of a tool. Clients want both to be of an object, and the TypeScript client compiles
// each `outputSchema` when it lists tools: one that does not compile costs it the whole list.

/// Branches of an `outputSchema` that are looked at; nobody writes more by hand.
const PARTS: usize = 10_000;

const OBJECT: &[Rule] = &[
    ("type", object_type),
    ("properties", properties),
    ("required", required),
];

/// `inputSchema`: what is no schema of an object takes any object.
pub fn input_schema(raw: &RawJson) -> Fit {
    let mut faults = Vec::new();
    let Some(schema) = of_object(raw, &mut faults) else {
        let any = RawJson::from_json(&serde_json::json!({"type": "object"}));
        return Fit::Instead(any, wrong(raw));
    };
    fit(schema, &faults)
}

/// `outputSchema`, which a tool can do without.
pub fn output_schema(raw: &RawJson) -> Fit {
    if raw.members().is_none() {
        return Fit::Leave(wrong(raw));
    }
    let kind = raw.member("type").map(|kind| kind.approximate());
    if kind.is_some_and(|kind| kind != "object" && !kind.is_null()) {
        return Fit::Leave("is not an object schema".to_owned());
    }
    let mut faults = Vec::new();
    let Some(mut schema) = of_object(raw, &mut faults) else {
        return Fit::Leave(wrong(raw));
    };
    // A client that has read two of one name takes the first for both. Nothing refers to it: what
    // does is left out below.
    if schema.member("$id").is_some() {
        schema = without(&schema, "$id");
        faults.push("contains $id".to_owned());
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
    Some(shaped.with_member("type", &RawJson::from_json(&"object".into())))
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
    let object = RawJson::from_json(&"object".into());
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
        let why = "has members that are not schemas";
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
        return Err("is not a valid JSON Schema".to_owned());
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
                    return Err(format!("refers to '{short}', which it does not contain"));
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
            "has the pattern '{short}', which may be invalid in JavaScript"
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

// An object held against rules for its members.

/// A member, and what it must be.
pub type Rule = (&'static str, fn(&RawJson) -> Fit);

/// What becomes of a member.
pub enum Fit {
    /// It stays as it is.
    Fits,
    /// This stands in its place, and why.
    Instead(RawJson, String),
    /// It is left out, and why.
    Leave(String),
}

/// The object with each member as its rule has it, and what had to be changed; `None` for what is no
/// object. Members in their order; every byte stays where nothing has to be changed.
fn shaped(raw: &RawJson, rules: &[Rule], faults: &mut Vec<String>) -> Option<RawJson> {
    let members = raw.members()?;
    let before = faults.len();
    let names: Vec<Option<String>> = members.iter().map(|it| it.name.read().ok()).collect();
    // Of two with one name, readers take the last.
    let last: HashMap<&str, usize> = names
        .iter()
        .enumerate()
        .filter_map(|(place, name)| Some((name.as_deref()?, place)))
        .collect();
    let mut kept = Vec::with_capacity(members.len());
    for (place, (member, name)) in members.into_iter().zip(&names).enumerate() {
        let Some(name) = name else {
            faults.push("the name of a member is not valid Unicode".to_owned());
            continue;
        };
        if last.get(name.as_str()) != Some(&place) {
            faults.push(format!("duplicate member {name}"));
            continue;
        }
        let mut value = member.value;
        if let Some((sound, why)) = sound_text(&value) {
            faults.push(format!("{name} {why}"));
            value = sound;
        }
        let rule = rules.iter().find(|(known, _)| known == name);
        match rule.map_or(Fit::Fits, |(_, rule)| rule(&value)) {
            Fit::Fits => {}
            Fit::Instead(other, why) => {
                faults.push(format!("{name} {why}"));
                value = other;
            }
            Fit::Leave(why) => {
                faults.push(format!("{name} {why}"));
                continue;
            }
        }
        kept.push(Member {
            name: member.name,
            value,
        });
    }
    if faults.len() == before {
        return Some(raw.clone());
    }
    Some(RawJson::of_members(&kept))
}

/// What is wrong with a value of the wrong type.
pub fn wrong(raw: &RawJson) -> String {
    let is_null = raw.as_str() == "null";
    let why = if is_null {
        "is null"
    } else {
        "has the wrong type"
    };
    why.to_owned()
}

/// A list whose elements are as `element` gives them back.
pub fn each(raw: &RawJson, element: impl Fn(&RawJson) -> Option<RawJson>) -> Fit {
    let Some(elements) = raw.elements() else {
        return leave(raw);
    };
    let kept: Vec<RawJson> = elements.iter().filter_map(element).collect();
    if kept == elements {
        return Fit::Fits;
    }
    let kept = RawJson::of_elements(&kept);
    Fit::Instead(kept, "has invalid elements".to_owned())
}

pub fn leave(raw: &RawJson) -> Fit {
    Fit::Leave(wrong(raw))
}

// JSON that some readers refuse as a whole, wherever it stands in a message: half of a surrogate
// pair (Python's client), and nesting without measure (all of them, sooner or later).

/// Levels that an item may nest; readers give up from 128 or 200 on.
const DEPTH: usize = 100;

/// The value without what a reader may refuse the whole message for, and what that was; `None` where
/// there is no such thing.
fn sound_text(raw: &RawJson) -> Option<(RawJson, &'static str)> {
    if depth(raw.as_bytes()) > DEPTH {
        return Some((RawJson::null(), "is nested too deeply"));
    }
    let Cow::Owned(mended) = with_whole_pairs(raw.as_str()) else {
        return None;
    };
    let mended = RawJson::parse(mended.into()).ok()?;
    Some((mended, "contains an unpaired surrogate"))
}

/// How deep valid JSON nests.
fn depth(json: &[u8]) -> usize {
    let (mut depth, mut deepest, mut quoted, mut escaped) = (0_usize, 0, false, false);
    for byte in json {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = quoted,
            b'"' => quoted = !quoted,
            b'[' | b'{' if !quoted => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b']' | b'}' if !quoted => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

/// Valid JSON with `\ufffd` for each half of a surrogate pair.
fn with_whole_pairs(json: &str) -> Cow<'_, str> {
    let mut out = String::new();
    let (mut done, mut at) = (0, 0);
    while let Some(found) = memchr::memchr(b'\\', &json.as_bytes()[at..]) {
        let start = at + found;
        // Any other escape has one character after the backslash.
        at = (start + 2).min(json.len());
        let Some(unit) = unit(json, start) else {
            continue;
        };
        at = start + 6;
        let is_pair = (0xD800..0xDC00).contains(&unit)
            && self::unit(json, at).is_some_and(|low| (0xDC00..0xE000).contains(&low));
        if is_pair {
            at += 6;
        } else if (0xD800..0xE000).contains(&unit) {
            out.push_str(&json[done..start]);
            out.push_str("\\ufffd");
            done = at;
        }
    }
    if done == 0 {
        return Cow::Borrowed(json);
    }
    out.push_str(&json[done..]);
    Cow::Owned(out)
}

/// The code unit that a `\uXXXX` here stands for.
fn unit(json: &str, at: usize) -> Option<u32> {
    let digits = json.get(at..at + 6)?.strip_prefix("\\u")?;
    u32::from_str_radix(digits, 16).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn raw(text: &str) -> RawJson {
        RawJson::parse(text.to_owned().into()).expect(text)
    }

    fn tool(text: &str) -> (Value, Vec<String>) {
        let tools: Vec<Tool> = Tool::read_raw(&raw(text)).into_iter().collect();
        let listed = Listed::inspect(tools.iter(), &[], &[], &[]);
        let item = listed.tools.first().map(|item| item.raw.read().unwrap());
        (item.unwrap_or_default(), listed.mended.first)
    }

    fn others(kind: &str, text: &str) -> (Vec<Value>, Listed) {
        let items: Vec<RawJson> = raw(text).elements().unwrap();
        let of = |wanted: &str| if kind == wanted { &items[..] } else { &[] };
        let listed = Listed::inspect(
            std::iter::empty(),
            of("prompts"),
            of("resources"),
            of("templates"),
        );
        let found = listed.prompts.iter();
        let found = found.chain(&listed.resources).chain(&listed.templates);
        let found = found.map(|item| item.raw.read().unwrap()).collect();
        (found, listed)
    }

    #[test]
    fn what_fits_keeps_every_byte() {
        let text = r##"{ "name":"t", "title":"T","x":null,"n":1.0,
        "inputSchema" : {"type":"object","properties":{"a":{"type":"STRING"}},"required":["a"]},
        "outputSchema":{"type":"object","properties":{"r":{"$ref":"#/$defs/R"}},"$defs":{"R":{"type":"string","pattern":"^[a-z]{1,3}$"}}},
        "annotations":{"readOnlyHint":true,"x":null},"execution":{"taskSupport":"optional"},
        "icons":[{"src":"data:,"}],"_meta":{"a":null,"emoji":"\ud83d\ude00"} }"##;
        let tools = [Tool::read_raw(&raw(text)).unwrap()];
        let prompt = [raw(
            r#"{"name":"p","arguments":[{"name":"a","required":false}]}"#,
        )];
        let resource = [raw(
            r#"{"uri":"x:1","name":"r","size":5,"annotations":{"audience":["user"],"priority":0.5,"lastModified":"2025-01-12T15:00:58Z"}}"#,
        )];
        let template = [raw(
            r#"{"uriTemplate":"x:{a}","name":"t","mimeType":"a/b"}"#,
        )];
        let listed = Listed::inspect(tools.iter(), &prompt, &resource, &template);
        assert_eq!(listed.tools[0].raw.as_str(), raw(text).as_str());
        assert_eq!(listed.prompts[0].raw, prompt[0]);
        assert_eq!(listed.resources[0].raw, resource[0]);
        assert_eq!(listed.templates[0].raw, template[0]);
        assert_eq!(listed.warnings(&"s".parse().unwrap()).count(), 0);
    }

    #[test]
    fn an_input_schema_becomes_one_of_an_object() {
        for (said, shown) in [
            ("null", json!({"type": "object"})),
            ("true", json!({"type": "object"})),
            ("[]", json!({"type": "object"})),
            (r#""x""#, json!({"type": "object"})),
            ("{}", json!({"type": "object"})),
            (r#"{"type":"OBJECT"}"#, json!({"type": "object"})),
            (r#"{"type":["object","null"]}"#, json!({"type": "object"})),
            (
                r#"{"type":null,"properties":null,"required":null}"#,
                json!({"type": "object"}),
            ),
            (
                r#"{"type":"object","properties":[]}"#,
                json!({"type": "object"}),
            ),
            (
                r#"{"oneOf":[{"required":["a"]}]}"#,
                json!({"type": "object", "oneOf": [{"required": ["a"]}]}),
            ),
            (
                r#"{"type":"object","properties":{"a":true,"b":false,"c":null,"d":{}},"required":["a",1,null]}"#,
                json!({"type": "object", "properties": {"a": {}, "b": {"not": {}}, "c": {}, "d": {}}, "required": ["a"]}),
            ),
        ] {
            let (item, mended) = tool(&format!(r#"{{"name":"t","inputSchema":{said}}}"#));
            assert_eq!(item["inputSchema"], shown, "{said}");
            assert_eq!(mended.len(), 1, "{said}");
        }
        let (item, mended) = tool(r#"{"name":"t"}"#);
        assert_eq!(item["inputSchema"], json!({"type": "object"}));
        assert_eq!(mended.len(), 1);
        let deep = format!(
            "{}{}",
            r#"{"not":"#.repeat(200),
            "1".to_owned() + &"}".repeat(200)
        );
        let (item, _) = tool(&format!(r#"{{"name":"t","inputSchema":{deep}}}"#));
        assert_eq!(item["inputSchema"], json!({"type": "object"}));
    }

    #[test]
    fn members_of_the_wrong_type_are_left_out_and_the_rest_stays() {
        let (item, mended) = tool(
            r#"{"name":"x","name":"t","description":null,"title":5,"annotations":{"readOnlyHint":"yes","title":"A"},
            "_meta":[],"execution":{"taskSupport":"sometimes"},"icons":[{"src":1},{"src":"a","sizes":"48x48","theme":"blue"}],
            "inputSchema":{"type":"object"},"more":null,"\ud800":1,"note":"half \udc00 pair"}"#,
        );
        let expected = json!({
            "name": "t", "annotations": {"title": "A"}, "execution": {},
            "icons": [{"src": "a", "sizes": ["48x48"]}],
            "inputSchema": {"type": "object"}, "more": null, "note": "half \u{fffd} pair",
        });
        assert_eq!(item, expected);
        let all = mended.join(" ");
        for fault in [
            "duplicate member name",
            "description is null",
            "title has the wrong type",
        ] {
            assert!(all.contains(fault), "{all}");
        }
    }

    #[test]
    fn an_output_schema_that_a_client_might_not_compile_is_left_out() {
        for broken in [
            "null",
            "true",
            r#"{"type":"array"}"#,
            r#"{"type":["object","null"]}"#,
            r##"{"type":"object","properties":{"a":{"$ref":"#/$defs/Nope"}}}"##,
            r#"{"type":"object","properties":{"a":{"$ref":"https://example.com/x.json"}}}"#,
            r#"{"type":"object","properties":{"a":{"type":"str"}}}"#,
            r#"{"type":"object","properties":{"a":{"enum":[]}}}"#,
            r#"{"type":"object","properties":{"a":{"minimum":"5"}}}"#,
            r#"{"$schema":"http://json-schema.org/draft-04/schema#","type":"object","properties":{"a":{"minimum":0,"exclusiveMinimum":true}}}"#,
            r#"{"type":"object","properties":{"a":{"nullable":true}}}"#,
            r#"{"type":"object","properties":{"a":{"pattern":"["}}}"#,
            r#"{"type":"object","properties":{"a":{"pattern":"^[\\w-.]+$"}}}"#,
            r#"{"type":"object","properties":{"a":{"pattern":"(?P<y>a)"}}}"#,
            r#"{"type":"object","properties":{"a":{"pattern":"^https\\:"}}}"#,
            r#"{"type":"object","properties":{"a":{"$id":"x"}}}"#,
            r#"{"type":"object","id":"x"}"#,
            r#"{"type":"object","patternProperties":{"(":{}}}"#,
        ] {
            let text = format!(
                r#"{{"name":"t","inputSchema":{{"type":"object"}},"outputSchema":{broken}}}"#
            );
            let (item, mended) = tool(&text);
            assert!(item.get("outputSchema").is_none(), "{broken}");
            assert_eq!(mended.len(), 1, "{broken}");
        }
        for (said, shown) in [
            (
                r##"{"$ref":"#/$defs/A","$defs":{"A":{"type":"object"}}}"##,
                json!({"type": "object", "$ref": "#/$defs/A", "$defs": {"A": {"type": "object"}}}),
            ),
            (
                r#"{"$id":"https://x/y","type":"object","required":null}"#,
                json!({"type": "object"}),
            ),
        ] {
            let text = format!(
                r#"{{"name":"t","inputSchema":{{"type":"object"}},"outputSchema":{said}}}"#
            );
            assert_eq!(tool(&text).0["outputSchema"], shown, "{said}");
        }
    }

    #[test]
    fn prompts_and_resources_are_mended_or_left_out() {
        let (found, listed) = others(
            "prompts",
            r#"[{"name":"p","title":null,"arguments":null},{"description":"x"},5,null,{"name":5},
            {"name":"q","arguments":[{"name":"a","description":null,"required":"yes"},{"x":1},7]},{"name":"p","title":"again"}]"#,
        );
        assert_eq!(
            found,
            [
                json!({"name": "p"}),
                json!({"name": "q", "arguments": [{"name": "a"}]})
            ]
        );
        assert_eq!(
            (listed.mended.first.len(), listed.left_out.first.len()),
            (2, 5)
        );
        let (found, listed) = others(
            "resources",
            r#"[{"uri":"x:1","size":"5 KB","mimeType":null,"annotations":null},{"name":"no uri"},
            {"uri":"x:2","name":"r","size":1.5,"annotations":{"audience":["user","bot"],"priority":7,"lastModified":"yesterday"}}]"#,
        );
        assert_eq!(
            found,
            [
                json!({"name": "x:1", "uri": "x:1"}),
                json!({"uri": "x:2", "name": "r", "annotations": {"audience": ["user"]}})
            ]
        );
        assert_eq!(listed.left_out.first, ["a resource without \"uri\""]);
        let (found, _) = others(
            "templates",
            r#"[{"uriTemplate":"x:{a}","description":{}},{"uri":"x"}]"#,
        );
        assert_eq!(found, [json!({"name": "x:{a}", "uriTemplate": "x:{a}"})]);
    }

    #[test]
    fn completions_are_texts_and_no_more_than_a_client_takes() {
        let many: Vec<String> = (0..150).map(|n| format!("\"{n}\"")).collect();
        for (said, values) in [
            (
                r#"{"completion":{"values":["a",null,5,"b"],"total":"x","hasMore":null}}"#
                    .to_owned(),
                2,
            ),
            (
                format!(r#"{{"completion":{{"values":[{}]}}}}"#, many.join(",")),
                100,
            ),
            (r#"{"completion":null}"#.to_owned(), 0),
            ("{}".to_owned(), 0),
        ] {
            let shown: Value = completion(&raw(&said)).read().unwrap();
            let shown = shown["completion"].as_object().unwrap();
            assert_eq!(shown["values"].as_array().unwrap().len(), values, "{said}");
            assert!(!shown.contains_key("total") && !shown.contains_key("hasMore"));
        }
        let sound = r#"{"completion":{ "values":["a"],"total":1 },"x":1.0}"#;
        assert_eq!(completion(&raw(sound)).as_str(), sound);
    }

    #[test]
    fn warnings_say_what_and_where_and_are_few() {
        let many: Vec<String> = (0..1000).map(|n| format!(r#"{{"x":{n}}}"#)).collect();
        let (_, listed) = others("prompts", &format!("[{}]", many.join(",")));
        let zoo = "zoo".parse().unwrap();
        let warnings = listed.warnings(&zoo);
        let warning = warnings.collect::<Vec<_>>().join("\n");
        assert!(
            warning.contains("'zoo'") && warning.contains("and 995 more"),
            "{warning}"
        );
    }
}
