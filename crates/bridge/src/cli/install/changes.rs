//! What differs between two versions of a server: packages, and tools as models see them.

use std::fmt::Write as _;

use bridge_protocol::Tool;
use serde::Serialize;
use serde_json::Value;

use crate::{
    catalog::Learnt,
    cli::text::{BAD, GOOD, ODD, plain},
    install::Pin,
};

/// Packages that are listed for people; `--json` has all.
const SHOWN: usize = 12;

/// Everything that differs.
#[derive(Debug, Serialize, PartialEq, Eq)]
pub struct Changes {
    packages: Vec<Package>,
    tools: Tools,
    /// Why the old version's tools are not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    old_failed: Option<String>,
}

#[derive(Debug, Serialize, PartialEq, Eq)]
struct Package {
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    before: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    after: Option<String>,
}

#[derive(Debug, Default, Serialize, PartialEq, Eq)]
struct Tools {
    added: Vec<String>,
    removed: Vec<String>,
    changed: Vec<Changed>,
}

/// A tool that is still there.
#[derive(Debug, Serialize, PartialEq, Eq)]
struct Changed {
    name: String,
    /// The members of its description that differ.
    what: Vec<String>,
}

impl Changes {
    /// Compares.
    pub fn between(old: &Pin, new: &Pin, before: Result<&Learnt, &String>, after: &Learnt) -> Self {
        Self {
            packages: packages(&old.versions(), &new.versions()),
            tools: before
                .map(|before| tools(&before.tools, &after.tools))
                .unwrap_or_default(),
            old_failed: before.err().cloned(),
        }
    }

    /// For people, in lines that stand below the server's name.
    pub fn write(&self, text: &mut String) {
        for package in self.packages.iter().take(SHOWN) {
            let shown = |version: &Option<String>| version.clone().unwrap_or_else(|| "–".into());
            let (before, after) = (shown(&package.before), shown(&package.after));
            let _ = writeln!(text, "  {} {before} → {after}", package.name);
        }
        if let Some(more @ 1..) = self.packages.len().checked_sub(SHOWN) {
            let _ = writeln!(text, "  and {more} more packages");
        }
        if let Some(why) = &self.old_failed {
            let _ = writeln!(text, "  the old version fails to start: {}", plain(why));
            return;
        }
        for name in &self.tools.added {
            let _ = writeln!(text, "  {GOOD}+ {}{GOOD:#}", plain(name));
        }
        for name in &self.tools.removed {
            let _ = writeln!(text, "  {BAD}- {}{BAD:#}", plain(name));
        }
        for tool in &self.tools.changed {
            let (name, what) = (plain(&tool.name), tool.what.join(", "));
            let _ = writeln!(text, "  {ODD}~ {name}{ODD:#}: {}", plain(&what));
        }
        if self.tools == Tools::default() {
            let _ = writeln!(text, "  no changes to tools");
        }
    }
}

fn packages(old: &[(String, String)], new: &[(String, String)]) -> Vec<Package> {
    let find = |list: &[(String, String)], name: &str| {
        let found = list.iter().find(|(known, _)| known == name);
        found.map(|(_, version)| version.clone())
    };
    let mut names: Vec<&String> = old.iter().chain(new).map(|(name, _)| name).collect();
    names.sort();
    names.dedup();
    let both = names.into_iter().map(|name| Package {
        name: name.clone(),
        before: find(old, name),
        after: find(new, name),
    });
    both.filter(|package| package.before != package.after)
        .collect()
}

fn tools(old: &[Tool], new: &[Tool]) -> Tools {
    let find = |list: &[Tool], name: &str| list.iter().find(|tool| &*tool.name == name).cloned();
    let only = |these: &[Tool], others: &[Tool]| -> Vec<String> {
        let missing = these
            .iter()
            .filter(|tool| find(others, &tool.name).is_none());
        missing.map(|tool| tool.name.to_string()).collect()
    };
    let changed = new.iter().filter_map(|after| {
        let before = find(old, &after.name)?;
        let what = differing(&before, after);
        let name = after.name.to_string();
        (!what.is_empty()).then_some(Changed { name, what })
    });
    Tools {
        added: only(new, old),
        removed: only(old, new),
        changed: changed.collect(),
    }
}

/// `description`, `inputSchema.properties.path`, `inputSchema.required`, …
fn differing(before: &Tool, after: &Tool) -> Vec<String> {
    let mut what = Vec::new();
    for key in keys(&before.object, &after.object) {
        let (old, new) = (before.object.get(key), after.object.get(key));
        match (old, new) {
            (Some(Value::Object(old)), Some(Value::Object(new))) if old != new => {
                what.extend(within(key, old, new));
            }
            _ if old != new => what.push(key.clone()),
            _ => {}
        }
    }
    what
}

type Object = serde_json::Map<String, Value>;

fn within(key: &str, old: &Object, new: &Object) -> Vec<String> {
    let mut what = Vec::new();
    for part in keys(old, new)
        .into_iter()
        .filter(|part| old.get(*part) != new.get(*part))
    {
        match (part.as_str(), old.get(part), new.get(part)) {
            ("properties", Some(Value::Object(old)), Some(Value::Object(new))) => {
                let names = keys(old, new).into_iter();
                let names = names.filter(|name| old.get(*name) != new.get(*name));
                what.extend(names.map(|name| format!("{key}.properties.{name}")));
            }
            _ => what.push(format!("{key}.{part}")),
        }
    }
    what
}

fn keys<'a>(old: &'a Object, new: &'a Object) -> Vec<&'a String> {
    let more = new.keys().filter(|key| !old.contains_key(*key));
    old.keys().chain(more).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn tool(value: Value) -> Tool {
        Tool::read(value).unwrap()
    }

    #[test]
    fn tools_that_come_go_and_change_are_told() {
        let schema = |path: Value| json!({"type": "object", "properties": {"path": path, "n": {}}});
        let old = [
            tool(json!({"name": "same", "description": "d"})),
            tool(json!({"name": "gone"})),
            tool(json!({"name": "other", "description": "d", "inputSchema": schema(json!({}))})),
        ];
        let new = [
            tool(json!({"description": "d", "name": "same"})),
            tool(json!({"name": "new"})),
            tool(json!({"name": "other", "description": "D", "title": "t",
                "inputSchema": schema(json!({"type": "string"}))})),
        ];
        let found = tools(&old, &new);
        assert_eq!(
            (found.added, found.removed),
            (vec!["new".into()], vec!["gone".into()])
        );
        let [changed] = &found.changed[..] else {
            panic!("{:?}", found.changed)
        };
        assert_eq!(changed.name, "other");
        assert_eq!(
            changed.what,
            ["description", "inputSchema.properties.path", "title"]
        );
    }

    #[test]
    fn packages_are_told_with_both_versions() {
        let list = |list: &[(&str, &str)]| -> Vec<(String, String)> {
            list.iter()
                .map(|(a, b)| ((*a).into(), (*b).into()))
                .collect()
        };
        let found = packages(
            &list(&[("a", "1"), ("b", "1"), ("c", "1")]),
            &list(&[("a", "1"), ("b", "2"), ("d", "1")]),
        );
        let told: Vec<_> = found
            .iter()
            .map(|p| (p.name.as_str(), p.before.as_deref(), p.after.as_deref()))
            .collect();
        let expected = [
            ("b", Some("1"), Some("2")),
            ("c", Some("1"), None),
            ("d", None, Some("1")),
        ];
        assert_eq!(told, expected);
    }
}
