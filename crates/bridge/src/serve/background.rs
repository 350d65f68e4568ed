//! Background tasks: cleanup, heartbeats, reloads.

use std::{sync::Arc, time::Duration};

use bridge_model::BootTime;
use parking_lot::Mutex;
use tokio::{
    sync::{Notify, broadcast::error::RecvError},
    task::JoinSet,
};
use tokio_util::task::AbortOnDropHandle;

use crate::{app::App, serve};

/// Interval at which the limit on children is computed until their memory use has been measured.
const MEASURE_EVERY: Duration = Duration::from_secs(10);

/// Interval of the checks of the jobs folder and of the machine's limits.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// The running tasks.
pub struct Background(JoinSet<()>);

/// Starts all background tasks.
pub fn start(app: &Arc<App>, hangups: Arc<Notify>) -> Background {
    let mut tasks = JoinSet::new();
    let ttl = app.store.ttl();
    let engine = app.core.engine.clone();
    tasks.spawn(async move { engine.children.sweep_strays().await });
    let engine = app.core.engine.clone();
    tasks.spawn(async move { engine.sessions.keep_house().await });
    let pool = app.core.engine.sessions.pool.clone();
    tasks.spawn(async move { pool.fill().await });
    tasks.spawn(collect(app.clone()));
    let (leash, renewed) = (Arc::new(Leash::new(ttl)), Arc::new(Notify::new()));
    tasks.spawn(beat(app.clone(), leash.clone(), renewed.clone()));
    tasks.spawn(check_leases(app.clone(), renewed));
    tasks.spawn(watch(app.clone(), leash));
    tasks.spawn(serve::watch_server_file(app.clone(), hangups));
    tasks.spawn(measure(app.clone()));
    tasks.spawn(announce(app.clone()));
    tasks.spawn(look_after(app.clone()));
    Background(tasks)
}

impl Background {
    /// Adds a task.
    pub fn also(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        self.0.spawn(task);
    }

    /// Waits until a task panics; tasks do not end otherwise.
    pub async fn broken(&mut self) -> String {
        loop {
            match self.0.join_next().await {
                Some(Err(error)) if error.is_panic() => {
                    return format!("a background task failed: {error}");
                }
                Some(_) => {}
                None => std::future::pending().await,
            }
        }
    }

    /// Aborts all tasks.
    pub async fn stop(mut self) {
        self.0.shutdown().await;
    }
}

/// Deletes expired links and workspaces, at the start and then at each interval.
async fn collect(app: Arc<App>) {
    let retention = app.core.settings.files.retention;
    let mut timer = tokio::time::interval(app.core.settings.stateful.cleanup_interval);
    timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        timer.tick().await;
        let (store, installer) = (app.store.clone(), app.installer.clone());
        let disk = app.core.engine.disk.clone();
        let round = move || {
            let swept = store.sweep(retention);
            disk.counted(swept.usage);
            installer.keep_house(swept.report.held_back.is_none());
            swept.report
        };
        let Ok(report) = tokio::task::spawn_blocking(round).await else {
            continue;
        };
        for error in &report.errors {
            tracing::warn!(%error, "clean-up failed");
        }
        tracing::debug!(
            links = report.ended_links,
            workspaces = report.removed_jobs,
            kept = report.leased_jobs,
            "clean-up finished"
        );
        app.metrics
            .gc_removed(report.ended_links + report.removed_jobs);
        if let Some(why) = report.held_back {
            tracing::debug!(why, "clean-up by age skipped");
            let soon = app.store.renew_every();
            timer.reset_after(soon.min(app.core.settings.stateful.cleanup_interval));
        }
    }
}

/// Renews the lease of this replica. Each renewal that was written extends the lease of its children.
async fn beat(app: Arc<App>, leash: Arc<Leash>, renewed: Arc<Notify>) {
    let every = app.store.renew_every();
    let mut timer = tokio::time::interval(every);
    timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        timer.tick().await;
        let (store, sent) = (app.store.clone(), BootTime::now());
        let renew = move || store.renew();
        let failed = match tokio::task::spawn_blocking(renew).await {
            Ok(Ok(())) => {
                app.core.engine.children.leash(leash.confirm(sent));
                None
            }
            Ok(Err(error)) => Some(error.to_string()),
            Err(error) => Some(error.to_string()),
        };
        if let Some(error) = &failed {
            tracing::warn!(%error, "heartbeat not written; other replicas may take over the chats");
        }
        app.condition.note_heartbeat(failed);
        renewed.notify_one();
    }
}

/// Checks after each renewal whether the other replicas considered this one alive all the time. A separate
/// task, so that renewals do not wait for it: it reads one lease per open chat.
async fn check_leases(app: Arc<App>, renewed: Arc<Notify>) {
    loop {
        renewed.notified().await;
        app.core.engine.sessions.check_leases().await;
    }
}

