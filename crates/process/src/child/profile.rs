//! How a child is spoken to.

use std::borrow::Cow;

use bridge_protocol::{era::Era, revision};
use serde_json::{Map, Value, json};

/// What we are called.
pub const CLIENT: &str = "mcpo-bridge";

/// How a child is spoken to. Fixed by a session's first caller: a process hears it once.
#[derive(Debug, Clone, PartialEq)]
pub struct Profile {
    /// Which form of the protocol.
    pub era: Era,
    /// The revision we ask for.
    pub protocol_version: Cow<'static, str>,
    /// What the caller can answer; everything else the bridge declines for him.
    pub capabilities: Map<String, Value>,
    /// The least log messages that the caller wants, for children that are told with each request.
    pub log_level: Option<Box<str>>,
}

impl Profile {
    /// The same text for profiles that a process cannot tell apart.
    pub fn key(&self) -> Cow<'static, str> {
        let era = match self.era {
            Era::Legacy => "legacy",
            Era::Modern => "modern",
        };
        if self.capabilities.is_empty() {
            return era.into();
        }
        let mut capabilities: Vec<String> = self
            .capabilities
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        capabilities.sort();
        // Revisions differ in little that a server looks at: only abilities need a child each.
        format!("{era} {}", capabilities.join(",")).into()
    }

    /// For a child of an older revision whose caller says with each request what he can answer: what the
    /// first says counts. Written in one way, since processes are kept ready by it.
    pub fn able(capabilities: &Map<String, Value>) -> Self {
        let parts = |name: &str, known: &[&str]| {
            let said = capabilities.get(name)?.as_object()?;
            let parts = known.iter().filter(|part| said.contains_key(**part));
            let parts = parts.map(|part| ((*part).to_owned(), json!({})));
            Some(parts.collect::<Map<_, _>>())
        };
        let mut able = Map::new();
        if let Some(mut modes) = parts("elicitation", &["form", "url"]) {
            // What names no mode is of the one that was there first.
            if modes.is_empty() {
                modes.insert("form".to_owned(), json!({}));
            }
            able.insert("elicitation".to_owned(), modes.into());
        }
        // He cannot say when they change.
        if let Some(roots) = parts("roots", &[]) {
            able.insert("roots".to_owned(), roots.into());
        }
        if let Some(sampling) = parts("sampling", &["context", "tools"]) {
            able.insert("sampling".to_owned(), sampling.into());
        }
        Self {
            capabilities: able,
            ..Self::silent()
        }
    }

    /// For callers of 2026-07-28: version and abilities come with each request.
    pub fn modern() -> Self {
        Self {
            era: Era::Modern,
            protocol_version: revision::MODERN.into(),
            capabilities: Map::new(),
            log_level: None,
        }
    }

    /// For callers that can answer nothing: the OpenAPI door and the catalogue.
    pub fn silent() -> Self {
        Self {
            era: Era::Legacy,
            protocol_version: revision::LATEST_LEGACY.into(),
            capabilities: Map::new(),
            log_level: None,
        }
    }
}
