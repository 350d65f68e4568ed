//! The task that keeps one server's entry true.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{sync::Notify, sync::watch, time::Instant};
use tokio_util::task::AbortOnDropHandle;

use super::{Knowledge, Learnt, Offer, Watch, learn};
use crate::{child::Children, config::ServerSpec, store::Store};

/// The first pause after a failure; it doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_secs(2);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);
/// Bounds one attempt, beside the start timeout: listing many pages takes time.
const ATTEMPT: Duration = Duration::from_secs(180);

/// Owns one server's entry. Dropping it ends the task and, with it, a child that is being asked.
pub struct Learner {
    shared: Arc<Shared>,
    watch: Watch,
    _task: AbortOnDropHandle<()>,
}

struct Shared {
    spec: Mutex<Arc<ServerSpec>>,
    learnt: Mutex<Option<Arc<Learnt>>>,
    publish: watch::Sender<Knowledge>,
    wanted: Notify,
}

impl Learner {
    /// Begins to learn at once.
    pub fn start(spec: Arc<ServerSpec>, children: Arc<Children>, store: Arc<Store>) -> Self {
        let (publish, watch) = watch::channel(Knowledge::Learning);
        let shared = Arc::new(Shared {
            spec: Mutex::new(spec),
            learnt: Mutex::default(),
            publish,
            wanted: Notify::new(),
        });
        let task = tokio::spawn(shared.clone().run(children, store));
        Self {
            shared,
            watch,
            _task: AbortOnDropHandle::new(task),
        }
    }

    /// The spec as last given.
    pub fn spec(&self) -> Arc<ServerSpec> {
        self.shared.spec()
    }

    /// A spec of the same version: filters and texts may differ, the server's answers do not.
    pub fn update(&self, spec: Arc<ServerSpec>) {
        *self
            .shared
            .spec
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = spec;
        self.shared.offer();
    }

    /// Asks the server again.
    pub fn refresh(&self) {
        self.shared.wanted.notify_one();
    }

    /// To read or await the entry.
    pub fn watch(&self) -> Watch {
        self.watch.clone()
    }
}

impl Shared {
    fn spec(&self) -> Arc<ServerSpec> {
        self.spec
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Publishes what is learnt, seen through the current spec.
    fn offer(&self) {
        let learnt = self
            .learnt
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        if let Some(learnt) = learnt {
            let offer = Offer::new(self.spec(), learnt);
            self.publish.send_replace(Knowledge::Ready(Arc::new(offer)));
        }
    }

    async fn run(self: Arc<Self>, children: Arc<Children>, store: Arc<Store>) {
        let mut pause = FIRST_PAUSE;
        loop {
            let spec = self.spec();
            let deadline = Instant::now() + ATTEMPT;
            match learn(&spec, &children, &store, deadline).await {
                Ok(learnt) => {
                    tracing::info!(server = %spec.name, tools = learnt.tools.len(), "server is ready");
                    *self.learnt.lock().unwrap_or_else(PoisonError::into_inner) =
                        Some(Arc::new(learnt));
                    self.offer();
                    pause = FIRST_PAUSE;
                    self.wanted.notified().await;
                }
                Err(error) => {
                    let (why, brief) = (error.to_string(), error.brief());
                    tracing::warn!(server = %spec.name, error = %why, retry_in = ?pause, "server is not ready");
                    // An older answer is better than none: the server may come back.
                    self.publish.send_if_modified(|state| {
                        let known = matches!(state, Knowledge::Ready(_));
                        if !known {
                            *state = Knowledge::Failed {
                                why: why.into(),
                                brief: brief.into(),
                            };
                        }
                        !known
                    });
                    let _ = tokio::time::timeout(jittered(pause), self.wanted.notified()).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
    }
}

/// Three quarters to five quarters: servers that failed together do not come back together.
fn jittered(pause: Duration) -> Duration {
    let mut byte = [0_u8; 1];
    let _ = getrandom::fill(&mut byte);
    pause.mul_f64(0.75 + f64::from(byte[0]) / 510.0)
}
