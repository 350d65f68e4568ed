//! What a call's body must be: the tool's own schema decides, and what passes goes on as sent.
//!
//! Small models send `"5"` for 5 and `null` for "nothing". Only where validation fails, and only
//! at the failing places, such values are exchanged for what they exactly mean.

mod edits;
mod fault;
mod fixes;
mod soundness;
mod strict;

#[cfg(test)]
mod tests;

use bytes::Bytes;
use jsonschema::Validator;
use serde_json::Value;

pub use fault::FieldFault;

use self::{edits::Edits, fixes::Fixes};
use super::schema::deeper_than;
use crate::model::RawJson;

/// Corrections may uncover more: a variant is chosen, then its members are looked at.
const ROUNDS: usize = 4;

/// Levels of a body that is held against a schema; see `soundness` for why.
const BODY_DEPTH: usize = 64;

/// The compiled schema of one tool's arguments.
pub struct ArgumentRules {
    validator: Option<Validator>,
    warning: Option<String>,
}

/// Reads a request body as JSON; no body, or one of white space, is an empty object.
pub fn read_body(body: Bytes) -> Result<RawJson, serde_json::Error> {
    if body.iter().all(u8::is_ascii_whitespace) {
        return RawJson::parse(Bytes::from_static(b"{}"));
    }
    RawJson::parse(body)
}

impl ArgumentRules {
    /// Compiles an `inputSchema`, without fetching anything. A schema that cannot be used checks
    /// nothing but that the body is an object; `warning` then says why.
    pub fn compile(schema: &Value) -> Self {
        match compile(schema) {
            Ok(validator) => Self {
                validator: Some(validator),
                warning: None,
            },
            Err(reason) => Self {
                validator: None,
                warning: Some(format!("arguments are not validated: {reason}")),
            },
        }
    }

    /// Why arguments are passed on unchecked, if they are although there is a schema.
    pub fn warning(&self) -> Option<&str> {
        self.warning.as_deref()
    }

    /// The arguments to send: the very bytes of `body` where they are valid, else with exact
    /// corrections at the failing places. `null` counts as `{}`. At most 20 faults.
    pub fn check(&self, body: &RawJson) -> Result<RawJson, Vec<FieldFault>> {
        let value = strict::parse(body).map_err(|error| vec![FieldFault::unreadable(&error)])?;
        if value.is_null() {
            let empty = RawJson::parse(Bytes::from_static(b"{}"));
            return self.check(&empty.expect("an empty object is JSON"));
        }
        if !value.is_object() {
            return Err(vec![FieldFault::not_an_object(&value)]);
        }
        match &self.validator {
            Some(_) if brackets(body) > BODY_DEPTH && deeper_than(&value, BODY_DEPTH) => {
                Err(vec![FieldFault::too_deep(BODY_DEPTH)])
            }
            Some(validator) if !validator.is_valid(&value) => correct(validator, value, body),
            _ => Ok(body.clone()),
        }
    }
}

/// At least as many as the value has levels.
fn brackets(body: &RawJson) -> usize {
    let bytes = body.as_bytes().iter();
    bytes.filter(|byte| matches!(byte, b'[' | b'{')).count()
}

fn compile(schema: &Value) -> Result<Validator, String> {
    // A tool without a schema takes what it gets.
    let schema = if schema.is_null() {
        &Value::Bool(true)
    } else {
        schema
    };
    let takes_objects = match schema.get("type") {
        Some(Value::String(one)) => one == "object",
        Some(Value::Array(several)) => several.contains(&"object".into()),
        _ => true,
    };
    if !takes_objects {
        return Err("inputSchema does not ask for an object".into());
    }
    soundness::check(schema)?;
    jsonschema::options()
        .offline()
        .should_validate_formats(false)
        .build(schema)
        .map_err(|error| {
            let reason: String = error.masked_with("a part of it").to_string();
            format!("inputSchema cannot be used: {}", fault::shorten(&reason))
        })
}

fn correct(
    validator: &Validator,
    mut value: Value,
    body: &RawJson,
) -> Result<RawJson, Vec<FieldFault>> {
    let mut edits = Edits::default();
    for _ in 0..ROUNDS {
        let mut fixes = Fixes::default();
        for error in validator.iter_errors(&value) {
            fixes.propose(&error, &value);
        }
        if fixes.is_empty() {
            break;
        }
        edits.add(fixes, &mut value);
        if validator.is_valid(&value) {
            return edits
                .write(body)
                .map_err(|error| vec![FieldFault::unreadable(&error)]);
        }
    }
    let faults = fault::list(validator.iter_errors(&value), &value);
    // Patterns that run out of their budget say nothing about the value.
    if faults.is_empty() {
        return edits
            .write(body)
            .map_err(|error| vec![FieldFault::unreadable(&error)]);
    }
    Err(faults)
}
