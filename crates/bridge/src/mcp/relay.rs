//! One request of a client's on its way to a child and back: an answer as JSON where the child
//! says nothing before it, else a stream.

use std::{collections::HashMap, future::Future, pin::Pin, sync::Arc, time::Duration};

use axum::{
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use bridge_model::{Principal, ServerName, SessionId};
use bridge_process::{
    BACKLOG, Cancellation, MessageSink, Responder, ServerMessage, can_answer, needed,
};
use bridge_protocol::{
    ClientMessage, RawJson, code,
    jsonrpc::{Reply, Said, splice},
    meta, method, sse,
};
use bytes::Bytes;
use indexmap::IndexMap;
use parking_lot::Mutex;
use serde_json::{Map, Value, value::RawValue};
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{
    Endpoint, RpcError,
    aggregate::Shown,
    files, lists,
    request::{McpExit, McpRequest},
    session,
    session::InFlight,
};
use crate::{
    call::{Answer, Ask, Call, CallError, PendingInput},
    config::ServerSpec,
    error_table::ErrorKind,
    replicas::RoutableSessionId,
};

/// A silent call becomes a stream after this long, so that pings can keep it open: clients give up
/// after 300 s without a byte.
const QUIET: Duration = Duration::from_secs(20);

/// A child that asks several things at once sends them within this time.
const GATHER: Duration = Duration::from_millis(30);

/// Events on their way to a client.
const EVENTS: usize = 64;

/// What becomes of a child's messages: the client's era decides.
pub trait Manner: Send + Sync + 'static {
    /// A line for the client's stream; `None` where it is not for him.
    fn told(&self, said: &Said) -> Option<Bytes>;
    /// The child asks: a line for the stream, or an answer that ends the request for now.
    fn asked(&self, said: Said, responder: Responder) -> RequestOutcome;
    /// The final answer.
    fn answered(&self, reply: &Reply) -> Bytes;
    /// The HTTP status that goes with it.
    fn status(&self, _reply: &Reply) -> StatusCode {
        StatusCode::OK
    }
}

/// What to do about a child's request.
pub enum RequestOutcome {
    /// Send this to the client, who will answer.
    Send(Bytes),
    /// Nothing: the child was declined.
    Declined,
    /// The request waits for its client's retry, which brings the answer.
    AwaitRetry(Said, Responder),
}

/// A running request.
pub struct Relay {
    manner: Arc<dyn Manner>,
    call: Pin<Box<dyn Future<Output = Result<Answer, CallError>> + Send>>,
    messages: mpsc::Receiver<ServerMessage>,
    cancellation: Cancellation,
    spec: Arc<ServerSpec>,
    lists_tools: bool,
    completes: bool,
    endpoint: Arc<Endpoint>,
    id: RawJson,
    /// What the child asked and the client's retry will answer.
    asked: IndexMap<String, (Said, Responder)>,
    asks: usize,
    /// What the client answered, for the child to hear once the call goes on.
    answers: Vec<(Responder, RawJson)>,
    pending_input: PendingInput,
    retry: Option<Retry>,
    /// The client can cancel the request by its id while this lives.
    in_flight: Option<InFlight>,
    /// How the server's resources are called, where they are not as it calls them.
    shown: Option<Shown>,
    openwebui: bool,
}

/// What happened next.
enum Next {
    Event(Bytes),
    Done(Box<Result<Reply, RpcError>>),
    InputRequired,
}

impl Relay {
    /// Begins. `owner` tells this client's requests from others'.
    pub fn start(
        endpoint: &Arc<Endpoint>,
        owner: u64,
        id: RawJson,
        manner: Arc<dyn Manner>,
        cancellation: Cancellation,
        mut call: Box<Call>,
    ) -> Self {
        let (sender, messages) = mpsc::channel(BACKLOG);
        call.sink = Some(MessageSink {
            owner,
            messages: sender,
            cancellation: cancellation.clone(),
            witness: None,
        });
        let pending_input = call.pending_input.clone();
        let spec = call.spec.clone();
        let asks =
            |method: &str| matches!(&call.ask, Ask::Relay(asked) if &*asked.method == method);
        let (lists_tools, completes) = (asks(method::TOOLS_LIST), asks(method::COMPLETE));
        let engine = endpoint.engine.clone();
        Self {
            manner,
            call: Box::pin(async move { engine.run_apart(call).await }),
            messages,
            cancellation,
            spec,
            lists_tools,
            completes,
            endpoint: endpoint.clone(),
            id,
            asked: IndexMap::new(),
            asks: 0,
            answers: Vec::new(),
            pending_input,
            retry: None,
            in_flight: None,
            shown: None,
            openwebui: false,
        }
    }

