//! What a child is asked: a tool call of ours, or a client's own message, byte by byte.

use std::io::Write as _;

use axum::http::HeaderMap;
use bridge_model::Job;
use bridge_process::{Profile, envelop, unfold};
use bridge_protocol::{RawJson, era::Era, jsonrpc::splice, method};
use bytes::Bytes;
use serde_json::Value;

use super::{CallError, arguments::resolve, meta};
use crate::config::{ServerSpec, Transport};

/// One request to a child.
#[derive(Debug, Clone)]
pub enum Ask {
    /// A call of the OpenAPI door.
    Tool {
        /// As the server spells it.
        name: Box<str>,
        /// A JSON object.
        arguments: RawJson,
    },
    /// A request of an MCP client, passed on as it came but for its ids and paths.
    Relay(Relayed),
}

/// A client's request. The parts lie within the line.
#[derive(Debug, Clone)]
pub struct Relayed {
    /// The whole message.
    pub line: Bytes,
    /// The client's id.
    pub id: RawJson,
    /// The client's progress token.
    pub token: Option<RawJson>,
    /// Which form of the protocol the message has.
    pub era: Era,
    /// The method.
    pub method: Box<str>,
    /// Of `tools/call`: the tool, as the server spells it.
    pub tool: Option<Box<str>>,
    /// Where in the line the tool's name is, in case the server spells it otherwise.
    pub name: Option<RawJson>,
    /// Of `tools/call`, where the client sent some.
    pub arguments: Option<RawJson>,
    /// The metadata, where the client sent some.
    pub meta: Option<RawJson>,
}

/// Methods that are counted by name; others are counted as `other`.
const METHODS: &[&str] = &[
    method::COMPLETE,
    method::SET_LEVEL,
    method::PROMPTS_GET,
    method::PROMPTS_LIST,
    method::RESOURCES_LIST,
    method::RESOURCES_READ,
    method::RESOURCES_SUBSCRIBE,
    method::RESOURCES_TEMPLATES_LIST,
    method::RESOURCES_UNSUBSCRIBE,
    method::LISTEN,
    method::TOOLS_LIST,
];

impl Ask {
    /// The tool, or the method in angle brackets: for logs and metrics, from a fixed set.
    pub fn label(&self) -> &str {
        match self {
            Self::Tool { name, .. } => name,
            Self::Relay(relayed) => match &relayed.tool {
                Some(tool) => tool,
                None => METHODS
                    .iter()
                    .find(|method| **method == &*relayed.method)
                    .unwrap_or(&"other"),
            },
        }
    }

    /// Whether it is a call of a tool, after which the folder is looked through.
    pub fn is_tool_call(&self) -> bool {
        match self {
            Self::Tool { .. } => true,
            Self::Relay(relayed) => relayed.tool.is_some(),
        }
    }

    /// The message of an MCP client.
    pub fn line(&self) -> Option<&Bytes> {
        match self {
            Self::Tool { .. } => None,
            Self::Relay(relayed) => Some(&relayed.line),
        }
    }

    /// The arguments, for the journal.
    pub fn arguments(&self) -> Option<&RawJson> {
        match self {
            Self::Tool { arguments, .. } => Some(arguments),
            Self::Relay(relayed) => relayed.arguments.as_ref(),
        }
    }

    /// Which form of the protocol it has.
    pub fn era(&self) -> Era {
        match self {
            Self::Tool { .. } => Era::Legacy,
            Self::Relay(relayed) => relayed.era,
        }
    }

