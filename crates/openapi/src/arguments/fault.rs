//! The errors of arguments, in the format of mcpo (pydantic).

use std::fmt::Display;

use jsonschema::error::{TypeKind, ValidationErrorKind as Kind};
use serde::Serialize;
use serde_json::Value;

use super::{
    meter::Step,
    unions::{Objection, SHOWN, Union, Unions, shorten},
};

/// Maximum number of faults in one answer: a model needs only the first few.
const FAULTS: usize = 20;
/// The text for a value that matches no branch, or whose errors take too much work to find.
const NO_FORM: &str = "Input matches none of the allowed forms";

/// One entry of a 422 answer's `detail`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FieldFault {
    /// A kind for programs: `missing`, `int_type`, `enum` …
    pub r#type: String,
    /// `"body"`, then keys and indexes down to the field.
    pub loc: Vec<Value>,
    /// The message for users and models.
    pub msg: String,
    /// The value as it was sent; of a large one its first 300 bytes, as text.
    pub input: Value,
}

impl FieldFault {
    /// The body is not valid JSON, or ambiguous: a duplicate key, a number out of range, too deep.
    pub(super) fn unreadable(error: &serde_json::Error) -> Self {
        Self::of_body("json_invalid", shorten(&error.to_string()))
    }

    /// A fault of the body as a whole.
    pub(super) fn of_body(kind: &str, msg: impl Into<String>) -> Self {
        Self::new(kind, &[], msg.into(), &Value::Null)
    }

    /// Finding the location of the faults would take too much work.
    pub(super) fn unexplained() -> Self {
        Self::of_body("union", NO_FORM)
    }

    pub(super) fn new(kind: &str, location: &[Step], msg: String, input: &Value) -> Self {
        let steps = location.iter().map(|step| match step {
            Step::Key(key) => shorten(key).into(),
            Step::Index(index) => (*index).into(),
        });
        Self {
            r#type: kind.into(),
            loc: std::iter::once("body".into()).chain(steps).collect(),
            msg,
            input: excerpt(input),
        }
    }
}

/// The faults for these errors, without duplicates.
pub fn list(objections: &[Objection<'_>], unions: &Unions) -> Vec<FieldFault> {
    let mut faults = Vec::new();
    for objection in objections {
        collect(objection, unions, &mut faults);
    }
    faults
}

fn collect(objection: &Objection<'_>, unions: &Unions, faults: &mut Vec<FieldFault>) {
    if faults.len() >= FAULTS {
        return;
    }
    let (location, input) = (&objection.location, objection.value);
    match &objection.kind {
        Kind::BacktrackLimitExceeded { .. } | Kind::RegexEngineFailure { .. } => return,
        Kind::AdditionalProperties { unexpected } | Kind::UnevaluatedProperties { unexpected } => {
            let text = "Extra inputs are not permitted";
            for name in unexpected {
                let (input, location) = (&input[name], below(location, name));
                let fault = FieldFault::new("extra_forbidden", &location, text.into(), input);
                add(faults, fault);
            }
            return;
        }
        Kind::Required { property } => {
            let location = below(location, property.as_str().unwrap_or_default());
            let fault = FieldFault::new("missing", &location, "Field required".into(), input);
            return add(faults, fault);
        }
        _ => {}
    }
    let (kind, msg) = match objection.union() {
        None => words(objection),
        Some(Union::Several) => (
            "oneOf".into(),
            "Input matches more than one of the allowed forms, but should match exactly one".into(),
        ),
        Some(union) => {
            let context = unions.context(union, objection);
            if let Some(meant) = meant_variant(objection, &context) {
                return meant
                    .iter()
                    .for_each(|inner| collect(inner, unions, faults));
            }
            let expected = expected_types(objection, &context).join(" or ");
            let msg = match &*expected {
                "" => NO_FORM.into(),
                expected => format!("Input should be {expected}"),
            };
            ("union".into(), msg)
        }
    };
    add(faults, FieldFault::new(&kind, location, msg, input));
}

/// The location of a member of the value at `location`.
pub fn below(location: &[Step], name: &str) -> Vec<Step> {
    let inner = Step::Key(name.to_owned());
    location.iter().cloned().chain([inner]).collect()
}

fn add(faults: &mut Vec<FieldFault>, fault: FieldFault) {
    if faults.len() < FAULTS && !faults.contains(&fault) {
        faults.push(fault);
    }
}

/// The only variant whose type matches the value, or, of several, the one whose constants match, such as
/// the `type` of a block: its errors are more specific than that no branch matches.
fn meant_variant<'c, 'v>(
    objection: &Objection<'_>,
    context: &'c [Vec<Objection<'v>>],
) -> Option<&'c [Objection<'v>]> {
    let location = &objection.location;
    let other_type = |inner: &Objection<'_>| {
        matches!(inner.kind, Kind::Type { .. }) && inner.location == *location
    };
    let other_constant = |inner: &Objection<'_>| {
        let constant = matches!(inner.kind, Kind::Constant { .. } | Kind::Enum { .. });
        constant && inner.location.len() == location.len() + 1
    };
    let mut fitting: Vec<_> = context.iter().collect();
    fitting.retain(|branch| !branch.iter().any(other_type));
    if fitting.len() > 1 {
        fitting.retain(|branch| !branch.iter().any(other_constant));
    }
    match *fitting {
        [only] => Some(only),
        _ => None,
    }
}

