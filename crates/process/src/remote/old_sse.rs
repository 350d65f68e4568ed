//! HTTP with server-sent events, of revision 2024-11-05: one stream brings everything, and its
//! first event says where messages go. The stream is the session: its end is the end. So is a refusal
//! that says so (`lost.rs`): what stands between the two may keep a stream open whose server is gone.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use bridge_protocol::{method, sse::Cursor, utf8};
use bytes::Bytes;
use reqwest::{
    Method, StatusCode, Url,
    header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderValue},
};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::{
    http::{Content, Events, Http, Resend, content},
    lost,
    lost::Failure,
    message,
    message::Outgoing,
    pipe::{Flights, Input, Landed, Output, wind_up},
    streamable::Refused,
};

/// Bytes that are read of an answer to a POST; the real one comes on the stream.
const ANSWER: usize = 256 * 1024;

/// A conversation with one server.
pub struct OldSse {
    http: Http,
    output: Output,
    lost: CancellationToken,
    /// A request was taken in the session.
    proven: AtomicBool,
}

impl OldSse {
    /// Nothing is sent yet.
    pub fn new(http: Http, output: Output) -> Arc<Self> {
        Arc::new(Self {
            http,
            output,
            lost: CancellationToken::new(),
            proven: AtomicBool::new(false),
        })
    }

    /// Carries messages until the bridge closes the pipe, or the stream ends. A message that the
    /// newer transport `refused` is the first; without this one either, its failure stands.
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
                    () = self.lost.cancelled() => {
                        let refusal = |id: &str| self.http.failed(&Failure::SessionLost, id);
                        return wind_up(&mut input, &mut flights, &self.output, refusal).await;
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
                            origin = self.http.origin(),
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
        let url = &self.http.url;
        let accept = HeaderValue::from_static("text/event-stream");
        let headers = HeaderMap::from_iter([(ACCEPT, accept)]);
        let sent = self
            .http
            .send(Method::GET, url, headers, Bytes::new(), Resend::Once);
        let response = sent.await?;
        if !response.status().is_success() {
            return Err(Failure::Status(response.status()));
        }
        if content(&response) != Content::Events {
            return Err(Failure::NotMcp);
        }
        // A redirect within the origin may have moved what the endpoint is relative to.
        let base = response.url().clone();
        let mut events = Events::new(response, self.http.limit(), None, Cursor::default());
        let first = timeout(self.http.idle(), events.next()).await;
        let first = first.map_err(|_| Failure::Silent(self.http.idle()))??;
        let endpoint = first
            .filter(|event| event.kind == b"endpoint")
            .and_then(|event| String::from_utf8(event.data).ok())
            .and_then(|path| base.join(path.trim()).ok())
            .filter(|endpoint| endpoint.origin() == self.http.url.origin());
        let mut endpoint = endpoint.ok_or(Failure::NoEndpoint)?;
        // Credentials of the URL go along: the client took them out of the one it reports.
        let _ = endpoint.set_username(url.username());
        let _ = endpoint.set_password(url.password());
        Ok((events, endpoint))
    }

    /// Passes on one message, unless it only says that the session is lost.
    async fn pass(&self, data: Vec<u8>) {
        let refused = message::refused_id(&data).filter(|id| lost::by_answer(&data, id));
        match refused.filter(|_| self.proven.load(Ordering::Relaxed)) {
            Some(id) => {
                self.lost.cancel();
                let line = self.http.failed(&Failure::SessionLost, &id);
                self.output.line(line).await;
            }
            None => self.output.line(message::line(data)).await,
        }
    }

    fn carry(self: &Arc<Self>, message: Outgoing, endpoint: &Arc<Url>, flights: &mut Flights) {
        let (this, endpoint) = (self.clone(), endpoint.clone());
        // Answers come on the stream, so there is nothing to drop for a request that is cancelled.
        flights.other(async move {
            if let Err(failure) = this.post(&message, &endpoint).await {
                // Before its sender hears of it, who may come again at once.
                if failure.ends_session() {
                    this.lost.cancel();
                }
                this.fail(&message, &failure).await;
            }
            Landed::Done
        });
    }

    async fn post(&self, message: &Outgoing, endpoint: &Url) -> Result<(), Failure> {
        let json = HeaderValue::from_static("application/json");
        let mut headers = HeaderMap::from_iter([(CONTENT_TYPE, json)]);
        self.http
            .per_request_headers()
            .add_to(&mut headers, message.id());
        let resend = if message.is_idempotent() {
            Resend::Once
        } else {
            Resend::Never
        };
        let body = message.body.clone();
        let sent = self
            .http
            .send(Method::POST, endpoint, headers, body, resend);
        let response = sent.await?;
        let status = response.status();
        let limit = ANSWER.min(self.http.limit());
        let body = self.http.body(response, limit).await.unwrap_or_default();
        let opens = message.method() == Some(method::INITIALIZE);
        if status.is_success() {
            if message.id().is_some() && !opens {
                self.proven.store(true, Ordering::Relaxed);
            }
            return Ok(());
        }
        let body = utf8(body);
        let error = message::rpc_error(&body, message.id());
        if !opens && lost::by_refusal(status, &body, error.as_ref()) {
            return Err(Failure::SessionLost);
        }
        let is_stale = status == StatusCode::UNAUTHORIZED
            && self.proven.load(Ordering::Relaxed)
            && !self
                .http
                .per_request_headers()
                .has_credentials(message.id());
        match error {
            _ if is_stale => return Err(Failure::Unauthorized),
            Some(error) if message.id().is_some() => {
                self.output.line(message::line(error.line)).await;
            }
            _ => return Err(Failure::Status(status)),
        }
        Ok(())
    }

    /// Says to the first request why there is no session.
    async fn refuse(&self, input: &mut Input, failure: &Failure) {
        while let Some(message) = input.next().await {
            if message.id().is_some() {
                return self.fail(&message, failure).await;
            }
        }
    }

    /// Says why a request has no answer; of other messages only the log hears.
    async fn fail(&self, message: &Outgoing, failure: &Failure) {
        if let Some(id) = message.id() {
            let line = self.http.failed(failure, id);
            self.output.line(line).await;
        } else {
            tracing::debug!(origin = self.http.origin(), %failure, "message not accepted");
        }
    }
}
