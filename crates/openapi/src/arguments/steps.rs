//! Where in a value something lies.

use jsonschema::paths::Location;
use serde_json::Value;

/// One step from a value to a value inside it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Step {
    Key(String),
    Index(usize),
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
