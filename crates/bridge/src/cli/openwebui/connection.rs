//! Builds one connection of Open WebUI for each server of a configuration.

use std::time::Duration;

use axum::http::HeaderName;
use bridge_model::hex;
use bridge_openapi::path_segment;
use bridge_process::remote::Outbound;
use clap::{Args, ValueEnum};
use reqwest::{
    Client, Method, StatusCode,
    header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue},
    redirect::Policy,
};
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use super::{Directory, Grant, Marker, Rules, grants};
use crate::{
    catalog,
    cli::{
        Failure, SettingsArgs,
        local::open_store,
        openwebui,
        output::{one_line, root_cause, warn},
    },
    config,
    config::{Allow, BaseUrl, KeyRing, Loaded, Secret, ServerSpec, Settings},
};

/// The protocol of a connection.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// OpenAPI
    #[default]
    Openapi,
    /// MCP Streamable HTTP
    Mcp,
}

/// How connections are made.
#[derive(Debug, Clone, Args)]
pub struct MakeArgs {
    /// Protocol of the connections
    #[arg(long = "type", value_name = "TYPE", default_value = "openapi")]
    pub kind: Kind,
    /// Send the user's own token (auth type session), and the API key in X-MCPO-Key
    #[arg(long)]
    pub session: bool,
    /// Access to servers without an `allow` list (servers with one get exactly that)
    #[arg(long, value_name = "WHO", default_value = "everyone")]
    pub grant: Grant,
    /// Name of the API key for Open WebUI [default: openwebui or open-webui, else the first]
    #[arg(long, value_name = "NAME")]
    pub key_name: Option<String>,
    /// Label that separates this bridge's connections from another's
    #[arg(long, value_name = "NAME", default_value = "mcpo-bridge")]
    pub owner: String,
}

/// Builds connections from the settings and the server file.
pub struct Maker {
    args: MakeArgs,
    bridge: String,
    settings: Settings,
    config: Loaded,
    key: Option<Secret>,
    spec_path: String,
}

impl Maker {
    /// Reads the settings and the server file. `url` is the address where Open WebUI reaches the bridge.
    pub fn new(args: MakeArgs, url: Option<&str>, from: &SettingsArgs) -> Result<Self, Failure> {
        let keys = from.keys_in_clear();
        let settings = from.resolve()?;
        let config = config::servers(&settings)?;
        let key = choose(keys, args.key_name.as_deref())?;
        if args.session && key.is_none() {
            warn("no API key configured; callers are identified by their Open WebUI token only");
        }
        // Open WebUI fetches the document without the key that it sends with calls.
        let fetched_bare = args.session && args.kind == Kind::Openapi;
        let spec_path = match key.as_ref().filter(|_| fetched_bare) {
            Some(key) => format!("{}/{SPEC}", KeyRing::document_secret(key)),
            None => SPEC.to_owned(),
        };
        Ok(Self {
            args,
            bridge: bridge(url, &settings)?,
            settings,
            config,
            key,
            spec_path,
        })
    }

    /// Replaces the key, if there is one, and the path derived from it by these placeholders.
    pub fn hide_key(&mut self, placeholder: &str, of_path: &str) {
        if self.key.is_some() {
            self.key = Some(Secret::new(placeholder));
        }
        if self.spec_path != SPEC {
            of_path.clone_into(&mut self.spec_path);
        }
    }

    /// Whether access grants name users or groups, whose ids must be requested from Open WebUI.
    pub fn needs_directory(&self) -> bool {
        let mut servers = self.config.servers.values();
        let named = |allow: &Allow| !(allow.users.is_empty() && allow.groups.is_empty());
        servers.any(|spec| spec.allow.as_ref().is_some_and(named))
    }

    /// The connections, in the order of the server file. Warns about names in `allow` without a grant.
    pub fn connections(&self, known: &Directory) -> Vec<Value> {
        let store = open_store(&self.settings.jobs_dir).ok();
        let mut ids = Vec::new();
        let connections = self.config.servers.values().map(|spec| {
            let hello = store.as_ref().and_then(|store| catalog::kept(store, spec));
            let title =
                hello.map(|hello| hello.server_info.title.unwrap_or(hello.server_info.name));
            let title = title.filter(|title| !title.trim().is_empty());
            self.connection(spec, title, known, &mut ids)
        });
        connections.collect()
    }

