//! Who hears what a child says beside answers.
//!
//! stdio carries no association: progress goes by its token, listen streams by their subscription,
//! and everything else rides the newest request in flight, but only while all requests that are at
//! work belong to one owner. A request that waits for an answer from its client is not at work. Who
//! hears, or is asked, is never a guess.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use serde_json::value::RawValue;
use tokio::sync::{mpsc, oneshot};

use super::{
    Cancellation,
    connection::Connection,
    frame::{self, Reply, Said},
};
use crate::model::{RawJson, last_members};

/// A child that asks several things at once sends them within this time.
const AT_ONCE: Duration = Duration::from_millis(100);
/// Messages that a slow hearer may have waiting; a hearer further behind loses his request.
pub const BACKLOG: usize = 16 * 1024;

/// The owner of requests that last until somebody ends them, such as subscriptions: they are never
/// at work on anything that a child could ask about.
pub const STANDING: u64 = u64::MAX;

/// Hears what a child says while one request of his is in flight.
#[derive(Clone)]
pub struct Hearing {
    /// Who he is: requests with the same owner may hear each other's messages.
    pub owner: u64,
    /// Where it goes.
    pub heard: mpsc::Sender<Heard>,
    /// How he calls his request off.
    pub cancellation: Cancellation,
    /// Sees what the child tells, before he hears it: where it is there, progress is asked for.
    pub witness: Option<Listener>,
}

/// Something that a child said to one hearer.
pub enum Heard {
    /// It asks; the answer goes back through the replier.
    Asked(Said, Replier),
    /// It tells.
    Told(Said),
}

/// Is told of what concerns everybody: lists that changed, resources that were updated.
pub type Listener = Arc<dyn Fn(&Said) + Send + Sync>;

/// The way back to a child that asked. Dropped without an answer, it declines.
pub struct Replier {
    way: Way,
    /// What the child calls its question, where it gave it a name.
    pub key: Option<Box<str>>,
    /// Of the request for which the child asked.
    asks: Option<Arc<Asks>>,
}

/// How an answer comes to the child.
enum Way {
    /// As the answer to a request of its own with this id.
    Message(Connection, RawJson),
    /// With the next round of the request for which it asked.
    Round(oneshot::Sender<RawJson>),
    Answered,
}

/// What a child asked for one request and waits to be answered.
#[derive(Default)]
pub struct Asks(Mutex<(usize, Option<Instant>)>);

impl Asks {
    fn begin(&self) {
        let mut asks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *asks = (asks.0 + 1, Some(Instant::now()));
    }

    fn end(&self) {
        let mut asks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        asks.0 = asks.0.saturating_sub(1);
    }

    fn waits(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).0 > 0
    }

    fn asked_just_now(&self) -> bool {
        let asks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        asks.0 > 0 && asks.1.is_some_and(|last| last.elapsed() < AT_ONCE)
    }
}

/// A way to tell a child things. It keeps no child alive.
pub struct Ear(Connection);

impl Ear {
    /// Of the child behind this.
    pub fn new(connection: Connection) -> Self {
        Self(connection)
    }

    /// Passes on a message that needs no answer; lost where the child takes nothing in.
    pub fn tell(&self, line: &bytes::Bytes) {
        tell(&self.0, line);
    }

    /// Whether it was this child that asked, with this id.
    pub fn asked(&self, question: &Replier, id: &RawJson) -> bool {
        match &question.way {
            Way::Message(connection, own) => connection.is_same(&self.0) && own == id,
            Way::Round(_) | Way::Answered => false,
        }
    }

    /// Whether anyone hears.
    pub fn is_open(&self) -> bool {
        self.0.is_open()
    }
}

fn tell(connection: &Connection, line: &bytes::Bytes) {
    let mut line = line.to_vec();
    frame::end_line(&mut line);
    connection.send(line.into());
}

impl Replier {
    /// Tells the child that asked something beside the answer.
    pub fn tell(&self, line: &bytes::Bytes) {
        if let Way::Message(connection, _) = &self.way {
            tell(connection, line);
        }
    }

    /// For a request that the child sent with this id.
    pub fn new(connection: Connection, id: RawJson) -> Self {
        Self {
            way: Way::Message(connection, id),
            key: None,
            asks: None,
        }
    }

    /// For a question that came in a result, under this name.
    pub fn of_round(key: &str, answer: oneshot::Sender<RawJson>) -> Self {
        Self {
            way: Way::Round(answer),
            key: Some(key.into()),
            asks: None,
        }
    }

    /// Counts as a question for the request with these.
    pub fn count(mut self, asks: Arc<Asks>) -> Self {
        asks.begin();
        self.asks = Some(asks);
        self
    }

