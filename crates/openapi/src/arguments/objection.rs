//! What a validator objects to in a value.

use jsonschema::{ValidationError, error::ValidationErrorKind as Kind};
use serde_json::Value;

use super::steps::Step;

/// Between the keyword and the place of its schema, in an error's message.
pub const BETWEEN: char = ' ';
/// Bytes of a value, or characters of a message, that are shown.
pub const SHOWN: usize = 300;

/// A fault of the value that was checked, or of a branch that does not fit.
pub struct Objection<'v> {
    /// What the validator objects to.
    pub kind: Kind,
    /// Its own name and words for it.
    pub words: (String, String),
    /// Where in the whole value.
    pub place: Vec<Step>,
    /// What stands there.
    pub value: &'v Value,
}

/// A keyword whose branches fit too seldom or too often.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Union<'e> {
    /// No branch fits. The keyword, where its schema is, and how many branches there are.
    None(&'e str, &'e str, usize),
    /// More than one branch of `oneOf` fits.
    Several,
}

impl Objection<'_> {
    /// The keyword with branches that objects, if one does.
    pub fn union(&self) -> Option<Union<'_>> {
        let Kind::Custom { message, .. } = &self.kind else {
            return None;
        };
        let mut parts = message.splitn(3, BETWEEN);
        let parts = (parts.next(), parts.next(), parts.next());
        Some(match parts {
            (Some(keyword), Some(count), Some(schema)) => {
                Union::None(keyword, schema, count.parse().unwrap_or_default())
            }
            _ => Union::Several,
        })
    }
}

/// The validator's own name and words for what it objects to.
pub fn own_words(error: &ValidationError<'_>) -> (String, String) {
    match error.kind() {
        // For these there are better ones; words for each of a long list would only be memory.
        Kind::Type { .. } | Kind::Required { .. } | Kind::Custom { .. } => Default::default(),
        other => {
            let masked = error.masked_with("Input").to_string();
            (other.keyword().into(), shorten(&masked))
        }
    }
}

/// The beginning of a text, marked where it was cut.
pub fn shorten(text: &str) -> String {
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.into(),
    }
}
