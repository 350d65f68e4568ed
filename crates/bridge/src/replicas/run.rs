//! A request runs here, or goes to where it belongs, until one of the two has come about.

use std::{future::Future, time::Duration};

use axum::response::Response;
use bridge_model::{Caller, Hop};
use tokio::time::Instant;

use super::{
    Elsewhere, Replicas,
    forward::{Forward, Sent, again},
};
use crate::call::CallError;

/// Between two looks at a lease that is about to change hands.
const PAUSE: Duration = Duration::from_millis(100);

/// An error of a door that may say that the request belongs elsewhere.
pub trait Routed: From<CallError> {
    /// Where to.
    fn elsewhere(&self) -> Option<&Elsewhere>;
}

impl Replicas {
    /// Runs `attempt`; where it says that the request belongs elsewhere, sends `request` there. A replica
    /// that does not answer is waited for until it has come back, or its chats are free to take:
    /// then `attempt` takes them.
    pub async fn run<E: Routed, F: Future<Output = Result<Response, E>>>(
        &self,
        caller: &Caller,
        request: impl Fn() -> Forward,
        attempt: impl Fn() -> F,
    ) -> Result<Response, E> {
        let began = Instant::now();
        let mut last = None;
        loop {
            let error = match attempt().await {
                Err(error) => error,
                answered => return answered,
            };
            let Some(elsewhere) = error.elsewhere() else {
                return Err(error);
            };
            let mut patience = self.silence;
            if elsewhere.draining {
                patience = self.patience;
            } else if !may_go_on(caller.hop(), elsewhere.hop) {
                // Who sent it here looks again, and knows more then.
                return Ok(again());
            } else {
                // Boxed: it is large, and few requests go on.
                match Box::pin(self.send(elsewhere, caller, &request())).await {
                    Sent::Answered(response) => {
                        self.metrics.forwarded("answered");
                        return Ok(response);
                    }
                    Sent::Lost(why) => {
                        self.metrics.forwarded("lost");
                        return Err(CallError::ReplicaLost(why).into());
                    }
                    Sent::Unreachable(why) => {
                        self.metrics.forwarded("unreachable");
                        tracing::debug!(to = %elsewhere.to, why, "another bridge does not answer");
                        last = Some(why);
                    }
                    Sent::Again => self.metrics.forwarded("again"),
                }
            }
            if began.elapsed() > patience {
                return Err(elsewhere.unreachable(last.as_deref()).into());
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// By a session and then by a lease, each at most once.
fn may_go_on(came: Option<Hop>, goes: Hop) -> bool {
    match came {
        None => true,
        Some(Hop::Session) => goes == Hop::Lease,
        Some(Hop::Lease) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_request_goes_round_in_circles() {
        for goes in [Hop::Session, Hop::Lease] {
            assert!(may_go_on(None, goes));
            assert!(!may_go_on(Some(Hop::Lease), goes));
        }
        assert!(may_go_on(Some(Hop::Session), Hop::Lease));
        assert!(!may_go_on(Some(Hop::Session), Hop::Session));
    }
}
