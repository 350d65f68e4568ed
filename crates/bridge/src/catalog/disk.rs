//! The answers of a server, stored across restarts. An entry is valid for the same config and the
//! same installed packages, until the server's lists are read again.

use std::sync::{Arc, OnceLock};

use bridge_process::HelloParts;
use bridge_protocol::{RawJson, Tool, era::Era, method};
use bridge_state::ChatStore;
use serde::{Deserialize, Serialize};

use super::Learnt;
use crate::{child::Children, config::ServerSpec};

/// Version of the file format.
const FORMAT: u32 = 1;

/// Conditions under which an entry is valid: the config's version and the installed packages.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Key {
    config: String,
    /// `None` if the server is started by its own command line, because its version is then unknown.
    packages: Option<String>,
}

impl Key {
    /// The key of this server with its current launch.
    pub fn for_server(spec: &ServerSpec, children: &Children) -> Self {
        let installed = children.launches().state_of(spec).installed();
        Self {
            config: spec.version().to_hex(),
            packages: installed.and_then(|resolved| resolved.identity.clone()),
        }
    }
}

/// Content of a file.
#[derive(Serialize, Deserialize)]
struct Entry {
    format: u32,
    key: Key,
    hello: RawJson,
    spoken_modern: bool,
    modern: Option<RawJson>,
    tools: Vec<RawJson>,
    prompts: Vec<RawJson>,
    resources: Vec<RawJson>,
    templates: Vec<RawJson>,
    memory: u64,
    wrote_files: bool,
    #[serde(default)]
    odd: Option<String>,
}

/// Reads the entry for `key`; `None` if there is no valid one. Blocks.
pub fn read(store: &ChatStore, spec: &ServerSpec, key: &Key) -> Option<Learnt> {
    let server = &spec.name;
    let content = match store.catalog_entry(server) {
        Ok(content) => content?,
        Err(error) => {
            tracing::warn!(
                %server,
                %error,
                "cached catalog entry cannot be read; the server is queried again"
            );
            return None;
        }
    };
    parse(&content, key).unwrap_or_else(|error| {
        tracing::warn!(
            %server,
            %error,
            "cached catalog entry is corrupt; the server is queried again"
        );
        None
    })
}

/// The `initialize` result in the entry of this config, whatever packages the server was started
/// from. Blocks.
pub fn kept(store: &ChatStore, spec: &ServerSpec) -> Option<HelloParts> {
    let content = store.catalog_entry(&spec.name).ok()??;
    let read: Entry = serde_json::from_slice(&content).ok()?;
    let same = read.format == FORMAT && read.key.config == spec.version().to_hex();
    same.then(|| HelloParts::read(&read.hello).0)
}

fn parse(content: &[u8], key: &Key) -> Result<Option<Learnt>, serde_json::Error> {
    let read: Entry = serde_json::from_slice(content)?;
    if read.format != FORMAT || read.key != *key {
        return Ok(None);
    }
    Ok(Some(Learnt {
        hello: HelloParts::read(&read.hello).0,
        hello_raw: read.hello,
        era: if read.spoken_modern {
            Era::Modern
        } else {
            Era::Legacy
        },
        modern: read.modern.map_or_else(OnceLock::new, OnceLock::from),
        tools: read.tools.iter().filter_map(Tool::read_raw).collect(),
        prompts: read.prompts,
        resources: read.resources,
        templates: read.templates,
        memory: read.memory,
        wrote_files: read.wrote_files,
        odd: read.odd,
    }))
}

fn content(key: &Key, learnt: &Learnt) -> serde_json::Result<Vec<u8>> {
    serde_json::to_vec(&Entry {
        format: FORMAT,
        key: key.clone(),
        hello: learnt.hello_raw.clone(),
        spoken_modern: learnt.era == Era::Modern,
        modern: learnt.modern.get().cloned(),
        tools: raw_tools(learnt),
        prompts: learnt.prompts.clone(),
        resources: learnt.resources.clone(),
        templates: learnt.templates.clone(),
        memory: learnt.memory,
        wrote_files: learnt.wrote_files,
        odd: learnt.odd.clone(),
    })
}

fn raw_tools(learnt: &Learnt) -> Vec<RawJson> {
    learnt.tools.iter().map(|tool| tool.raw.clone()).collect()
}

