//! A request runs here, or is answered by the replica that it belongs to.

use std::time::Duration;

use axum::response::{IntoResponse, Response};
use bridge_model::{Caller, Hop};
use tokio::time::Instant;

use super::{
    Elsewhere, Replicas,
    forward::{Forward, Sent, again},
};
use crate::call::CallError;

/// Between two looks at a lease that is about to change hands.
const PAUSE: Duration = Duration::from_millis(100);

/// Where a request belongs.
pub enum Located<T> {
    /// Here, with what was looked for.
    Here(T),
    /// At another replica.
    Elsewhere(Elsewhere),
}

impl<T> From<Result<T, Elsewhere>> for Located<T> {
    fn from(found: Result<T, Elsewhere>) -> Self {
        found.map_or_else(Self::Elsewhere, Self::Here)
    }
}

/// Why a request is not handled further.
pub enum Exit<E> {
    /// It failed.
    Error(E),
    /// Another replica has answered it.
    Answered(Box<Response>),
}

impl<E> From<E> for Exit<E> {
    fn from(error: E) -> Self {
        Self::Error(error)
    }
}

impl<E> Exit<E> {
    /// With the error exchanged.
    pub fn map_error<F>(self, map: impl FnOnce(E) -> F) -> Exit<F> {
        match self {
            Self::Error(error) => Exit::Error(map(error)),
            Self::Answered(response) => Exit::Answered(response),
        }
    }
}

impl<E: IntoResponse> IntoResponse for Exit<E> {
    fn into_response(self) -> Response {
        match self {
            Self::Error(error) => error.into_response(),
            Self::Answered(response) => *response,
        }
    }
}

/// A request that goes to where it belongs, as often as that has to be looked for.
pub struct Forwarding<'f, F> {
    replicas: &'f Replicas,
    caller: &'f Caller,
    request: F,
    began: Option<Instant>,
    /// Why the last one did not answer.
    unreachable: Option<String>,
}

impl Replicas {
    /// A request that may belong elsewhere. One that was not kept (`None`) goes nowhere.
    pub fn forwarding<'f, F: Fn() -> Option<Forward>>(
        &'f self,
        caller: &'f Caller,
        request: F,
    ) -> Forwarding<'f, F> {
        Forwarding {
            replicas: self,
            caller,
            request,
            began: None,
            unreachable: None,
        }
    }
}

impl<F: Fn() -> Option<Forward>> Forwarding<'_, F> {
    /// Has the request answered there. A replica that does not answer is waited for until it has come back, or
    /// until what it held is free to take: `Ok` says that it is time to look again where the request belongs.
    pub async fn to<E: From<CallError>>(&mut self, elsewhere: &Elsewhere) -> Result<(), Exit<E>> {
        let failed = |error: CallError| Err(Exit::Error(error.into()));
        let began = *self.began.get_or_insert_with(Instant::now);
        let mut patience = self.replicas.silence;
        if elsewhere.draining {
            patience = self.replicas.patience;
        } else if !may_go_on(self.caller.hop(), elsewhere.hop) {
            // Who sent it here looks again, and knows more then.
            return Err(Exit::Answered(Box::new(again())));
        } else {
            let Some(request) = (self.request)() else {
                return failed(elsewhere.unreachable(None));
            };
            let (replicas, metrics) = (self.replicas, &self.replicas.metrics);
            // Boxed: it is large, and few requests go on.
            match Box::pin(replicas.send(elsewhere, self.caller, &request)).await {
                Sent::Answered(response) => {
                    metrics.forwarded("answered");
                    return Err(Exit::Answered(Box::new(response)));
                }
                Sent::Lost(why) => {
                    metrics.forwarded("lost");
                    return failed(CallError::ReplicaLost(why));
                }
                Sent::Unreachable(why) => {
                    metrics.forwarded("unreachable");
                    tracing::debug!(to = %elsewhere.to, why, "another bridge does not answer");
                    self.unreachable = Some(why);
                }
                Sent::Again => metrics.forwarded("again"),
            }
        }
        if began.elapsed() > patience {
            return failed(elsewhere.unreachable(self.unreachable.as_deref()));
        }
        tokio::time::sleep(PAUSE).await;
        Ok(())
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
