//! What a server said, kept over a restart. It counts for the same config and the same installed
//! packages only, and until the server was asked again.

use std::sync::{Arc, OnceLock};

use bridge_process::HelloParts;
use bridge_protocol::{RawJson, Tool, era::Era, method};
use bridge_state::ChatStore;
use bytes::Bytes;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::value::RawValue;

use super::Learnt;
use crate::{child::Children, config::ServerSpec, launches::Launching};

/// The layout that this version writes and reads.
const FORMAT: u32 = 1;

/// For what an entry counts: the config's version, and what is started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Key {
    config: String,
    /// None for what runs as written, whose version nobody knows before it is asked.
    packages: Option<String>,
}

impl Key {
    /// For this server as it is started now.
    pub fn for_server(spec: &ServerSpec, children: &Children) -> Self {
        let packages = match children.launches().state_of(spec) {
            Launching::Installed(resolved) => resolved.identity.clone(),
            _ => None,
        };
        Self {
            config: spec.version().to_hex(),
            packages,
        }
    }
}

#[derive(Serialize)]
struct Writing<'a> {
    format: u32,
    key: &'a Key,
    hello: &'a RawJson,
    spoken_modern: bool,
    modern: Option<&'a RawJson>,
    #[serde(serialize_with = "raw_tools")]
    tools: &'a [Tool],
    prompts: &'a [RawJson],
    resources: &'a [RawJson],
    templates: &'a [RawJson],
    memory: u64,
    wrote_files: bool,
    odd: Option<&'a str>,
}

fn raw_tools<S: Serializer>(tools: &[Tool], to: S) -> Result<S::Ok, S::Error> {
    to.collect_seq(tools.iter().map(|tool| &tool.raw))
}

#[derive(Deserialize)]
struct Reading<'a> {
    format: u32,
    key: Key,
    #[serde(borrow)]
    hello: &'a RawValue,
    spoken_modern: bool,
    #[serde(borrow)]
    modern: Option<&'a RawValue>,
    #[serde(borrow)]
    tools: Vec<&'a RawValue>,
    #[serde(borrow)]
    prompts: Vec<&'a RawValue>,
    #[serde(borrow)]
    resources: Vec<&'a RawValue>,
    #[serde(borrow)]
    templates: Vec<&'a RawValue>,
    memory: u64,
    wrote_files: bool,
    #[serde(default)]
    odd: Option<String>,
}

/// Reads what was kept for `key`; `None` where there is nothing that counts. Blocks.
pub fn read(store: &ChatStore, spec: &ServerSpec, key: &Key) -> Option<Learnt> {
    let server = &spec.name;
    let content = match store.catalog_entry(server) {
        Ok(content) => Bytes::from(content?),
        Err(error) => {
            tracing::warn!(
                %server,
                %error,
                "cached catalog entry cannot be read; the server is queried again"
            );
            return None;
        }
    };
    match parse(&content, key) {
        Ok(found) => found,
        Err(error) => {
            tracing::warn!(
                %server,
                %error,
                "cached catalog entry is corrupt; the server is queried again"
            );
            None
        }
    }
}

/// What a server of this config said of itself when it was last asked, whatever it was started
/// from. Blocks.
pub fn kept(store: &ChatStore, spec: &ServerSpec) -> Option<HelloParts> {
    let content = Bytes::from(store.catalog_entry(&spec.name).ok()??);
    let read: Reading = serde_json::from_slice(&content).ok()?;
    let same = read.format == FORMAT && read.key.config == spec.version().to_hex();
    same.then(|| HelloParts::read(&RawJson::within(&content, read.hello)).0)
}

fn parse(content: &Bytes, key: &Key) -> Result<Option<Learnt>, serde_json::Error> {
    let read: Reading = serde_json::from_slice(content)?;
    if read.format != FORMAT || read.key != *key {
        return Ok(None);
    }
    let raw = |part: &RawValue| RawJson::within(content, part);
    let all = |parts: Vec<&RawValue>| parts.into_iter().map(raw).collect();
    let hello_raw = raw(read.hello);
    let modern = OnceLock::new();
    if let Some(part) = read.modern {
        let _ = modern.set(raw(part));
    }
    let tools = read.tools.into_iter().map(raw);
    Ok(Some(Learnt {
        hello: HelloParts::read(&hello_raw).0,
        hello_raw,
        era: if read.spoken_modern {
            Era::Modern
        } else {
            Era::Legacy
        },
        modern,
        tools: tools.filter_map(|tool| Tool::read_raw(&tool)).collect(),
        prompts: all(read.prompts),
        resources: all(read.resources),
        templates: all(read.templates),
        memory: read.memory,
        wrote_files: read.wrote_files,
        odd: read.odd,
    }))
}

fn content(key: &Key, learnt: &Learnt) -> serde_json::Result<Vec<u8>> {
    let writing = Writing {
        format: FORMAT,
        key,
        hello: &learnt.hello_raw,
        spoken_modern: learnt.era == Era::Modern,
        modern: learnt.modern.get(),
        tools: &learnt.tools,
        prompts: &learnt.prompts,
        resources: &learnt.resources,
        templates: &learnt.templates,
        memory: learnt.memory,
        wrote_files: learnt.wrote_files,
        odd: learnt.odd.as_deref(),
    };
    serde_json::to_vec(&writing)
}

/// Keeps what was learnt. A disk that fails costs the next start some time, and nothing now.
/// Blocks.
pub fn write(store: &ChatStore, spec: &ServerSpec, key: &Key, learnt: &Learnt) {
    let Ok(content) = content(key, learnt) else {
        return;
    };
    if let Err(error) = store.keep_catalog_entry(&spec.name, &content) {
        tracing::warn!(server = %spec.name, %error, "catalog entry not cached");
    }
}

/// The notifications about what differs between two answers of one server.
pub fn news(before: &Learnt, after: &Learnt) -> Vec<&'static str> {
    let tools = |learnt: &Learnt| -> Vec<RawJson> {
        learnt.tools.iter().map(|tool| tool.raw.clone()).collect()
    };
    let resources = before.resources != after.resources || before.templates != after.templates;
    let news = [
        (tools(before) != tools(after), method::TOOLS_CHANGED),
        (before.prompts != after.prompts, method::PROMPTS_CHANGED),
        (resources, method::RESOURCES_CHANGED),
    ];
    let news = news.into_iter().filter(|(differs, _)| *differs);
    news.map(|(_, method)| method).collect()
}

/// What was learnt, with what is known still true of it: an equal answer keeps its documents.
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

    fn text(key: &Key, learnt: &Learnt) -> Bytes {
        content(key, learnt).unwrap().into()
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
            assert!(parse(&kept.slice(..end), &key("1")).is_err(), "{end}");
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
