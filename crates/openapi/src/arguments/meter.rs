//! Limits the work of one validation, for any combination of schema and value.
//!
//! The validator cannot be stopped from outside, and a schema that refers to itself multiplies its
//! branches at each level of the value. So each subschema gets a keyword of this crate, which counts
//! evaluations. When the work, the time limit or the caller's connection ends, that keyword unwinds the
//! validator's stack up to [`metered`]: there is no other way to stop it, and no state that this could damage.

use std::{
    cell::RefCell,
    collections::HashMap,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::Weak,
    time::{Duration, Instant},
};

use jsonschema::{Keyword, ValidationError, paths::Location};
use rustix::time::{ClockId, clock_gettime};
use serde_json::{Map, Value, json};

/// The counting keyword. Its value is the JSON pointer of its schema; or, in an added branch that never
/// matches, the cost of the other branches.
///
/// The validator evaluates it last, and not at all if the rest of its schema does not match. So keywords that
/// continue after a mismatch get such a branch, too; all others end there.
pub const COUNTING: &str = "x-mcpo-bridge-counting";

/// Keywords whose value is an object of schemas.
pub const SCHEMA_MAPS: [&str; 6] = [
    "$defs",
    "definitions",
    "dependencies",
    "dependentSchemas",
    "patternProperties",
    "properties",
];

/// Units of work between two checks of the clocks: some 100 µs.
const LOOK: u64 = 4_096;

/// Maximum processor time of one check. The work limit ends nearly all checks before; it does not include
/// the time of a pattern that backtracks.
const PROCESSOR: Duration = Duration::from_secs(10);

/// Why a check has no outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stopped {
    /// It exceeds the limit of work.
    Work,
    /// Its deadline has passed.
    Time,
    /// The caller has disconnected.
    Left,
}

/// The conditions that end a check without an outcome.
#[derive(Debug, Clone, Default)]
pub struct Patience {
    /// Its call's deadline.
    pub until: Option<Instant>,
    /// Its strong reference belongs to the caller, and is dropped when the connection is closed.
    pub caller: Option<Weak<()>>,
}

struct Meter {
    /// The results of [`once`].
    known: HashMap<(String, usize), usize>,
    left: u64,
    next_look: u64,
    /// The thread's processor time when the check began.
    processor: Duration,
    patience: Patience,
}

thread_local! {
    static METER: RefCell<Option<Meter>> = const { RefCell::new(None) };
}

/// Runs `check`, and stops it once it has cost `work` units: one for each evaluation of a schema
/// against a value and for each name and element that it examines.
pub fn metered<T>(work: u64, patience: &Patience, check: impl FnOnce() -> T) -> Result<T, Stopped> {
    let meter = Meter {
        known: HashMap::new(),
        left: work,
        next_look: work.saturating_sub(LOOK),
        processor: processor_time(),
        patience: patience.clone(),
    };
    let outer = METER.replace(Some(meter));
    let outcome = catch_unwind(AssertUnwindSafe(check));
    METER.set(outer);
    outcome.map_err(|payload| match payload.downcast::<Stopped>() {
        Ok(stopped) => *stopped,
        Err(other) => resume_unwind(other),
    })
}

/// The result of a schema for a value, computed once per run: values do not move during a
/// run.
pub fn once(schema: &str, value: &Value, find: impl FnOnce() -> usize) -> usize {
    let key = (schema.to_owned(), std::ptr::from_ref(value).addr());
    let known = METER.with_borrow(|meter| meter.as_ref()?.known.get(&key).copied());
    if let Some(known) = known {
        return known;
    }
    let found = find();
    METER.with_borrow_mut(|meter| meter.as_mut().map(|meter| meter.known.insert(key, found)));
    found
}

/// Counts work before it is done.
pub fn spend(units: u64) {
    let spent = METER.with_borrow_mut(|meter| match meter {
        Some(meter) => meter.spend(units),
        None => Ok(()),
    });
    if let Err(stopped) = spent {
        // Without a panic message, because this is not an error.
        resume_unwind(Box::new(stopped));
    }
}

