//! What a child is asked: a tool call of ours, or a client's own message, byte by byte.

use std::{collections::BTreeSet, io::Write as _, time::Duration};

use axum::http::HeaderMap;
use bridge_model::Job;
use bridge_process::{Child, Profile, Responder, ServerMessage, envelop, unfold};
use bridge_protocol::{
    RawJson,
    era::Era,
    jsonrpc::{Reply, Said, end_line, splice},
    meta::PROGRESS_TOKEN,
    method,
};
use bytes::Bytes;
use futures_util::future::join_all;
use serde_json::{Map, Value, json};
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::{CallError, Running, arguments::resolve};
use crate::{
    config::{Mode, ServerSpec, Transport},
    session::Class,
};

/// One request to a child.
#[derive(Debug, Clone)]
pub enum Ask {
    /// A call of the OpenAPI endpoint.
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
    let meta = written.then(|| meta_with(None, follows.then_some(number), forwarded));
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

// A request and its answer, where the child asks by result: `input_required` ends a round, and the
// same request with the answers begins the next. A caller who knows nothing of rounds is asked as
// if the child had asked him itself; who passes them on plays them himself.

/// Rounds of one request. Servers that ask step by step need a few.
const ROUNDS: usize = 32;

/// Before the next round, where the child asked for nothing but another try.
const PAUSE: Duration = Duration::from_millis(200);

/// What the next round says beside the request itself.
struct Round {
    answers: RawJson,
    state: Option<RawJson>,
}

impl Running {
    /// Asks the child until it has an answer, or one that the caller deals with.
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
            let reply = self.reply(exchanged)?;
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

    /// Callers of the same revision play rounds themselves, but only where their retry comes to
    /// the same process.
    fn plays_rounds(&self) -> bool {
        let same_process = match self.call.spec.mode {
            Mode::Shared => true,
            Mode::Stateless => false,
            Mode::Stateful => self.call.address.class == Class::Lasting,
        };
        self.call.ask.era() == Era::Legacy || !same_process
    }

    /// What a child of 2026-07-28 has no method for, and the bridge does for it.
    async fn instead_of(&self, child: &Child) -> Option<Result<Reply, CallError>> {
        let line = self.call.ask.line()?;
        let whole = RawJson::parse(line.clone()).ok()?;
        let method: String = whole.member("method")?.read().ok()?;
        let uri = whole
            .member("params")
            .and_then(|params| params.member("uri"));
        let uri: Option<String> = uri.and_then(|uri| uri.read().ok());
        // On a shared child somebody else may want to hear it.
        let of_others =
            self.call.spec.mode == Mode::Shared && method == method::RESOURCES_UNSUBSCRIBE;
        if !of_others && let Err(error) = child.instead_of(&method, uri).await? {
            return Some(Err(CallError::Child(error)));
        }
        let empty = Bytes::from_static(br#"{"jsonrpc":"2.0","id":0,"result":{}}"#);
        Reply::read(&empty).map(Ok)
    }

    /// Has the caller answer what the child asked.
    async fn answers(&self, asked: &InputRequired) -> Result<RawJson, CallError> {
        if asked.requests.is_empty() {
            tokio::time::sleep(PAUSE).await;
        }
        let mut waiting = Vec::new();
        for (key, said) in &asked.requests {
            let (answer, answered) = oneshot::channel();
            let responder = Responder::of_round(key, answer);
            if let Some(sink) = &self.call.sink {
                // Who does not hear it declines by the responder's drop.
                let _ = sink
                    .messages
                    .try_send(ServerMessage::Request(said.clone(), responder));
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

/// What a result asks for.
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
        let methods: BTreeSet<&str> = self
            .requests
            .iter()
            .map(|(_, said)| &*said.method)
            .collect();
        methods.into_iter().collect::<Vec<_>>().join(", ")
    }
}

/// The answer of a caller who cannot be asked, which lets the call go on; a round has no place for an
/// error. `None` where no answer says so.
fn unasked(method: &str) -> Option<RawJson> {
    Some(RawJson::from_json(&match method {
        method::ELICITATION_CREATE => json!({"action": "cancel"}),
        method::ROOTS_LIST => json!({"roots": []}),
        _ => return None,
    }))
}

/// The question as a child of an older revision asks it.
fn as_request(key: &RawJson, question: &RawJson) -> Option<Said> {
    let line = question
        .with_member("id", key)
        .with_member("jsonrpc", &RawJson::from_json(&Value::from("2.0")));
    Said::read(&line.into_bytes())
}

/// The request as a line, with what its round adds.
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

// A call's wait for its caller, whom the child asked something.
//
// ```text
// Running ──asked──▶ InputPending ──answered──▶ Returning ──turn and permit are back──▶ Running ──▶ Ended
// ```
// While the input is pending, the call's clock stands still, and other calls may have its turn and its
// permit. The child gets the answer when the call has both again: what it then does to the folder falls
// into the call's own turn.

/// Where a call stands between its child and its caller. The endpoint and the engine each hold one.
#[derive(Debug, Clone)]
pub struct PendingInput(Option<watch::Sender<CallState>>);

/// Sees where the call stands.
pub(super) struct Watch(Option<watch::Receiver<CallState>>);

/// See the top of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CallState {
    /// The child is at work, or was not asked yet.
    Running,
    /// The caller has been asked.
    InputPending,
    /// The caller has answered; the child has not heard it yet.
    Returning,
    /// Nobody looks after the call any more.
    Ended,
}

impl Default for PendingInput {
    fn default() -> Self {
        Self(Some(watch::Sender::new(CallState::Running)))
    }
}

impl Watch {
    /// Where it stands now.
    pub fn now(&mut self) -> CallState {
        let state = self.0.as_mut().map(|state| *state.borrow_and_update());
        state.unwrap_or(CallState::Running)
    }

    /// Waits until it stands somewhere else.
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
    /// Of a call whose caller cannot be asked anything.
    pub fn never() -> Self {
        Self(None)
    }

    /// The caller is asked something.
    pub fn begin(&self) {
        self.change(|state| (state != CallState::Ended).then_some(CallState::InputPending));
    }

    /// The caller has answered all that he was asked.
    pub fn answered(&self) {
        self.change(|state| (state == CallState::InputPending).then_some(CallState::Returning));
    }

    /// Waits until the child may hear the answers; after the end of the call that is at once.
    pub async fn resumed(&self) {
        let going = |state: &CallState| matches!(state, CallState::Running | CallState::Ended);
        if let Some(state) = &self.0 {
            // It cannot close: this is a sender.
            let _ = state.subscribe().wait_for(going).await;
        }
    }

    /// Whether both are of the same call.
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

// Forwarded headers in the `_meta` of a tool call, where programs read them.

/// Under this name; what a client itself sends under it never arrives.
const KEY: &str = "mcpo-bridge/headers";

/// Names in lower case; several values of one name are joined, as HTTP does it.
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

/// The client's metadata with the headers, and with our own progress token, in the place of his where
/// he sent one.
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
mod pending_input_tests {
    use super::*;

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
}

#[cfg(test)]
mod meta_tests {
    use serde_json::json;

    use super::*;

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
