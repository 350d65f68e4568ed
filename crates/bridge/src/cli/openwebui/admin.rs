//! Open WebUI's API for administrators: its connections, users and groups.

use std::time::Duration;

use bridge_process::remote::Outbound;
use reqwest::{
    Client, Method, StatusCode, Url,
    header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue},
    redirect::Policy,
};
use serde_json::{Value, json};

use super::grants::Directory;
use crate::{
    cli::{Failure, text::one_line},
    config::Secret,
};

const CONNECT: Duration = Duration::from_secs(10);
/// A change makes Open WebUI fetch every document before it answers.
const ANSWER: Duration = Duration::from_secs(120);
const CONNECTIONS: &str = "api/v1/configs/tool_servers";

/// One Open WebUI.
pub struct Admin {
    client: Client,
    url: Url,
    bearer: HeaderValue,
}

impl Admin {
    /// Nothing is sent yet.
    pub fn new(url: &str, key: &Secret) -> Result<Self, Failure> {
        let parsed = Url::parse(url).ok();
        let http = parsed.filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
        let Some(mut url) = http else {
            return Err(Failure::usage(
                "--url: expected the URL of Open WebUI, such as http://open-webui:8080",
            ));
        };
        if !url.path().ends_with('/') {
            url.set_path(&format!("{}/", url.path()));
        }
        let bearer = HeaderValue::try_from(format!("Bearer {}", key.expose()));
        let mut bearer = bearer.map_err(|_| {
            Failure::usage("--admin-key: contains characters that are not allowed in a key")
        })?;
        bearer.set_sensitive(true);
        let client = Outbound::from_environment().builder();
        let client = client.connect_timeout(CONNECT).timeout(ANSWER);
        // The key goes where it was meant to go, and nowhere else.
        let client = client.redirect(Policy::none()).build();
        let client = client
            .map_err(|error| Failure::failed(format!("cannot create an HTTP client: {error}")))?;
        Ok(Self {
            client,
            url,
            bearer,
        })
    }

    /// All connections to tool servers.
    pub async fn connections(&self) -> Result<Vec<Value>, Failure> {
        let mut answer = self.ask(Method::GET, CONNECTIONS, None).await?;
        match answer["TOOL_SERVER_CONNECTIONS"].take() {
            Value::Array(connections) => Ok(connections),
            Value::Null if answer.is_object() => Ok(Vec::new()),
            _ => Err(self.strange()),
        }
    }

    /// Puts these in their place.
    pub async fn set_connections(&self, connections: &[Value]) -> Result<(), Failure> {
        let body = json!({ "TOOL_SERVER_CONNECTIONS": connections });
        self.ask(Method::POST, CONNECTIONS, Some(&body)).await?;
        Ok(())
    }

    /// Who there is.
    pub async fn directory(&self) -> Result<Directory, Failure> {
        let users = self.ask(Method::GET, "api/v1/users/all", None).await?;
        let groups = self.ask(Method::GET, "api/v1/groups/", None).await?;
        let users = users["users"].as_array().ok_or_else(|| self.strange())?;
        let groups = groups.as_array().ok_or_else(|| self.strange())?;
        let pairs = |list: &[Value], key: &str| {
            let pair = |item: &Value| {
                let text = |key: &str| item[key].as_str().map(str::to_owned);
                Some((text("id")?, text(key)?))
            };
            list.iter().filter_map(pair).collect()
        };
        Ok(Directory {
            users: pairs(users, "email"),
            groups: pairs(groups, "name"),
        })
    }

    async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Value, Failure> {
        let url = self.url.join(path).map_err(Failure::failed)?;
        let mut request = self.client.request(method, url.clone());
        request = request.header(AUTHORIZATION, self.bearer.clone());
        if let Some(body) = body {
            request = request
                .header(CONTENT_TYPE, "application/json")
                .body(body.to_string());
        }
        let response = request
            .send()
            .await
            .map_err(|error| self.unreachable(&error))?;
        let status = response.status();
        let text = response
            .text()
            .await
            .map_err(|error| self.unreachable(&error))?;
        let answer: Result<Value, _> = serde_json::from_str(&text);
        let said = answer
            .as_ref()
            .ok()
            .and_then(|answer| answer["detail"].as_str());
        let said = said.map_or_else(String::new, |said| format!(": {}", one_line(said, 200)));
        match (status, answer) {
            (status, Ok(answer)) if status.is_success() => Ok(answer),
            (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, _) => Err(Failure::failed(format!(
                "{} rejected the admin key ({status}{said}); set --admin-key-file to the API key or token \
                 of an administrator",
                self.url
            ))),
            (StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED, _) => Err(self.strange()),
            // Open WebUI answers paths that it does not know with its page.
            (status, _) if status.is_success() => Err(self.strange()),
            (status, _) => Err(Failure::failed(format!("{url} returned {status}{said}"))),
        }
    }

    fn unreachable(&self, error: &reqwest::Error) -> Failure {
        let mut why: &dyn std::error::Error = error;
        while let Some(source) = why.source() {
            why = source;
        }
        Failure::failed(format!("cannot reach {}: {why}", self.url))
    }

    fn strange(&self) -> Failure {
        Failure::failed(format!(
            "{} does not respond like Open WebUI 0.12 at /{CONNECTIONS}; check the URL and the version of \
             Open WebUI",
            self.url
        ))
    }
}
