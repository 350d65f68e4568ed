//! Headers of single requests: what a caller's own request brought along.

use std::{collections::HashMap, sync::Arc};

use parking_lot::{Mutex, MutexGuard};
use reqwest::header::HeaderMap;

/// The headers that go with requests under way, by the requests' ids.
#[derive(Clone, Default)]
pub struct Company(Arc<Mutex<HashMap<Box<str>, HeaderMap>>>);

/// Ends the company of one request when dropped.
pub struct Accompanied {
    company: Company,
    id: Box<str>,
}

impl Company {
    /// Sends `headers` with every attempt of the request of this number, until what is returned is
    /// dropped.
    pub fn join(&self, number: u64, headers: HeaderMap) -> Accompanied {
        let id: Box<str> = number.to_string().into();
        self.lock().insert(id.clone(), headers);
        let company = self.clone();
        Accompanied { company, id }
    }

    /// Adds the headers of the request with this id; those that are set already stay.
    pub fn add_to(&self, headers: &mut HeaderMap, id: Option<&str>) {
        let known = self.lock();
        let Some(own) = id.and_then(|id| known.get(id)) else {
            return;
        };
        let free: Vec<_> = own
            .keys()
            .filter(|name| !headers.contains_key(*name))
            .collect();
        for name in free {
            for value in own.get_all(name) {
                let mut value = value.clone();
                value.set_sensitive(true);
                headers.append(name, value);
            }
        }
    }

    /// Whether the request with this id shows what only its own caller has: a refusal of it says nothing
    /// about the session, which others may use.
    pub fn has_credentials(&self, id: Option<&str>) -> bool {
        let known = self.lock();
        let own = id.and_then(|id| known.get(id));
        own.is_some_and(|own| {
            own.keys().any(|name| {
                let kinds = ["authorization", "cookie", "jwt", "token", "key", "secret"];
                kinds.iter().any(|kind| name.as_str().contains(kind))
            })
        })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Box<str>, HeaderMap>> {
        self.0.lock()
    }
}

impl Drop for Accompanied {
    fn drop(&mut self) {
        self.company.lock().remove(&self.id);
    }
}
