//! The lists of a server, corrected for strict MCP clients, which reject a whole list for one member of
//! the wrong type. At `/mcp`, which joins the lists of all servers, such a member is corrected or left out;
//! valid ones keep their bytes. `/mcp/{server}` passes on the server's lists unchanged, and warnings say
//! what a strict client rejects there.
//!
//! The rules are those of the official clients: the zod schemas of `@modelcontextprotocol/sdk`
//! (`types.js`) and the models of Python's `mcp.types`.

use std::{
    collections::{HashMap, HashSet},
    fmt::Write as _,
    sync::LazyLock,
};

use bridge_model::ServerName;
use bridge_openapi::SCHEMA_MAPS;
use bridge_protocol::{Member, RawJson, Tool};
use regex::Regex;
use serde_json::Value;

/// Number of errors quoted in a warning.
const NAMED: usize = 5;

/// Maximum length, in characters, of a name in a warning.
const QUOTED: usize = 60;

/// An item of a list.
pub struct Item {
    /// Its name or URI, as spelled by the server.
    pub own: Box<str>,
    /// The item, corrected for clients.
    pub raw: RawJson,
}

/// The part of one server in the joined lists.
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

/// The first errors, and the number of others.
#[derive(Default)]
pub struct Faults {
    first: Vec<String>,
    more: usize,
}

impl Faults {
    /// Adds an error.
    pub fn push(&mut self, fault: String) {
        if self.first.len() < NAMED {
            self.first.push(fault);
        } else {
            self.more += 1;
        }
    }

    /// All errors in one text; `None` if there are none.
    pub fn text(&self) -> Option<String> {
        let mut text = self.first.join("; ");
        if self.more > 0 {
            let _ = write!(text, "; and {} more", self.more);
        }
        (!text.is_empty()).then_some(text)
    }
}

impl Listed {
    /// Corrects the lists of a server; `tools` are those that the config offers.
    pub fn inspect<'a>(
        tools: impl Iterator<Item = &'a Tool>,
        prompts: &[RawJson],
        resources: &[RawJson],
        templates: &[RawJson],
    ) -> Self {
        let mut listed = Self::default();
        let tools = tools.map(|tool| &tool.raw);
        listed.tools = listed.list("tool", tools, "name", Shape::Tool);
        listed.prompts = listed.list("prompt", prompts, "name", Shape::Prompt);
        listed.resources = listed.list("resource", resources, "uri", Shape::Resource);
        let (kind, key) = ("resource template", "uriTemplate");
        listed.templates = listed.list(kind, templates, key, Shape::Template);
        listed
    }

    fn list<'a>(
        &mut self,
        kind: &str,
        said: impl IntoIterator<Item = &'a RawJson>,
        key: &str,
        shape: Shape,
    ) -> Vec<Item> {
        let (mut kept, mut known) = (Vec::new(), HashSet::new());
        for raw in said {
            let Some(item) = self.item(kind, raw, key, shape) else {
                continue;
            };
            // If two items have one name, a request can only reach the first.
            if known.insert(item.own.clone()) {
                kept.push(item);
            } else {
                let name = quoted(&item.own);
                self.left_out.push(format!("duplicate {kind} {name}"));
            }
        }
        kept
    }

    /// Checks one item; returns `None` if it has no name or URI.
    fn item(&mut self, kind: &str, raw: &RawJson, key: &str, shape: Shape) -> Option<Item> {
        let mut faults = Vec::new();
        let shaped = shaped(raw, shape, &mut faults);
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
        // Every tool must have a schema.
        if matches!(shape, Shape::Tool) && raw.member("inputSchema").is_none() {
            let faults = ["inputSchema is missing or is not an object schema".to_owned()];
            self.note(kind, &own, &faults);
            raw = raw.with_member("inputSchema", &any_object());
        }
        Some(Item { own, raw })
    }

    fn note(&mut self, kind: &str, own: &str, faults: &[String]) {
        if !faults.is_empty() {
            let (name, faults) = (quoted(own), faults.join(", "));
            self.mended.push(format!("{kind} {name}: {faults}"));
        }
    }

    /// Warnings for the administrator.
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

// The rules for the members of each object. Other members are kept, because clients ignore them.

