//! The answer to one POST, and how it goes on elsewhere when its stream breaks.

use std::time::Duration;

use bridge_protocol::{header_name, method};

use super::{
    Content, Cursor, Events, Failure, HeaderValue, Outgoing, Response, Streamable, content, lost,
    message, utf8,
};

/// After the answer the server should end the stream; then the connection can be used again.
const LINGER: Duration = Duration::from_millis(250);
/// Attempts in a row to take a broken stream up again.
const RESUMPTIONS: u32 = 5;

/// What came of a stream.
enum End {
    /// With the answer.
    Answered,
    /// It ended, or broke.
    Open(Failure),
}

impl Streamable {
    /// Passes on what the server sends, until the request has its answer.
    pub(super) async fn answer(
        &self,
        response: Response,
        message: &Outgoing,
        id: &str,
    ) -> Result<(), Failure> {
        let opens = message.method() == Some(method::INITIALIZE) && message.modern.is_none();
        if opens {
            let mut session = response.headers().get(header_name::SESSION_ID).cloned();
            if let Some(id) = &mut session {
                id.set_sensitive(true);
            }
            self.settle(|settled| settled.id = session);
        }
        let question = Question {
            id,
            opens,
            in_session: self.is_in_session(message),
        };
        match content(&response) {
            Content::Json => {
                let body = self.http.body(response, self.http.limit()).await?;
                let body = message::addressed(utf8(body), id);
                if self.pass(body.into(), &question).await? {
                    Ok(())
                } else {
                    Err(Failure::Unanswered)
                }
            }
            Content::Events => self.follow(response, message, &question).await,
            // No server says "accepted" to a request and means it.
            Content::Other if response.status() == reqwest::StatusCode::ACCEPTED => {
                Err(Failure::Unanswered)
            }
            Content::Other => Err(Failure::NotMcp),
        }
    }

    async fn follow(
        &self,
        response: Response,
        message: &Outgoing,
        question: &Question<'_>,
    ) -> Result<(), Failure> {
        // News may be hours away.
        let waits_for_news = message.method() == Some(method::LISTEN);
        let idle = (!waits_for_news).then_some(self.http.idle());
        let limit = self.http.limit();
        let mut events = Events::new(response, limit, idle, Cursor::default());
        loop {
            let failure = match self.drain(&mut events, question).await {
                End::Answered => return Ok(()),
                End::Open(failure) => failure,
            };
            let cursor = events.cursor();
            let may_resume = matches!(failure, Failure::Broken(_) | Failure::Unanswered);
            if message.modern.is_some() || cursor.last_id.is_none() || !may_resume {
                return Err(failure);
            }
            let response = self.resume(&cursor, failure).await?;
            events = Events::new(response, limit, idle, cursor);
        }
    }

    async fn drain(&self, events: &mut Events, question: &Question<'_>) -> End {
        loop {
            match events.message().await {
                Ok(Some(data)) => match self.pass(data, question).await {
                    Ok(true) => break,
                    Ok(false) => {}
                    Err(failure) => return End::Open(failure),
                },
                Ok(None) => return End::Open(Failure::Unanswered),
                Err(failure) => return End::Open(failure),
            }
        }
        let rest = async {
            while let Ok(Some(data)) = events.message().await {
                self.output.line(message::line(data)).await;
            }
        };
        let _ = tokio::time::timeout(LINGER, rest).await;
        End::Answered
    }

    /// Takes the stream up again after its last event; `failure` is why it has to be.
    async fn resume(&self, cursor: &Cursor, failure: Failure) -> Result<Response, Failure> {
        let mut attempt = 0;
        loop {
            tokio::time::sleep(super::listen::pause(cursor, attempt)).await;
            attempt += 1;
            match self.open_stream(cursor).await {
                Ok(response) => return Ok(response),
                // It had taken the request before.
                Err(Failure::SessionLost) => return Err(Failure::SessionBroken),
                Err(refused) if super::listen::is_final(&refused) => return Err(failure),
                Err(_) if attempt >= RESUMPTIONS => return Err(failure),
                Err(_) => {}
            }
        }
    }

    /// Passes on one message; true if it is the answer. An answer that only says that the session is lost
    /// is a failure.
    async fn pass(&self, data: Vec<u8>, question: &Question<'_>) -> Result<bool, Failure> {
        let is_answer = message::answers(&data, question.id);
        if is_answer && question.in_session && lost::by_answer(&data, question.id) {
            return Err(Failure::SessionLost);
        }
        if is_answer && question.opens {
            // Before the bridge hears of it: its next message has to carry the revision.
            let version = message::negotiated(&data, question.id);
            let version = version.and_then(|version| HeaderValue::try_from(version).ok());
            self.settle(|session| session.version = version);
        }
        self.output.line(message::line(data)).await;
        Ok(is_answer)
    }
}

struct Question<'a> {
    id: &'a str,
    opens: bool,
    in_session: bool,
}