impl Meter {
    fn spend(&mut self, units: u64) -> Result<(), Stopped> {
        self.left = self.left.checked_sub(units).ok_or(Stopped::Work)?;
        if self.left > self.next_look {
            return Ok(());
        }
        self.next_look = self.left.saturating_sub(LOOK);
        let Patience { until, caller } = &self.patience;
        if caller.as_ref().is_some_and(|it| it.strong_count() == 0) {
            return Err(Stopped::Left);
        }
        if until.is_some_and(|until| Instant::now() >= until) {
            return Err(Stopped::Time);
        }
        if processor_time().saturating_sub(self.processor) > PROCESSOR {
            return Err(Stopped::Work);
        }
        Ok(())
    }
}

fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::try_from(time).unwrap_or_default()
}

/// The schema with the counting keyword in each subschema, and the number of subschemas.
pub fn counted(schema: &Value) -> (Value, usize) {
    let mut count = 0;
    let schema = within(schema, &mut String::new(), &mut count);
    (schema, count)
}

/// Adds the keyword to all values that may be used as schemas: a value under an unknown keyword may be the
/// target of a reference, and in other places the keyword has no effect.
fn within(value: &Value, at: &mut String, count: &mut usize) -> Value {
    match value {
        Value::Object(members) => {
            *count += 1;
            let mut schema = Map::with_capacity(members.len() + 1);
            schema.insert(COUNTING.into(), at.as_str().into());
            for (key, member) in members {
                let of_names = SCHEMA_MAPS.contains(&key.as_str());
                let alternatives = matches!(key.as_str(), "anyOf" | "oneOf");
                let tried = matches!(key.as_str(), "not" | "if" | "contains");
                let counted = match member {
                    Value::Array(branches) if alternatives => {
                        let mut counted = below(at, key, |at| within(member, at, count));
                        if let Value::Array(counted) = &mut counted {
                            counted.push(json!({COUNTING: cost_of(branches)}));
                        }
                        counted
                    }
                    Value::Object(_) if tried => {
                        let with_count = json!({"anyOf": [member]});
                        below(at, key, |at| within(&with_count, at, count))
                    }
                    _ if matches!(key.as_str(), "const" | "enum" | "$vocabulary") => member.clone(),
                    Value::Object(named) if of_names => below(at, key, |at| {
                        let named = named.iter().map(|(name, schema)| {
                            let schema = below(at, name, |at| within(schema, at, count));
                            (name.clone(), schema)
                        });
                        Value::Object(named.collect())
                    }),
                    _ => below(at, key, |at| within(member, at, count)),
                };
                if key != COUNTING {
                    schema.insert(key.clone(), counted);
                }
            }
            Value::Object(schema)
        }
        Value::Array(items) => {
            let items = items.iter().enumerate();
            let items = items
                .map(|(index, item)| below(at, &index.to_string(), |at| within(item, at, count)));
            Value::Array(items.collect())
        }
        other => other.clone(),
    }
}

fn below<T>(at: &mut String, step: &str, inside: impl FnOnce(&mut String) -> T) -> T {
    let length = at.len();
    at.push('/');
    at.push_str(&step.replace('~', "~0").replace('/', "~1"));
    let inner = inside(at);
    at.truncate(length);
    inner
}

/// The maximum cost if none of these branches matches, for [`Price::of_branches`].
fn cost_of(branches: &[Value]) -> Value {
    let (mut parts, mut patterns, mut unique) = (0_u64, 0_u64, false);
    let mut open: Vec<&Value> = branches.iter().collect();
    while let Some(value) = open.pop() {
        parts += 1;
        match value {
            Value::Array(items) => open.extend(items),
            Value::Object(members) => {
                patterns += u64::from(members.contains_key("pattern"));
                patterns += u64::from(members.contains_key("patternProperties"));
                unique |= members.contains_key("uniqueItems");
                open.extend(members.values());
            }
            _ => {}
        }
    }
    // Only few of the parts are evaluated before the first mismatch.
    let parts = branches.len() as u64 + parts / 16;
    json!([parts, patterns, unique, branches.len()])
}

/// The cost of one evaluation of a schema.
struct Price {
    /// The cost of the keywords themselves.
    keywords: u64,
    patterns: u64,
    unique: bool,
    /// The number of times that the value is examined.
    times: u64,
    /// Whether the keyword accepts the value.
    fits: bool,
}