/// Stores an entry. If this fails, the only effect is a slower next start. Blocks.
pub fn write(store: &ChatStore, spec: &ServerSpec, key: &Key, learnt: &Learnt) {
    let Ok(content) = content(key, learnt) else {
        return;
    };
    if let Err(error) = store.keep_catalog_entry(&spec.name, &content) {
        tracing::warn!(server = %spec.name, %error, "catalog entry not cached");
    }
}

/// The list-changed notifications for the differences between two answers of one server.
pub fn news(before: &Learnt, after: &Learnt) -> Vec<&'static str> {
    let resources = before.resources != after.resources || before.templates != after.templates;
    let news = [
        (raw_tools(before) != raw_tools(after), method::TOOLS_CHANGED),
        (before.prompts != after.prompts, method::PROMPTS_CHANGED),
        (resources, method::RESOURCES_CHANGED),
    ];
    let news = news.into_iter().filter(|(differs, _)| *differs);
    news.map(|(_, method)| method).collect()
}

/// Whether the answers are the same; if so, their documents are kept.
pub fn unchanged(before: &Arc<Learnt>, after: &Learnt) -> bool {
    before.era == after.era
        && before.hello_raw == after.hello_raw
        && before.odd == after.odd
        && news(before, after).is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(text: &str) -> RawJson {
        RawJson::parse(text.to_owned().into()).unwrap()
    }

    fn learnt(tools: &[&str]) -> Learnt {
        let hello_raw =
            raw(r#"{"protocolVersion":"2025-06-18","serverInfo":{"name":"n"},"x":1e400}"#);
        Learnt {
            hello: HelloParts::read(&hello_raw).0,
            hello_raw,
            era: Era::Modern,
            modern: OnceLock::from(raw(r#"{"m":1.0}"#)),
            tools: tools
                .iter()
                .map(|tool| Tool::read_raw(&raw(tool)).unwrap())
                .collect(),
            prompts: vec![raw(r#"{"name":"p"}"#)],
            resources: Vec::new(),
            templates: Vec::new(),
            memory: 7,
            wrote_files: true,
            odd: Some("odd".to_owned()),
        }
    }

    fn key(packages: &str) -> Key {
        Key {
            config: "c".into(),
            packages: Some(packages.into()),
        }
    }

    fn text(key: &Key, learnt: &Learnt) -> Vec<u8> {
        content(key, learnt).unwrap()
    }

    #[test]
    fn every_byte_of_a_server_survives() {
        let before = learnt(&[r#"{"name":"a","n":1.0,"\ud800":1e400}"#, r#"{"name":"b"}"#]);
        let kept = text(&key("1"), &before);
        let after = parse(&kept, &key("1")).unwrap().unwrap();
        assert!(unchanged(&Arc::new(before), &after));
        assert_eq!(
            after.tools[0].raw.as_str(),
            r#"{"name":"a","n":1.0,"\ud800":1e400}"#
        );
        assert_eq!(after.modern.get().unwrap().as_str(), r#"{"m":1.0}"#);
        assert_eq!((after.memory, after.wrote_files), (7, true));
        assert_eq!(after.odd.as_deref(), Some("odd"));
    }

    #[test]
    fn an_entry_counts_for_its_packages_only() {
        let kept = text(&key("1"), &learnt(&[]));
        assert!(parse(&kept, &key("2")).unwrap().is_none());
        let written = Key {
            packages: None,
            ..key("")
        };
        assert!(parse(&kept, &written).unwrap().is_none());
    }

    #[test]
    fn half_an_entry_is_none() {
        let kept = text(&key("1"), &learnt(&[r#"{"name":"a"}"#]));
        for end in [0, 1, kept.len() / 2, kept.len() - 1] {
            assert!(parse(&kept[..end], &key("1")).is_err(), "{end}");
        }
    }

    #[test]
    fn news_are_about_what_differs() {
        let (one, two) = (learnt(&[r#"{"name":"a"}"#]), learnt(&[r#"{"name":"b"}"#]));
        assert_eq!(news(&one, &two), ["notifications/tools/list_changed"]);
        let other = Learnt {
            resources: vec![raw("{}")],
            prompts: Vec::new(),
            ..learnt(&[r#"{"name":"a"}"#])
        };
        assert_eq!(
            news(&one, &other),
            [
                "notifications/prompts/list_changed",
                "notifications/resources/list_changed"
            ]
        );
    }
}