    fn connection(
        &self,
        spec: &ServerSpec,
        title: Option<String>,
        known: &Directory,
        ids: &mut Vec<String>,
    ) -> Value {
        let server = spec.name.as_str();
        let (grants, unknown) = grants(spec, self.args.grant, known);
        for name in unknown {
            warn(format!(
                "{server}: no access grant for {name:?} in allow: Open WebUI has no such user or group, as \
                 far as is known; the bridge still applies allow"
            ));
        }
        let closed = self.settings.access.strict_auth || spec.allow.is_some();
        let bare = self.args.session && self.args.kind == Kind::Openapi && self.key.is_none();
        if bare && closed {
            warn(format!(
                "{server}: Open WebUI fetches the document without the user's token, but this document is \
                 restricted; add Open WebUI's address to MCPO_TRUSTED_PROXIES"
            ));
        }
        let id = id(server, ids);
        ids.push(id.clone());
        let (kind, prefix) = match self.args.kind {
            Kind::Openapi => ("openapi", "mcpo"),
            Kind::Mcp => ("mcp", "mcp"),
        };
        let (auth, key) = match (&self.key, self.args.session) {
            (_, true) => ("session", ""),
            (Some(key), false) => ("bearer", key.expose()),
            (None, false) => ("none", ""),
        };
        let mut connection = json!({
            "type": kind,
            "url": format!("{}/{prefix}/{}", self.bridge, path_segment(server)),
            "path": self.spec_path,
            "spec_type": "url",
            "spec": "",
            "auth_type": auth,
            "key": key,
            "headers": {},
            "info": {
                "id": id,
                "name": title.unwrap_or_else(|| server.to_owned()),
                "description": description(spec),
            },
            "config": {
                "enable": true,
                "function_name_filter_list": "",
                "access_grants": grants,
            },
        });
        let marker = Marker {
            owner: self.args.owner.clone(),
            server: server.to_owned(),
            grants: openwebui::grants_digest(&connection),
            info: openwebui::info_digest(&connection),
        };
        connection["headers"] = Value::Object(self.headers(&marker));
        connection
    }

    /// Header templates that send the user and the chat even if Open WebUI does not forward its own headers.
    /// Groups are only sent by a template.
    fn headers(&self, marker: &Marker) -> Map<String, Value> {
        let mut headers = Map::new();
        headers.insert(openwebui::HEADER.to_owned(), marker.to_string().into());
        if let Some(key) = self.key.as_ref().filter(|_| self.args.session) {
            headers.insert(KEY_HEADER.to_owned(), key.expose().into());
        }
        // With a JWT secret only Open WebUI's signed token is trusted; with auth type session, the user's own
        // token.
        let plain = self.settings.access.jwt_secret.is_none() && !self.args.session;
        let templates = self.templates().into_iter();
        for (name, template) in templates.take(if plain { 7 } else { 3 }) {
            headers.insert(as_written(name.as_str()), template.into());
        }
        headers
    }

    /// The headers of chat and groups, followed by those that identify the user.
    fn templates(&self) -> [(&HeaderName, &'static str); 7] {
        let names = &self.settings.access.headers;
        [
            (&names.chat_id, "{{CHAT_ID}}"),
            (&names.message_id, "{{MESSAGE_ID}}"),
            (&names.user_groups, "{{USER_GROUPS}},{{USER_GROUP_IDS}}"),
            (&names.user_id, "{{USER_ID}}"),
            (&names.user_name, "{{USER_NAME}}"),
            (&names.user_email, "{{USER_EMAIL}}"),
            (&names.user_role, "{{USER_ROLE}}"),
        ]
    }

    /// The rules for a plan with these connections.
    pub fn rules(&self, adopt: bool) -> Rules<'_> {
        let templates = self.templates().into_iter();
        let known = templates.map(|(name, _)| name.to_string());
        let own = [openwebui::HEADER, KEY_HEADER].map(str::to_ascii_lowercase);
        Rules {
            owner: &self.args.owner,
            bridge: &self.bridge,
            headers: known.chain(own).collect(),
            adopt,
        }
    }
}

const KEY_HEADER: &str = "X-MCPO-Key";

const SPEC: &str = "openapi.json";

/// The name as Open WebUI writes its own headers: two spellings of a header would be sent as two headers.
fn as_written(name: &str) -> String {
    let part = |part: &str| match part {
        "openwebui" => "OpenWebUI".to_owned(),
        part => {
            let mut letters = part.chars();
            let first = letters.next().map(|first| first.to_ascii_uppercase());
            first.into_iter().chain(letters).collect()
        }
    };
    name.split('-').map(part).collect::<Vec<_>>().join("-")
}

fn choose(mut keys: Vec<(String, Secret)>, name: Option<&str>) -> Result<Option<Secret>, Failure> {
    let at = |wanted: &str| keys.iter().position(|(name, _)| name == wanted);
    let unknown = |name| Failure::usage(format!("--key-name: no API key is named {name:?}"));
    let found = match name {
        Some(name) => Some(at(name).ok_or_else(|| unknown(name))?),
        None => at("openwebui").or_else(|| at("open-webui")),
    };
    if keys.is_empty() {
        return Ok(None);
    }
    Ok(Some(keys.swap_remove(found.unwrap_or(0)).1))
}