/// A type of object in the lists or in their items.
#[derive(Clone, Copy)]
enum Shape {
    /// An item of `tools/list`.
    Tool,
    /// An item of `prompts/list`.
    Prompt,
    /// An item of `resources/list`.
    Resource,
    /// An item of `resources/templates/list`.
    Template,
    /// The result of `completion/complete`.
    Completion,
    /// An argument of a prompt.
    Argument,
    Icon,
    /// The `annotations` of a tool.
    Hints,
    /// The `execution` of a tool.
    Execution,
    /// The `annotations` of a resource or a template.
    Annotations,
    /// A schema of a tool.
    ObjectSchema,
}

type Rule = fn(&RawJson) -> Fit;

/// The rule for a member, if any.
fn rule(shape: Shape, member: &str) -> Option<Rule> {
    use Shape::{
        Annotations, Argument, Completion, Execution, Hints, Icon, ObjectSchema, Prompt, Resource,
        Template, Tool,
    };
    let rule: Rule = match (shape, member) {
        (Tool | Prompt | Resource | Template | Argument, "name" | "title" | "description")
        | (Resource, "uri")
        | (Template, "uriTemplate")
        | (Resource | Template | Icon, "mimeType")
        | (Icon, "src")
        | (Hints, "title") => string,
        (Tool | Prompt | Resource | Template, "_meta") => object,
        (Tool | Prompt | Resource | Template, "icons") => {
            |raw| each(raw, |icon| with(icon, Icon, "src"))
        }
        (Tool, "inputSchema") => input_schema,
        (Tool, "outputSchema") => output_schema,
        (Tool, "annotations") => |raw| nested(raw, Hints),
        (Tool, "execution") => |raw| nested(raw, Execution),
        (Prompt, "arguments") => |raw| each(raw, |argument| with(argument, Argument, "name")),
        (Resource | Template, "annotations") => |raw| nested(raw, Annotations),
        (Resource, "size") | (Completion, "total") => size,
        (Completion, "values") => values,
        (Completion, "hasMore")
        | (Argument, "required")
        | (Hints, "readOnlyHint" | "destructiveHint" | "idempotentHint" | "openWorldHint") => {
            boolean
        }
        (Icon, "sizes") => sizes,
        (Icon, "theme") => |raw| one_of(raw, &["light", "dark"]),
        (Execution, "taskSupport") => |raw| one_of(raw, &["required", "optional", "forbidden"]),
        (Annotations, "audience") => audience,
        (Annotations, "priority") => priority,
        (Annotations, "lastModified") => moment,
        (ObjectSchema, "type") => object_type,
        (ObjectSchema, "properties") => properties,
        (ObjectSchema, "required") => strings,
        _ => return None,
    };
    Some(rule)
}

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

/// A size in bytes: Python's client accepts no fractions.
fn size(raw: &RawJson) -> Fit {
    fits_if(number(raw).is_some_and(|size| size.fract() == 0.0), raw)
}

fn priority(raw: &RawJson) -> Fit {
    let fits = number(raw).is_some_and(|priority| (0.0..=1.0).contains(&priority));
    fits_if(fits, raw)
}

/// A timestamp in ISO 8601, with seconds and an offset.
fn moment(raw: &RawJson) -> Fit {
    static SHAPE: LazyLock<Regex> = LazyLock::new(|| {
        let shape = r"^[0-9-]{10}T[0-9:.]{8,}(Z|[+-][0-9]{2}:[0-9]{2})$";
        Regex::new(shape).expect("a constant pattern")
    });
    let text: String = raw.read().unwrap_or_default();
    let fits = SHAPE.is_match(&text) && text.parse::<jiff::Timestamp>().is_ok();
    fits_if(fits, raw)
}

fn audience(raw: &RawJson) -> Fit {
    each(raw, |role| match one_of(role, &["user", "assistant"]) {
        Fit::Fits => Some(role.clone()),
        _ => None,
    })
}

fn sizes(raw: &RawJson) -> Fit {
    // In revision 2025-06-18 this was one string.
    if begins_with(raw, b"\"") {
        let list = RawJson::of_elements(std::slice::from_ref(raw));
        return Fit::Instead(list, "is not a list".to_owned());
    }
    strings(raw)
}

fn strings(raw: &RawJson) -> Fit {
    each(raw, |text| begins_with(text, b"\"").then(|| text.clone()))
}

