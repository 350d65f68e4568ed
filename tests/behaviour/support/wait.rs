//! Waits for a condition with a deadline: tests never sleep for an estimated time.

use std::time::{Duration, Instant};

/// Timeout of operations that must not wait for something that takes `LONG` seconds.
///
/// No test measures speed: a busy machine stays far below the timeout, and the fault that a test
/// checks for takes at least twice as long.
pub const PROMPT: Duration = Duration::from_secs(30);

/// Duration, in seconds, of operations that must not be waited for: twice the timeout.
pub const LONG: u64 = 60;

/// The first `Some` of `look`, or `None` after `limit`.
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

/// Fails the test unless `condition` becomes true within [`PROMPT`].
#[track_caller]
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let seen = until(PROMPT, || condition().then_some(()));
    assert!(seen.is_some(), "it never came true that {what}");
}

/// Runs `act`, and fails the test if it took so long that it must have waited for an operation of
/// [`LONG`].
#[track_caller]
pub fn promptly<T>(what: &str, act: impl FnOnce() -> T) -> T {
    let began = Instant::now();
    let outcome = act();
    let took = began.elapsed();
    assert!(took < PROMPT, "{what} took {took:?}");
    outcome
}