fn bridge(url: Option<&str>, settings: &Settings) -> Result<String, Failure> {
    let Some(url) = url else {
        let BaseUrl::Absolute(base) = &settings.listen.base_url else {
            let why = "--bridge-url is required: the URL where Open WebUI reaches the bridge";
            return Err(Failure::usage(why));
        };
        let local = base.host_str().is_some_and(|host| host == "localhost");
        if local {
            warn(
                "connections point to localhost (MCPO_BASE_URL); if Open WebUI runs in a container, use \
                 --bridge-url, for example http://mcpo-bridge:8080",
            );
        }
        let base = base.as_str().trim_end_matches('/');
        return Ok(format!("{base}{}", settings.listen.path_prefix));
    };
    let parsed = url.parse::<BaseUrl>().ok();
    match parsed {
        Some(BaseUrl::Absolute(url)) => Ok(url.as_str().trim_end_matches('/').to_owned()),
        _ => Err(Failure::usage(
            "--bridge-url: expected an absolute http or https URL without query, such as \
             http://mcpo-bridge:8080",
        )),
    }
}

/// The id of a connection. It must not contain ':' or '|', and is the prefix of the tools' names.
fn id(server: &str, taken: &[String]) -> String {
    let good = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    let plain: String = server.chars().filter(|c| good(*c)).collect();
    if plain == server && !taken.contains(&plain) {
        return plain;
    }
    let short = hex(&Sha256::digest(server)[..4]);
    match &*plain {
        "" => short,
        plain => format!("{plain}-{short}"),
    }
}

/// A one-line description for users.
fn description(spec: &ServerSpec) -> &str {
    let guide = spec.usage_guide.as_deref().unwrap_or_default();
    let mut lines = guide.lines().map(str::trim);
    lines.find(|line| !line.is_empty()).unwrap_or_default()
}

/// Whether two URLs have the same scheme, host and port.
pub fn same_origin(one: &str, other: &str) -> bool {
    let origin = |url: &str| url::Url::parse(url).ok().map(|url| url.origin());
    origin(one).is_some_and(|one| Some(one) == origin(other))
}

// Open WebUI's API for administrators: connections, users and groups.

const CONNECT: Duration = Duration::from_secs(10);

/// Response timeout: after a change, Open WebUI fetches all documents before it responds.
const ANSWER: Duration = Duration::from_secs(120);

const CONNECTIONS: &str = "api/v1/configs/tool_servers";

/// A client for one Open WebUI.
pub struct Admin {
    client: Client,
    url: reqwest::Url,
    bearer: HeaderValue,
}

impl Admin {
    /// Creates the client. Sends nothing yet.
    pub fn new(url: &str, key: &Secret) -> Result<Self, Failure> {
        let parsed = reqwest::Url::parse(url).ok();
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
        // Redirects are not followed, so that the key is only sent to the configured URL.
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

    /// Replaces all connections to tool servers.
    pub async fn set_connections(&self, connections: &[Value]) -> Result<(), Failure> {
        let body = json!({ "TOOL_SERVER_CONNECTIONS": connections });
        self.ask(Method::POST, CONNECTIONS, Some(&body)).await?;
        Ok(())
    }

    /// The users and groups.
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
        let unreachable = |error: reqwest::Error| self.unreachable(&error);
        let response = request.send().await.map_err(unreachable)?;
        let status = response.status();
        let text = response.text().await.map_err(unreachable)?;
        let answer: Result<Value, _> = serde_json::from_str(&text);
        let detail = answer.as_ref().map(|answer| answer["detail"].as_str());
        let said = detail.unwrap_or_default();
        let said = said.map_or_else(String::new, |said| format!(": {}", one_line(said, 200)));
        match (status, answer) {
            (status, Ok(answer)) if status.is_success() => Ok(answer),
            (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, _) => Err(Failure::failed(format!(
                "{} rejected the admin key ({status}{said}); set --admin-key-file to the API key or token \
                 of an administrator",
                self.url
            ))),
            (StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED, _) => Err(self.strange()),
            // Open WebUI responds to unknown paths with its web page.
            (status, _) if status.is_success() => Err(self.strange()),
            (status, _) => Err(Failure::failed(format!("{url} returned {status}{said}"))),
        }
    }

    fn unreachable(&self, error: &reqwest::Error) -> Failure {
        let why = root_cause(error);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_plain_and_differ() {
        let mut taken = Vec::new();
        for server in ["excel", "a b", "a:b", "ab", "表計", "図", "a|b"] {
            let id = id(server, &taken);
            assert!(!id.is_empty() && !taken.contains(&id), "{server}: {id}");
            assert!(
                id.chars().all(|c| c.is_ascii_alphanumeric() || c == '-'),
                "{id}"
            );
            taken.push(id);
        }
        assert_eq!((&*taken[0], &*taken[3]), ("excel", "ab"));
    }

    #[test]
    fn headers_are_spelled_as_open_webui_spells_them() {
        assert_eq!(as_written("x-openwebui-chat-id"), "X-OpenWebUI-Chat-Id");
        assert_eq!(as_written("x-a--b"), "X-A--B");
    }
}
