//! The state of the machine, checked independently of the calls. `/health` waits only briefly for a
//! check, so that a disk that hangs does not block it.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bridge_state::ChatStore;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::watch;

use crate::limits;

/// Minimum interval between two checks.
const FRESH: Duration = Duration::from_secs(1);
/// How long a caller waits for a new check.
const PATIENCE: Duration = Duration::from_secs(1);
/// If the disk has not answered for this long, no call can be served.
const HANGS: Duration = Duration::from_secs(10);
/// Descriptors that one start takes, with a margin.
const ONE_START: u64 = 16;

/// A problem of the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// Message for the administrator.
    pub text: String,
    /// Whether no new chat can be served.
    pub down: bool,
}

/// The results of the last check. Cheap to read.
pub struct Condition {
    store: Arc<ChatStore>,
    min_free: u64,
    state: Mutex<Observed>,
    looks: watch::Sender<u64>,
}

#[derive(Default)]
struct Observed {
    seen: Vec<Trouble>,
    heartbeat: Option<String>,
    looked: Option<Instant>,
    closed: bool,
    looking_since: Option<Instant>,
}

impl Condition {
    /// Checks nothing before the first call of [`Condition::look`].
    pub fn new(store: Arc<ChatStore>, min_free: u64) -> Self {
        Self {
            store,
            min_free,
            state: Mutex::default(),
            looks: watch::channel(0).0,
        }
    }

    /// Checks the machine, unless this was done just now, and waits briefly for the result.
    pub async fn look(self: &Arc<Self>) {
        let mut looks = self.looks.subscribe();
        {
            let mut state = self.lock();
            let fresh = state.looked.is_some_and(|looked| looked.elapsed() < FRESH);
            if fresh || state.closed {
                return;
            }
            if state.looking_since.is_none() {
                state.looking_since = Some(Instant::now());
                let this = self.clone();
                tokio::task::spawn_blocking(move || this.take_look());
            }
        }
        let _ = tokio::time::timeout(PATIENCE, looks.changed()).await;
    }

    /// Starts no more checks. Waits briefly for a running one, because it writes to the disk.
    pub async fn close(&self) {
        let mut looks = self.looks.subscribe();
        let looking = {
            let mut state = self.lock();
            state.closed = true;
            state.looking_since.is_some()
        };
        if looking {
            let _ = tokio::time::timeout(PATIENCE, looks.changed()).await;
        }
    }

    /// Records the result of the last heartbeat.
    pub fn note_heartbeat(&self, failed: Option<String>) {
        self.lock().heartbeat = failed;
    }

    /// The problems found by the last check.
    pub fn troubles(&self) -> Vec<Trouble> {
        let state = self.lock();
        let mut troubles = state.seen.clone();
        let hangs = state.looking_since.map(|since| since.elapsed());
        if let Some(waited) = hangs.filter(|waited| *waited >= HANGS) {
            let text = format!(
                "the disk of the jobs directory has not responded for {} s",
                waited.as_secs()
            );
            troubles.push(Trouble { text, down: true });
        }
        if let Some(error) = &state.heartbeat {
            let text = format!(
                "this bridge cannot write its heartbeat, so other replicas may take over its \
                 chats: {error}"
            );
            troubles.push(Trouble { text, down: false });
        }
        troubles
    }

    fn take_look(&self) {
        let seen = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.seen()));
        let seen = seen.unwrap_or_default();
        let mut state = self.lock();
        tell_changes(&state.seen, &seen);
        state.seen = seen;
        state.looked = Some(Instant::now());
        state.looking_since = None;
        drop(state);
        self.looks.send_modify(|looks| *looks += 1);
    }

    fn seen(&self) -> Vec<Trouble> {
        let mut seen = Vec::new();
        match self.store.probe() {
            Err(error) => seen.push(Trouble {
                text: format!("the jobs directory cannot be used: {error}"),
                down: true,
            }),
            // Chats can still be read, and files deleted.
            Ok(bytes) if bytes < self.min_free => seen.push(Trouble {
                text: format!(
                    "only {bytes} bytes of disk space are free (MCPO_MIN_FREE_DISK_BYTES)"
                ),
                down: false,
            }),
            Ok(_) => {}
        }
        if let Some((left, most)) = limits::open_files_left().filter(|(left, _)| *left < ONE_START)
        {
            // Idle sessions can be ended to make room for a new one.
            seen.push(Trouble {
                text: format!(
                    "only {left} of {most} file descriptors are left: raise the limit on open files \
                     (ulimit -n, LimitNOFILE), or lower MCPO_STATEFUL_MAX_TOTAL_PROCESSES"
                ),
                down: false,
            });
        }
        if let Some(left) = limits::processes_left().filter(|left| *left < 4) {
            seen.push(Trouble {
                text: format!(
                    "only {left} more processes and threads can be started: raise the limit \
                     (pids_limit, TasksMax), or lower MCPO_STATEFUL_MAX_TOTAL_PROCESSES"
                ),
                down: false,
            });
        }
        seen
    }

    fn lock(&self) -> MutexGuard<'_, Observed> {
        self.state.lock()
    }
}

/// Logs changes. Numbers in the texts change all the time, so only the number of problems is compared.
fn tell_changes(before: &[Trouble], now: &[Trouble]) {
    if now.len() > before.len() {
        for trouble in now {
            tracing::warn!(down = trouble.down, "{}", trouble.text);
        }
    } else if now.is_empty() && !before.is_empty() {
        tracing::info!("the jobs directory and the system limits are OK again");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bridge_state::testing::Folder;

    #[tokio::test]
    async fn what_is_wrong_is_seen_at_the_next_look_and_gone_when_it_is_well() {
        let folder = Folder::new();
        let store = Arc::new(folder.open());
        let condition = Arc::new(Condition::new(store, 0));
        let downs = async || {
            condition.lock().looked = None;
            condition.look().await;
            let troubles = condition.troubles();
            troubles.iter().filter(|trouble| trouble.down).count()
        };
        assert_eq!(downs().await, 0);
        let aside = folder.outside().join("aside");
        std::fs::rename(folder.path(), &aside).unwrap();
        std::fs::create_dir(folder.path()).unwrap();
        assert_eq!(downs().await, 1);
        std::fs::remove_dir(folder.path()).unwrap();
        std::fs::rename(aside, folder.path()).unwrap();
        assert_eq!(downs().await, 0);
    }

    #[tokio::test]
    async fn a_look_that_hangs_holds_nobody_up_and_is_told_of() {
        let folder = Folder::new();
        let condition = Arc::new(Condition::new(Arc::new(folder.open()), 0));
        // Simulates a disk that has not answered since then; no second check is started.
        let since = Instant::now().checked_sub(HANGS);
        condition.lock().looking_since = since;
        let asked = tokio::time::timeout(Duration::from_secs(30), condition.look()).await;
        assert!(asked.is_ok());
        assert!(condition.troubles().iter().any(|trouble| trouble.down));
    }

    #[test]
    fn a_failing_heartbeat_is_told_until_one_succeeds() {
        let folder = Folder::new();
        let condition = Condition::new(Arc::new(folder.open()), 0);
        condition.note_heartbeat(Some("no space".to_owned()));
        assert!(condition.troubles()[0].text.contains("no space"));
        condition.note_heartbeat(None);
        assert_eq!(condition.troubles(), []);
    }
}
