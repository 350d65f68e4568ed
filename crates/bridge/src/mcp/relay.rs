//! Relays one request of a client to a child: the response is JSON if the child sends no other message before it,
//! else a stream.

use std::{collections::HashMap, future::Future, pin::Pin, sync::Arc, time::Duration};

use axum::{
    http::{StatusCode, header},
    response::{IntoResponse as _, Response},
};
use bridge_model::{Principal, ServerName, SessionId};
use bridge_openapi::result_body;
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
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;

use super::{
    Endpoint, RpcError,
    aggregate::UriMapping,
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

/// A silent call becomes a stream after this time, so that pings can keep it open: clients time out
/// after 300 s without a byte.
const QUIET: Duration = Duration::from_secs(20);

/// A child that sends several requests at once sends them within this time.
const GATHER: Duration = Duration::from_millis(30);

/// Capacity of the channel with a client's events.
const EVENTS: usize = 64;

/// The handling of a child's messages, which depends on the client's era.
pub trait ClientProtocol: Send + Sync + 'static {
    /// A line for the client's stream; `None` if the client must not get the notification.
    fn notification(&self, said: &Said) -> Option<Bytes>;
    /// Handles a request of the child: a line for the stream, or a response that ends the request for now.
    fn request(&self, said: Said, responder: Responder) -> RequestOutcome;
    /// The capabilities that the child needed and the client did not declare, where the revision has an error
    /// for them.
    fn missing_capabilities(&self) -> Map<String, Value> {
        Map::new()
    }
    /// The final response.
    fn response(&self, reply: &Reply) -> Bytes;
    /// The HTTP status of that response.
    fn status(&self, _reply: &Reply) -> StatusCode {
        StatusCode::OK
    }
}

/// The outcome of a child's request.
pub enum RequestOutcome {
    /// Send this line to the client, which will answer.
    Send(Bytes),
    /// The child's request was declined.
    Declined,
    /// The request waits for its client's retry, which contains the answer.
    AwaitRetry(Said, Responder),
}

/// A running request.
pub struct Relay {
    protocol: Arc<dyn ClientProtocol>,
    call: Pin<Box<dyn Future<Output = Result<Answer, CallError>> + Send>>,
    messages: mpsc::Receiver<ServerMessage>,
    cancellation: Cancellation,
    spec: Arc<ServerSpec>,
    lists_tools: bool,
    completes: bool,
    endpoint: Arc<Endpoint>,
    id: RawJson,
    /// Requests of the child that the client's retry will answer.
    asked: IndexMap<String, (Said, Responder)>,
    asks: usize,
    /// The client's answers, which are sent to the child once the call continues.
    answers: Vec<(Responder, RawJson)>,
    pending_input: PendingInput,
    /// Identifies the client's retry, if the request may wait for one.
    pub(super) retry: Option<Retry>,
    /// While it exists, the client can cancel the request by its id.
    pub(super) in_flight: Option<InFlight>,
    /// The mapping of resource URIs in the answer, if the client gets other URIs than the server's.
    pub(super) uris: Option<UriMapping>,
    /// The answer is for Open WebUI.
    pub(super) openwebui: bool,
}

/// The next step.
enum Next {
    Event(Bytes),
    End(End),
}

/// The end of a response.
enum End {
    Answered(Box<Result<Reply, RpcError>>),
    InputRequired,
}

impl Relay {
    /// Starts the call. `owner` distinguishes this client's requests from those of others.
    pub fn start(
        endpoint: &Arc<Endpoint>,
        owner: u64,
        id: RawJson,
        protocol: Arc<dyn ClientProtocol>,
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
        let asks = |name: &str| matches!(&call.ask, Ask::Relay(asked) if &*asked.method == name);
        let (lists_tools, completes) = (asks(method::TOOLS_LIST), asks(method::COMPLETE));
        let engine = endpoint.core.engine.clone();
        Self {
            protocol,
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
            uris: None,
            openwebui: false,
        }
    }

