//! A child that is ready and nobody's, in a folder of nobody's.

use std::sync::Arc;

use bridge_process::{Child, End, launch::Resolved};
use bridge_state::{Held, Lease, NewChat, StoreError};
use tokio::runtime::Handle;

use super::{Home, PING, code::Code};
use crate::{
    admission::Place,
    config::{ServerSpec, Transport},
    launches::Launching,
    telemetry::Live,
};

/// A ready child. Dropped, it ends and its folder goes.
pub struct Spare {
    pub(super) home: Arc<Home>,
    pub(super) made_of: MadeOf,
    /// `None` once somebody has it.
    pub(super) parts: Option<Parts>,
}

/// What somebody gets who takes it.
pub struct Parts {
    /// The process.
    pub child: Child,
    /// Its folder from birth, and our right to it.
    pub held: Held,
    /// Its place among the stateful processes, where it counts as one.
    pub place: Option<Place>,
    pub(super) counted: Option<Live>,
}

impl Spare {
    fn parts(&self) -> &Parts {
        self.parts.as_ref().expect("it has them until it is taken")
    }

    /// Its process.
    pub fn child(&self) -> &Child {
        &self.parts().child
    }

    /// Our right to its folder.
    pub fn lease(&self) -> &Lease {
        &self.parts().held.lease
    }

    /// Makes its folder this principal's. Blocks on the disk.
    pub fn claim(self, new: &NewChat) -> Result<Parts, StoreError> {
        self.home.store.claim(self.lease(), None, new)?;
        Ok(self.into_parts())
    }

    /// All of it, for who has claimed its folder.
    pub fn into_parts(mut self) -> Parts {
        let mut parts = self.parts.take().expect("once");
        parts.counted = None;
        parts
    }

    /// Whether a caller may have it: it lives, answers, asked nothing of nobody, and is what would
    /// be started now.
    pub(super) async fn is_fit(&self, spec: &Arc<ServerSpec>) -> bool {
        let child = self.child();
        child.is_alive()
            && !child.was_declined()
            && self.made_of.holds(&self.home, spec).await
            && child.answers_ping(PING).await
            && !child.was_declined()
    }
}

impl Drop for Spare {
    fn drop(&mut self) {
        // Without a runtime the process is about to end, and the drop of the child kills it.
        if let Some(parts) = self.parts.take()
            && let Ok(runtime) = Handle::try_current()
        {
            let home = self.home.clone();
            let end = async move { home.end(parts).await };
            self.home.tasks.spawn_on(end, &runtime);
        }
    }
}

impl Home {
    /// Ends a child that nobody had: it has nothing to save.
    pub(super) async fn end(&self, parts: Parts) {
        parts.child.end(End::Kill).await;
        drop(parts.place);
        drop(parts.counted);
        self.remove(parts.held.lease).await;
    }

    /// Removes a folder in which nothing runs.
    pub(super) async fn remove(&self, lease: Lease) {
        let store = self.store.clone();
        // What cannot be removed now is the collector's, once this bridge has ended.
        let removed = tokio::task::spawn_blocking(move || store.discard(&lease)).await;
        if let Ok(Err(error)) = removed {
            tracing::warn!(%error, "the folder of a process that nobody took is left");
        }
    }
}

/// What a child was started from.
pub struct MadeOf {
    installed: Option<Arc<Resolved>>,
    /// Unless packages say what runs.
    code: Option<Code>,
}

impl MadeOf {
    /// What would be started now. Blocks on the disk.
    pub(super) fn now(home: &Home, spec: &ServerSpec) -> Self {
        let installed = installed(home, spec);
        let pinned = installed
            .as_ref()
            .is_some_and(|found| found.identity.is_some());
        let code = match &spec.transport {
            Transport::Stdio(command) if !pinned => Some(Code::of(command)),
            _ => None,
        };
        Self { installed, code }
    }

    /// Whether the same packages would be started now.
    pub(super) fn is_current(&self, home: &Home, spec: &ServerSpec) -> bool {
        match (&self.installed, installed(home, spec)) {
            (None, None) => true,
            (Some(then), Some(now)) => {
                Arc::ptr_eq(then, &now)
                    || (then.identity.is_some()
                        && then.identity == now.identity
                        && (&then.program, &then.args, &then.env)
                            == (&now.program, &now.args, &now.env))
            }
            _ => false,
        }
    }

    /// The same, and nobody has changed the files.
    async fn holds(&self, home: &Arc<Home>, spec: &Arc<ServerSpec>) -> bool {
        if !self.is_current(home, spec) {
            return false;
        }
        if let Some(found) = &self.installed
            && !found.locked
            && !found.holds()
        {
            return false;
        }
        if self.code.is_none() {
            return true;
        }
        let (home, spec) = (home.clone(), spec.clone());
        let now = tokio::task::spawn_blocking(move || Self::now(&home, &spec)).await;
        now.is_ok_and(|now| now.code == self.code)
    }
}

fn installed(home: &Home, spec: &ServerSpec) -> Option<Arc<Resolved>> {
    match home.children.launches().of(spec) {
        Launching::Installed(resolved) => Some(resolved),
        _ => None,
    }
}
