//! Where a server's fork parent is.

use std::{path::PathBuf, sync::Arc, time::Duration};

use bridge_process::{
    fork::Parent,
    launch::{Seen, seen},
};
use tokio::time::Instant;

/// After a parent was lost; doubles with each.
const PAUSE: Duration = Duration::from_secs(5);
pub const LONGEST_PAUSE: Duration = Duration::from_secs(600);

/// How processes of a server come to be now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Forking {
    /// By forking, from a parent with so many modules; some are imported by each process itself.
    Forks {
        modules: usize,
        left_out: Vec<String>,
    },
    /// Each by itself, and why.
    Starts(Arc<str>),
    /// Each by itself: nobody asked for more so far.
    NotYet,
}

/// As the module above draws it.
#[derive(Clone)]
pub enum State {
    None,
    Starting,
    Ready(Arc<Ready>),
    Exec(Arc<str>, Option<Instant>),
}

/// A parent, and what its sources were when it was made.
pub struct Ready {
    pub parent: Parent,
    pub sources: Vec<(PathBuf, Seen)>,
}

/// It is gone; so many were before.
pub fn lost(why: &str, times: u32) -> State {
    let pause = PAUSE.saturating_mul(1 << times.min(10)).min(LONGEST_PAUSE);
    State::Exec(why.into(), Some(Instant::now() + pause))
}

impl State {
    /// As others are told.
    pub fn told(&self) -> Forking {
        match self {
            Self::Ready(ready) => {
                let loaded = &ready.parent.loaded;
                let (modules, left_out) = (loaded.modules, loaded.left_out.clone());
                Forking::Forks { modules, left_out }
            }
            Self::Exec(why, _) => Forking::Starts(why.clone()),
            Self::None | Self::Starting => Forking::NotYet,
        }
    }
}

/// A parent to fork from.
#[derive(Clone)]
pub struct ParentRef(pub Arc<Ready>);

impl ParentRef {
    /// The files that it was made of are as they were. Looks at the disk.
    pub fn holds(&self) -> bool {
        self.0
            .sources
            .iter()
            .all(|(path, then)| seen(path) == *then)
    }

    /// The parent itself.
    pub fn parent(&self) -> &Parent {
        &self.0.parent
    }
}
