//! Configuration errors: location, value, problem and remedy.

use std::fmt;

use serde::Serialize;

/// One configuration error. Its text never contains a secret: code that creates it must omit values of `env`,
/// `headers`, `args`, `url` and of everything that came from `${…}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Fault {
    /// A JSON path (`mcpServers.excel.idle_timeout`) or a flag and its variable
    /// (`--port / MCPO_PORT`); empty for the whole file, and until [`Fault::at`] sets it.
    #[serde(rename = "place")]
    pub location: String,
    /// The invalid value as JSON or text, if it may be shown.
    pub value: Option<String>,
    /// The problem.
    pub problem: String,
    /// The remedy.
    pub fix: String,
}

impl Fault {
    /// An error without its value.
    pub fn new(
        location: impl Into<String>,
        problem: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        Self {
            location: location.into(),
            value: None,
            problem: problem.into(),
            fix: fix.into(),
        }
    }

    /// The same error at this location.
    #[must_use]
    pub fn at(self, location: String) -> Self {
        Self { location, ..self }
    }

    /// Adds the value; only for values that cannot contain secrets. Long ones are truncated.
    #[must_use]
    pub fn with_value(mut self, value: impl fmt::Display) -> Self {
        const LONGEST: usize = 80;
        let mut text = value.to_string();
        if let Some((cut, _)) = text.char_indices().nth(LONGEST) {
            text.truncate(cut);
            text.push('…');
        }
        self.value = Some(text);
        self
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.location.is_empty() {
            write!(f, "{}", self.location)?;
            if let Some(value) = &self.value {
                write!(f, " = {value}")?;
            }
            f.write_str(": ")?;
        }
        write!(f, "{}; {}", self.problem, self.fix)
    }
}

/// All errors of one source. Displayed with one line each.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, thiserror::Error)]
pub struct Faults {
    /// The file, or "settings".
    pub origin: String,
    /// At least one.
    pub faults: Vec<Fault>,
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let many = if self.faults.len() == 1 { "" } else { "s" };
        write!(f, "{}: {} error{many}", self.origin, self.faults.len())?;
        for fault in &self.faults {
            write!(f, "\n  {fault}")?;
        }
        Ok(())
    }
}
