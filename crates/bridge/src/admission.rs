//! Who may do something now, where only so many may at once, and who waits for it.
//!
//! [`Places`] is a semaphore that shares its places out by [`Tenant`]; what waits for one is bounded
//! by [`Waiting`]. Calls of one user never take all places, and never the whole queue.

mod places;
mod waiting;

use std::{collections::HashMap, sync::Arc};

use bridge_model::{ServerName, Tenant};
use parking_lot::Mutex;

use crate::config::{ServerSpec, Transport};

pub use places::{Place, Places, Share, three_quarters};
pub use waiting::Waiting;

/// What calls are bounded by.
#[derive(Debug, Clone)]
pub struct AdmissionSettings {
    /// Calls that processes of this machine work on.
    pub max_concurrent: usize,
    /// Of these, calls of one tenant.
    pub per_user: usize,
    /// Calls of one user that one server works on, where it takes calls side by side.
    pub per_user_and_server: usize,
    /// Calls that wait for their turn.
    pub waiting: usize,
}

/// The calls that may run, and those that wait for it.
#[derive(Clone)]
pub struct Admission {
    /// Calls that wait, for whatever it is.
    pub waiting: Waiting,
    running: Places,
    /// A server elsewhere uses none of this machine's processors: calls that wait for its answer
    /// take no place from those that do. Each server has its own places.
    elsewhere: Arc<Mutex<HashMap<ServerName, Places>>>,
    per_server: usize,
}

impl Admission {
    /// Nothing runs yet.
    pub fn new(settings: &AdmissionSettings) -> Self {
        let share = Share::reserving(settings.per_user);
        Self {
            waiting: Waiting::new(settings.waiting),
            running: Places::new(settings.max_concurrent, share),
            elsewhere: Arc::default(),
            per_server: settings.per_user_and_server,
        }
    }

    /// A place for a call to this server; dropping it lets the next one in.
    pub fn enter(&self, spec: &ServerSpec, tenant: &Tenant) -> impl Future<Output = Place> + use<> {
        match spec.transport {
            Transport::Stdio(_) => self.running.enter(tenant),
            Transport::Remote(_) => self.of_server(&spec.name).enter(tenant),
        }
    }

    fn of_server(&self, server: &ServerName) -> Places {
        let mut elsewhere = self.elsewhere.lock();
        if let Some(places) = elsewhere.get(server) {
            return places.clone();
        }
        let places = Places::side_by_side(None, self.per_server);
        elsewhere.insert(server.clone(), places.clone());
        places
    }

    /// Calls that processes of this machine work on, and those that wait for that.
    pub fn load(&self) -> (usize, usize) {
        self.running.load()
    }
}
