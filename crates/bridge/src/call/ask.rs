//! The request to a child: a tool call of the OpenAPI endpoint, or a client's own message with its bytes. Only
//! the paths in its arguments are made absolute.

use std::{collections::BTreeSet, io::Write as _, path::Path, time::Duration};

use axum::http::HeaderMap;
use bridge_model::Job;
use bridge_process::{
    Child, ChildError, Profile, Responder, ServerMessage, envelop, percent_encoded, unfold,
};
use bridge_protocol::{
    RawJson,
    era::Era,
    jsonrpc::{Reply, Said, end_line, splice},
    meta::PROGRESS_TOKEN,
    method,
};
use bytes::Bytes;
use futures_util::future::join_all;
use indexmap::IndexMap;
use percent_encoding::percent_decode_str;
use serde_json::{
    Map, Value, json,
    value::{RawValue, to_raw_value},
};
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::{CallError, Running};
use crate::{
    artifacts::RelativePath,
    config::{Mode, ServerSpec, Transport},
    session::Class,
};

/// One request to a child.
#[derive(Debug, Clone)]
pub enum Ask {
    /// A call of the OpenAPI endpoint.
    Tool {
        /// The tool, as spelled by the server.
        name: Box<str>,
        /// A JSON object.
        arguments: RawJson,
    },
    /// A request of an MCP client, unchanged except for its ids and paths.
    Relay(Relayed),
}

/// A client's request. Its parts are slices of the line.
#[derive(Debug, Clone)]
pub struct Relayed {
    /// The whole message.
    pub line: Bytes,
    /// The client's id.
    pub id: RawJson,
    /// The client's progress token.
    pub token: Option<RawJson>,
    /// The protocol era of the message.
    pub era: Era,
    /// The method.
    pub method: Box<str>,
    /// For `tools/call`: the tool, as spelled by the server.
    pub tool: Option<Box<str>>,
    /// The tool's name in the line, in case the server spells it differently.
    pub name: Option<RawJson>,
    /// For `tools/call`: the arguments, if the client sent some.
    pub arguments: Option<RawJson>,
    /// The metadata, if the client sent some.
    pub meta: Option<RawJson>,
}

