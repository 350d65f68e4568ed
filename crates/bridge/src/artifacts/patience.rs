//! How long work on files goes on.

use std::io;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// When a copy ends unfinished: it is looked at between blocks.
#[derive(Debug, Clone)]
pub struct Patience {
    until: Option<Instant>,
    given_up: CancellationToken,
}

impl Patience {
    /// Until a time, or until it is given up.
    pub fn until(time: Instant, given_up: CancellationToken) -> Self {
        Self {
            until: Some(time),
            given_up,
        }
    }

    /// Without end.
    #[cfg(test)]
    pub fn endless() -> Self {
        Self {
            until: None,
            given_up: CancellationToken::new(),
        }
    }

    /// [`io::ErrorKind::TimedOut`] where the work is to stop.
    pub fn check(&self) -> io::Result<()> {
        let over = self.until.is_some_and(|until| Instant::now() >= until);
        if over || self.given_up.is_cancelled() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(())
    }
}