    /// The answer is for Open WebUI.
    pub fn for_openwebui(&mut self, is: bool) {
        self.openwebui = is;
    }

    /// Keeps the client's way to cancel the request for as long as it runs.
    pub fn keep(&mut self, in_flight: InFlight) {
        self.in_flight = Some(in_flight);
    }

    /// Calls the server's resources so in the answer.
    pub fn show(&mut self, shown: Option<Shown>) {
        self.shown = shown;
    }

    /// Lets the request wait for its client's retry.
    pub fn can_await_retry(&mut self, retry: Retry) {
        self.retry = Some(retry);
    }

    /// Takes the answers to what the child asked, as far as the client gave them.
    pub fn answer(&mut self, answers: &IndexMap<String, RawJson>) {
        for (key, answer) in answers {
            if let Some((_, responder)) = self.asked.shift_remove(key) {
                self.answers.push((responder, answer.clone()));
            }
        }
    }

    /// Goes on as the request with this id.
    pub fn go_on(mut self, id: RawJson, manner: Arc<dyn Manner>) -> Self {
        if self.asked.is_empty() {
            self.pending_input.answered();
        }
        self.id = id;
        self.manner = manner;
        self
    }

    /// Runs until there is something to answer with. Dropping it cancels the call.
    pub async fn respond(mut self) -> Response {
        let next = tokio::time::timeout(QUIET, self.next()).await;
        match next {
            Ok(Next::Done(done)) => match *done {
                Ok(reply) => {
                    let status = self.manner.status(&reply);
                    (status, json(self.manner.answered(&reply))).into_response()
                }
                Err(error) => error.into_response(),
            },
            Ok(Next::InputRequired) => match self.await_retry() {
                Ok(line) => json(line),
                Err(error) => error.into_response(),
            },
            Ok(Next::Event(event)) => self.stream(Some(event)),
            Err(_) => self.stream(None),
        }
    }

    fn stream(mut self, first: Option<Bytes>) -> Response {
        let (sender, events) = mpsc::channel(EVENTS);
        tokio::spawn(async move {
            if let Some(first) = first
                && sender.send(sse::event(None, &first)).await.is_err()
            {
                return;
            }
            loop {
                let next = tokio::select! {
                    next = self.next() => next,
                    () = sender.closed() => return,
                    () = tokio::time::sleep(session::PING_EVERY) => {
                        if sender.send(session::PING).await.is_err() {
                            return;
                        }
                        continue;
                    }
                };
                let last = match next {
                    Next::Event(line) => {
                        if sender.send(sse::event(None, &line)).await.is_err() {
                            return;
                        }
                        continue;
                    }
                    Next::InputRequired => self
                        .await_retry()
                        .unwrap_or_else(|error| error.body().into()),
                    Next::Done(done) => match *done {
                        Ok(reply) => self.manner.answered(&reply),
                        Err(error) => error.body().into(),
                    },
                };
                let _ = sender.send(sse::event(None, &last)).await;
                return;
            }
        });
        session::response(events)
    }