/// The implementation of the keyword for `jsonschema`.
#[expect(clippy::unnecessary_wraps, reason = "the library asks for a `Result`")]
pub fn keyword<'a>(
    schema: &'a Map<String, Value>,
    counting: &'a Value,
    _: Location,
) -> Result<Box<dyn for<'i> Keyword<'i>>, ValidationError<'a>> {
    if counting.is_array() {
        return Ok(Box::new(Price::of_branches(counting)));
    }
    let cost = |(key, value): (&String, &Value)| match value {
        Value::Array(_) | Value::Object(_) if matches!(key.as_str(), "enum" | "const") => {
            size(value)
        }
        Value::Array(items) => items.len() as u64,
        Value::Object(members) => members.len() as u64,
        _ => 0,
    };
    let named = schema.get("patternProperties").and_then(Value::as_object);
    Ok(Box::new(Price {
        keywords: 1 + schema.iter().map(cost).sum::<u64>(),
        patterns: u64::from(schema.contains_key("pattern")) + named.map_or(0, Map::len) as u64,
        unique: schema.get("uniqueItems") == Some(&Value::Bool(true)),
        times: 1,
        fits: true,
    }))
}

impl Price {
    fn of_branches(cost: &Value) -> Self {
        let number = |index: usize| cost[index].as_u64().unwrap_or(1);
        Self {
            keywords: number(0),
            patterns: number(1),
            unique: cost[2] == true,
            times: number(3),
            fits: false,
        }
    }

    fn price_of(&self, value: &Value) -> u64 {
        let text = |text: &str| text.len() as u64 / 64 * (1 + 8 * self.patterns) + self.patterns;
        let looked_at = match value {
            Value::String(written) => text(written),
            Value::Array(_) if self.unique => size(value),
            Value::Array(items) => items.len() as u64,
            Value::Object(members) if self.patterns > 0 => {
                members.keys().map(|key| 1 + text(key)).sum()
            }
            Value::Object(members) => members.len() as u64,
            _ => 0,
        };
        self.keywords
            .saturating_add(looked_at.saturating_mul(self.times))
    }
}

impl<'i> Keyword<'i> for Price {
    fn validate(&self, value: &'i Value) -> Result<(), ValidationError<'i>> {
        // This method is called to list errors, each of which takes memory.
        spend(self.price_of(value).saturating_add(3));
        if self.fits {
            Ok(())
        } else {
            Err(ValidationError::custom("a branch of ours"))
        }
    }

    fn is_valid(&self, value: &'i Value) -> bool {
        spend(self.price_of(value));
        self.fits
    }
}

/// The number of values within a value.
pub fn size(value: &Value) -> u64 {
    let inside: u64 = match value {
        Value::Array(items) => items.iter().map(size).sum(),
        Value::Object(members) => members.values().map(size).sum(),
        Value::String(text) => text.len() as u64 / 64,
        _ => 0,
    };
    1 + inside
}

// Locations within a value.

/// One step from a value to a value inside it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Step {
    Key(String),
    Index(usize),
}

/// The path of a value within `root`. Only the value determines whether a segment is a key or an
/// index: "7" may be either.
pub fn steps(path: &Location, root: &Value) -> Vec<Step> {
    let mut here = Some(root);
    let segments = path.as_str().split('/').skip(1);
    let step = |segment: &str| {
        let key = segment.replace("~1", "/").replace("~0", "~");
        let step = match (here, key.parse()) {
            (Some(Value::Array(_)), Ok(index)) => Step::Index(index),
            _ => Step::Key(key),
        };
        here = here.and_then(|value| step.select(value));
        step
    };
    segments.map(step).collect()
}

/// The value at the end of a path.
pub fn at<'a>(root: &'a Value, path: &[Step]) -> Option<&'a Value> {
    path.iter().try_fold(root, |value, step| step.select(value))
}

impl Step {
    fn select<'a>(&self, value: &'a Value) -> Option<&'a Value> {
        match (value, self) {
            (Value::Array(items), Self::Index(index)) => items.get(*index),
            (Value::Object(members), Self::Key(key)) => members.get(key),
            _ => None,
        }
    }

    /// The value one step inside, mutable.
    pub fn of_mut<'a>(&self, value: &'a mut Value) -> Option<&'a mut Value> {
        match (value, self) {
            (Value::Array(items), Self::Index(index)) => items.get_mut(*index),
            (Value::Object(members), Self::Key(key)) => members.get_mut(key),
            _ => None,
        }
    }
}
