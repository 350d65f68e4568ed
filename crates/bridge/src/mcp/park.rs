//! Calls that wait for their client: what a child asked went out as `input_required`, and the
//! client's retry goes on with the call. A parked call belongs to one principal, is resumed by one
//! retry of the same request, and expires.

use std::{collections::HashMap, sync::Arc, time::Duration};

use bridge_model::SessionId;
use bridge_protocol::{ClientMessage, RawJson};
use indexmap::IndexMap;
use parking_lot::Mutex;
use serde_json::value::RawValue;
use tokio_util::sync::CancellationToken;

use super::{
    RpcError,
    relay::Relay,
    request::{McpExit, McpRequest},
    retry::Retry,
};
use crate::replicas::Homed;

/// Parked calls of one principal.
const MOST: usize = 100;

/// All parked calls of this bridge.
#[derive(Clone, Default)]
pub struct Parks {
    all: Arc<Mutex<HashMap<SessionId, (Retry, Relay)>>>,
}

impl Parks {
    /// Keeps a call for so long, or until the bridge stops; returns the `requestState` that brings
    /// it back.
    pub fn park(
        &self,
        retry: Retry,
        relay: Relay,
        kept: Duration,
        stopping: CancellationToken,
    ) -> Result<SessionId, RpcError> {
        let mut all = self.lock();
        let own = all
            .values()
            .filter(|(other, _)| other.principal == retry.principal)
            .count();
        if own >= MOST {
            return Err(RpcError::invalid(
                "too many calls of this caller wait for an answer",
            ));
        }
        let state = SessionId::random();
        all.insert(state.clone(), (retry, relay));
        drop(all);
        let (parks, expired) = (self.clone(), state.clone());
        tokio::spawn(async move {
            // A bridge that stops takes no retries.
            let expiry = tokio::time::sleep(kept);
            stopping.run_until_cancelled(expiry).await;
            // Dropping it cancels the call.
            let gone = parks.lock().remove(&expired);
            drop(gone);
        });
        Ok(state)
    }

    /// The call that this retry goes on with, its child's questions answered. The state names the
    /// replica that keeps the call.
    pub async fn take(
        &self,
        request: &McpRequest<'_>,
        state: &str,
        retry: &Retry,
        message: &ClientMessage,
    ) -> Result<Relay, McpExit> {
        let unknown = || RpcError::params("requestState is unknown, expired or of another request");
        let state: Homed = state.parse().map_err(|_| unknown())?;
        if state.home != request.endpoint.replicas.own() {
            return Err(request.forward_home(state.home, unknown).await);
        }
        let relay = self.resume(&state.token, retry, message);
        Ok(relay.ok_or_else(unknown)?)
    }

    fn resume(&self, state: &SessionId, retry: &Retry, message: &ClientMessage) -> Option<Relay> {
        let mut all = self.lock();
        if all.get(state).is_none_or(|(expected, _)| expected != retry) {
            return None;
        }
        let (_, mut relay) = all.remove(state)?;
        drop(all);
        relay.answer(&answers(message));
        Some(relay)
    }

    fn lock(&self) -> parking_lot::MutexGuard<'_, HashMap<SessionId, (Retry, Relay)>> {
        self.all.lock()
    }
}

/// The client's answers by their keys.
fn answers(message: &ClientMessage) -> IndexMap<String, RawJson> {
    let Some(raw) = &message.params.input_responses else {
        return IndexMap::new();
    };
    let bytes = raw.clone().into_bytes();
    let members: IndexMap<String, &RawValue> = serde_json::from_slice(&bytes).unwrap_or_default();
    members
        .into_iter()
        .map(|(key, value)| (key, RawJson::within(&bytes, value)))
        .collect()
}