    /// Gives the request away until its retry; returns the answer for now.
    fn await_retry(self) -> Result<Bytes, RpcError> {
        let Some(retry) = self.retry.clone() else {
            return Err(
                RpcError::invalid("this request cannot wait for input").to(Some(self.id.clone()))
            );
        };
        self.pending_input.begin();
        let asked = self.asked.iter().map(|(key, (said, _))| {
            let key = serde_json::Value::from(key.as_str());
            let method = serde_json::Value::from(&*said.method);
            let params = said.params.as_ref().map_or("{}", RawJson::as_str);
            format!(r#"{key}:{{"method":{method},"params":{params}}}"#)
        });
        let asked = asked.collect::<Vec<_>>().join(",");
        let (pending_inputs, id) = (self.endpoint.pending_inputs.clone(), self.id.clone());
        let home = self.endpoint.replicas.own();
        let stopping = self.endpoint.engine.stopping.clone();
        let kept = self.endpoint.settings.limits.input_timeout;
        let token = pending_inputs
            .add(retry, self, kept, stopping)
            .map_err(|error| error.to(Some(id.clone())))?;
        let state = RoutableSessionId { token, home };
        Ok(format!(
            r#"{{"jsonrpc":"2.0","id":{},"result":{{"resultType":"input_required","inputRequests":{{{asked}}},"requestState":"{state}"}}}}"#,
            id.as_str(),
        )
        .into())
    }

    /// The next thing for the client. What the child said before its answer comes before it.
    async fn next(&mut self) -> Next {
        loop {
            let gathering = !self.asked.is_empty();
            let answered = !self.answers.is_empty();
            tokio::select! {
                biased;
                Some(message) = self.messages.recv() => if let Some(next) = self.hear(message) {
                    return next;
                },
                answer = &mut self.call => return self.last(answer),
                () = self.cancellation.cancelled() => {
                    let error = RpcError::new(ErrorKind::CANCELLED, "cancelled");
                    return Next::Done(Box::new(Err(error.to(Some(self.id.clone())))));
                }
                () = self.pending_input.resumed(), if answered && !gathering => {
                    for (responder, answer) in self.answers.drain(..) {
                        responder.result(&answer);
                    }
                }
                // What a child asks together goes out together.
                () = tokio::time::sleep(GATHER), if gathering => return Next::InputRequired,
            }
        }
    }

    /// The answer is in; what was said before it goes first.
    fn last(&mut self, answer: Result<Answer, CallError>) -> Next {
        while let Ok(message) = self.messages.try_recv() {
            if let Some(Next::Event(event)) = self.hear(message) {
                self.call = Box::pin(std::future::ready(answer));
                return Next::Event(event);
            }
        }
        Next::Done(Box::new(self.finish(answer)))
    }

    fn hear(&mut self, message: ServerMessage) -> Option<Next> {
        match message {
            ServerMessage::Notification(said) => self.manner.told(&said).map(Next::Event),
            ServerMessage::Request(said, responder) => match self.manner.asked(said, responder) {
                RequestOutcome::Send(line) => Some(Next::Event(line)),
                RequestOutcome::Declined => None,
                RequestOutcome::AwaitRetry(said, responder) => {
                    self.asks += 1;
                    let key = responder.key.as_ref().map(ToString::to_string);
                    let key = key.unwrap_or_else(|| {
                        let kind = said.method.split('/').next().unwrap_or_default();
                        format!("{kind}_{}", self.asks)
                    });
                    self.asked.insert(key, (said, responder));
                    None
                }
            },
        }
    }

    fn finish(&self, answer: Result<Answer, CallError>) -> Result<Reply, RpcError> {
        match answer {
            Ok(answer) if self.completes && self.shown.is_some() => {
                Ok(Shown::completion(answer.reply))
            }
            Ok(answer) if self.lists_tools => Ok(lists::offered(answer.reply, &self.spec)),
            Ok(answer) => {
                let reply =
                    files::with_links(&answer, &self.spec, &self.endpoint.settings, self.openwebui);
                Ok(match &self.shown {
                    Some(shown) => shown.reply(reply),
                    None => reply,
                })
            }
            Err(CallError::Rpc { reply, .. }) => Ok(reply),
            Err(error) => Err(RpcError::of_call(&error).to(Some(self.id.clone()))),
        }
    }
}

/// What a child is told that asks its caller for what he did not declare. Its call goes on without.
pub fn refused(capabilities: &Map<String, Value>, said: &Said) -> Option<(i64, String)> {
    let needed = needed(&said.method)?;
    if can_answer(capabilities, needed, said.params.as_ref()) {
        return None;
    }
    Some(if capabilities.contains_key(needed) {
        let why = format!("this client does not support this mode of {needed}");
        (code::INVALID_PARAMS, why)
    } else {
        let why = format!("this client does not support {needed}");
        (code::METHOD_NOT_FOUND, why)
    })
}

/// One message as the whole answer.
pub fn json(line: Bytes) -> Response {
    let kind = HeaderValue::from_static("application/json");
    ([(header::CONTENT_TYPE, kind)], line).into_response()
}

/// A progress note with the client's own token; other messages as they are.
pub fn with_token(said: &Said, token: Option<&RawJson>) -> Option<Bytes> {
    if &*said.method != method::PROGRESS {
        return Some(said.line.clone());
    }
    let place = said.param(&[meta::PROGRESS_TOKEN])?;
    Some(splice(&said.line, &[(&place, token?.as_bytes())]))
}

/// A note of a subscription, with the client's own id for it; `None` for other messages.
pub fn with_subscription(said: &Said, id: &RawJson) -> Option<Bytes> {
    let place = said.param(&["_meta", meta::SUBSCRIPTION_ID])?;
    Some(splice(&said.line, &[(&place, id.as_bytes())]))
}

// Calls that wait for their client: what a child asked went out as `input_required`, and the
// client's retry goes on with the call. A pending call belongs to one principal, is resumed by one
// retry of the same request, and expires.

/// Pending calls of one principal.
const MOST: usize = 100;

/// All calls whose input is pending on this bridge.
#[derive(Clone, Default)]
pub struct PendingInputs {
    all: Arc<Mutex<HashMap<SessionId, (Retry, Relay)>>>,
}

impl PendingInputs {
    /// Keeps a call for so long, or until the bridge stops; returns the `requestState` that brings
    /// it back.
    pub fn add(
        &self,
        retry: Retry,
        relay: Relay,
        kept: Duration,
        stopping: CancellationToken,
    ) -> Result<SessionId, RpcError> {
        let mut all = self.lock();
        let own = all
            .values()
            .filter(|(other, _)| other.principal == retry.principal)
            .count();
        if own >= MOST {
            return Err(RpcError::invalid(
                "too many calls of this caller are waiting for input",
            ));
        }
        let state = SessionId::random();
        all.insert(state.clone(), (retry, relay));
        drop(all);
        let (pending_inputs, expired) = (self.clone(), state.clone());
        tokio::spawn(async move {
            // A bridge that stops takes no retries.
            let expiry = tokio::time::sleep(kept);
            stopping.run_until_cancelled(expiry).await;
            // Dropping it cancels the call.
            let gone = pending_inputs.lock().remove(&expired);
            drop(gone);
        });
        Ok(state)
    }