/// Methods with a metric label of their own; others are counted as `other`.
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
            Self::Relay(relayed) => relayed.tool.as_deref().unwrap_or_else(|| {
                let known = METHODS.iter().find(|method| **method == &*relayed.method);
                known.unwrap_or(&"other")
            }),
        }
    }

    /// The request of an MCP client, if it is one.
    fn relayed(&self) -> Option<&Relayed> {
        match self {
            Self::Tool { .. } => None,
            Self::Relay(relayed) => Some(relayed),
        }
    }

    /// Whether it is a tool call, after which the folder is scanned.
    pub fn is_tool_call(&self) -> bool {
        self.relayed().is_none_or(|relayed| relayed.tool.is_some())
    }

    /// The arguments, for the journal.
    pub fn arguments(&self) -> Option<&RawJson> {
        match self {
            Self::Tool { arguments, .. } => Some(arguments),
            Self::Relay(relayed) => relayed.arguments.as_ref(),
        }
    }

    /// The protocol era of the request.
    pub fn era(&self) -> Era {
        self.relayed().map_or(Era::Legacy, |relayed| relayed.era)
    }

    /// Writes the request with the bridge's own id, in the form of the child's era; paths are resolved below
    /// the job's folder. Programs get the `forwarded` headers in the `_meta` of a tool call. With `follows`
    /// a tool call requests progress notifications, even if its client did not.
    pub fn writer<'a>(
        &'a self,
        spec: &ServerSpec,
        job: &Job,
        era: Era,
        profile: &'a Profile,
        forwarded: Option<&HeaderMap>,
        follows: bool,
    ) -> Result<impl FnOnce(u64) -> Vec<u8> + Send + use<'a>, CallError> {
        let (paths, uris) = (&spec.resolve_path_fields, &spec.resolve_uri_fields);
        let resolved = self.arguments();
        let resolved = resolved.map(|arguments| resolve(paths, uris, arguments, &job.work()));
        let resolved = resolved.transpose()?.flatten();
        let program = matches!(spec.transport, Transport::Stdio(_));
        let forwarded = forwarded.filter(|_| program && self.is_tool_call());
        let forwarded = forwarded.map(headers_meta);
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
            meta_with(self.meta.as_ref(), token, forwarded)
        });
        let name = self.tool.as_deref();
        let mut name = name.map(|name| Value::from(name).to_string());
        match (&meta, &self.meta) {
            (Some(now), Some(before)) => edits.push((before, now.as_bytes())),
            // Every tool call has a name, after which the metadata can be inserted.
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
    let meta = written.then(|| meta_with(None, follows.then_some(number), forwarded));
    let meta = meta.map_or_else(String::new, |meta| format!(r#","_meta":{meta}"#));
    // The buffer has the right size, including the name's quotes and the line's end: usually it does not
    // grow afterwards.
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

// Paths in arguments: absolute in the fields that the config names.

/// Makes the named top-level arguments absolute, whether one name or a list, in fields of `paths` and
/// of `uris`; all others keep their bytes. `None` if nothing changes.
fn resolve(
    paths: &[String],
    uris: &[String],
    arguments: &RawJson,
    work: &Path,
) -> Result<Option<RawJson>, CallError> {
    let paths = paths.iter().map(|field| (field, false));
    let uris = uris.iter().map(|field| (field, true));
    let mut fields = paths.chain(uris).peekable();
    if fields.peek().is_none() {
        return Ok(None);
    }
    let Ok(mut members) = arguments.read::<IndexMap<String, Box<RawValue>>>() else {
        return Ok(None);
    };
    for (field, as_uri) in fields {
        let Some(member) = members.get_mut(field) else {
            continue;
        };
        let bad = || CallError::BadPath {
            field: field.clone(),
        };
        let one = |name: &str| absolute(name, as_uri, work).ok_or_else(bad);
        let resolved = match serde_json::from_str::<Value>(member.get()) {
            Ok(Value::String(name)) => Value::from(one(&name)?),
            Ok(Value::Array(items)) => {
                let items = items.into_iter().map(|item| match item {
                    Value::String(name) => one(&name).map(Value::from),
                    other => Ok(other),
                });
                Value::Array(items.collect::<Result<_, _>>()?)
            }
            _ => continue,
        };
        *member = to_raw_value(&resolved).map_err(|_| bad())?;
    }
    let resolved = RawJson::from_value(&members);
    resolved.map(Some).map_err(CallError::internal)
}

/// `None` for a path that leaves the folder. `as_uri`: also a plain path becomes a URI.
fn absolute(name: &str, as_uri: bool, work: &Path) -> Option<String> {
    if let Some(file) = after_scheme(name, "file:") {
        return Some(uri(&within_uri(&path_of_uri(file)?, work)?));
    }
    let mut elsewhere = ["http:", "https:", "data:"].into_iter();
    if !as_uri {
        within(name, work)
    } else if elsewhere.any(|scheme| after_scheme(name, scheme).is_some()) {
        Some(name.to_owned())
    } else {
        Some(uri(&within(name, work)?))
    }
}

/// Schemes are case-insensitive.
fn after_scheme<'a>(text: &'a str, scheme: &str) -> Option<&'a str> {
    let (start, rest) = text.split_at_checked(scheme.len())?;
    start.eq_ignore_ascii_case(scheme).then_some(rest)
}

/// The path after `file:`, with or without an authority, and with any number of slashes, because models
/// do not know the folder's path.
fn path_of_uri(rest: &str) -> Option<String> {
    let path = rest.strip_prefix("//").map_or(rest, |behind| {
        after_scheme(behind, "localhost/").unwrap_or(behind)
    });
    let path = percent_decode_str(path).decode_utf8().ok()?;
    Some(path.into_owned())
}

fn uri(path: &str) -> String {
    format!("file://{}", percent_encoded(path))
}

/// The path of a URI always begins with a slash, so such a path is also taken relative to the folder.
fn within_uri(path: &str, work: &Path) -> Option<String> {
    within(path, work).or_else(|| within(path.trim_start_matches('/'), work))
}

/// The full path of a file in the folder.
fn within(name: &str, work: &Path) -> Option<String> {
    let path = Path::new(name);
    let inside = path.strip_prefix(work).unwrap_or(path);
    let inside = RelativePath::parse(inside).ok()?;
    work.join(inside.as_path()).to_str().map(str::to_owned)
}

// A request whose result may ask for input: `input_required` ends a round, and the same request with the
// answers begins the next. A caller of an older revision gets the questions as requests of the child; a
// caller of the same revision gets the result and repeats its request.

/// Maximum number of rounds of one request.
const ROUNDS: usize = 32;

/// Delay before the next round, if the child asked no question.
const PAUSE: Duration = Duration::from_millis(200);

/// The additional members of the request in the next round.
struct Round {
    answers: RawJson,
    state: Option<RawJson>,
}

impl Running {
    /// Sends the request until the child returns an answer, or a question that its caller handles.
    pub(super) async fn exchange(
        &self,
        child: &Child,
        job: &Job,
        cancelled: &CancellationToken,
    ) -> Result<Reply, CallError> {
        let (ask, era) = (&self.call.ask, child.era());
        if era == Era::Modern
            && ask.era() == Era::Legacy
            && let Some(reply) = self.instead_of(child).await
        {
            return reply;
        }
        let plays = era == Era::Modern && self.plays_rounds();
        let mut round = None;
        let (spec, profile) = (&self.call.spec, &self.call.profile);
        let forwarded = self.call.forwarded.as_ref();
        for _ in 0..ROUNDS {
            let sink = self.call.sink.as_ref();
            let follows = sink.is_some_and(|sink| sink.witness.is_some());
            let write = ask.writer(spec, job, era, profile, forwarded, follows)?;
            let begun = round.take();
            let mut guard = None;
            let write = |number| {
                guard = forwarded
                    .and_then(|headers| child.with_request_headers(number, headers.clone()));
                with_round(write(number), begun.as_ref())
            };
            let sink = self.call.sink.clone();
            let exchanged = child.exchange(write, cancelled, sink).await;
            let reply = exchanged.map_err(|error| match error {
                ChildError::Timeout => self.timed_out(None),
                error => CallError::Child(error),
            })?;
            let Some(asked) = plays.then(|| InputRequired::read(&reply)).flatten() else {
                return Ok(reply);
            };
            let answers = cancelled.run_until_cancelled(self.answers(&asked)).await;
            round = Some(Round {
                answers: answers.unwrap_or(Err(CallError::Left))?,
                state: asked.state,
            });
        }
        Err(CallError::TooManyRounds(ROUNDS))
    }

    /// Callers of the same revision repeat their requests themselves, but only if the next request reaches
    /// the same process.
    fn plays_rounds(&self) -> bool {
        let same_process = match self.call.spec.mode {
            Mode::Shared => true,
            Mode::Stateless => false,
            Mode::Stateful => self.call.address.class == Class::Lasting,
        };
        self.call.ask.era() == Era::Legacy || !same_process
    }

    /// The reply to a method that 2026-07-28 does not have, and which the bridge handles.
    async fn instead_of(&self, child: &Child) -> Option<Result<Reply, CallError>> {
        let line = self.call.ask.relayed()?.line.clone();
        let whole = RawJson::parse(line).ok()?;
        let method: String = whole.member("method")?.read().ok()?;
        let params = whole.member("params");
        let uri = params.and_then(|params| params.member("uri"));
        let uri: Option<String> = uri.and_then(|uri| uri.read().ok());
        // On a shared child another caller may be subscribed.
        let of_others =
            self.call.spec.mode == Mode::Shared && method == method::RESOURCES_UNSUBSCRIBE;
        if !of_others && let Err(error) = child.instead_of(&method, uri).await? {
            return Some(Err(CallError::Child(error)));
        }
        let empty = Bytes::from_static(br#"{"jsonrpc":"2.0","id":0,"result":{}}"#);
        Reply::read(&empty).map(Ok)
    }

    /// Sends the child's questions to the caller and waits for the answers.
    async fn answers(&self, asked: &InputRequired) -> Result<RawJson, CallError> {
        if asked.requests.is_empty() {
            tokio::time::sleep(PAUSE).await;
        }
        let mut waiting = Vec::new();
        for (key, said) in &asked.requests {
            let (answer, answered) = oneshot::channel();
            let responder = Responder::of_round(key, answer);
            if let Some(sink) = &self.call.sink {
                let request = ServerMessage::Request(said.clone(), responder);
                // If it cannot be sent, the responder is dropped, which declines it.
                let _ = sink.messages.try_send(request);
            }
            waiting.push(answered);
        }
        let mut answers = RawJson::empty_object();
        for ((key, said), answer) in asked.requests.iter().zip(join_all(waiting).await).rev() {
            let answer = answer.or_else(|_| {
                let unasked = unasked(&said.method);
                unasked.ok_or_else(|| CallError::Unanswerable {
                    asked: asked.methods(),
                })
            })?;
            answers = answers.with_member(key, &answer);
        }
        Ok(answers)
    }
}

/// The questions of an `input_required` result.
struct InputRequired {
    requests: Vec<(String, Said)>,
    state: Option<RawJson>,
}

impl InputRequired {
    fn read(reply: &Reply) -> Option<Self> {
        let result = reply.outcome.as_ref().ok()?;
        let kind: String = result.member("resultType")?.read().ok()?;
        if kind != "input_required" {
            return None;
        }
        let requests = result.member("inputRequests");
        let requests = requests.and_then(|requests| requests.members());
        let requests = requests.unwrap_or_default().into_iter();
        let requests = requests.filter_map(|member| {
            let key: String = member.name.read().ok()?;
            Some((key, as_request(&member.name, &member.value)?))
        });
        Some(Self {
            requests: requests.collect(),
            state: result.member("requestState"),
        })
    }

    fn methods(&self) -> String {
        let methods = self.requests.iter().map(|(_, said)| &*said.method);
        let methods: BTreeSet<&str> = methods.collect();
        Vec::from_iter(methods).join(", ")
    }
}

/// The answer for a caller that cannot be asked, with which the call continues; a round cannot contain an
/// error. `None` for a method without such an answer.
fn unasked(method: &str) -> Option<RawJson> {
    Some(RawJson::from_json(&match method {
        method::ELICITATION_CREATE => json!({"action": "cancel"}),
        method::ROOTS_LIST => json!({"roots": []}),
        _ => return None,
    }))
}

/// The question as a request of an older revision.
fn as_request(key: &RawJson, question: &RawJson) -> Option<Said> {
    let line = question
        .with_member("id", key)
        .with_member("jsonrpc", &RawJson::from_json(&Value::from("2.0")));
    Said::read(&line.into_bytes())
}

/// The request as a line, with the members of its round.
fn with_round(mut line: Vec<u8>, round: Option<&Round>) -> Bytes {
    if let Some(round) = round
        && let Ok(whole) = RawJson::parse(line.clone().into())
    {
        let params = whole.member("params");
        let params = params.unwrap_or_else(RawJson::empty_object);
        let mut params = params.with_member("inputResponses", &round.answers);
        if let Some(state) = &round.state {
            params = params.with_member("requestState", state);
        }
        line = whole.with_member("params", &params).into_bytes().into();
    }
    end_line(&mut line);
    line.into()
}

// The wait of a call for the input of its caller.
//
// ```text
// Running ──asked──▶ InputPending ──answered──▶ Returning ──turn and permit regained──▶ Running ──▶ Ended
// ```
// While the input is pending, the call's timeout is suspended, and other calls may have its turn and its
// permit. The child gets the answer when the call has both again, so that its changes of the folder happen
// in the call's own turn.

/// The state of a call between its child and its caller, shared by the endpoint and the engine.
#[derive(Debug, Clone)]
pub struct PendingInput(Option<watch::Sender<CallState>>);

/// A receiver of the state.
pub(super) struct Watch(Option<watch::Receiver<CallState>>);

/// See the diagram above.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CallState {
    /// The child works, or has not received the request yet.
    Running,
    /// The caller was asked for input.
    InputPending,
    /// The caller has answered; the child has not received the answer.
    Returning,
    /// The call has ended.
    Ended,
}

impl Default for PendingInput {
    fn default() -> Self {
        Self(Some(watch::Sender::new(CallState::Running)))
    }
}

impl Watch {
    /// The current state.
    pub fn now(&mut self) -> CallState {
        let state = self.0.as_mut().map(|state| *state.borrow_and_update());
        state.unwrap_or(CallState::Running)
    }

    /// Waits for another state.
    pub async fn changed(&mut self) {
        if let Some(state) = &mut self.0
            && state.changed().await.is_ok()
        {
            return;
        }
        std::future::pending::<()>().await;
    }
}

impl PendingInput {
    /// For a call whose caller cannot be asked for input.
    pub fn never() -> Self {
        Self(None)
    }

    /// The caller was asked for input.
    pub fn begin(&self) {
        self.change(|state| (state != CallState::Ended).then_some(CallState::InputPending));
    }

    /// The caller has answered all questions.
    pub fn answered(&self) {
        self.change(|state| (state == CallState::InputPending).then_some(CallState::Returning));
    }

    /// Waits until the child may get the answers; at once after the end of the call.
    pub async fn resumed(&self) {
        let going = |state: &CallState| matches!(state, CallState::Running | CallState::Ended);
        if let Some(state) = &self.0 {
            // The channel cannot close, because this is a sender.
            let _ = state.subscribe().wait_for(going).await;
        }
    }

    /// Whether both belong to the same call.
    pub fn is_of(&self, other: &Self) -> bool {
        let both = self.0.as_ref().zip(other.0.as_ref());
        both.is_some_and(|(one, other)| one.same_channel(other))
    }

    pub(super) fn resume(&self) {
        self.change(|state| (state == CallState::Returning).then_some(CallState::Running));
    }

    pub(super) fn end(&self) {
        self.change(|_| Some(CallState::Ended));
    }

    pub(super) fn watch(&self) -> Watch {
        Watch(self.0.as_ref().map(watch::Sender::subscribe))
    }

    fn change(&self, next: impl FnOnce(CallState) -> Option<CallState>) {
        let Some(state) = &self.0 else { return };
        state.send_if_modified(|state| {
            let next = next(*state);
            *state = next.unwrap_or(*state);
            next.is_some()
        });
    }
}

// Forwarded headers in the `_meta` of a tool call, for programs.

/// The member of `_meta`; a client's own member of this name is removed.
const KEY: &str = "mcpo-bridge/headers";

/// Names in lower case; several values of one name are joined, as in HTTP.
fn headers_meta(headers: &HeaderMap) -> Value {
    let mut members = Map::new();
    for name in headers.keys() {
        let values = headers.get_all(name).iter();
        let values: Vec<_> = values
            .map(|value| String::from_utf8_lossy(value.as_bytes()))
            .collect();
        members.insert(name.to_string(), values.join(", ").into());
    }
    members.into()
}

/// The client's metadata with the headers, and with the bridge's progress token instead of the client's.
fn meta_with(meta: Option<&RawJson>, token: Option<u64>, headers: Option<&Value>) -> String {
    let members = meta.and_then(RawJson::members).unwrap_or_default();
    let mut texts: Vec<String> = Vec::with_capacity(members.len() + 2);
    for member in members {
        let name: String = member.name.read().unwrap_or_default();
        let ours = match name.as_str() {
            KEY => headers.is_some(),
            PROGRESS_TOKEN => token.is_some(),
            _ => false,
        };
        if !ours {
            texts.push(format!(
                "{}:{}",
                member.name.as_str(),
                member.value.as_str()
            ));
        }
    }
    texts.extend(token.map(|token| format!("{}:{token}", Value::from(PROGRESS_TOKEN))));
    texts.extend(headers.map(|headers| format!("{}:{headers}", Value::from(KEY))));
    format!("{{{}}}", texts.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORK: &str = "/jobs/x/wörk";

    fn one(name: &str, as_uri: bool) -> Option<String> {
        absolute(name, as_uri, Path::new(WORK))
    }

    #[test]
    fn names_become_paths_and_paths_that_leave_are_refused() {
        assert_eq!(one("a b/c.xlsx", false).unwrap(), "/jobs/x/wörk/a b/c.xlsx");
        assert_eq!(one("a:b.xlsx", false).unwrap(), "/jobs/x/wörk/a:b.xlsx");
        assert_eq!(one("/jobs/x/wörk/a", false).unwrap(), "/jobs/x/wörk/a");
        for bad in ["../x", "/etc/passwd", "a/../../b", "", "/jobs/x/wörk/../y"] {
            assert_eq!(one(bad, false), None, "{bad}");
        }
    }

    #[test]
    fn uris_stay_uris_and_within_the_folder() {
        for name in [
            "file:a b.docx",
            "file:a%20b.docx",
            "file:./a b.docx",
            "file:/a%20b.docx",
            "file:///a%20b.docx",
            "file://./a b.docx",
            "file://a b.docx",
            "file://localhost/a b.docx",
            "FILE://LOCALHOST/a%20b.docx",
            "file:///jobs/x/w%C3%B6rk/a%20b.docx",
        ] {
            for as_uri in [false, true] {
                let expected = "file:///jobs/x/w%C3%B6rk/a%20b.docx";
                assert_eq!(one(name, as_uri).as_deref(), Some(expected), "{name}");
            }
        }
        for bad in [
            "file:",
            "file:../x",
            "file:///../x",
            "file:///a/%2e%2e/%2e%2e/x",
            "file://localhost/../x",
            "file:%00",
            "file:%ff",
        ] {
            assert_eq!(one(bad, false), None, "{bad}");
        }
        let elsewhere = one("file:///etc/passwd", false).unwrap();
        assert_eq!(elsewhere, "file:///jobs/x/w%C3%B6rk/etc/passwd");
    }

    #[test]
    fn a_field_of_uris_gets_one_for_a_name_and_passes_those_of_pages() {
        assert_eq!(
            one("a.docx", true).unwrap(),
            "file:///jobs/x/w%C3%B6rk/a.docx"
        );
        for same in ["https://example.com/a?b#c", "HTTP://x", "data:text/plain,a"] {
            assert_eq!(one(same, true).unwrap(), same);
        }
        assert_eq!(one("../x", true), None);
    }

    #[test]
    fn lists_are_resolved_and_the_rest_stays_as_it_came() {
        let resolved = |text: &str| {
            let arguments = RawJson::parse(text.to_owned().into()).unwrap();
            let raw = resolve(&["file".into()], &[], &arguments, Path::new("/w")).unwrap();
            raw.map(|raw| raw.as_str().to_owned())
        };
        let out = resolved(r#"{"n":1.0,"file":"a b/c.xlsx","m":1e400}"#).unwrap();
        assert_eq!(out, r#"{"n":1.0,"file":"/w/a b/c.xlsx","m":1e400}"#);
        let out = resolved(r#"{"file":["a",7,"file:b"]}"#).unwrap();
        assert_eq!(out, r#"{"file":["/w/a",7,"file:///w/b"]}"#);
        assert_eq!(resolved(r#"{"file":7}"#).unwrap(), r#"{"file":7}"#);
        assert_eq!(resolved("[]"), None);
    }

    #[tokio::test]
    async fn an_answer_is_heard_when_the_call_goes_on_and_never_waits_for_one_that_ended() {
        let pending_input = PendingInput::default();
        let mut seen = pending_input.watch();
        pending_input.answered();
        assert_eq!(seen.now(), CallState::Running, "nothing was asked");
        pending_input.begin();
        pending_input.resume();
        assert_eq!(seen.now(), CallState::InputPending, "nothing was answered");
        pending_input.answered();
        let endpoint = pending_input.clone();
        let heard = tokio::spawn(async move { endpoint.resumed().await });
        tokio::task::yield_now().await;
        assert!(!heard.is_finished());
        pending_input.resume();
        heard.await.expect("it resumes");
        pending_input.end();
        pending_input.begin();
        pending_input.resumed().await;
    }

    #[tokio::test]
    async fn a_caller_who_cannot_be_asked_is_never_waited_for() {
        let pending_input = PendingInput::never();
        let mut seen = pending_input.watch();
        pending_input.begin();
        assert_eq!(seen.now(), CallState::Running);
        pending_input.resumed().await;
        assert!(!pending_input.is_of(&pending_input.clone()));
        assert!(futures_util::FutureExt::now_or_never(seen.changed()).is_none());
    }

    #[test]
    fn the_clients_own_metadata_stays_but_for_ours() {
        let meta = r#"{"a":1.0,"progressToken":"t","mcpo-bridge/headers":{"x":"forged"}}"#;
        let meta = RawJson::parse(meta.to_owned().into()).unwrap();
        let headers = json!({"x": "y"});
        assert_eq!(
            meta_with(Some(&meta), Some(7), Some(&headers)),
            r#"{"a":1.0,"progressToken":7,"mcpo-bridge/headers":{"x":"y"}}"#
        );
        assert_eq!(
            meta_with(None, None, Some(&headers)),
            r#"{"mcpo-bridge/headers":{"x":"y"}}"#
        );
        assert_eq!(
            meta_with(Some(&meta), None, None),
            meta.as_str(),
            "what nobody may forge is only looked at where headers are forwarded"
        );
        assert_eq!(meta_with(None, Some(7), None), r#"{"progressToken":7}"#);
    }
}