/// The kind and message of pydantic, or else of the validator.
fn words(objection: &Objection<'_>) -> (String, String) {
    let should_be = |what: &str, value: &dyn Display| format!("Input should be {what}{value}");
    let at = |of: &str, bound: &str, limit: &u64, what: &str| {
        format!("{of} should have at {bound} {limit} {what}")
    };
    let (kind, msg) = match &objection.kind {
        Kind::Type { kind } => return type_words(kind),
        // The validator's own text contains the schema with the counting keyword.
        Kind::Not { .. } => ("not", "Input matches a form that is not allowed".into()),
        Kind::Enum { options } => ("enum", should_be("one of ", &shorten(&options.to_string()))),
        Kind::Constant { expected_value } => (
            "literal_error",
            should_be("", &shorten(&expected_value.to_string())),
        ),
        Kind::Pattern { pattern } => (
            "string_pattern_mismatch",
            format!("String should match pattern '{}'", shorten(pattern)),
        ),
        Kind::Minimum { limit } => (
            "greater_than_equal",
            should_be("greater than or equal to ", limit),
        ),
        Kind::Maximum { limit } => (
            "less_than_equal",
            should_be("less than or equal to ", limit),
        ),
        Kind::ExclusiveMinimum { limit } => ("greater_than", should_be("greater than ", limit)),
        Kind::ExclusiveMaximum { limit } => ("less_than", should_be("less than ", limit)),
        Kind::MinLength { limit } => (
            "string_too_short",
            at("String", "least", limit, "characters"),
        ),
        Kind::MaxLength { limit } => ("string_too_long", at("String", "most", limit, "characters")),
        Kind::MinItems { limit } => ("too_short", at("List", "least", limit, "items")),
        Kind::MaxItems { limit } => ("too_long", at("List", "most", limit, "items")),
        _ => return objection.words.clone(),
    };
    (kind.into(), msg)
}

fn type_words(kind: &TypeKind) -> (String, String) {
    let names: Vec<&str> = match kind {
        TypeKind::Single(one) => vec![one.as_str()],
        TypeKind::Multiple(set) => set.iter().map(jsonschema::JsonType::as_str).collect(),
    };
    let kind = match *names {
        ["string"] => "string_type",
        ["integer"] => "int_type",
        ["number"] => "float_type",
        ["boolean"] => "bool_type",
        ["array"] => "list_type",
        ["object"] => "dict_type",
        ["null"] => "none_required",
        _ => "type",
    };
    let phrase = |name: &&str| match *name {
        "null" => "null".into(),
        "integer" | "array" | "object" => format!("an {name}"),
        _ => format!("a {name}"),
    };
    let phrases: Vec<String> = names.iter().map(phrase).collect();
    let msg = format!("Input should be {}", phrases.join(" or "));
    (kind.into(), msg)
}

fn expected_types(objection: &Objection<'_>, context: &[Vec<Objection<'_>>]) -> Vec<String> {
    let mut expected: Vec<String> = Vec::new();
    for inner in context.iter().flatten() {
        let Kind::Type { kind } = &inner.kind else {
            continue;
        };
        let (_, sentence) = type_words(kind);
        let types = sentence.trim_start_matches("Input should be ").to_owned();
        if inner.location == objection.location && !expected.contains(&types) {
            expected.push(types);
        }
    }
    expected
}

/// The value itself if it is small, or else the beginning of its text.
fn excerpt(value: &Value) -> Value {
    let mut left = SHOWN;
    if small(value, &mut left) {
        return value.clone();
    }
    match value {
        Value::String(text) => shorten(text).into(),
        Value::Array(items) => format!("a list of {} items", items.len()).into(),
        Value::Object(members) => {
            let names: Vec<&str> = members.keys().map(String::as_str).collect();
            shorten(&format!("an object with {}", names.join(", "))).into()
        }
        _ => value.clone(),
    }
}

fn small(value: &Value, left: &mut usize) -> bool {
    let mut spend = |cost: usize| {
        let rest = left.checked_sub(cost);
        *left = rest.unwrap_or(*left);
        rest.is_some()
    };
    match value {
        Value::String(text) => spend(text.len() + 2),
        Value::Array(items) => spend(2) && items.iter().all(|item| small(item, left)),
        Value::Object(members) => {
            let keys: usize = members.keys().map(|key| key.len() + 4).sum();
            spend(keys + 2) && members.values().all(|item| small(item, left))
        }
        _ => spend(4),
    }
}
