//! A call's wait for its caller, whom the child asked something.
//!
//! ```text
//! Running ──asked──▶ Parked ──answered──▶ Returning ──turn and place are back──▶ Running ──▶ Ended
//! ```
//! While it is parked the call's clock stands still, and its turn and its place among the running
//! calls are others'. The child gets the answer when the call has both again: what it then does to
//! the folder falls into the call's own turn.

use tokio::sync::watch;

/// Where a call stands between its child and its caller. Its door and the engine each hold one.
#[derive(Debug, Clone)]
pub struct Parking(Option<watch::Sender<State>>);

/// Sees where the call stands.
pub(super) struct Watch(Option<watch::Receiver<State>>);

/// See the top of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// The child is at work, or was not asked yet.
    Running,
    /// The caller has been asked.
    Parked,
    /// The caller has answered; the child has not heard it yet.
    Returning,
    /// Nobody looks after the call any more.
    Ended,
}

impl Default for Parking {
    fn default() -> Self {
        Self(Some(watch::Sender::new(State::Running)))
    }
}

impl Watch {
    /// Where it stands now.
    pub fn now(&mut self) -> State {
        let state = self.0.as_mut().map(|state| *state.borrow_and_update());
        state.unwrap_or(State::Running)
    }

    /// Waits until it stands somewhere else.
    pub async fn changed(&mut self) {
        if let Some(state) = &mut self.0
            && state.changed().await.is_ok()
        {
            return;
        }
        std::future::pending::<()>().await;
    }
}

impl Parking {
    /// Of a call whose caller cannot be asked anything.
    pub fn never() -> Self {
        Self(None)
    }

    /// The caller is asked something.
    pub fn park(&self) {
        self.change(|state| (state != State::Ended).then_some(State::Parked));
    }

    /// The caller has answered all that he was asked.
    pub fn come_back(&self) {
        self.change(|state| (state == State::Parked).then_some(State::Returning));
    }

    /// Waits until the child may hear the answers; after the end of the call that is at once.
    pub async fn resumed(&self) {
        let going = |state: &State| matches!(state, State::Running | State::Ended);
        if let Some(state) = &self.0 {
            // It cannot close: this is a sender.
            let _ = state.subscribe().wait_for(going).await;
        }
    }

    /// Whether both are of the same call.
    pub fn is_of(&self, other: &Self) -> bool {
        let both = self.0.as_ref().zip(other.0.as_ref());
        both.is_some_and(|(one, other)| one.same_channel(other))
    }

    pub(super) fn resume(&self) {
        self.change(|state| (state == State::Returning).then_some(State::Running));
    }

    pub(super) fn end(&self) {
        self.change(|_| Some(State::Ended));
    }

    pub(super) fn watch(&self) -> Watch {
        Watch(self.0.as_ref().map(watch::Sender::subscribe))
    }

    fn change(&self, next: impl FnOnce(State) -> Option<State>) {
        let Some(state) = &self.0 else { return };
        state.send_if_modified(|state| {
            let next = next(*state);
            *state = next.unwrap_or(*state);
            next.is_some()
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_answer_is_heard_when_the_call_goes_on_and_never_waits_for_one_that_ended() {
        let parking = Parking::default();
        let mut seen = parking.watch();
        parking.come_back();
        assert_eq!(seen.now(), State::Running, "nothing was asked");
        parking.park();
        parking.resume();
        assert_eq!(seen.now(), State::Parked, "nothing was answered");
        parking.come_back();
        let door = parking.clone();
        let heard = tokio::spawn(async move { door.resumed().await });
        tokio::task::yield_now().await;
        assert!(!heard.is_finished());
        parking.resume();
        heard.await.expect("it resumes");
        parking.end();
        parking.park();
        parking.resumed().await;
    }

    #[tokio::test]
    async fn a_caller_who_cannot_be_asked_is_never_waited_for() {
        let parking = Parking::never();
        let mut seen = parking.watch();
        parking.park();
        assert_eq!(seen.now(), State::Running);
        parking.resumed().await;
        assert!(!parking.is_of(&parking.clone()));
        assert!(futures_util::FutureExt::now_or_never(seen.changed()).is_none());
    }
}