    /// The call that this retry goes on with, its child's questions answered. The state names the
    /// replica that keeps the call.
    pub async fn take(
        &self,
        request: &McpRequest<'_>,
        state: &str,
        retry: &Retry,
        message: &ClientMessage,
    ) -> Result<Relay, McpExit> {
        let unknown =
            || RpcError::params("requestState is unknown, expired or belongs to another request");
        let state = RoutableSessionId::read(state).ok_or_else(unknown)?;
        if state.home != request.endpoint.replicas.own() {
            return Err(request.forward_home(state.home, unknown).await);
        }
        let relay = self.resume(&state.token, retry, message);
        Ok(relay.ok_or_else(unknown)?)
    }

    fn resume(&self, state: &SessionId, retry: &Retry, message: &ClientMessage) -> Option<Relay> {
        let mut all = self.lock();
        if all.get(state).is_none_or(|(expected, _)| expected != retry) {
            return None;
        }
        let (_, mut relay) = all.remove(state)?;
        drop(all);
        relay.answer(&answers(message));
        Some(relay)
    }

    fn lock(&self) -> parking_lot::MutexGuard<'_, HashMap<SessionId, (Retry, Relay)>> {
        self.all.lock()
    }
}

/// The client's answers by their keys.
fn answers(message: &ClientMessage) -> IndexMap<String, RawJson> {
    let Some(raw) = &message.params.input_responses else {
        return IndexMap::new();
    };
    let bytes = raw.clone().into_bytes();
    let members: IndexMap<String, &RawValue> = serde_json::from_slice(&bytes).unwrap_or_default();
    members
        .into_iter()
        .map(|(key, value)| (key, RawJson::within(&bytes, value)))
        .collect()
}

// Which request may go on with a call that waits for its client.

/// Which request may go on with a pending call: whose it is, and what it asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retry {
    pub(super) principal: Principal,
    server: ServerName,
    request: [u8; 32],
}

impl Retry {
    /// Of a request or of its retry: the same method, name and arguments.
    pub fn for_message(
        principal: &Principal,
        server: &ServerName,
        message: &ClientMessage,
    ) -> Self {
        let params = &message.params;
        let name = params.name.as_ref().map_or("", |(name, _)| name);
        let uri = params.uri.as_deref().unwrap_or_default();
        // By value: a client may write the same arguments in other bytes. What no type of ours
        // holds is compared by its bytes.
        let arguments = params.arguments.as_ref().map(|raw| {
            let value = raw.read().map(|value: Value| value.to_string());
            value.unwrap_or_else(|_| raw.as_str().to_owned())
        });
        let mut hash = Sha256::new();
        for part in [
            &format!("{:?}", message.kind),
            name,
            uri,
            &arguments.unwrap_or_default(),
        ] {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part.as_bytes());
        }
        Self {
            principal: principal.clone(),
            server: server.clone(),
            request: hash.finalize().into(),
        }
    }
}
