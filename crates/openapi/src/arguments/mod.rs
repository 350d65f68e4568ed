//! Validation of a call's arguments against the tool's own schema; valid ones are passed on unchanged.
//!
//! Small models send `"5"` for 5 and `null` for an omitted value. If validation fails, and only at the
//! failing places, such values are replaced by their exact meaning.

mod fault;
mod fixes;
mod meter;
mod soundness;
#[cfg(test)]
mod tests;
mod unions;

use std::{
    fmt,
    sync::{Arc, OnceLock},
};

use bridge_protocol::{RawJson, utf8};
use bytes::Bytes;
use fixes::{Edits, Fixes, Search};
use jsonschema::Validator;
use meter::metered;
use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};
use unions::Unions;

use crate::schema::{deeper_than, request_schema_of};

pub use fault::FieldFault;
pub use meter::{Patience, SCHEMA_MAPS, Stopped};

/// Maximum number of correction rounds. A correction may reveal more errors: a variant is chosen, then its
/// members are checked.
const ROUNDS: usize = 4;

/// Maximum nesting of a body that is validated against a schema; see `soundness` for the reason.
const BODY_DEPTH: usize = 64;

/// The length, in bytes, of a body that may be checked with [`Effort::brief`].
pub const BRIEF_BYTES: usize = 64 * 1024;

/// Work limit of such a check: some milliseconds.
const BRIEF_WORK: u64 = 20_000;

/// Work limit of deciding whether a value is valid: some seconds. The largest body with an ordinary
/// schema takes a tenth.
const DECIDING: u64 = 50_000_000;

/// Work limit of a correction or an explanation, which also takes memory for each error.
const EXPLAINING: u64 = 600_000;

/// The limits of a check.
#[derive(Debug, Clone)]
pub struct Effort {
    /// The check runs on a thread that serves other requests, too.
    brief: bool,
    deciding: u64,
    explaining: u64,
    patience: Patience,
}

impl Effort {
    /// The limits on a thread that serves other requests, too.
    pub fn brief() -> Self {
        Self {
            brief: true,
            deciding: BRIEF_WORK,
            explaining: BRIEF_WORK,
            patience: Patience::default(),
        }
    }

    /// The limits of a check on a separate thread.
    pub fn whole(patience: Patience) -> Self {
        Self {
            brief: false,
            deciding: DECIDING,
            explaining: EXPLAINING,
            patience,
        }
    }

    fn decide(&self, check: impl FnOnce() -> bool) -> Result<Option<bool>, ArgumentsError> {
        self.run(self.deciding, check)
    }

    fn explain<T>(&self, check: impl FnOnce() -> T) -> Result<Option<T>, ArgumentsError> {
        self.run(self.explaining, check)
    }

    /// `None` if this part of the check takes too much work, but the check continues.
    fn run<T>(&self, work: u64, check: impl FnOnce() -> T) -> Result<Option<T>, ArgumentsError> {
        match metered(work, &self.patience, check) {
            Ok(outcome) => Ok(Some(outcome)),
            Err(Stopped::Work) if !self.brief => Ok(None),
            Err(stopped) => Err(ArgumentsError::Stopped(stopped)),
        }
    }
}

/// Why arguments are rejected.
#[derive(Debug, Clone, PartialEq)]
pub enum ArgumentsError {
    /// These fields are invalid.
    Faults(Vec<FieldFault>),
    /// There is no outcome: a brief check must be repeated as a whole one, or the caller has disconnected.
    Stopped(Stopped),
}

/// The compiled schema of one tool's arguments.
pub struct ArgumentRules {
    checker: Option<Checker>,
    warning: Option<String>,
}

struct Checker {
    validator: Validator,
    /// The schema with the counting keyword, and the number of its subschemas.
    counted: (Value, usize),
    unions: OnceLock<Option<Arc<Unions>>>,
}

/// Reads a request body as JSON; an empty body, or one of white space, is an empty object.
pub fn read_body(body: Bytes) -> Result<RawJson, serde_json::Error> {
    let body = utf8(body);
    if body.iter().all(u8::is_ascii_whitespace) {
        return RawJson::parse(Bytes::from_static(b"{}"));
    }
    RawJson::parse(body)
}

impl ArgumentRules {
    /// Compiles an `inputSchema`, without network access. If the schema is unusable, its version in the
    /// document is used; if that one is unusable too, the only check is that the body is an
    /// object. `warning` then contains the reason.
    pub fn compile(schema: &Value) -> Self {
        let (checker, warning) = match Checker::compile(schema) {
            Ok(checker) => (Some(checker), None),
            Err(reason) => {
                let checker = Checker::compile(&request_schema_of(schema).schema).ok();
                let what = match checker {
                    Some(_) => "validated only against the schema in the OpenAPI document",
                    None => "not validated",
                };
                (checker, Some(format!("arguments are {what}: {reason}")))
            }
        };
        Self { checker, warning }
    }
    /// Why arguments are not validated against the schema, if they are not.
    pub fn warning(&self) -> Option<&str> {
        self.warning.as_deref()
    }

