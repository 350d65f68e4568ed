//! Which exact correction answers a validation error, if any does.

use jsonschema::{
    JsonType, ValidationError,
    error::{TypeKind, ValidationErrorKind as Kind},
    paths::Location,
};
use serde_json::Value;

/// One step from a value to a value inside it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Step {
    Key(String),
    Index(usize),
}

/// What happens at one place.
#[derive(Debug, Clone)]
pub enum Fix {
    Drop,
    /// The digits as they were sent, and what they mean.
    Replace {
        text: Box<str>,
        value: Value,
    },
}

/// Corrections by place.
#[derive(Default)]
pub struct Fixes(Vec<(Vec<Step>, Fix)>);

impl IntoIterator for Fixes {
    type Item = (Vec<Step>, Fix);
    type IntoIter = std::vec::IntoIter<Self::Item>;
    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl Fixes {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds what would answer `error`; false, and nothing added, where nothing exact does.
    pub fn propose(&mut self, error: &ValidationError<'_>, root: &Value) -> bool {
        let place = steps(error.instance_path(), root);
        if let Kind::AdditionalProperties { unexpected }
        | Kind::UnevaluatedProperties { unexpected } = error.kind()
        {
            return self.drop_nulls(&place, unexpected, root);
        }
        match at(root, &place) {
            Some(Value::Null) if about_the_value(error.kind()) => {
                // A null in a list is an element; only a member can be left out.
                let member = matches!(place.last(), Some(Step::Key(_)));
                member && self.put(place, Fix::Drop)
            }
            Some(Value::String(text)) => match converted(text, error.kind()) {
                Some(fix) => self.put(place, fix),
                None => self.variant(error, root),
            },
            _ => self.variant(error, root),
        }
    }

    fn put(&mut self, place: Vec<Step>, fix: Fix) -> bool {
        if !self.0.iter().any(|(known, _)| *known == place) {
            self.0.push((place, fix));
        }
        true
    }

    fn drop_nulls(&mut self, place: &[Step], names: &[String], root: &Value) -> bool {
        let Some(Value::Object(members)) = at(root, place) else {
            return false;
        };
        let nulls = names
            .iter()
            .filter(|name| members.get(*name) == Some(&Value::Null));
        let mut all = 0;
        for name in nulls {
            let mut place = place.to_vec();
            place.push(Step::Key(name.clone()));
            self.put(place, Fix::Drop);
            all += 1;
        }
        all == names.len()
    }

    /// Takes the first variant whose every objection can be answered.
    fn variant(&mut self, error: &ValidationError<'_>, root: &Value) -> bool {
        let (Kind::AnyOf { context } | Kind::OneOfNotValid { context }) = error.kind() else {
            return false;
        };
        for branch in context {
            let mut trial = Self::default();
            if !branch.is_empty() && branch.iter().all(|inner| trial.propose(inner, root)) {
                for (place, fix) in trial {
                    self.put(place, fix);
                }
                return true;
            }
        }
        false
    }
}

fn about_the_value(kind: &Kind) -> bool {
    matches!(
        kind,
        Kind::Type { .. }
            | Kind::Enum { .. }
            | Kind::Constant { .. }
            | Kind::AnyOf { .. }
            | Kind::OneOfNotValid { .. }
            | Kind::FalseSchema
    )
}

/// The scalar that a string spells exactly, if the schema asks for one there.
fn converted(text: &str, kind: &Kind) -> Option<Fix> {
    let (spelled, value) = scalar(text)?;
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

/// A boolean or a number in JSON's own spelling, digits kept. Python's `True` is how small
/// models spell it.
fn scalar(text: &str) -> Option<(&str, Value)> {
    match text {
        "true" | "True" => return Some(("true", true.into())),
        "false" | "False" => return Some(("false", false.into())),
        _ => {}
    }
    // The parser would allow white space around it.
    let number = text.starts_with(|c: char| c == '-' || c.is_ascii_digit())
        && text.ends_with(|c: char| c.is_ascii_digit());
    let value: Value = serde_json::from_str(text).ok().filter(|_| number)?;
    // Digits without a point that became a float did not fit: they stay text.
    let whole = text
        .bytes()
        .all(|byte| byte == b'-' || byte.is_ascii_digit());
    (!whole || !value.is_f64()).then_some((text, value))
}

/// The path of a value within `root`. Whether a segment is a key or an index, only the value
/// knows: "7" may be either.
pub fn steps(path: &Location, root: &Value) -> Vec<Step> {
    let mut here = Some(root);
    let segments = path.as_str().split('/').skip(1);
    let step = |segment: &str| {
        let key = segment.replace("~1", "/").replace("~0", "~");
        let step = match (here, key.parse()) {
            (Some(Value::Array(_)), Ok(index)) => Step::Index(index),
            _ => Step::Key(key),
        };
        here = here.and_then(|value| step.of(value));
        step
    };
    segments.map(step).collect()
}

/// The value at the end of a path.
pub fn at<'a>(root: &'a Value, path: &[Step]) -> Option<&'a Value> {
    path.iter().try_fold(root, |value, step| step.of(value))
}

impl Step {
    fn of<'a>(&self, value: &'a Value) -> Option<&'a Value> {
        match (value, self) {
            (Value::Array(items), Self::Index(index)) => items.get(*index),
            (Value::Object(members), Self::Key(key)) => members.get(key),
            _ => None,
        }
    }

    /// The value one step inside, to change it.
    pub fn of_mut<'a>(&self, value: &'a mut Value) -> Option<&'a mut Value> {
        match (value, self) {
            (Value::Array(items), Self::Index(index)) => items.get_mut(*index),
            (Value::Object(members), Self::Key(key)) => members.get_mut(key),
            _ => None,
        }
    }
}
