//! Starts that failed last, for `/health`: what the catalogue knows of a server is what it once offered,
//! and not whether a process of it can be started today.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use bridge_model::ServerName;
use bridge_process::ChildError;
use parking_lot::{Mutex, MutexGuard};

use crate::config::{ServerSpec, SpecVersion};

/// For how long one failed start speaks for the whole machine. Nobody may come while it does, so that
/// no other start takes it back.
const SHORT: Duration = Duration::from_secs(30);

/// By server, and for the machine.
#[derive(Default)]
pub struct FailedStarts(Mutex<Failed>);

#[derive(Default)]
struct Failed {
    servers: HashMap<ServerName, (SpecVersion, Arc<str>)>,
    short: Option<(Instant, Arc<str>)>,
}

impl FailedStarts {
    /// Notes how a start went. What was given up says nothing, and a process that refuses a revision of
    /// the protocol has started: each `shared` server is asked for the newest once.
    pub fn note<T>(&self, spec: &ServerSpec, started: &Result<T, ChildError>) {
        let mut failed = self.lock();
        match started {
            Ok(_) => {
                failed.servers.remove(&spec.name);
                failed.short = None;
            }
            Err(error @ ChildError::NotStarted { refused: false, .. }) => {
                let why: Arc<str> = error.brief().into();
                if error.is_lack_of_room() {
                    failed.short = Some((Instant::now(), why.clone()));
                }
                failed
                    .servers
                    .insert(spec.name.clone(), (spec.version(), why));
            }
            Err(_) => {}
        }
    }

    /// Why the last start of this server failed.
    pub fn of(&self, spec: &ServerSpec) -> Option<Arc<str>> {
        let failed = self.lock();
        let (version, why) = failed.servers.get(&spec.name)?;
        (*version == spec.version()).then(|| why.clone())
    }

    /// Why no process could be started a moment ago, whatever it was.
    pub fn shortage(&self) -> Option<Arc<str>> {
        let failed = self.lock();
        let (at, why) = failed.short.as_ref()?;
        (at.elapsed() < SHORT).then(|| why.clone())
    }

    fn lock(&self) -> MutexGuard<'_, Failed> {
        self.0.lock()
    }
}
