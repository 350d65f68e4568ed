//! The task that keeps one server's entry up to date.

use std::{sync::Arc, time::Duration};

use bridge_process::ChildError;
use bridge_state::ChatStore;
use futures_util::FutureExt as _;
use parking_lot::Mutex;
use tokio::{
    sync::{Notify, broadcast, watch},
    time::Instant,
};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};

use super::{
    Knowledge, LearnError, Learnt, News, Offer, Watch, disk,
    learn::{learn, probe},
};
use crate::{
    child::Children,
    config::{Mode, ServerSpec},
};

/// Pause after the first failure; it doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_secs(2);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);
/// Timeout of one attempt, in addition to the start timeout: listing many pages takes time.
const ATTEMPT: Duration = Duration::from_secs(180);
/// Minimum interval between two requested attempts, however often children send "changed"
/// notifications.
const SHORTEST_INTERVAL: Duration = Duration::from_secs(10);

/// Owns one server's entry. Dropping it ends the task and the child whose lists are being read.
pub struct Learner {
    shared: Arc<Shared>,
    /// Receiver for the entry.
    pub watch: Watch,
    /// Time at which the first attempt began.
    pub began: Instant,
    _stop: DropGuard,
}

struct Shared {
    spec: Mutex<Arc<ServerSpec>>,
    children: Arc<Children>,
    store: Arc<ChatStore>,
    learnt: Mutex<Option<Arc<Learnt>>>,
    news: broadcast::Sender<News>,
    publish: watch::Sender<Knowledge>,
    changes: watch::Sender<()>,
    refreshes: RefreshRequests,
    stop: CancellationToken,
}

/// Requests to read the lists again: the first is granted at once, later ones at an interval. No
/// request is lost.
struct RefreshRequests {
    requests: Notify,
    granted: Mutex<Option<Instant>>,
}

impl RefreshRequests {
    /// Waits until the lists of the server are to be read again.
    async fn granted(&self) {
        self.requests.notified().await;
        let before = *self.granted.lock();
        if let Some(before) = before {
            tokio::time::sleep_until(before + SHORTEST_INTERVAL).await;
        }
        // The attempt that begins now also serves the requests made in the meantime.
        let _ = self.requests.notified().now_or_never();
        *self.granted.lock() = Some(Instant::now());
    }
}

impl Learner {
    /// Starts reading at once, in a task of `tasks`, which ends when its child and folder are removed;
    /// `changes` notifies about each new answer.
    pub fn start(
        spec: Arc<ServerSpec>,
        children: Arc<Children>,
        store: Arc<ChatStore>,
        news: broadcast::Sender<News>,
        tasks: &TaskTracker,
        changes: watch::Sender<()>,
    ) -> Self {
        let (publish, watch) = watch::channel(Knowledge::Learning);
        let shared = Arc::new(Shared {
            spec: Mutex::new(spec),
            children,
            store,
            learnt: Mutex::default(),
            news,
            publish,
            changes,
            refreshes: RefreshRequests {
                requests: Notify::new(),
                granted: Mutex::default(),
            },
            stop: CancellationToken::new(),
        });
        tasks.spawn(shared.clone().run());
        Self {
            watch,
            began: Instant::now(),
            _stop: shared.stop.clone().drop_guard(),
            shared,
        }
    }

    /// The current spec.
    pub fn spec(&self) -> Arc<ServerSpec> {
        self.shared.spec()
    }

    /// Sets a spec of the same version: filters and texts may differ, but not the server's answers.
    pub fn update(&self, spec: Arc<ServerSpec>) {
        *self.shared.spec.lock() = spec;
        self.shared.offer();
    }

    /// Requests that the server's lists are read again.
    pub fn refresh(&self) {
        self.shared.refreshes.requests.notify_one();
    }
}

impl Shared {
    fn spec(&self) -> Arc<ServerSpec> {
        self.spec.lock().clone()
    }

