//! The errors of `anyOf` and `oneOf`, one level at a time.
//!
//! The validator itself lists the errors of all branches, of all branches within them, and so on,
//! each with a copy of the value: for a schema that refers to itself this grows exponentially with the
//! depth. Here such a keyword only reports that no branch matches. [`Unions::context`] returns the details,
//! for a single value.

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
};

use jsonschema::{
    Draft, Keyword, Registry, ValidationError, ValidationOptions, Validator,
    error::ValidationErrorKind as Kind, paths::Location,
};
use parking_lot::Mutex;
use serde_json::{Map, Value, json};

use super::{
    meter,
    meter::{COUNTING, Step, at, spend, steps},
};

/// The URI of the schema among the validator's documents.
const HOME: &str = "mcpo-bridge:///schema";

/// Maximum number of branches of one keyword that are explained: more would not help a model.
const BRANCHES: usize = 128;

/// Maximum number of subschemas that are compiled for explanations of one tool. Each branch is compiled with
/// all schemas that it refers to.
const COMPILED: usize = 500_000;

/// The validators that explain the errors of one schema.
pub struct Unions {
    registry: Registry<'static>,
    draft: Draft,
    /// Maximum number of subschemas of one compilation.
    nodes: usize,
    compiled: Mutex<Compiled>,
    own: Weak<Self>,
}

#[derive(Default)]
struct Compiled {
    /// By location, and whether the validator explains or only decides.
    validators: HashMap<(String, bool), Arc<Validator>>,
    nodes: usize,
}

impl Unions {
    /// Takes a schema with the counting keyword, which must compile.
    pub fn new(counted: &Value, nodes: usize) -> Option<Arc<Self>> {
        let draft = Draft::default().detect(counted);
        let registry = Registry::new().draft(draft).add(HOME, counted.clone());
        let registry = registry
            .and_then(jsonschema::RegistryBuilder::prepare)
            .ok()?;
        Some(Arc::new_cyclic(|own| Self {
            registry,
            draft,
            nodes: nodes.max(1),
            compiled: Mutex::default(),
            own: own.clone(),
        }))
    }

    /// All errors of the whole value; `None` if they cannot be determined.
    pub fn objections<'v>(&self, value: &'v Value) -> Option<Vec<Objection<'v>>> {
        let root = self.validator("", true)?;
        Some(list(&root, value, &[]))
    }

    /// The errors of each branch of a union; none if there are too many.
    pub fn context<'v>(&self, union: Union<'_>, from: &Objection<'v>) -> Vec<Vec<Objection<'v>>> {
        let Union::None(keyword, schema, count) = union else {
            return Vec::new();
        };
        let (value, location) = (from.value, &from.location);
        if count > BRANCHES {
            return Vec::new();
        }
        let branch = |index| self.validator(&format!("{schema}/{keyword}/{index}"), true);
        let branches: Option<Vec<_>> = (0..count).map(branch).collect();
        let branches = branches.unwrap_or_default();
        let lists = branches.iter().map(|branch| list(branch, value, location));
        lists.collect()
    }

    fn validator(&self, location: &str, explains: bool) -> Option<Arc<Validator>> {
        let mut compiled = self.compiled.lock();
        let key = (location.to_owned(), explains);
        if let Some(known) = compiled.validators.get(&key) {
            return Some(known.clone());
        }
        compiled.nodes += self.nodes;
        if compiled.nodes > COMPILED.max(self.nodes * 2) {
            return None;
        }
        let pointer: String =
            percent_encoding::utf8_percent_encode(location, percent_encoding::NON_ALPHANUMERIC)
                .to_string();
        let pointer = pointer.replace("%2F", "/");
        let mut options = options()
            .with_draft(self.draft)
            .with_registry(&self.registry);
        if explains {
            for name in ["anyOf", "oneOf"] {
                let unions = self.own.clone();
                options = options.with_keyword(
                    name,
                    move |schema: &Map<String, Value>, branches: &Value, _: Location| {
                        Ok(BranchesOf::keyword(&unions, schema, branches, name))
                    },
                );
            }
        }
        let validator = options.build(&json!({"$ref": format!("{HOME}#{pointer}")}));
        let validator = Arc::new(validator.ok()?);
        compiled.validators.insert(key, validator.clone());
        Some(validator)
    }
}

