//! HTTP with server-sent events, from revision 2024-11-05: one stream carries all messages from the
//! server, and its first event contains the URL for POST. The session ends with the stream. It also
//! ends when a rejection says so (`lost.rs`), because a proxy may keep the stream open after the
//! server has ended.

use std::sync::Arc;

use bridge_protocol::sse::Cursor;
use reqwest::{
    Method, Url,
    header::{ACCEPT, HeaderMap, HeaderValue},
};
use tokio::time::timeout;

use super::{
    http::{Content, Events, Http, REFUSAL, Transport, content},
    lost,
    lost::Failure,
    message,
    message::Outgoing,
    pipe::{Flights, Input, Landed, Output},
    streamable::Refused,
};

/// A session with one server.
pub struct OldSse(Transport);

impl OldSse {
    /// Sends nothing yet.
    pub fn new(http: Http, output: Output) -> Arc<Self> {
        Arc::new(Self(Transport::new(http, output)))
    }

    /// Transports messages until the bridge closes the pipe or the stream ends. A message that the
    /// newer transport `refused` is sent first; if the stream cannot be opened, its earlier failure
    /// is returned.
    pub async fn serve(self: &Arc<Self>, mut input: Input, refused: Option<Refused>) {
        let mut flights = Flights::default();
        let (mut events, endpoint) = match self.open().await {
            Ok(open) => open,
            Err(failure) => match refused {
                Some((message, before)) => return self.fail(&message, &before).await,
                None => return self.refuse(&mut input, &failure).await,
            },
        };
        let endpoint = Arc::new(endpoint);
        let write = async {
            if let Some((message, _)) = refused {
                self.carry(message, &endpoint, &mut flights);
            }
            loop {
                tokio::select! {
                    next = input.next() => match next {
                        Some(message) => self.carry(message, &endpoint, &mut flights),
                        None => break,
                    },
                    true = flights.land() => {}
                    () = self.0.lost.cancelled() => {
                        return self.0.wind_up(&mut input, &mut flights).await;
                    }
                }
            }
            flights.land_all().await;
        };
        let read = async {
            loop {
                match events.message().await {
                    Ok(Some(data)) => self.pass(data).await,
                    Ok(None) => break,
                    Err(failure) => {
                        tracing::debug!(
                            origin = self.0.http.origin,
                            %failure,
                            "event stream ended"
                        );
                        break;
                    }
                }
            }
        };
        tokio::select! {
            () = write => {}
            () = read => {}
        }
    }

    /// Opens the stream and waits for its first event.
    async fn open(&self) -> Result<(Events, Url), Failure> {
        let http = &self.0.http;
        let accept = HeaderValue::from_static("text/event-stream");
        let headers = HeaderMap::from_iter([(ACCEPT, accept)]);
        let response = http.send_empty(Method::GET, headers).await?;
        if !response.status().is_success() {
            return Err(Failure::Status(response.status()));
        }
        if content(&response) != Content::Events {
            return Err(Failure::NotMcp);
        }
        // A redirect within the origin may have changed the base of the relative endpoint.
        let base = response.url().clone();
        let mut events = Events::new(response, http.limit, None, Cursor::default());
        let first = timeout(http.idle, events.next()).await;
        let first = first.map_err(|_| Failure::Silent(http.idle))??;
        let endpoint = first
            .filter(|event| event.kind == b"endpoint")
            .and_then(|event| String::from_utf8(event.data).ok())
            .and_then(|path| base.join(path.trim()).ok())
            .filter(|endpoint| endpoint.origin() == http.url.origin());
        let mut endpoint = endpoint.ok_or(Failure::NoEndpoint)?;
        // Adds the URL's credentials, because the client removes them from the URL that it reports.
        let _ = endpoint.set_username(http.url.username());
        let _ = endpoint.set_password(http.url.password());
        Ok((events, endpoint))
    }

    /// Forwards one message, unless it only means that the session is lost.
    async fn pass(&self, data: Vec<u8>) {
        let refused = message::refused_id(&data).filter(|id| lost::by_answer(&data, id));
        let line = match refused.filter(|_| self.0.is_proven()) {
            Some(id) => {
                self.0.lost.cancel();
                self.0.http.failed(&Failure::SessionLost, &id)
            }
            None => message::line(data),
        };
        self.0.output.line(line).await;
    }

    fn carry(self: &Arc<Self>, message: Outgoing, endpoint: &Arc<Url>, flights: &mut Flights) {
        let (this, endpoint) = (self.clone(), endpoint.clone());
        // Responses arrive on the stream, so a cancelled request has nothing to drop.
        flights.other(async move {
            if let Err(failure) = this.post(&message, &endpoint).await {
                // Before the sender gets the failure and may retry at once.
                this.0.note(&failure);
                this.fail(&message, &failure).await;
            }
            Landed::Done
        });
    }

    async fn post(&self, message: &Outgoing, endpoint: &Url) -> Result<(), Failure> {
        let base = &self.0;
        let response = base.post(endpoint, message, HeaderMap::new()).await?;
        if response.status().is_success() {
            // The response arrives on the stream.
            let _ = base.http.body(response, REFUSAL.min(base.http.limit)).await;
            if message.id().is_some() && !message.is_initialize() {
                base.prove();
            }
            return Ok(());
        }
        let refusal = base.refusal(response, message.id()).await;
        if !message.is_initialize() && refusal.is_about_session {
            return Err(Failure::SessionLost);
        }
        match refusal.error {
            _ if refusal.is_stale => Err(Failure::Unauthorized),
            Some(error) if message.id().is_some() => {
                base.output.line(message::line(error.line)).await;
                Ok(())
            }
            _ => Err(Failure::Status(refusal.status)),
        }
    }

    /// Responds to the first request with the reason why there is no session.
    async fn refuse(&self, input: &mut Input, failure: &Failure) {
        while let Some(message) = input.next().await {
            if message.id().is_some() {
                return self.fail(&message, failure).await;
            }
        }
    }

    /// Responds to a request with the failure; for other messages it is only logged.
    async fn fail(&self, message: &Outgoing, failure: &Failure) {
        if let Some(id) = message.id() {
            let line = self.0.http.failed(failure, id);
            self.0.output.line(line).await;
        } else {
            tracing::debug!(origin = self.0.http.origin, %failure, "message not accepted");
        }
    }
}
