//! How much a schema may grow while its references are written out.

use serde_json::Value;

/// Nesting of a source schema; as deep as `serde_json` reads.
pub const SOURCE_DEPTH: usize = 128;
/// Schema objects in one converted schema.
const NODES: usize = 8_000;
/// Bytes of one converted schema: some 60,000 tokens.
pub const BYTES: usize = 256 * 1024;
/// Warnings kept per schema: a bomb of faults must not become a bomb of warnings.
const WARNINGS: usize = 20;

/// One way to cut a schema.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// How often the same target may stand within itself.
    pub repeats: usize,
    /// References within references.
    pub refs: usize,
    /// Schemas within schemas.
    pub depth: usize,
}

/// Tried in order until the result fits. Mutual recursion of many types grows with every level,
/// so the later ones cut harder; the last keeps the names and types of the arguments alone.
pub const LADDER: [Limits; 5] = [
    Limits::new(2, 32, 48),
    Limits::new(1, 32, 48),
    Limits::new(1, 3, 24),
    Limits::new(1, 1, 8),
    Limits::new(0, 0, 2),
];

impl Limits {
    const fn new(repeats: usize, refs: usize, depth: usize) -> Self {
        Self {
            repeats,
            refs,
            depth,
        }
    }
}

/// The converted schema would be larger than any model could use.
#[derive(Debug)]
pub struct TooLarge;

/// What is left to spend on one attempt.
pub struct Budget {
    nodes: usize,
    bytes: usize,
}

impl Budget {
    pub fn new() -> Self {
        Self {
            nodes: NODES,
            bytes: BYTES,
        }
    }

    pub fn node(&mut self) -> Result<(), TooLarge> {
        self.nodes = self.nodes.checked_sub(1).ok_or(TooLarge)?;
        self.bytes(24)
    }

    pub fn bytes(&mut self, count: usize) -> Result<(), TooLarge> {
        self.bytes = self.bytes.checked_sub(count).ok_or(TooLarge)?;
        Ok(())
    }

    /// Pays for a value that is copied as it is.
    pub fn copy(&mut self, value: &Value) -> Result<Value, TooLarge> {
        self.charge(value)?;
        Ok(value.clone())
    }

    fn charge(&mut self, value: &Value) -> Result<(), TooLarge> {
        match value {
            Value::String(text) => self.bytes(text.len() + 3),
            Value::Array(items) => items.iter().try_for_each(|item| self.charge(item)),
            Value::Object(map) => map.iter().try_for_each(|(key, item)| {
                self.bytes(key.len() + 4)?;
                self.charge(item)
            }),
            _ => self.bytes(8),
        }
    }
}

/// Distinct warnings, up to a number.
#[derive(Default)]
pub struct Warnings(Vec<String>);

impl Warnings {
    pub fn add(&mut self, text: String) {
        if self.0.len() < WARNINGS && !self.0.contains(&text) {
            self.0.push(text);
        }
    }

    pub fn into_vec(self) -> Vec<String> {
        self.0
    }
}

/// Whether a value nests more than `limit` levels; found without recursion.
pub fn deeper_than(value: &Value, limit: usize) -> bool {
    let mut open = vec![(value, 0)];
    while let Some((value, depth)) = open.pop() {
        if depth > limit {
            return true;
        }
        match value {
            Value::Array(items) => open.extend(items.iter().map(|item| (item, depth + 1))),
            Value::Object(map) => open.extend(map.values().map(|item| (item, depth + 1))),
            _ => {}
        }
    }
    false
}