/// The result of `completion/complete`, corrected for clients.
pub fn completion(result: &RawJson) -> RawJson {
    let completion = result.member("completion");
    let shaped = completion.and_then(|raw| shaped(&raw, Shape::Completion, &mut Vec::new()));
    let mut completion = shaped.unwrap_or_else(RawJson::empty_object);
    if completion.member("values").is_none() {
        completion = completion.with_member("values", &RawJson::of_elements(&[]));
    }
    result.with_member("completion", &completion)
}

/// Strings, up to the protocol's limit.
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

/// The object, if it has the required member.
fn with(raw: &RawJson, shape: Shape, needed: &str) -> Option<RawJson> {
    let shaped = shaped(raw, shape, &mut Vec::new())?;
    shaped.member(needed).is_some().then_some(shaped)
}

fn nested(raw: &RawJson, shape: Shape) -> Fit {
    let mut faults = Vec::new();
    match shaped(raw, shape, &mut faults) {
        None => leave(raw),
        Some(_) if faults.is_empty() => Fit::Fits,
        Some(shaped) => Fit::Instead(
            shaped,
            format!("contains invalid parts ({})", faults.join(", ")),
        ),
    }
}

// The two schemas of a tool. Clients require that both describe an object. The TypeScript client also
// compiles each `outputSchema` when it lists tools: if one does not compile, it rejects the whole list.

/// Maximum number of subschemas of an `outputSchema` that are checked.
const PARTS: usize = 10_000;

/// Checks `inputSchema`: if it does not describe an object, it is replaced by one that accepts any object.
fn input_schema(raw: &RawJson) -> Fit {
    let mut faults = Vec::new();
    let Some(schema) = of_object(raw, &mut faults) else {
        return Fit::Instead(any_object(), wrong(raw));
    };
    fit(schema, &faults)
}

/// The schema that accepts any object.
fn any_object() -> RawJson {
    RawJson::from_json(&serde_json::json!({"type": "object"}))
}

