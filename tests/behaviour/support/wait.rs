//! Waiting for a condition with a deadline: tests never sleep for a guessed time.

use std::time::{Duration, Instant};

/// Bound on what must happen without waiting for something else that takes `LONG` seconds.
///
/// No test measures speed: a busy machine stays far below the bound, and the fault that a test looks
/// for takes at least twice as long.
pub const PROMPT: Duration = Duration::from_secs(30);

/// How long whatever must not be waited for takes, in seconds: twice the bound.
pub const LONG: u64 = 60;

/// The first `Some` of `look`, or `None` once `limit` has passed.
pub fn until<T>(limit: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(found) = look() {
            return Some(found);
        }
        if Instant::now() > deadline {
            return None;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Fails the test unless `condition` comes true within the bound of [`promptly`].
#[track_caller]
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let seen = until(PROMPT, || condition().then_some(()));
    assert!(seen.is_some(), "it never came true that {what}");
}

/// Runs `act`, and fails the test if it took so long that it must have waited for what takes [`LONG`].
#[track_caller]
pub fn promptly<T>(what: &str, act: impl FnOnce() -> T) -> T {
    let began = Instant::now();
    let outcome = act();
    let took = began.elapsed();
    assert!(took < PROMPT, "{what} took {took:?}");
    outcome
}