    /// Stores the client's answers to the child's requests.
    pub fn answer(&mut self, message: &ClientMessage) {
        let answers = message.params.input_responses.as_ref();
        let answers = answers.and_then(RawJson::members).unwrap_or_default();
        for answer in answers {
            let key: Option<String> = answer.name.read().ok();
            if let Some((_, responder)) = key.and_then(|key| self.asked.shift_remove(&key)) {
                self.answers.push((responder, answer.value));
            }
        }
    }

    /// Continues as the request with this id.
    pub fn go_on(mut self, id: RawJson, protocol: Arc<dyn ClientProtocol>) -> Self {
        if self.asked.is_empty() {
            self.pending_input.answered();
        }
        self.id = id;
        self.protocol = protocol;
        self
    }

    /// Runs until a response can be started. Dropping the future cancels the call.
    pub async fn respond(mut self) -> Response {
        match tokio::time::timeout(QUIET, self.next()).await {
            Ok(Next::End(end)) => match self.last_line(end) {
                Ok((status, line)) => (status, json(line)).into_response(),
                Err(error) => error.into_response(),
            },
            Ok(Next::Event(line)) => self.stream(Some(sse::event(None, &line))),
            Err(_) => self.stream(None),
        }
    }

    fn last_line(self, end: End) -> Result<(StatusCode, Bytes), RpcError> {
        match end {
            End::Answered(answered) => {
                let reply = (*answered)?;
                Ok((self.protocol.status(&reply), self.protocol.response(&reply)))
            }
            End::InputRequired => Ok((StatusCode::OK, self.await_retry()?)),
        }
    }

    fn stream(mut self, first: Option<Bytes>) -> Response {
        let (sender, events) = mpsc::channel(EVENTS);
        tokio::spawn(async move {
            let mut event = first;
            loop {
                if let Some(event) = event.take()
                    && sender.send(event).await.is_err()
                {
                    return;
                }
                event = tokio::select! {
                    next = self.next() => match next {
                        Next::Event(line) => Some(sse::event(None, &line)),
                        Next::End(end) => {
                            let last = self.last_line(end).map(|(_, line)| line);
                            let last = last.unwrap_or_else(|error| error.body().into());
                            let _ = sender.send(sse::event(None, &last)).await;
                            return;
                        }
                    },
                    () = sender.closed() => return,
                    () = tokio::time::sleep(session::PING_EVERY) => Some(session::PING),
                };
            }
        });
        session::response(events)
    }

