//! Finds the exact correction of a validation error, if there is one.

use std::collections::HashMap;

use bridge_protocol::RawJson;
use bytes::Bytes;
use indexmap::IndexMap;
use jsonschema::{
    JsonType,
    error::{TypeKind, ValidationErrorKind as Kind},
};
use serde_json::{Value, value::RawValue};

use super::{
    fault::below,
    meter::{Step, spend},
    parse_strictly,
    unions::{Objection, Union, Unions},
};

/// The correction of one value.
#[derive(Debug, Clone)]
pub enum Fix {
    Drop,
    /// The JSON text as it was sent, and its value.
    Replace {
        text: Box<str>,
        value: Value,
    },
}

/// Corrections by location; the first one for a location is used.
pub type Fixes = IndexMap<Vec<Step>, Fix>;

/// A keyword with branches, by its schema's JSON pointer, and the location of its error in the value.
type Visit = (String, Vec<Step>);

/// The corrections of an error, if there are any.
type Answered = Option<Vec<(Vec<Step>, Fix)>>;

/// Searches for corrections of one value.
pub struct Search<'e> {
    unions: &'e Unions,
    /// The corrections of each keyword with branches, if there are any: cached, because branches within branches
    /// reach the same locations again and again.
    known: HashMap<Visit, Answered>,
}

fn put(fixes: &mut Fixes, location: Vec<Step>, fix: Fix) -> bool {
    fixes.entry(location).or_insert(fix);
    true
}

impl<'e> Search<'e> {
    pub fn new(unions: &'e Unions) -> Self {
        Self {
            unions,
            known: HashMap::new(),
        }
    }

    /// Adds the corrections of `objection`; false if there is no exact one.
    pub fn propose(&mut self, objection: &Objection<'_>, fixes: &mut Fixes) -> bool {
        spend(1);
        let location = &objection.location;
        if let Kind::AdditionalProperties { unexpected }
        | Kind::UnevaluatedProperties { unexpected } = &objection.kind
        {
            return drop_nulls(objection, unexpected, fixes);
        }
        match objection.value {
            Value::Null if about_the_value(objection) => {
                // A null in a list is an element; only a member can be omitted.
                let member = matches!(location.last(), Some(Step::Key(_)));
                member && put(fixes, location.clone(), Fix::Drop)
            }
            Value::String(text) => match converted(text, &objection.kind) {
                Some(fix) => put(fixes, location.clone(), fix),
                None => self.variant(objection, fixes),
            },
            _ => self.variant(objection, fixes),
        }
    }

    /// Chooses the first variant of which all errors can be corrected.
    fn variant(&mut self, objection: &Objection<'_>, fixes: &mut Fixes) -> bool {
        let Some(union @ Union::None(keyword, schema, _)) = objection.union() else {
            return false;
        };
        let visit = (format!("{schema}/{keyword}"), objection.location.clone());
        let known = if let Some(known) = self.known.get(&visit) {
            known.clone()
        } else {
            let found = self.answer(union, objection);
            self.known.insert(visit, found.clone());
            found
        };
        let found = known.is_some();
        for (location, fix) in known.into_iter().flatten() {
            put(fixes, location, fix);
        }
        found
    }

    fn answer(&mut self, union: Union<'_>, objection: &Objection<'_>) -> Answered {
        for branch in self.unions.context(union, objection) {
            let mut trial = Fixes::default();
            if !branch.is_empty() && branch.iter().all(|inner| self.propose(inner, &mut trial)) {
                return Some(trial.into_iter().collect());
            }
        }
        None
    }
}

fn drop_nulls(objection: &Objection<'_>, names: &[String], fixes: &mut Fixes) -> bool {
    let Value::Object(members) = objection.value else {
        return false;
    };
    let is_null = |name: &&String| members.get(*name) == Some(&Value::Null);
    let mut dropped = 0;
    for name in names.iter().filter(is_null) {
        put(fixes, below(&objection.location, name), Fix::Drop);
        dropped += 1;
    }
    dropped == names.len()
}

fn about_the_value(objection: &Objection<'_>) -> bool {
    matches!(
        objection.kind,
        Kind::Type { .. } | Kind::Enum { .. } | Kind::Constant { .. } | Kind::FalseSchema
    ) || matches!(objection.union(), Some(Union::None(..)))
}

/// The exact value that a string represents, if the schema expects it there.
fn converted(text: &str, kind: &Kind) -> Option<Fix> {
    let (spelled, value) = scalar(text).or_else(|| container(text, kind))?;
    let wanted = match kind {
        Kind::Type { kind } => {
            let asked = |name| match kind {
                TypeKind::Single(one) => *one == name,
                TypeKind::Multiple(set) => set.contains(name),
            };
            match &value {
                Value::Bool(_) => asked(JsonType::Boolean),
                Value::Number(number) => {
                    asked(JsonType::Number) || (asked(JsonType::Integer) && !number.is_f64())
                }
                Value::Array(_) => asked(JsonType::Array),
                Value::Object(_) => asked(JsonType::Object),
                _ => false,
            }
        }
        Kind::Enum { options } => options
            .as_array()
            .is_some_and(|options| options.contains(&value)),
        Kind::Constant { expected_value } => **expected_value == value,
        _ => false,
    };
    wanted.then(|| Fix::Replace {
        text: spelled.into(),
        value,
    })
}

