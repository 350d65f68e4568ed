//! Waiting for a condition with a deadline: tests never sleep for a guessed time.

use std::time::{Duration, Instant};

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

/// Fails the test unless `condition` comes true within ten seconds.
#[track_caller]
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let seen = until(Duration::from_secs(10), || condition().then_some(()));
    assert!(seen.is_some(), "it never came true that {what}");
}
