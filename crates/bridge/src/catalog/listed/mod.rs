//! What a server lists, as the schemas of MCP's clients want it: a client that checks what it reads
//! gives up the whole list for one member of the wrong type. At `/mcp`, where the lists of all servers
//! are one, such a member is mended or left out; what is valid keeps its bytes. `/mcp/{server}` passes
//! on what the server said, and the warnings say what a strict client will refuse there.
//!
//! The rules are those of the official clients: the zod schemas of `@modelcontextprotocol/sdk`
//! (`types.js`) and the models of Python's `mcp.types`.

mod rules;
mod schema;
mod shape;
mod text;

#[cfg(test)]
mod tests;

use std::{collections::HashSet, fmt::Write as _};

use bridge_model::ServerName;
use bridge_protocol::{RawJson, Tool};

use rules::{PROMPT, RESOURCE, TEMPLATE, TOOL};
use shape::{Rule, shaped};

pub use rules::completion;

/// Faults that a warning names.
const NAMED: usize = 5;
/// Characters of a name that a warning quotes.
const QUOTED: usize = 60;

/// One thing that is listed.
pub struct Item {
    /// Its name, or its URI, as the server spells it.
    pub own: Box<str>,
    /// As clients may read it.
    pub raw: RawJson,
}

/// What one server adds to the lists of all.
#[derive(Default)]
pub struct Listed {
    /// By `name`.
    pub tools: Vec<Item>,
    /// By `name`.
    pub prompts: Vec<Item>,
    /// By `uri`.
    pub resources: Vec<Item>,
    /// By `uriTemplate`.
    pub templates: Vec<Item>,
    mended: Faults,
    left_out: Faults,
}

/// Faults: the first of them, and how many more there are.
#[derive(Default)]
pub struct Faults {
    first: Vec<String>,
    more: usize,
}

impl Faults {
    /// Notes one.
    pub fn push(&mut self, fault: String) {
        if self.first.len() < NAMED {
            self.first.push(fault);
        } else {
            self.more += 1;
        }
    }

    /// All in one text; `None` where there are none.
    pub fn text(&self) -> Option<String> {
        let mut text = self.first.join("; ");
        if self.more > 0 {
            let _ = write!(text, "; and {} more", self.more);
        }
        (!text.is_empty()).then_some(text)
    }
}

impl Listed {
    /// Looks through everything that a server lists, once; of the tools, through those that the config
    /// offers.
    pub fn of<'a>(
        tools: impl Iterator<Item = &'a Tool>,
        prompts: &[RawJson],
        resources: &[RawJson],
        templates: &[RawJson],
    ) -> Self {
        let mut listed = Self::default();
        for tool in tools {
            let mut item = listed.item("tool", &tool.raw, "name", TOOL);
            if let Some(item) = &mut item {
                listed.input_schema(item);
            }
            listed.tools.extend(item);
        }
        listed.prompts = listed.list("prompt", prompts, "name", PROMPT);
        listed.resources = listed.list("resource", resources, "uri", RESOURCE);
        listed.templates = listed.list("resource template", templates, "uriTemplate", TEMPLATE);
        listed
    }

    fn list(&mut self, kind: &str, said: &[RawJson], key: &str, rules: &[Rule]) -> Vec<Item> {
        let items = said
            .iter()
            .filter_map(|raw| self.item(kind, raw, key, rules));
        let items: Vec<Item> = items.collect();
        let mut known = HashSet::new();
        let (kept, again): (Vec<_>, Vec<_>) = items.into_iter().partition(|item| {
            // Nobody could ask for the second of two with one name.
            known.insert(item.own.clone())
        });
        for item in again {
            let name = quoted(&item.own);
            self.left_out.push(format!("a second {kind} {name}"));
        }
        kept
    }

    /// One item; `None` where it lacks what it is asked for by.
    fn item(&mut self, kind: &str, raw: &RawJson, key: &str, rules: &[Rule]) -> Option<Item> {
        let mut faults = Vec::new();
        let shaped = shaped(raw, rules, &mut faults);
        let own = shaped.as_ref().and_then(|shaped| shaped.member(key));
        let own = own.and_then(|own| own.read::<Box<str>>().ok());
        let Some((own, mut raw)) = own.zip(shaped) else {
            self.left_out.push(format!("a {kind} without \"{key}\""));
            return None;
        };
        if key != "name" && raw.member("name").is_none() {
            faults.push("name is missing".to_owned());
            raw = raw.with_member("name", &RawJson::of(&(*own).into()));
        }
        self.note(kind, &own, &faults);
        Some(Item { own, raw })
    }

    /// Every tool has one.
    fn input_schema(&mut self, item: &mut Item) {
        if item.raw.member("inputSchema").is_none() {
            let faults = ["inputSchema is missing or no schema of an object".to_owned()];
            self.note("tool", &item.own, &faults);
            let any = RawJson::of(&serde_json::json!({"type": "object"}));
            item.raw = item.raw.with_member("inputSchema", &any);
        }
    }

    fn note(&mut self, kind: &str, own: &str, faults: &[String]) {
        if !faults.is_empty() {
            let (name, faults) = (quoted(own), faults.join(", "));
            self.mended.push(format!("{kind} {name}: {faults}"));
        }
    }

    /// What the operator should know of it.
    pub fn warnings(&self, server: &ServerName) -> impl Iterator<Item = String> {
        let mended = self.mended.text().map(|faults| {
            format!(
                "server '{server}': parts of its lists do not fit MCP's schema: strict clients refuse \
                 the whole list at /mcp/{server}, and at /mcp these parts are mended: {faults}"
            )
        });
        let left_out = self.left_out.text().map(|faults| {
            format!("server '{server}': parts of its lists are left out at /mcp: {faults}")
        });
        mended.into_iter().chain(left_out)
    }
}

fn quoted(name: &str) -> String {
    let short: String = name.chars().take(QUOTED).collect();
    let end = if short.len() < name.len() { "…" } else { "" };
    format!("'{}{end}'", short.escape_debug())
}