    /// Answers with `result`.
    pub fn result(mut self, result: &RawJson) {
        match std::mem::replace(&mut self.way, Way::Answered) {
            Way::Message(connection, id) => {
                connection.send(frame::answer(&id, "result", result.as_str()));
            }
            Way::Round(answer) => {
                let _ = answer.send(result.clone());
            }
            Way::Answered => {}
        }
    }

    /// Says that it cannot be answered, and why.
    pub fn refuse(mut self, code: i64, message: &str) {
        if let Way::Message(connection, id) = &self.way {
            let error = serde_json::json!({"code": code, "message": message}).to_string();
            connection.send(frame::answer(id, "error", &error));
            self.way = Way::Answered;
        }
    }

    /// Passes on a whole answer of a client's, whose id is `id` within the line.
    pub fn relay(mut self, line: &bytes::Bytes, id: &RawJson) {
        match std::mem::replace(&mut self.way, Way::Answered) {
            Way::Message(connection, own) => {
                let mut line = frame::splice(line, &[(id, own.as_bytes())]).to_vec();
                frame::end_line(&mut line);
                connection.send(line.into());
            }
            Way::Round(answer) => {
                // An error is no answer that a round could carry: the drop declines.
                let whole = RawJson::parse(line.clone()).ok();
                if let Some(result) = whole.and_then(|whole| whole.member("result")) {
                    let _ = answer.send(result);
                }
            }
            Way::Answered => {}
        }
    }
}

impl Drop for Replier {
    fn drop(&mut self) {
        if let Some(asks) = &self.asks {
            asks.end();
        }
        if let Way::Message(connection, id) = &self.way {
            let error = r#"{"code":-32601,"message":"the client does not answer this"}"#;
            connection.send(frame::answer(id, "error", error));
        }
    }
}

/// A request of ours that waits for its answer.
pub struct InFlight {
    /// Where the answer goes.
    pub answer: oneshot::Sender<Reply>,
    /// Who hears the rest.
    pub hearing: Option<Hearing>,
    /// What the child asked for it, if it ever did.
    pub asks: Option<Arc<Asks>>,
}

/// Who hears a message, by the number of his request.
pub fn hearer(waiting: &BTreeMap<u64, InFlight>, said: &Said) -> Option<u64> {
    let named = said.params.as_ref().and_then(named_request);
    if said.id.is_none() && (&*said.method == "notifications/progress" || named.is_some()) {
        // A token that is not in flight belongs to a call that ended.
        return named.filter(|number| waiting.contains_key(number));
    }
    if is_news(&said.method) {
        return None;
    }
    let stands = |request: &InFlight| {
        let hearing = request.hearing.as_ref();
        hearing.is_some_and(|hearing| hearing.owner == STANDING)
    };
    let at_work = || {
        let waiting = waiting.iter();
        waiting.filter(|(_, request)| {
            let waits = request.asks.as_ref().is_some_and(|asks| asks.waits());
            !waits && !stands(request)
        })
    };
    let just_asked = || {
        waiting.iter().filter(|(_, request)| {
            let asks = request.asks.as_ref();
            asks.is_some_and(|asks| asks.asked_just_now())
        })
    };
    if at_work().next().is_some() {
        newest_of_one(at_work())
    } else {
        newest_of_one(just_asked())
    }
}

/// The newest of these requests, if all of them have the same hearer.
fn newest_of_one<'a>(
    requests: impl DoubleEndedIterator<Item = (&'a u64, &'a InFlight)>,
) -> Option<u64> {
    let mut owners = requests.rev().map(|(number, request)| {
        (
            *number,
            request.hearing.as_ref().map(|hearing| hearing.owner),
        )
    });
    let (newest, owner) = owners.next()?;
    let owner = owner?;
    owners
        .all(|(_, other)| other == Some(owner))
        .then_some(newest)
}

/// What the params name: a progress token, and a subscription.
fn named(params: &RawJson) -> [Option<&RawValue>; 2] {
    let names = ["progressToken", "_meta"];
    let [token, meta] = last_members(params.as_bytes(), names).unwrap_or_default();
    let names = ["io.modelcontextprotocol/subscriptionId"];
    let meta = meta.and_then(|meta| last_members(meta.get().as_bytes(), names));
    let [subscription] = meta.unwrap_or_default();
    [token, subscription].map(|raw| raw.filter(|raw| raw.get() != "null"))
}

/// Whether a message is for one subscription, and so nobody else's business.
pub fn is_of_subscription(said: &Said) -> bool {
    let named = said.params.as_ref().map(named);
    named.is_some_and(|[_, subscription]| subscription.is_some())
}

/// The number of our request that the params name: a progress token or a subscription.
fn named_request(params: &RawJson) -> Option<u64> {
    let [token, subscription] = named(params);
    frame::number(subscription.or(token)?.get())
}

/// Whether a message concerns everybody rather than a request in flight.
pub fn is_news(method: &str) -> bool {
    method.ends_with("/list_changed") || method == "notifications/resources/updated"
}
