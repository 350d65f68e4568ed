//! The client of Open WebUI's own API, on behalf of the user whose token a request brought.
//!
//! What it is told and answers is measured for 0.12: `GET /api/v1/auths/` names the user of a token,
//! `POST /api/v1/files/` takes a file, and events of a message show things in the chat.

mod chats;
mod error;
mod files;
mod users;

use std::{sync::Arc, time::Duration};

use bridge_model::UserToken;
use bridge_process::remote::Outbound;
use bytes::Bytes;
use reqwest::{
    Client, Method, RequestBuilder, Response, StatusCode, Url,
    header::{AUTHORIZATION, HeaderValue},
    redirect::Policy,
};
use tokio::time::timeout;

use crate::telemetry::Metrics;
use users::Users;

pub use chats::{Attachment, Beside, Event};
pub use error::Failure;
pub use users::User;

const CONNECT: Duration = Duration::from_secs(5);
/// How long Open WebUI may be silent, whatever it is asked.
const SILENCE: Duration = Duration::from_secs(15);

/// Asks Open WebUI. One for the whole bridge.
pub struct OpenWebUi {
    client: Client,
    url: Url,
    users: Users,
    metrics: Arc<Metrics>,
}

impl OpenWebUi {
    /// No connection is made yet.
    pub fn new(url: Url, metrics: Arc<Metrics>) -> Result<Self, reqwest::Error> {
        let client = Outbound::from_environment()
            .builder()
            .user_agent(concat!("mcpo-bridge/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT)
            // A token goes where the operator said, and nowhere else.
            .redirect(Policy::none())
            .build()?;
        Ok(Self {
            client,
            url,
            users: Users::default(),
            metrics,
        })
    }

    /// A path of the API. Parts are encoded, so none of them leads elsewhere.
    fn at(&self, path: &[&str]) -> Url {
        let mut url = self.url.clone();
        if let Ok(mut parts) = url.path_segments_mut() {
            parts.pop_if_empty().extend(path);
        }
        url
    }

    fn ask(&self, method: Method, url: Url, token: &UserToken) -> Result<RequestBuilder, Failure> {
        let bearer = HeaderValue::try_from(format!("Bearer {}", token.expose()));
        let mut bearer = bearer.map_err(|_| Failure::Refused(StatusCode::UNAUTHORIZED))?;
        bearer.set_sensitive(true);
        let request = self.client.request(method, url);
        Ok(request.header(AUTHORIZATION, bearer))
    }

    /// Sends, counts, and gives back only answers that say yes. `what` is a word for metrics.
    async fn send(
        &self,
        what: &'static str,
        request: RequestBuilder,
        within: Duration,
    ) -> Result<Response, Failure> {
        let answered = timeout(within, request.send()).await;
        let answered = match answered {
            Ok(Ok(response)) if response.status().is_success() => Ok(response),
            Ok(Ok(response)) => Err(Failure::Refused(response.status())),
            Ok(Err(error)) => Err(Failure::sending(&error)),
            Err(_) => Err(Failure::Silent),
        };
        let outcome = answered.as_ref().map_or_else(Failure::kind, |_| "ok");
        self.metrics.openwebui_asked(what, outcome);
        answered
    }
}

impl std::fmt::Debug for OpenWebUi {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OpenWebUi").finish_non_exhaustive()
    }
}

/// The whole answer, of at most `limit` bytes.
async fn read(mut response: Response, limit: usize) -> Result<Vec<u8>, Failure> {
    let mut body = Vec::new();
    while let Some(chunk) = next(&mut response).await? {
        if body.len() + chunk.len() > limit {
            return Err(Failure::TooLarge(limit as u64));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// The next part of an answer; none at its end.
async fn next(response: &mut Response) -> Result<Option<Bytes>, Failure> {
    let chunk = timeout(SILENCE, response.chunk()).await;
    chunk
        .map_err(|_| Failure::Silent)?
        .map_err(|error| Failure::sending(&error))
}