    /// The arguments to send: the bytes of `body` unchanged if they are valid, otherwise with exact
    /// corrections at the failing places. `null` counts as `{}`. At most 20 faults.
    pub fn check(&self, body: &RawJson, effort: &Effort) -> Result<RawJson, ArgumentsError> {
        let fault = |fault| ArgumentsError::Faults(vec![fault]);
        let value = parse_strictly(body).map_err(|error| fault(FieldFault::unreadable(&error)))?;
        if value.is_null() {
            return self.check(&RawJson::empty_object(), effort);
        }
        if !value.is_object() {
            let text = "Input should be a JSON object".into();
            return Err(fault(FieldFault::new("dict_type", &[], text, &value)));
        }
        let Some(checker) = &self.checker else {
            return Ok(body.clone());
        };
        if brackets(body) > BODY_DEPTH && deeper_than(&value, BODY_DEPTH) {
            let text = format!("Arguments should nest at most {BODY_DEPTH} levels");
            return Err(fault(FieldFault::of_body("too_deep", text)));
        }
        match effort.decide(|| checker.validator.is_valid(&value))? {
            Some(true) => Ok(body.clone()),
            Some(false) => checker.correct_or_explain(value, body, effort),
            None => {
                let text = "Arguments are too complex to be validated against this tool's schema: \
                            send fewer values in one call";
                Err(fault(FieldFault::of_body("too_complex", text)))
            }
        }
    }
}

/// An upper bound of the value's nesting.
fn brackets(body: &RawJson) -> usize {
    let bytes = body.as_bytes().iter();
    bytes.filter(|byte| matches!(byte, b'[' | b'{')).count()
}

impl Checker {
    fn compile(schema: &Value) -> Result<Self, String> {
        // A tool without a schema accepts any arguments.
        let schema = match schema {
            Value::Null => &Value::Bool(true),
            schema => schema,
        };
        let takes_objects = match schema.get("type") {
            Some(Value::String(one)) => one == "object",
            Some(Value::Array(several)) => several.contains(&"object".into()),
            _ => true,
        };
        if !takes_objects {
            return Err("inputSchema does not describe an object".into());
        }
        soundness::check(schema)?;
        let counted = meter::counted(schema);
        let validator = unions::options().build(&counted.0).map_err(|error| {
            let reason: String = error.masked_with("a part of it").to_string();
            format!("invalid inputSchema: {}", unions::shorten(&reason))
        })?;
        Ok(Self {
            validator,
            counted,
            unions: OnceLock::new(),
        })
    }

    fn correct_or_explain(
        &self,
        value: Value,
        body: &RawJson,
        effort: &Effort,
    ) -> Result<RawJson, ArgumentsError> {
        let unions = || Unions::new(&self.counted.0, self.counted.1);
        let Some(unions) = self.unions.get_or_init(unions) else {
            return Err(ArgumentsError::Faults(vec![FieldFault::unexplained()]));
        };
        let (mut now, mut edits) = (value, Edits::default());
        let written = |edits: &Edits| {
            let written = edits.write(body);
            written.map_err(|error| ArgumentsError::Faults(vec![FieldFault::unreadable(&error)]))
        };
        for _ in 0..ROUNDS {
            if effort.explain(|| correct(&mut now, &mut edits, unions))? != Some(true) {
                break;
            }
            match effort.decide(|| self.validator.is_valid(&now))? {
                Some(true) => return written(&edits),
                Some(false) => {}
                None => break,
            }
        }
        let explained = effort.explain(|| {
            let objections = unions.objections(&now)?;
            Some(fault::list(&objections, unions))
        })?;
        match explained.flatten() {
            // A pattern that exceeds its limit does not show that the value is invalid.
            Some(faults) if faults.is_empty() => written(&edits),
            Some(faults) => Err(ArgumentsError::Faults(faults)),
            None => Err(ArgumentsError::Faults(vec![FieldFault::unexplained()])),
        }
    }
}

/// Applies the corrections that may make the value valid; false if there are none.
fn correct(value: &mut Value, edits: &mut Edits, unions: &Unions) -> bool {
    let (mut fixes, mut search) = (Fixes::default(), Search::new(unions));
    for objection in unions.objections(value).iter().flatten() {
        search.propose(objection, &mut fixes);
    }
    if fixes.is_empty() {
        return false;
    }
    edits.add(fixes, value);
    !deeper_than(value, BODY_DEPTH)
}

// JSON without duplicate keys: two parsers could use different ones of them.

/// Parses the whole body, and checks every level, since the schema is checked at every level.
fn parse_strictly(body: &RawJson) -> Result<Value, serde_json::Error> {
    body.read::<Strict>().map(|strict| strict.0)
}

struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(StrictVisitor).map(Self)
    }
}

struct StrictVisitor;

impl<'de> Visitor<'de> for StrictVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut from: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(Strict(item)) = from.next_element()? {
            items.push(item);
        }
        Ok(items.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut from: A) -> Result<Value, A::Error> {
        let mut members = Map::new();
        while let Some(key) = from.next_key::<String>()? {
            if members.contains_key(&key) {
                let shown: String = key.chars().take(64).collect();
                return Err(A::Error::custom(format!(
                    "duplicate key {shown:?} in an object"
                )));
            }
            let Strict(value) = from.next_value()?;
            members.insert(key, value);
        }
        Ok(members.into())
    }
}