/// Checks `outputSchema`, which is optional.
fn output_schema(raw: &RawJson) -> Fit {
    if raw.members().is_none() {
        return leave(raw);
    }
    let kind = raw.member("type").map(|kind| kind.approximate());
    if kind.is_some_and(|kind| kind != "object" && !kind.is_null()) {
        return Fit::Leave("is not an object schema".to_owned());
    }
    let mut faults = Vec::new();
    let Some(mut schema) = of_object(raw, &mut faults) else {
        return leave(raw);
    };
    // If two schemas have one `$id`, a client uses the first for both. Schemas that refer to it are left
    // out below.
    if schema.member("$id").is_some() {
        schema = without(&schema, "$id");
        faults.push("contains $id".to_owned());
    }
    let read = schema.read::<Value>();
    let read = read.map_err(|_| "cannot be read".to_owned());
    match read.and_then(|value| compiles(&value)) {
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

/// The schema with `"type": "object"`, corrected; `None` for a value that is not an object.
fn of_object(raw: &RawJson, faults: &mut Vec<String>) -> Option<RawJson> {
    let shaped = shaped(raw, Shape::ObjectSchema, faults)?;
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

/// Checks that each is an object; `true` and `false` stand for `{}` and `{"not": {}}`.
fn properties(raw: &RawJson) -> Fit {
    let Some(members) = raw.members() else {
        return leave(raw);
    };
    let mut changed = false;
    let as_objects = members.into_iter().map(|mut member| {
        if !begins_with(&member.value, b"{") {
            changed = true;
            member.value = match member.value.as_str() {
                "false" => RawJson::from_json(&serde_json::json!({"not": {}})),
                _ => RawJson::empty_object(),
            };
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

/// Whether the validator of the TypeScript client (Ajv, draft-07 and 2020-12 mixed, schemas unchecked)
/// compiles this. If in doubt, the schema is left out; then clients only do not validate the tool's
/// results.
fn compiles(schema: &Value) -> Result<(), String> {
    let mut plain = schema.clone();
    if let Value::Object(members) = &mut plain {
        // The check below would resolve it, but the client does not.
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

/// Keywords whose value is a schema or a list of schemas.
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

/// The direct subschemas of a schema.
fn below(members: &serde_json::Map<String, Value>) -> impl Iterator<Item = &Value> {
    members.iter().flat_map(|(name, value)| match value {
        Value::Array(several) if SCHEMAS.contains(&&**name) => several.iter().collect(),
        Value::Object(several) if SCHEMA_MAPS.contains(&&**name) => several.values().collect(),
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
            ("pattern", Value::String(pattern)) => check_pattern(pattern)?,
            ("patternProperties", Value::Object(patterns)) => {
                patterns.keys().try_for_each(|it| check_pattern(it))?;
            }
            _ => {}
        }
    }
    Ok(())
}

fn check_pattern(pattern: &str) -> Result<(), String> {
    if is_javascript(pattern) {
        return Ok(());
    }
    let short: String = pattern.chars().take(60).collect();
    Err(format!(
        "has the pattern '{short}', which may be invalid in JavaScript"
    ))
}

/// Whether a pattern is valid in JavaScript, with the flag `u` that Ajv sets. Accepts only the syntax that
/// JavaScript and Rust have in common.
fn is_javascript(pattern: &str) -> bool {
    if Regex::new(pattern).is_err() {
        return false;
    }
    let mut class = false;
    let mut rest = pattern.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            '\\' => match rest.next() {
                Some('d' | 'D' | 'w' | 'W' | 's' | 'S') if class => {
                    // In JavaScript, a range from or to a class is an error.
                    if rest.peek() == Some(&'-') {
                        return false;
                    }
                }
                Some('d' | 'D' | 'w' | 'W' | 's' | 'S' | 't' | 'n' | 'r' | 'f' | 'v') => {}
                Some('b' | 'B') if !class => {}
                Some('-') if class => {}
                Some(c) if "^$\\.*+?()[]{}|/".contains(c) => {}
                _ => return false,
            },
            '[' if class => return false,
            '[' => class = true,
            ']' if class => class = false,
            ']' | '}' => return false,
            '&' | '~' if class && rest.peek() == Some(&c) => return false,
            '-' if class && matches!(rest.peek(), Some('\\' | '-')) => return false,
            '(' if !class && rest.peek() == Some(&'?') => {
                rest.next();
                if rest.next() != Some(':') {
                    return false;
                }
            }
            '{' if !class => {
                let count: String = std::iter::from_fn(|| rest.next_if(|c| *c != '}')).collect();
                let usual = |c: char| c.is_ascii_digit() || c == ',';
                let counts = count.starts_with(|c: char| c.is_ascii_digit());
                if !counts || !count.chars().all(usual) || rest.next() != Some('}') {
                    return false;
                }
            }
            _ => {}
        }
    }
    true
}

// Applies the rules to an object.

/// The result of checking a member.
enum Fit {
    /// The member is kept.
    Fits,
    /// The member is replaced by this value, for this reason.
    Instead(RawJson, String),
    /// The member is left out, for this reason.
    Leave(String),
}

/// The object with its members corrected by their rules; the changes are added to `faults`. `None` for a
/// value that is not an object. A valid object keeps its bytes.
fn shaped(raw: &RawJson, shape: Shape, faults: &mut Vec<String>) -> Option<RawJson> {
    let members = raw.members()?;
    let before = faults.len();
    let names: Vec<Option<String>> = members.iter().map(|it| it.name.read().ok()).collect();
    // If a name occurs twice, readers take the last member.
    let last = names.iter().enumerate();
    let last = last.filter_map(|(place, name)| Some((name.as_deref()?, place)));
    let last: HashMap<&str, usize> = last.collect();
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
        match rule(shape, name).map_or(Fit::Fits, |rule| rule(&value)) {
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

/// The error for a value of the wrong type.
fn wrong(raw: &RawJson) -> String {
    match raw.as_str() {
        "null" => "is null".to_owned(),
        _ => "has the wrong type".to_owned(),
    }
}

/// A list whose elements are corrected or removed by `element`.
fn each(raw: &RawJson, element: impl Fn(&RawJson) -> Option<RawJson>) -> Fit {
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

fn leave(raw: &RawJson) -> Fit {
    Fit::Leave(wrong(raw))
}

// JSON for which some clients reject the whole message: an unpaired surrogate (Python's client), and deep
// nesting (all clients).

/// Maximum nesting depth of an item; clients accept 128 or 200.
const DEPTH: usize = 100;

/// The corrected value and the error; `None` if the text is valid.
fn sound_text(raw: &RawJson) -> Option<(RawJson, &'static str)> {
    if depth(raw.as_bytes()) > DEPTH {
        return Some((RawJson::null(), "is nested too deeply"));
    }
    let whole = raw.with_whole_letters();
    (whole != *raw).then_some((whole, "contains an unpaired surrogate"))
}

/// The nesting depth of valid JSON.
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