/// The options of every compilation.
pub fn options<'i>() -> ValidationOptions<'i> {
    jsonschema::options()
        .offline()
        .should_validate_formats(false)
        .with_keyword(COUNTING, meter::keyword)
}

fn list<'v>(validator: &Validator, value: &'v Value, above: &[Step]) -> Vec<Objection<'v>> {
    let errors = validator.iter_errors(value);
    let placed = errors.filter_map(|error| {
        let inside = steps(error.instance_path(), value);
        let found = at(value, &inside)?;
        let words = own_words(&error);
        Some(Objection {
            kind: error.into_parts().kind,
            words,
            location: above.iter().cloned().chain(inside).collect(),
            value: found,
        })
    });
    placed.collect()
}

/// `anyOf` or `oneOf` in a validator that explains.
struct BranchesOf {
    unions: Weak<Unions>,
    schema: String,
    count: usize,
    name: &'static str,
}

impl BranchesOf {
    fn keyword(
        unions: &Weak<Unions>,
        schema: &Map<String, Value>,
        branches: &Value,
        name: &'static str,
    ) -> Box<dyn for<'i> Keyword<'i>> {
        let location = schema.get(COUNTING).and_then(Value::as_str);
        Box::new(Self {
            unions: unions.clone(),
            schema: location.unwrap_or_default().to_owned(),
            // Without the branch with the counting keyword.
            count: branches
                .as_array()
                .map_or(0, |all| all.len().saturating_sub(1)),
            name,
        })
    }

    /// The number of branches that match, up to the number that matters.
    fn fitting(&self, value: &Value) -> usize {
        // Dropped only if the tool was removed; the result is then not used.
        let Some(unions) = self.unions.upgrade() else {
            return 1;
        };
        let find = || {
            let branches = (0..self.count).filter(|index| {
                // A branch that cannot be compiled counts as a match: the whole value has been rejected already.
                let location = format!("{}/{}/{index}", self.schema, self.name);
                let branch = unions.validator(&location, false);
                branch.is_none_or(|branch| branch.is_valid(value))
            });
            branches
                .take(if self.name == "oneOf" { 2 } else { 1 })
                .count()
        };
        meter::once(&format!("{}/{}", self.schema, self.name), value, find)
    }
}

impl<'i> Keyword<'i> for BranchesOf {
    fn validate(&self, value: &'i Value) -> Result<(), ValidationError<'i>> {
        match self.fitting(value) {
            1 => Ok(()),
            0 => {
                // The validator copies the value for an error of a custom keyword.
                spend(meter::size(value));
                let (keyword, count, schema) = (self.name, self.count, &self.schema);
                Err(ValidationError::custom(format!(
                    "{keyword}{BETWEEN}{count}{BETWEEN}{schema}"
                )))
            }
            _ => {
                spend(meter::size(value));
                Err(ValidationError::custom("several"))
            }
        }
    }

    fn is_valid(&self, value: &'i Value) -> bool {
        self.fitting(value) == 1
    }
}

// The errors of a validator.

/// The separator between the keyword and the JSON pointer of its schema, in an error's message.
const BETWEEN: char = ' ';

/// Maximum number of bytes of a value, or characters of a message, that are shown.
pub const SHOWN: usize = 300;

/// An error of the checked value, or of a branch that does not match.
pub struct Objection<'v> {
    /// The error of the validator.
    pub kind: Kind,
    /// The validator's own name and text of the error.
    pub words: (String, String),
    /// The location in the whole value.
    pub location: Vec<Step>,
    /// The value at that location.
    pub value: &'v Value,
}

/// A keyword with no matching branch, or with more than one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Union<'e> {
    /// No branch matches. The keyword, the JSON pointer of its schema, and the number of branches.
    None(&'e str, &'e str, usize),
    /// More than one branch of `oneOf` matches.
    Several,
}

impl Objection<'_> {
    /// The keyword with branches that reports the error, if one does.
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

/// The validator's own name and text of an error.
pub fn own_words(error: &ValidationError<'_>) -> (String, String) {
    match error.kind() {
        // These have better texts; in a long list, their own would only take memory.
        Kind::Type { .. } | Kind::Required { .. } | Kind::Custom { .. } => Default::default(),
        other => {
            let masked = error.masked_with("Input").to_string();
            (other.keyword().into(), shorten(&masked))
        }
    }
}

/// The beginning of a text, with a mark if it was cut.
pub fn shorten(text: &str) -> String {
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.into(),
    }
}