/// Notifies clients with a session of lists that changed without an event of their own child.
async fn announce(app: Arc<App>) {
    let mut news = app.core.catalog.news();
    loop {
        match news.recv().await {
            Ok(news) => app.mcp.sessions.announce(&news),
            Err(RecvError::Lagged(_)) => {}
            Err(RecvError::Closed) => return,
        }
    }
}

/// Checks the other replicas, often enough to notice the start of a silence.
async fn watch(app: Arc<App>, leash: Arc<Leash>) {
    let mut timer = tokio::time::interval(app.store.renew_every() / 2);
    timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut known = 0;
    let mut proving = AbortOnDropHandle::new(tokio::spawn(async {}));
    loop {
        timer.tick().await;
        let looker = app.clone();
        let look = move || looker.core.replicas.watch();
        if let Ok(Err(error)) = tokio::task::spawn_blocking(look).await {
            tracing::warn!(%error, "other replicas on the jobs directory cannot be listed");
        }
        if proving.is_finished() {
            // A separate task, because the checks have to be frequent, and a replica that does not answer takes long.
            let prover = app.clone();
            proving = AbortOnDropHandle::new(tokio::spawn(async move {
                prover.core.replicas.prove().await;
            }));
        }
        // A single bridge may be paused for any time. Any other replica may take over, also one that is
        // unreachable, or that is stopping.
        let until = leash.neighbours(app.core.replicas.neighbours() > 0);
        app.core.engine.children.leash(until);
        let others = app.core.replicas.others().len();
        if others != known {
            known = others;
            tracing::info!(
                others,
                "number of other replicas on the jobs directory changed"
            );
            if others > 0 {
                app.core
                    .replicas
                    .warnings()
                    .iter()
                    .for_each(|warning| tracing::warn!("{warning}"));
            }
        }
    }
}

/// Logs problems of the machine, also where no client requests `/health`.
async fn look_after(app: Arc<App>) {
    let mut timer = tokio::time::interval(LOOK_EVERY);
    timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        timer.tick().await;
        app.condition.look().await;
    }
}

async fn measure(app: Arc<App>) {
    let mut timer = tokio::time::interval(MEASURE_EVERY);
    loop {
        timer.tick().await;
        app.fit_memory();
    }
}

// How long this bridge may run children: three quarters of the TTL, from the last renewal that was
// written. Without other replicas there is no limit.
//
// The other replicas count a whole TTL from the time at which they read that renewal, which is later. The
// remaining quarter is for supervisors to notice and to kill. If a renewal is late or fails (a stopped
// process, a suspended machine, a folder that hangs or fails), the children therefore end before
// another replica starts new ones.

/// The right to run children.
struct Leash {
    ttl: Duration,
    state: Mutex<LeashState>,
}

struct LeashState {
    confirmed: BootTime,
    neighbours: bool,
}

impl Leash {
    /// The lease must have been written immediately before.
    pub fn new(ttl: Duration) -> Self {
        Self {
            ttl,
            state: Mutex::new(LeashState {
                confirmed: BootTime::now(),
                neighbours: false,
            }),
        }
    }

    /// A renewal that began at `sent` was written and is readable.
    pub fn confirm(&self, sent: BootTime) -> Option<BootTime> {
        self.change(|state| state.confirmed = state.confirmed.max(sent))
    }

    /// Sets whether other replicas exist. If they cannot be read, the last state stays in force.
    pub fn neighbours(&self, any: bool) -> Option<BootTime> {
        self.change(|state| state.neighbours = any)
    }

    fn change(&self, change: impl FnOnce(&mut LeashState)) -> Option<BootTime> {
        let mut state = self.state.lock();
        change(&mut state);
        state.neighbours.then(|| state.confirmed + self.ttl * 3 / 4)
    }
}

#[cfg(test)]
mod leash_tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(20);

    #[test]
    fn alone_nothing_ends_it() {
        let leash = Leash::new(TTL);
        assert_eq!(leash.neighbours(false), None);
        assert_eq!(leash.confirm(BootTime::now()), None);
    }

    #[test]
    fn among_others_it_ends_before_they_may_take_over_unless_a_renewal_is_confirmed() {
        let leash = Leash::new(TTL);
        let first = BootTime::from_millis(1_000_000_000_000);
        leash.confirm(first);
        let until = leash.neighbours(true).unwrap();
        assert!(until > first + TTL / 2 && until < first + TTL);
        // The number of checks makes no difference.
        assert_eq!(leash.neighbours(true), Some(until));
        let second = first + TTL / 4;
        assert_eq!(leash.confirm(second), Some(until + TTL / 4));
        // A renewal that began earlier and was slow does not change the time.
        assert_eq!(leash.confirm(first), Some(until + TTL / 4));
        assert_eq!(leash.neighbours(false), None);
    }
}
