//! A bound on the work of one check, whatever schema and value do to each other.
//!
//! The validator cannot be stopped from outside, and a schema that refers to itself multiplies its
//! branches at each level of the value. So each subschema gets a keyword of ours, which counts what
//! is evaluated. Where the count, the time or the caller's patience ends, that keyword unwinds the
//! validator's stack up to [`metered`]: it has no other way out, and keeps no state that this hurts.

use std::{
    cell::RefCell,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use jsonschema::{Keyword, ValidationError, paths::Location};
use rustix::time::{ClockId, clock_gettime};
use serde_json::{Map, Value};

/// The keyword that counts. Its value is where its schema stands, as a JSON pointer.
pub const COUNTING: &str = "x-mcpo-bridge-counting";
/// Units between two looks at clocks: some 100 µs.
const LOOK: u64 = 4_096;
/// Processor time of one check. The count ends nearly all before; it cannot see what a pattern that
/// backtracks does.
const PROCESSOR: Duration = Duration::from_secs(10);

/// Why a check has no outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stopped {
    /// It takes more work than it may.
    Work,
    /// Its time is over.
    Time,
    /// Nobody waits for it any more.
    Left,
}

/// When a check ends whatever it has found.
#[derive(Debug, Clone, Default)]
pub struct Patience {
    /// Its call's deadline.
    pub until: Option<Instant>,
    /// Set when its caller hung up.
    pub left: Option<Arc<AtomicBool>>,
}

struct Meter {
    left: u64,
    next_look: u64,
    /// Of this thread, when the check began.
    processor: Duration,
    patience: Patience,
}

thread_local! {
    static METER: RefCell<Option<Meter>> = const { RefCell::new(None) };
}

/// Runs `check`, and gives it up once it has cost `work` units: one for each schema that a value is
/// held against and for each name and element that is looked at there.
pub fn metered<T>(work: u64, patience: &Patience, check: impl FnOnce() -> T) -> Result<T, Stopped> {
    let meter = Meter {
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

/// Counts work that is about to be done.
pub fn spend(units: u64) {
    let spent = METER.with_borrow_mut(|meter| match meter {
        Some(meter) => meter.spend(units),
        None => Ok(()),
    });
    if let Err(stopped) = spent {
        // Without a message: nothing went wrong.
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
        let Patience { until, left } = &self.patience;
        if left
            .as_ref()
            .is_some_and(|left| left.load(Ordering::Relaxed))
        {
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

/// The schema with the counting keyword in each subschema, and how many there are.
pub fn counted(schema: &Value) -> (Value, usize) {
    let mut count = 0;
    let schema = within(schema, &mut String::new(), &mut count);
    (schema, count)
}

/// Whatever may be reached as a schema: what no keyword names may be named by a reference, and
/// elsewhere the keyword does nothing.
fn within(value: &Value, at: &mut String, count: &mut usize) -> Value {
    match value {
        Value::Object(members) => {
            *count += 1;
            let mut schema = Map::with_capacity(members.len() + 1);
            schema.insert(COUNTING.into(), at.as_str().into());
            for (key, member) in members {
                let of_names = matches!(
                    key.as_str(),
                    "properties"
                        | "patternProperties"
                        | "$defs"
                        | "definitions"
                        | "dependentSchemas"
                        | "dependencies"
                );
                let counted = match member {
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

/// What one evaluation of a schema costs.
struct Price {
    /// Of the keywords themselves.
    keywords: u64,
    patterns: u64,
    unique: bool,
}

/// The keyword, for `jsonschema`.
#[expect(clippy::unnecessary_wraps, reason = "the library asks for a `Result`")]
pub fn keyword<'a>(
    schema: &'a Map<String, Value>,
    _: &'a Value,
    _: Location,
) -> Result<Box<dyn for<'i> Keyword<'i>>, ValidationError<'a>> {
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
    }))
}

impl Price {
    fn of(&self, value: &Value) -> u64 {
        let text = |text: &str| text.len() as u64 / 64 * (1 + 8 * self.patterns) + self.patterns;
        self.keywords
            + match value {
                Value::String(written) => text(written),
                Value::Array(_) if self.unique => size(value),
                Value::Array(items) => items.len() as u64,
                Value::Object(members) if self.patterns > 0 => {
                    members.keys().map(|key| 1 + text(key)).sum()
                }
                Value::Object(members) => members.len() as u64,
                _ => 0,
            }
    }
}

impl<'i> Keyword<'i> for Price {
    fn validate(&self, value: &'i Value) -> Result<(), ValidationError<'i>> {
        // Who asks this lists faults, and each takes memory.
        spend(self.of(value) + 3);
        Ok(())
    }

    fn is_valid(&self, value: &'i Value) -> bool {
        spend(self.of(value));
        true
    }
}

/// How many values a value is made of.
pub fn size(value: &Value) -> u64 {
    let inside: u64 = match value {
        Value::Array(items) => items.iter().map(size).sum(),
        Value::Object(members) => members.values().map(size).sum(),
        Value::String(text) => text.len() as u64 / 64,
        _ => 0,
    };
    1 + inside
}