    /// Writes the request for a number of ours and a child of this era, which may know nothing of
    /// the caller's; paths are resolved below the job's folder. A program reads what is `forwarded` in the
    /// `_meta` of a tool call. With `follows` a tool call asks for progress, whether its client did or
    /// not.
    pub fn writer<'a>(
        &'a self,
        spec: &ServerSpec,
        job: &Job,
        era: Era,
        profile: &'a Profile,
        forwarded: Option<&HeaderMap>,
        follows: bool,
    ) -> Result<impl FnOnce(u64) -> Vec<u8> + Send + use<'a>, CallError> {
        let resolved = match self.arguments() {
            Some(arguments) => {
                let (paths, uris) = (&spec.resolve_path_fields, &spec.resolve_uri_fields);
                resolve(paths, uris, arguments, &job.work())?
            }
            None => None,
        };
        let program = matches!(spec.transport, Transport::Stdio(_));
        let forwarded = forwarded.filter(|_| program && self.is_tool_call());
        let forwarded = forwarded.map(meta::headers);
        Ok(move |number: u64| {
            let line = match self {
                Self::Tool { name, arguments } => {
                    let arguments = resolved.as_ref().unwrap_or(arguments);
                    tool_call(number, name, arguments, forwarded.as_ref(), follows)
                }
                Self::Relay(relayed) => relayed
                    .line_for(number, resolved.as_ref(), forwarded.as_ref(), follows)
                    .into(),
            };
            match (self.era(), era) {
                (Era::Legacy, Era::Modern) => envelop(&line.into(), profile).into(),
                (Era::Modern, Era::Legacy) => unfold(&line.into()).into(),
                _ => line,
            }
        })
    }
}

impl Relayed {
    fn line_for(
        &self,
        own: u64,
        arguments: Option<&RawJson>,
        forwarded: Option<&Value>,
        follows: bool,
    ) -> Bytes {
        let number = own.to_string();
        let mut edits: Vec<(&RawJson, &[u8])> = vec![(&self.id, number.as_bytes())];
        let asks = (follows && self.tool.is_some()) || self.token.is_some();
        let written = forwarded.is_some() || (asks && self.token.is_none());
        let meta = written.then(|| {
            let token = asks.then_some(own);
            meta::with(self.meta.as_ref(), token, forwarded)
        });
        let mut name = self
            .tool
            .as_ref()
            .map(|tool| Value::from(&**tool).to_string());
        match (&meta, &self.meta) {
            (Some(now), Some(before)) => edits.push((before, now.as_bytes())),
            // Every tool call has a name, and so a place for the metadata.
            (Some(now), None) => name = name.map(|name| format!("{name},\"_meta\":{now}")),
            (None, _) => edits.extend(self.token.as_ref().map(|token| (token, number.as_bytes()))),
        }
        if let (Some(place), Some(name)) = (&self.name, &name) {
            edits.push((place, name.as_bytes()));
        }
        if let (Some(before), Some(now)) = (&self.arguments, arguments) {
            edits.push((before, now.as_bytes()));
        }
        splice(&self.line, &edits)
    }
}

fn tool_call(
    number: u64,
    name: &str,
    arguments: &RawJson,
    forwarded: Option<&Value>,
    follows: bool,
) -> Vec<u8> {
    let written = follows || forwarded.is_some();
    let meta = written.then(|| meta::with(None, follows.then_some(number), forwarded));
    let meta = meta.map_or_else(String::new, |meta| format!(r#","_meta":{meta}"#));
    // Of the right size, with the name's quotes and the line's end: as a rule nothing grows after this.
    let digits = number.checked_ilog10().unwrap_or(0) as usize + 1;
    let frame =
        r#"{"jsonrpc":"2.0","id":,"method":"tools/call","params":{"name":"","arguments":}}"#;
    let size = frame.len() + digits + name.len() + arguments.as_bytes().len() + meta.len() + 1;
    let mut line = Vec::with_capacity(size);
    let mut write = || -> std::io::Result<()> {
        write!(
            line,
            r#"{{"jsonrpc":"2.0","id":{number},"method":"tools/call","params":{{"name":"#
        )?;
        serde_json::to_writer(&mut line, name)?;
        write!(line, r#","arguments":{}{meta}}}}}"#, arguments.as_str())
    };
    write().expect("memory takes everything");
    line
}
