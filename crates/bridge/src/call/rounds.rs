//! A request and its answer, where the child asks by result: `input_required` ends a round, and the
//! same request with the answers begins the next. A caller who knows nothing of rounds is asked as
//! if the child had asked him itself; who passes them on plays them himself.

use std::{collections::BTreeSet, time::Duration};

use bridge_model::Job;
use bridge_process::{Child, Heard, Replier};
use bridge_protocol::{
    RawJson,
    era::Era,
    jsonrpc::{Reply, Said, end_line},
    method,
};
use bytes::Bytes;
use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::{CallError, Running};
use crate::{config::Mode, session::Class};

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
            let hearing = self.call.hearing.as_ref();
            let follows = hearing.is_some_and(|hearing| hearing.witness.is_some());
            let write = ask.writer(spec, job, era, profile, forwarded, follows)?;
            let begun = round.take();
            let mut accompanied = None;
            let write = |number| {
                accompanied =
                    forwarded.and_then(|headers| child.accompany(number, headers.clone()));
                with_round(write(number), begun.as_ref())
            };
            let hearing = self.call.hearing.clone();
            let exchanged = child.exchange(write, cancelled, hearing).await;
            let reply = self.reply(exchanged)?;
            let Some(asked) = plays.then(|| Asked::of(&reply)).flatten() else {
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
            Mode::Stateful => self.call.place.class == Class::Lasting,
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
    async fn answers(&self, asked: &Asked) -> Result<RawJson, CallError> {
        if asked.requests.is_empty() {
            tokio::time::sleep(PAUSE).await;
        }
        let mut waiting = Vec::new();
        for (key, said) in &asked.requests {
            let (answer, answered) = oneshot::channel();
            let replier = Replier::of_round(key, answer);
            if let Some(hearing) = &self.call.hearing {
                // Who does not hear it declines by the replier's drop.
                let _ = hearing.heard.try_send(Heard::Asked(said.clone(), replier));
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
struct Asked {
    requests: Vec<(String, Said)>,
    state: Option<RawJson>,
}

impl Asked {
    fn of(reply: &Reply) -> Option<Self> {
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
    Some(RawJson::of(&match method {
        method::ELICITATION_CREATE => json!({"action": "cancel"}),
        method::ROOTS_LIST => json!({"roots": []}),
        _ => return None,
    }))
}

/// The question as a child of an older revision asks it.
fn as_request(key: &RawJson, question: &RawJson) -> Option<Said> {
    let line = question
        .with_member("id", key)
        .with_member("jsonrpc", &RawJson::of(&Value::from("2.0")));
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