    /// Publishes the answers, filtered by the current spec.
    fn offer(&self) {
        let learnt = self.learnt.lock().clone();
        if let Some(learnt) = learnt {
            let offer = Offer::new(self.spec(), learnt);
            self.publish.send_replace(Knowledge::Ready(Arc::new(offer)));
            self.changes.send_replace(());
        }
    }

    async fn run(self: Arc<Self>) {
        let mut pause = FIRST_PAUSE;
        // Whether the entry is from the disk and not yet confirmed by the server.
        let mut believed = self.remember().await;
        loop {
            let spec = self.spec();
            let key = disk::Key::for_server(&spec, &self.children);
            let deadline = Instant::now() + ATTEMPT;
            let attempt = self.stop.child_token();
            let learnt = learn(&spec, &self.children, &self.store, deadline, &attempt);
            let learnt = self.unless_outdated(learnt, &attempt).await;
            if self.stop.is_cancelled() {
                return;
            }
            if attempt.is_cancelled() {
                continue;
            }
            let again = match learnt {
                Ok(learnt) => {
                    let all = learnt.tools.len();
                    let offered = learnt.tools.iter().filter(|tool| spec.offers(&tool.name));
                    let tools = offered.count();
                    let hidden = (tools < all).then_some(all - tools);
                    tracing::info!(server = %spec.name, tools, hidden, "server is ready");
                    believed = false;
                    self.take_over(learnt);
                    self.probe(&spec).await;
                    self.keep(spec, key).await;
                    pause = FIRST_PAUSE;
                    self.stop
                        .run_until_cancelled(self.refreshes.granted())
                        .await
                }
                Err(error)
                    if key == disk::Key::for_server(&spec, &self.children)
                        && self.is_of_installation(&error, &spec) =>
                {
                    tracing::warn!(server = %spec.name, error = %error.brief(),
                        "server fails to start from its installed environment and uses its own \
                         command line");
                    continue;
                }
                // This bridge was busy, which says nothing about the server.
                Err(LearnError::Child(ChildError::TooManyStarts)) => continue,
                Err(error) => {
                    self.fail(&spec, &error, pause, std::mem::take(&mut believed));
                    let retry = tokio::time::timeout(jittered(pause), self.refreshes.granted());
                    pause = (pause * 2).min(LONGEST_PAUSE);
                    self.stop.run_until_cancelled(retry).await.map(drop)
                }
            };
            if again.is_none() {
                return;
            }
        }
    }

    /// Waits for a first attempt, but cancels it if the environment of the server becomes ready
    /// meanwhile: a new attempt is faster than the launcher of the old one.
    async fn unless_outdated<T>(
        &self,
        attempt: impl Future<Output = T>,
        given_up: &CancellationToken,
    ) -> T {
        let mut attempt = std::pin::pin!(attempt);
        if self.learnt.lock().is_none() {
            tokio::select! {
                done = &mut attempt => return done,
                () = self.refreshes.requests.notified() => given_up.cancel(),
            }
        }
        attempt.await
    }

    /// Offers the entry on disk, if it is valid for the current config and packages.
    async fn remember(&self) -> bool {
        let (spec, store) = (self.spec(), self.store.clone());
        let key = disk::Key::for_server(&spec, &self.children);
        let read = tokio::task::spawn_blocking(move || disk::read(&store, &spec, &key));
        let Ok(Some(learnt)) = read.await else {
            return false;
        };
        *self.learnt.lock() = Some(Arc::new(learnt));
        self.offer();
        true
    }

    /// Offers new answers, and notifies about changed lists.
    fn take_over(&self, learnt: Learnt) {
        let before = self.learnt.lock().clone();
        if let Some(before) = &before
            && disk::unchanged(before, &learnt)
        {
            return;
        }
        let news = before.map(|before| disk::news(&before, &learnt));
        *self.learnt.lock() = Some(Arc::new(learnt));
        self.offer();
        for method in news.into_iter().flatten() {
            let server = self.spec().name.clone();
            // Sending fails if there are no receivers.
            let _ = self.news.send(News { server, method });
        }
    }