/// A boolean or a number in JSON's own spelling, with its digits unchanged. Small models write
/// `True`, as in Python.
fn scalar(text: &str) -> Option<(&str, Value)> {
    match text {
        "true" | "True" => return Some(("true", true.into())),
        "false" | "False" => return Some(("false", false.into())),
        _ => {}
    }
    // The parser would accept white space around it.
    let number = text.starts_with(|c: char| c == '-' || c.is_ascii_digit())
        && text.ends_with(|c: char| c.is_ascii_digit());
    let value: Value = serde_json::from_str(text).ok().filter(|_| number)?;
    // Digits without a point that became a float were too large: they stay text.
    let whole = text
        .bytes()
        .all(|byte| byte == b'-' || byte.is_ascii_digit());
    (!whole || !value.is_f64()).then_some((text, value))
}

/// A list or an object as JSON text, which some models send; read only if the schema expects one.
fn container<'t>(text: &'t str, kind: &Kind) -> Option<(&'t str, Value)> {
    let text = text.trim_matches([' ', '\t', '\n', '\r']);
    if !matches!(kind, Kind::Type { .. }) || !text.starts_with(['[', '{']) {
        return None;
    }
    // Counted by its maximum size, before it is parsed.
    spend(text.len() as u64 / 2);
    let json = RawJson::parse(Bytes::copy_from_slice(text.as_bytes())).ok()?;
    Some((text, parse_strictly(&json).ok()?))
}

// Writes corrections into the bytes of the body: all other bytes stay unchanged.

/// The changes below one value.
#[derive(Default)]
pub struct Edits(HashMap<Step, Edit>);

enum Edit {
    Drop,
    /// Another text, and the changes within it.
    Replace(Box<str>, Edits),
    Inside(Edits),
}

impl Edits {
    /// Adds corrections of `value`, and applies them to it.
    pub fn add(&mut self, fixes: Fixes, value: &mut Value) {
        'fixes: for (path, fix) in fixes {
            let Some((last, above)) = path.split_last() else {
                continue;
            };
            let mut edits = &mut *self;
            let mut parent = Some(&mut *value);
            for step in above {
                let inner = edits.0.entry(step.clone());
                let inner = inner.or_insert_with(|| Edit::Inside(Self::default()));
                let (Edit::Inside(inner) | Edit::Replace(_, inner)) = inner else {
                    continue 'fixes;
                };
                edits = inner;
                parent = parent.and_then(|parent| step.of_mut(parent));
            }
            let Some(parent) = parent else { continue };
            edits.0.insert(last.clone(), Edit::new(fix, last, parent));
        }
    }

    /// The body with the corrections applied.
    pub fn write(&self, body: &RawJson) -> Result<RawJson, serde_json::Error> {
        let mut text = String::with_capacity(body.as_bytes().len());
        self.rewrite(body.as_str(), &mut text)?;
        RawJson::parse(Bytes::from(text))
    }

    fn rewrite(&self, raw: &str, out: &mut String) -> Result<(), serde_json::Error> {
        if self.0.is_empty() {
            out.push_str(raw);
        } else if raw.starts_with('{') {
            out.push('{');
            for (key, value) in serde_json::from_str::<IndexMap<String, &RawValue>>(raw)? {
                let step = Step::Key(key);
                let edit = self.0.get(&step);
                if matches!(edit, Some(Edit::Drop)) {
                    continue;
                }
                separate(out, '{');
                let Step::Key(key) = step else { continue };
                out.push_str(&serde_json::to_string(&key)?);
                out.push(':');
                Edit::write(edit, value.get(), out)?;
            }
            out.push('}');
        } else {
            out.push('[');
            for (index, value) in serde_json::from_str::<Vec<&RawValue>>(raw)?
                .into_iter()
                .enumerate()
            {
                separate(out, '[');
                Edit::write(self.0.get(&Step::Index(index)), value.get(), out)?;
            }
            out.push(']');
        }
        Ok(())
    }
}

fn separate(out: &mut String, open: char) {
    if !out.ends_with(open) {
        out.push(',');
    }
}

impl Edit {
    fn new(fix: Fix, last: &Step, parent: &mut Value) -> Self {
        match fix {
            Fix::Drop => {
                if let (Value::Object(members), Step::Key(key)) = (parent, last) {
                    members.shift_remove(key);
                }
                Self::Drop
            }
            Fix::Replace { text, value } => {
                if let Some(location) = last.of_mut(parent) {
                    *location = value;
                }
                Self::Replace(text, Edits::default())
            }
        }
    }

    fn write(edit: Option<&Self>, raw: &str, out: &mut String) -> Result<(), serde_json::Error> {
        match edit {
            None | Some(Self::Drop) => out.push_str(raw),
            Some(Self::Replace(text, edits)) => edits.rewrite(text, out)?,
            Some(Self::Inside(edits)) => edits.rewrite(raw, out)?,
        }
        Ok(())
    }
}