    /// Stores the call until its retry; returns the response for now.
    fn await_retry(self) -> Result<Bytes, RpcError> {
        let Some(retry) = self.retry.clone() else {
            let error = RpcError::invalid("this request cannot wait for input");
            return Err(error.to(Some(self.id.clone())));
        };
        self.pending_input.begin();
        let asked = self.asked.iter().map(|(key, (said, _))| {
            let (key, method) = (Value::from(key.as_str()), Value::from(&*said.method));
            let params = said.params.as_ref().map_or("{}", RawJson::as_str);
            format!(r#"{key}:{{"method":{method},"params":{params}}}"#)
        });
        let asked = asked.collect::<Vec<_>>().join(",");
        let (pending_inputs, id) = (self.endpoint.pending_inputs.clone(), self.id.clone());
        let home = self.endpoint.core.replicas.own();
        let token = pending_inputs.add(retry, self);
        let token = token.map_err(|error| error.to(Some(id.clone())))?;
        let state = RoutableSessionId { token, home };
        Ok(format!(
            r#"{{"jsonrpc":"2.0","id":{},"result":{{"resultType":"input_required","inputRequests":{{{asked}}},"requestState":"{state}"}}}}"#,
            id.as_str(),
        )
        .into())
    }

    /// The next line for the client: the child's messages in their order, and then the response.
    async fn next(&mut self) -> Next {
        loop {
            let gathering = !self.asked.is_empty();
            let answered = !self.answers.is_empty();
            tokio::select! {
                biased;
                Some(message) = self.messages.recv() => if let Some(next) = self.handle(message) {
                    return next;
                },
                answer = &mut self.call => return self.last(answer),
                () = self.cancellation.cancelled() => {
                    let error = RpcError::new(ErrorKind::CANCELLED, "cancelled");
                    let error = error.to(Some(self.id.clone()));
                    return Next::End(End::Answered(Box::new(Err(error))));
                }
                () = self.pending_input.resumed(), if answered && !gathering => {
                    for (responder, answer) in self.answers.drain(..) {
                        responder.result(&answer);
                    }
                }
                // Requests that the child sends together are sent to the client together.
                () = tokio::time::sleep(GATHER), if gathering => return Next::End(End::InputRequired),
            }
        }
    }

    /// Handles the child's response; messages that the child sent before it are sent first.
    fn last(&mut self, answer: Result<Answer, CallError>) -> Next {
        while let Ok(message) = self.messages.try_recv() {
            if let Some(Next::Event(event)) = self.handle(message) {
                self.call = Box::pin(std::future::ready(answer));
                return Next::Event(event);
            }
        }
        Next::End(End::Answered(Box::new(self.finish(answer))))
    }

    fn handle(&mut self, message: ServerMessage) -> Option<Next> {
        match message {
            ServerMessage::Notification(said) => self.protocol.notification(&said).map(Next::Event),
            ServerMessage::Request(said, responder) => match self.protocol.request(said, responder)
            {
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

    /// The error of a call that failed after the child needed a capability which the client did not declare. A
    /// call that succeeds without it, or has made files, keeps its result.
    fn missing_capability(&self, answer: &Result<Answer, CallError>) -> Option<RpcError> {
        let missing = self.protocol.missing_capabilities();
        let text = match answer {
            _ if missing.is_empty() => return None,
            Ok(answer) if answer.files.files.is_empty() && answer.notices.is_empty() => {
                result_body(&answer.outcome).err()?.message
            }
            Err(CallError::Rpc { error, .. }) => error.member("message")?.read().ok()?,
            _ => return None,
        };
        let names: Vec<_> = missing.keys().map(String::as_str).collect();
        let names = names.join(", ");
        let text = format!("the client does not declare a needed capability ({names}): {text}");
        let error = RpcError::new(ErrorKind::MISSING_CAPABILITY, text);
        Some(error.with(json!({"requiredCapabilities": missing})))
    }

    fn finish(&self, answer: Result<Answer, CallError>) -> Result<Reply, RpcError> {
        if let Some(error) = self.missing_capability(&answer) {
            return Err(error.to(Some(self.id.clone())));
        }
        match answer {
            Ok(answer) if self.completes && self.uris.is_some() => {
                Ok(UriMapping::completion(answer.reply))
            }
            Ok(answer) if self.lists_tools => Ok(lists::offered(answer.reply, &self.spec)),
            Ok(answer) => {
                let reply = files::with_links(
                    &answer,
                    &self.spec,
                    &self.endpoint.core.settings,
                    self.openwebui,
                );
                Ok(match &self.uris {
                    Some(uris) => uris.reply(reply),
                    None => reply,
                })
            }
            Err(CallError::Rpc { reply, .. }) => Ok(reply),
            Err(error) => Err(RpcError::of_call(&error).to(Some(self.id.clone()))),
        }
    }
}

/// The error for a child's request that needs a capability which the client did not declare
/// (`METHOD_NOT_FOUND`), or a mode that it does not have. The call continues.
pub fn refused(capabilities: &Map<String, Value>, said: &Said) -> Option<(i64, String)> {
    let needed = needed(&said.method)?;
    if can_answer(capabilities, needed, said.params.as_ref()) {
        return None;
    }
    let declared = capabilities.get(needed).is_some_and(|said| !said.is_null());
    Some(if declared {
        let why = format!("this client does not support this mode of {needed}");
        (code::INVALID_PARAMS, why)
    } else {
        let why = format!("this client does not support {needed}");
        (code::METHOD_NOT_FOUND, why)
    })
}

/// One message as the whole response.
pub fn json(line: Bytes) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], line).into_response()
}

/// A progress notification with the client's own token; other messages unchanged.
pub fn with_token(said: &Said, token: Option<&RawJson>) -> Option<Bytes> {
    if &*said.method != method::PROGRESS {
        return Some(said.line.clone());
    }
    let place = said.param(&[meta::PROGRESS_TOKEN])?;
    Some(splice(&said.line, &[(&place, token?.as_bytes())]))
}

/// A notification of a subscription, with the client's own id for it; `None` for other messages.
pub fn with_subscription(said: &Said, id: &RawJson) -> Option<Bytes> {
    let place = said.param(&["_meta", meta::SUBSCRIPTION_ID])?;
    Some(splice(&said.line, &[(&place, id.as_bytes())]))
}

// Calls that wait for their client: the child's requests were sent as `input_required`, and the
// client's retry continues the call. A pending call belongs to one principal, is resumed by one
// retry of the same request, and expires.

/// Maximum number of pending calls of one principal.
const MOST: usize = 100;

/// All calls with pending input on this replica.
#[derive(Clone, Default)]
pub struct PendingInputs(Arc<Mutex<HashMap<SessionId, (Retry, Relay)>>>);

impl PendingInputs {
    /// Stores a call until the input timeout, or until the bridge stops; returns the `requestState` for
    /// its retry.
    fn add(&self, retry: Retry, relay: Relay) -> Result<SessionId, RpcError> {
        let mut all = self.0.lock();
        let others = all.values().map(|(other, _)| &other.principal);
        if others.filter(|other| **other == retry.principal).count() >= MOST {
            return Err(RpcError::invalid(
                "too many calls of this caller are waiting for input",
            ));
        }
        let expiry = tokio::time::sleep(relay.endpoint.core.settings.limits.input_timeout);
        let stopping = relay.endpoint.core.engine.stopping.clone();
        let state = SessionId::random();
        all.insert(state.clone(), (retry, relay));
        drop(all);
        let (pending_inputs, expired) = (self.clone(), state.clone());
        tokio::spawn(async move {
            // A bridge that stops accepts no retries.
            stopping.run_until_cancelled(expiry).await;
            // Dropping the call cancels it, which must not happen under the lock.
            let gone = pending_inputs.0.lock().remove(&expired);
            drop(gone);
        });
        Ok(state)
    }

    /// The call that this retry continues, with the answers to its child's requests. The state contains the
    /// replica that stores the call.
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
        if state.home != request.endpoint.core.replicas.own() {
            return Err(request.forward_home(state.home, unknown).await);
        }
        let mut all = self.0.lock();
        let kept = all.get(&state.token);
        if kept.is_none_or(|(expected, _)| expected != retry) {
            return Err(unknown().into());
        }
        let (_, mut relay) = all.remove(&state.token).ok_or_else(unknown)?;
        drop(all);
        relay.answer(message);
        Ok(relay)
    }
}

// Which request may continue a pending call.

/// Identifies the request that may continue a pending call: its principal, server and content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retry {
    pub(super) principal: Principal,
    server: ServerName,
    request: [u8; 32],
}

impl Retry {
    /// For a request or its retry: both have the same method, name and arguments.
    pub fn for_message(
        principal: &Principal,
        server: &ServerName,
        message: &ClientMessage,
    ) -> Self {
        let params = &message.params;
        let name = params.name.as_ref().map_or("", |(name, _)| name);
        let uri = params.uri.as_deref().unwrap_or_default();
        // Compared by value: a client may serialize the same arguments differently. Values that serde_json
        // cannot represent are compared by their bytes.
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
