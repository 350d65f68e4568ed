//! Builds the [`ServerSpec`] of one server from validated keys: replaces references and adds defaults.

use std::{fmt::Display, num::NonZeroUsize, path::PathBuf, time::Duration};

use axum::http::{HeaderName, HeaderValue};
use bridge_model::ServerName;
use bridge_process::{CommandSpec, RemoteKind, RemoteSpec};
use bridge_protocol::RawJson;
use indexmap::IndexMap;
use serde_json::{Map, Value};
use url::Url;

use super::{
    Path,
    interpolate::{Lookup, interpolate},
    schema::{BeforeEndEntry, ForwardingEntry, ServerEntry, elsewhere, nearest, normalise},
};
use crate::config::{
    BeforeEnd, Fault, HeaderForwarding, Mode, Remembered, ServerSpec, Settings, Transport,
};

/// A `timeout` of at least this value is probably in milliseconds: nearly three hours.
const MILLISECONDS: f64 = 10_000.0;

/// Data that all servers of one load share, and the collected errors.
pub(super) struct Builder<'a> {
    pub settings: &'a Settings,
    pub lookup: Lookup<'a>,
    pub faults: Vec<Fault>,
    pub warnings: Vec<String>,
}

impl Builder<'_> {
    /// Builds the spec of one server. `well_shaped`: the schema found no error in it; otherwise only errors that
    /// are independent of that are added.
    pub(super) fn server(
        &mut self,
        name: &str,
        mut keys: Map<String, Value>,
        path: &Path,
        known: &[&str],
        well_shaped: bool,
    ) -> Option<ServerSpec> {
        self.faults.extend(normalise(&mut keys, path));
        self.warn_of_keys(name, &keys, path, known);
        let name = match name.parse::<ServerName>() {
            Ok(name) => name,
            Err(error) => {
                self.fault(path.clone(), "not a valid server name", error.to_string());
                return None;
            }
        };
        let before = self.faults.len();
        self.check_transport(&keys, path);
        self.interpolate(&mut keys, path);
        if !well_shaped || self.faults.len() > before {
            return None;
        }
        match serde_json::from_value(Value::Object(keys)) {
            Ok(entry) => self.spec(name, entry, path),
            Err(error) => {
                // The error contains no secret: only numbers such as 2.0 pass the schema and not the type.
                let fix = "write whole numbers without a decimal point";
                self.fault(path.clone(), error.to_string(), fix);
                None
            }
        }
    }

    pub(super) fn fault(&mut self, path: Path, problem: impl Into<String>, fix: impl Into<String>) {
        self.faults.push(Fault::new(path, problem, fix));
    }

    pub(super) fn warn(&mut self, path: &Path, text: impl Display) {
        self.warnings.push(format!("{path}: {text}"));
    }

    /// Checks for exactly one of `command` and `url`, and for keys that belong to the other one.
    fn check_transport(&mut self, keys: &Map<String, Value>, path: &Path) {
        let has = |key: &str| keys.contains_key(key);
        let wrong_keys: &[&str] = match (has("command"), has("url")) {
            (true, true) => {
                let fix = "keep \"command\" for a local program, or \"url\" for a remote server";
                self.fault(path.clone(), "both \"command\" and \"url\" are set", fix);
                return;
            }
            (false, false) => {
                let meant = |key: &str| {
                    let url = elsewhere(key).is_some_and(|what| what.ends_with(" url"));
                    let near = || nearest(key, ["command", "url"].into_iter());
                    url.then_some("url").or_else(near)
                };
                let fix = match keys.keys().find_map(|key| Some((key, meant(key)?))) {
                    Some((key, name)) => format!("rename \"{key}\" to \"{name}\""),
                    None => r#"add "command": "uvx" with "args", or "url": "https://…""#.into(),
                };
                self.fault(path.clone(), "missing \"command\" or \"url\"", fix);
                return;
            }
            (true, false) => &["headers"],
            (false, true) => &["args", "env", "cwd"],
        };
        for key in wrong_keys.iter().filter(|key| has(key)) {
            let other = if has("command") { "url" } else { "command" };
            let why = format!("ignored because it is a key of {other}");
            self.warn(&path.key(key), why);
        }
        let stdio = keys.get("type").is_some_and(|kind| kind == "stdio");
        if has("url") && stdio {
            let fix = r#"write "streamable-http" or "sse""#;
            self.fault(path.key("type"), "stdio cannot be combined with a url", fix);
        } else if has("command") && has("type") && !stdio {
            let fix = "remove it, or use a url instead of a command";
            self.fault(path.key("type"), "a command requires stdio", fix);
        }
    }

    fn interpolate(&mut self, keys: &mut Map<String, Value>, path: &Path) {
        for key in ["command", "args", "env", "cwd", "url", "headers"] {
            if let Some(value) = keys.get_mut(key) {
                self.interpolate_value(value, &path.key(key), key == "args");
            }
        }
    }

    fn interpolate_value(&mut self, value: &mut Value, path: &Path, public: bool) {
        match value {
            Value::String(text) => match interpolate(text, self.lookup) {
                Ok(done) if done.text.contains('\0') => {
                    let fix = "remove the NUL character";
                    self.fault(path.clone(), "the value contains a NUL character", fix);
                }
                Ok(done) => {
                    if done.secret && public {
                        let why = "a secret from a file is visible in the process list; pass it in \
                                   env if the server supports it";
                        self.warn(path, why);
                    }
                    *text = done.text;
                }
                Err(faults) => self
                    .faults
                    .extend(faults.into_iter().map(|fault| fault.at(path.to_string()))),
            },
            Value::Array(list) => {
                for (index, item) in list.iter_mut().enumerate() {
                    self.interpolate_value(item, &path.index(index), public);
                }
            }
            Value::Object(object) => {
                for (key, item) in object.iter_mut() {
                    self.interpolate_value(item, &path.key(key), public);
                }
            }
            _ => {}
        }
    }

    pub(super) fn spec(
        &mut self,
        name: ServerName,
        entry: ServerEntry,
        path: &Path,
    ) -> Option<ServerSpec> {
        let stateful = &self.settings.stateful;
        let seconds = |given: Option<f64>, default: Duration| {
            // The schema ensures the range; less than a millisecond would be rounded to zero.
            let time = given.and_then(|given| Duration::try_from_secs_f64(given).ok());
            time.map_or(default, |time| time.max(Duration::from_millis(1)))
        };
        let count = |given: Option<u16>| given.and_then(|count| NonZeroUsize::new(count.into()));
        let mode = entry.mode.unwrap_or(self.settings.default_mode);
        let off = mode == Mode::Stateful && !stateful.enabled;
        if let Some(given) = entry.timeout.filter(|given| *given >= MILLISECONDS) {
            self.warnings.push(format!(
                "{}: {given} seconds are {:.1} hours; if you meant milliseconds, as in other \
                 clients' files, write {}",
                path.key("timeout"),
                given / 3600.0,
                given / 1000.0
            ));
        }
        let allow = entry.allow.map(|allow| self.allow(allow, path));
        let spec = ServerSpec {
            name,
            mode: if off { Mode::Stateless } else { mode },
            workspace: entry.workspace.unwrap_or_default(),
            idle_timeout: seconds(entry.idle_timeout, stateful.default_idle_timeout),
            timeout: seconds(entry.timeout, self.settings.limits.timeout),
            max_processes_per_chat: count(entry.max_processes_per_chat)
                .unwrap_or(stateful.max_processes_per_chat)
                .get(),
            concurrency: count(entry.concurrency),
            enabled_tools: entry.enabled_tools,
            disabled_tools: entry.disabled_tools.unwrap_or_default(),
            session_lists: entry.session_lists.unwrap_or_default(),
            usage_guide: entry.usage_guide,
            post_instruction: entry.post_instruction,
            embed: entry.embed.unwrap_or_default(),
            file_path_fields: entry.file_path_fields.unwrap_or_default(),
            resolve_path_fields: entry.resolve_path_fields.unwrap_or_default(),
            resolve_uri_fields: entry.resolve_uri_fields.unwrap_or_default(),
            before_end: entry.before_end.and_then(before_end),
            install: entry.install.unwrap_or(true),
            launch: entry.launch.unwrap_or_default(),
            pool: entry.pool.map(usize::from),
            forwarding: entry.client_header_forwarding.and_then(forwarding),
            allow: allow.flatten(),
            remembered: Remembered::default(),
            transport: match (entry.command, entry.url) {
                (Some(program), _) => {
                    self.command(program, entry.args, entry.env, entry.cwd, path)?
                }
                (None, Some(url)) => {
                    self.remote(&url, entry.kind.as_deref(), entry.headers, path)?
                }
                (None, None) => return None,
            },
        };
        self.check_placeholders(&spec, path);
        if off {
            self.warn(
                path,
                "runs stateless because MCPO_STATEFUL_ENABLED is false",
            );
        }
        Some(spec)
    }

    fn command(
        &mut self,
        program: String,
        args: Option<Vec<String>>,
        env: Option<IndexMap<String, String>>,
        cwd: Option<String>,
        path: &Path,
    ) -> Option<Transport> {
        let before = self.faults.len();
        let given = self.settings.command_line.env.iter();
        let given = given.map(|(name, value)| (name.clone(), value.expose().to_owned()));
        // The server's own variables are last, so they override the others.
        let env: IndexMap<_, _> = given.chain(env.unwrap_or_default()).collect();
        for name in env.keys() {
            let location = path.key("env").key(name);
            if name.is_empty() || name.contains(['=', '\0']) {
                let fix = "write a name without '='";
                self.fault(location, "not a variable name", fix);
            } else if ["MCPO_WORKDIR", "MCPO_JOB_ID"].contains(&name.as_str()) {
                self.warn(&location, "ignored because the bridge sets it");
            }
        }
        // A reference may have been replaced by an empty value.
        for (key, text) in [("command", Some(&program)), ("cwd", cwd.as_ref())] {
            if text.is_some_and(|text| text.trim().is_empty()) {
                self.fault(path.key(key), "empty value", "write a value, or a default");
            }
        }
        self.warn_of_shell(&program, cwd.as_deref(), path);
        (self.faults.len() == before).then(|| {
            Transport::Stdio(CommandSpec {
                program,
                args: args.unwrap_or_default(),
                env,
                cwd: cwd.map(PathBuf::from),
            })
        })
    }

    /// Warns about text that only a shell would expand.
    fn warn_of_shell(&mut self, program: &str, cwd: Option<&str>, path: &Path) {
        for (key, text) in [("command", Some(program)), ("cwd", cwd)] {
            if text.is_some_and(|text| text == "~" || text.starts_with("~/")) {
                let why = format_args!("~ is not expanded: write the full path, or ${{HOME}}");
                self.warn(&path.key(key), why);
            }
        }
        let mut words = program.split_whitespace();
        let (first, rest) = (words.next(), words.collect::<Vec<_>>());
        if let Some(first) = first
            && !rest.is_empty()
            && !std::path::Path::new(program).exists()
        {
            let rest = serde_json::json!(rest);
            self.warnings.push(format!(
                "{}: not a program name: write \"command\": \"{first}\" and put the arguments in \
                 \"args\": {rest}",
                path.key("command")
            ));
        }
    }

    fn remote(
        &mut self,
        url: &str,
        kind: Option<&str>,
        headers: Option<IndexMap<String, String>>,
        path: &Path,
    ) -> Option<Transport> {
        let before = self.faults.len();
        let headers = headers.unwrap_or_default();
        for (name, value) in &headers {
            let location = path.key("headers").key(name);
            if HeaderName::from_bytes(name.as_bytes()).is_err() {
                let fix = "write letters, digits and hyphens";
                self.fault(location, "not a header name", fix);
            } else if HeaderValue::from_str(value).is_err() {
                let fix = "remove line breaks and control characters";
                self.fault(location, "not a valid header value", fix);
            }
        }
        let parsed = Url::parse(url).ok();
        let http = |url: &Url| matches!(url.scheme(), "http" | "https");
        let Some(url) = parsed.filter(http) else {
            let fix = "write a URL such as https://mcp.example.com/mcp";
            self.fault(path.key("url"), "not an http or https URL", fix);
            return None;
        };
        let kind = match kind {
            // As in mcpo.
            Some("sse") => RemoteKind::Sse,
            // mcpo uses SSE if there is no type; this client detects that older transport too.
            _ => RemoteKind::StreamableHttp,
        };
        let good = self.faults.len() == before;
        good.then_some(Transport::Remote(RemoteSpec { url, kind, headers }))
    }
}

/// As in mcpo, nothing is forwarded unless `enabled` is true.
fn forwarding(entry: ForwardingEntry) -> Option<HeaderForwarding> {
    let patterns = |list: Option<Vec<String>>| list.unwrap_or_default();
    let forwarding = HeaderForwarding::new(patterns(entry.whitelist), patterns(entry.blacklist));
    entry.enabled.unwrap_or(false).then_some(forwarding)
}

fn before_end(entry: BeforeEndEntry) -> Option<BeforeEnd> {
    let arguments = entry.arguments.unwrap_or_default();
    // An object of JSON values is always valid JSON.
    let arguments = RawJson::from_value(&arguments).ok()?;
    Some(BeforeEnd {
        tool: entry.tool,
        arguments,
    })
}