    /// Stores the answers for the next start, unless the packages have changed meanwhile.
    async fn keep(&self, spec: Arc<ServerSpec>, key: disk::Key) {
        let known = self.learnt.lock().clone();
        let is_current = key == disk::Key::for_server(&spec, &self.children);
        let Some(learnt) = known.filter(|_| is_current) else {
            return;
        };
        self.children.launches().trust(&spec);
        let store = self.store.clone();
        let write = move || disk::write(&store, &spec, &key, &learnt);
        let _ = tokio::task::spawn_blocking(write).await;
    }

    /// For servers without a child per chat: whether clients of 2026-07-28 can get a child of that
    /// revision.
    async fn probe(&self, spec: &Arc<ServerSpec>) {
        let known = self.learnt.lock().clone();
        let known = known.is_some_and(|learnt| learnt.modern.get().is_some());
        if known || spec.mode == Mode::Stateful {
            return;
        }
        let modern = probe(spec, &self.children, &self.store, &self.stop).await;
        let learnt = self.learnt.lock();
        if let (Some(learnt), Some(modern)) = (&*learnt, modern) {
            let _ = learnt.modern.set(modern);
        }
    }

    /// Whether a failure indicates a fault in the environment that the server was started from.
    fn is_of_installation(&self, error: &LearnError, spec: &ServerSpec) -> bool {
        let of_the_program = matches!(error, LearnError::Child(ChildError::NotStarted { .. }));
        of_the_program && self.children.launches().doubt(spec, &error.brief())
    }

    /// `believed`: the offer is from the disk and was never confirmed by the server.
    fn fail(&self, spec: &ServerSpec, error: &LearnError, pause: Duration, believed: bool) {
        let (why, brief) = (error.to_string(), error.brief());
        if believed {
            *self.learnt.lock() = None;
        }
        // The server's output may contain secrets, so it is only in its log, in `check` and in errors
        // for callers.
        tracing::warn!(server = %spec.name, error = %brief, retry_in = ?pause, "server is not ready");
        // The older answer is kept, because the server may work again.
        self.publish.send_if_modified(|state| {
            let known = matches!(state, Knowledge::Ready(_)) && !believed;
            if !known {
                *state = Knowledge::Failed {
                    why: why.into(),
                    brief: brief.into(),
                };
            }
            !known
        });
    }
}

/// Three quarters to five quarters of `pause`, so that servers that failed together are not retried at
/// the same time.
fn jittered(pause: Duration) -> Duration {
    let mut byte = [0_u8; 1];
    let _ = getrandom::fill(&mut byte);
    pause.mul_f64(0.75 + f64::from(byte[0]) / 510.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn requests_are_granted_at_an_interval_and_the_last_is_not_lost() {
        let refreshes = RefreshRequests {
            requests: Notify::new(),
            granted: Mutex::default(),
        };
        let began = Instant::now();
        refreshes.requests.notify_one();
        refreshes.granted().await;
        assert_eq!(began.elapsed(), Duration::ZERO);
        refreshes.requests.notify_one();
        let spam = async {
            loop {
                tokio::time::sleep(Duration::from_millis(50)).await;
                refreshes.requests.notify_one();
            }
        };
        tokio::select! {
            () = refreshes.granted() => {}
            () = spam => {}
        }
        assert_eq!(began.elapsed(), SHORTEST_INTERVAL);
        let none = tokio::time::timeout(SHORTEST_INTERVAL * 3, refreshes.granted());
        assert!(none.await.is_err(), "granted again though nobody asked");
        refreshes.requests.notify_one();
        refreshes.granted().await;
        assert_eq!(began.elapsed(), SHORTEST_INTERVAL * 4);
    }
}
