//! The events of one answer, as they come.

use std::time::Duration;

use bridge_protocol::sse::{Cursor, Event, Parser, TooLong};
use reqwest::Response;
use tokio::time::timeout;

use super::failure::Failure;

/// Reads events from an answer.
pub struct Events {
    response: Response,
    parser: Parser,
    limit: usize,
    idle: Option<Duration>,
}

impl Events {
    /// `idle` bounds the server's silence, `limit` one event in bytes. `cursor` is where the
    /// stream goes on.
    pub fn new(response: Response, limit: usize, idle: Option<Duration>, cursor: Cursor) -> Self {
        Self {
            response,
            parser: Parser::new(limit, cursor),
            limit,
            idle,
        }
    }

    /// The next event; `None` at the end of the stream. Cancel-safe.
    pub async fn next(&mut self) -> Result<Option<Event>, Failure> {
        loop {
            match self.parser.event() {
                Ok(Some(event)) => return Ok(Some(event)),
                Ok(None) => {}
                Err(TooLong) => return Err(Failure::TooLarge(self.limit)),
            }
            let chunk = self.response.chunk();
            let chunk = match self.idle {
                Some(idle) => timeout(idle, chunk)
                    .await
                    .map_err(|_| Failure::Silent(idle))?,
                None => chunk.await,
            };
            match chunk {
                Ok(Some(bytes)) => self.parser.push(&bytes),
                Ok(None) => return Ok(None),
                Err(error) => return Err(Failure::reading(&error)),
            }
        }
    }

    /// The next message. Events of other names are not for us.
    pub async fn message(&mut self) -> Result<Option<Vec<u8>>, Failure> {
        while let Some(event) = self.next().await? {
            if event.is_message() {
                return Ok(Some(event.data));
            }
        }
        Ok(None)
    }

    /// Where to go on after the last event.
    pub fn cursor(&self) -> Cursor {
        self.parser.cursor().clone()
    }

    /// Whether the server said anything but comments.
    pub fn heard(&self) -> bool {
        self.parser.heard()
    }
}
