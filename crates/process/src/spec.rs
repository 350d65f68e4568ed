//! What determines a child before it is started: its server as configured, which is a command line or a URL
//! with placeholders for user values; the user's values; and the form of the protocol for its first caller.

use std::{
    borrow::Cow,
    fmt,
    path::{Path, PathBuf},
};

use bridge_model::{Caller, JobId, Principal};
use bridge_protocol::{RawJson, era::Era, method, revision};
use indexmap::IndexMap;
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use serde_json::{Map, Value, json};
use url::Url;

// The command line of a stdio server, before and after the placeholders are replaced.

/// A program to start: argv, no shell. `${…}` are already replaced; `{MCPO_WORKDIR}`,
/// `{MCPO_JOB_ID}` and the user's values are not. Contains no NUL. `Debug` shows no arguments and
/// no values.
#[derive(Clone, PartialEq, Eq)]
pub struct CommandSpec {
    /// As written: a path, or a name to find in `PATH`.
    pub program: String,
    /// Arguments; may contain secrets.
    pub args: Vec<String>,
    /// The server's own environment variables; values may be secrets.
    pub env: IndexMap<String, String>,
    /// The working directory, if not the workspace.
    pub cwd: Option<PathBuf>,
}

/// A command for one workspace.
#[derive(Clone, PartialEq, Eq)]
pub struct ResolvedCommand {
    /// As written in the file.
    pub program: String,
    /// Arguments, placeholders replaced.
    pub args: Vec<String>,
    /// The server's own environment variables, placeholders replaced.
    pub env: IndexMap<String, String>,
    /// The working directory: the workspace, unless the file names another. A relative path is
    /// relative to the workspace.
    pub cwd: PathBuf,
}

impl CommandSpec {
    /// Replaces the placeholders of `args`, `env` and `cwd` for one workspace, and in `env` those
    /// of its user. `workdir` should be UTF-8 (the bridge's own names are): other bytes become
    /// U+FFFD in arguments.
    pub fn resolve(&self, workdir: &Path, job: &JobId, user: &UserValues) -> ResolvedCommand {
        let folder = workdir.to_string_lossy();
        let job = job.to_string();
        let place = [("{MCPO_WORKDIR}", &*folder), ("{MCPO_JOB_ID}", &*job)];
        let both: Vec<_> = place.into_iter().chain(user.pairs()).collect();
        let fill_place = |text: &str| fill(text, &place);
        let fill_both = |(name, value): (&String, &String)| (name.clone(), fill(value, &both));
        let cwd = self.cwd.as_ref().map(|cwd| cwd.to_string_lossy());
        ResolvedCommand {
            program: self.program.clone(),
            args: self.args.iter().map(|arg| fill_place(arg)).collect(),
            env: self.env.iter().map(fill_both).collect(),
            cwd: cwd.map_or_else(|| workdir.to_owned(), |cwd| workdir.join(fill_place(&cwd))),
        }
    }

    /// Whether its environment contains placeholders for user values.
    pub fn asks_for_user(&self) -> bool {
        self.env.values().any(|value| asks_for_user(value))
    }
}

impl fmt::Debug for CommandSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CommandSpec")
            .field("program", &self.program)
            .field("args", &self.args.len())
            .field("env", &self.env.keys())
            .finish_non_exhaustive()
    }
}

// A remote server, before and after the user's values are inserted.

/// A remote server. `Debug` shows only the origin of the URL and the names of the headers.
#[derive(Clone, PartialEq, Eq)]
pub struct RemoteSpec {
    /// `http` or `https`; path or query may contain a secret.
    pub url: Url,
    /// The transport.
    pub kind: RemoteKind,
    /// Sent with every request; names and values are valid HTTP. Values may be secrets.
    pub headers: IndexMap<String, String>,
}

impl RemoteSpec {
    /// The server with the headers for this user.
    #[must_use]
    pub fn for_user(&self, user: &UserValues) -> Self {
        let user = user.in_headers();
        let filled = self.headers.iter();
        let filled = filled.map(|(name, value)| (name.clone(), fill(value, &user.pairs())));
        Self {
            headers: filled.collect(),
            ..self.clone()
        }
    }
}

impl fmt::Debug for RemoteSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RemoteSpec")
            .field("origin", &self.url.origin().ascii_serialization())
            .field("kind", &self.kind)
            .field("headers", &self.headers.keys())
            .finish_non_exhaustive()
    }
}

/// The transport of a remote server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RemoteKind {
    /// MCP Streamable HTTP.
    StreamableHttp,
    /// HTTP with server-sent events, from revision 2024-11-05.
    Sse,
}

// User values that the configuration may pass to a server.

/// The values of [`USER_PLACEHOLDERS`]; empty if the user is unknown or not verified.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct UserValues([String; 5]);

/// The placeholders for user values.
pub const USER_PLACEHOLDERS: [&str; 5] = [
    "{MCPO_USER_ID}",
    "{MCPO_USER_NAME}",
    "{MCPO_USER_EMAIL}",
    "{MCPO_USER_ROLE}",
    "{MCPO_USER_GROUPS}",
];

/// Characters that are invalid in headers, and the escape character.
const IN_HEADERS: &AsciiSet = &CONTROLS.add(b'%');

impl UserValues {
    /// The values of a caller. Control characters are removed, because environment variables and
    /// headers cannot contain all of them.
    pub fn from_caller(caller: &Caller) -> Self {
        let Principal::User(id) = &caller.principal else {
            return Self::default();
        };
        let clean = |text: &str| text.chars().filter(|c| !c.is_control()).collect::<String>();
        let known = |text: &Option<Box<str>>| clean(text.as_deref().unwrap_or_default());
        let user = &caller.user;
        Self([
            clean(id),
            known(&user.name),
            known(&user.email),
            known(&user.role),
            clean(&user.groups.join(",")),
        ])
    }

    /// Each placeholder with its value.
    fn pairs(&self) -> [(&'static str, &str); 5] {
        std::array::from_fn(|index| (USER_PLACEHOLDERS[index], self.0[index].as_str()))
    }

    /// The values for headers: percent-encoded where necessary, as in Open WebUI.
    fn in_headers(&self) -> Self {
        let encoded = |text: &String| utf8_percent_encode(text, IN_HEADERS).to_string();
        Self(self.0.each_ref().map(encoded))
    }
}

/// Whether a text contains a placeholder for a user value.
pub fn asks_for_user(text: &str) -> bool {
    USER_PLACEHOLDERS.iter().any(|name| text.contains(name))
}

/// Replaces placeholders in one pass, so that placeholders in inserted values are not replaced.
fn fill<'a>(text: &'a str, values: &[(&str, &'a str)]) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('{') {
        let (before, from) = rest.split_at(at);
        out.push_str(before);
        let found = values.iter().find_map(|(name, value)| {
            let after = from.strip_prefix(name)?;
            Some((*value, after))
        });
        let (value, after) = found.unwrap_or(("{", &from[1..]));
        out.push_str(value);
        rest = after;
    }
    out + rest
}

// The form of the protocol that a child speaks, and the requests that its caller can answer.

/// The form of the protocol for a child. A session's first caller determines it: a process is
/// initialised once.
#[derive(Debug, Clone, PartialEq)]
pub struct Profile {
    /// The form of the protocol.
    pub era: Era,
    /// The requested revision.
    pub protocol_version: Cow<'static, str>,
    /// The requests that the caller can answer; the bridge declines all others.
    pub capabilities: Map<String, Value>,
    /// The lowest level of log messages for the caller, for children that get it with each request.
    pub log_level: Option<Box<str>>,
}

impl Profile {
    /// The same text for profiles that a process cannot distinguish.
    pub fn key(&self) -> Cow<'static, str> {
        let era = match self.era {
            Era::Legacy => "legacy",
            Era::Modern => "modern",
        };
        if self.capabilities.is_empty() {
            return era.into();
        }
        let pairs = self.capabilities.iter();
        let pairs = pairs.map(|(name, value)| format!("{name}={value}"));
        let mut capabilities: Vec<String> = pairs.collect();
        capabilities.sort();
        // Revisions differ little for a server: only different capabilities require another child.
        format!("{era} {}", capabilities.join(",")).into()
    }

    /// For a child of an older revision whose callers send their capabilities with each request:
    /// those of the first caller count. Normalised, because they are part of the key of warm
    /// processes.
    pub fn able(capabilities: &Map<String, Value>) -> Self {
        let parts = |name: &str, known: &[&str]| {
            let said = capabilities.get(name)?.as_object()?;
            let parts = known.iter().filter(|part| said.contains_key(**part));
            let parts = parts.map(|part| ((*part).to_owned(), json!({})));
            Some(parts.collect::<Map<_, _>>())
        };
        let mut able = Map::new();
        if let Some(mut modes) = parts("elicitation", &["form", "url"]) {
            // Without a mode, the protocol's first mode applies.
            if modes.is_empty() {
                modes.insert("form".to_owned(), json!({}));
            }
            able.insert("elicitation".to_owned(), modes.into());
        }
        // Without `listChanged`: the caller cannot report changes.
        if let Some(roots) = parts("roots", &[]) {
            able.insert("roots".to_owned(), roots.into());
        }
        if let Some(sampling) = parts("sampling", &["context", "tools"]) {
            able.insert("sampling".to_owned(), sampling.into());
        }
        Self {
            capabilities: able,
            ..Self::silent()
        }
    }

    /// For callers of 2026-07-28: version and capabilities are sent with each request.
    pub fn modern() -> Self {
        Self::without_capabilities(Era::Modern, revision::MODERN)
    }

    /// For callers without capabilities: the OpenAPI endpoint and the catalogue.
    pub fn silent() -> Self {
        Self::without_capabilities(Era::Legacy, revision::LATEST_LEGACY)
    }

    fn without_capabilities(era: Era, revision: &'static str) -> Self {
        Self {
            era,
            protocol_version: revision.into(),
            capabilities: Map::new(),
            log_level: None,
        }
    }
}

/// The capability that a caller needs to answer a request of a child; `None` for an unknown
/// request.
pub fn needed(method: &str) -> Option<&'static str> {
    match method {
        method::ELICITATION_CREATE => Some("elicitation"),
        method::SAMPLING_CREATE_MESSAGE => Some("sampling"),
        method::ROOTS_LIST => Some("roots"),
        _ => None,
    }
}

/// Whether a caller with these capabilities can answer the request, including its mode.
pub fn can_answer(
    capabilities: &Map<String, Value>,
    needed: &str,
    params: Option<&RawJson>,
) -> bool {
    let Some(said) = capabilities.get(needed).filter(|said| !said.is_null()) else {
        return false;
    };
    if needed != "elicitation" {
        return true;
    }
    let mode = params.and_then(|params| params.member("mode")?.read::<String>().ok());
    let has = |mode: &str| said.get(mode).is_some();
    match mode.as_deref() {
        None | Some("form") => has("form") || !has("url"),
        Some(mode) => has(mode),
    }
}

#[cfg(test)]
mod command_tests {
    use super::*;

    fn command() -> CommandSpec {
        CommandSpec {
            program: "uvx".into(),
            args: vec!["--dir={MCPO_WORKDIR}/x".into(), "{MCPO_JOB_ID}".into()],
            env: [("DIR".to_owned(), "{MCPO_WORKDIR}".to_owned())].into(),
            cwd: None,
        }
    }

    #[test]
    fn placeholders_are_filled_in_once() {
        let mut command = command();
        command.args.push("{{MCPO_JOB_ID}{x}".into());
        let job = JobId::random();
        let odd = Path::new("/jobs/{MCPO_JOB_ID}/work");
        let resolved = command.resolve(odd, &job, &UserValues::default());
        let args = [
            "--dir=/jobs/{MCPO_JOB_ID}/work/x".to_owned(),
            job.to_string(),
            format!("{{{job}{{x}}"),
        ];
        assert_eq!(resolved.args, args);
        assert_eq!(resolved.env["DIR"], "/jobs/{MCPO_JOB_ID}/work");
        assert_eq!(resolved.cwd, odd);
    }

    #[test]
    fn a_relative_cwd_lies_in_the_workspace_and_an_absolute_one_does_not() {
        let mut command = command();
        for (written, folder) in [
            ("sub", "/w/sub"),
            ("/srv", "/srv"),
            ("{MCPO_WORKDIR}/a", "/w/a"),
        ] {
            command.cwd = Some(PathBuf::from(written));
            let resolved =
                command.resolve(Path::new("/w"), &JobId::random(), &UserValues::default());
            assert_eq!(resolved.cwd, Path::new(folder));
        }
    }
}

#[cfg(test)]
mod user_values_tests {
    use std::net::Ipv4Addr;

    use bridge_model::UserInfo;

    use super::*;

    fn ann() -> UserValues {
        UserValues::from_caller(&Caller {
            principal: Principal::User("a-1".into()),
            user: UserInfo {
                name: Some("Änn {MCPO_USER_ID}\r\nX-Evil: 1\0".into()),
                groups: vec!["a".into(), "b".into()],
                ..UserInfo::default()
            },
            ..Caller::nobody(Ipv4Addr::LOCALHOST.into())
        })
    }

    #[test]
    fn values_are_put_in_once_and_hold_no_controls() {
        let text = "{MCPO_USER_ID}|{MCPO_USER_NAME}|{MCPO_USER_GROUPS}|{MCPO_USER_ROLE}|{X}";
        assert_eq!(
            fill(text, &ann().pairs()),
            "a-1|Änn {MCPO_USER_ID}X-Evil: 1|a,b||{X}"
        );
        assert!(asks_for_user(text) && !asks_for_user("{MCPO_WORKDIR}"));
    }

    #[test]
    fn in_headers_they_are_ascii() {
        let values = ann().in_headers();
        let name = fill("{MCPO_USER_NAME}", &values.pairs());
        assert_eq!(name, "%C3%84nn {MCPO_USER_ID}X-Evil: 1");
    }

    #[test]
    fn a_key_and_nobody_have_no_values() {
        for principal in [Principal::Key("k".into()), Principal::Anonymous] {
            let mut caller = Caller::nobody(Ipv4Addr::LOCALHOST.into());
            caller.principal = principal;
            assert!(UserValues::from_caller(&caller) == UserValues::default());
        }
    }
}

#[cfg(test)]
mod profile_tests {
    use super::*;

    fn object(value: Value) -> Map<String, Value> {
        match value {
            Value::Object(members) => members,
            other => panic!("{other} is no object"),
        }
    }

    #[test]
    fn a_child_hears_what_its_caller_can_do_in_one_spelling() {
        for (said, heard) in [
            (json!({}), json!({})),
            (
                json!({"elicitation": {"url": {}, "form": {}, "x": 1}}),
                json!({"elicitation": {"form": {}, "url": {}}}),
            ),
            (
                json!({"elicitation": {}}),
                json!({"elicitation": {"form": {}}}),
            ),
            (
                json!({"elicitation": {"url": {}}}),
                json!({"elicitation": {"url": {}}}),
            ),
            (
                json!({"sampling": {"tools": {}}, "roots": {"listChanged": true}, "experimental": {"a": {}}}),
                json!({"roots": {}, "sampling": {"tools": {}}}),
            ),
            (json!({"elicitation": null, "roots": true}), json!({})),
        ] {
            let profile = Profile::able(&object(said.clone()));
            assert_eq!(Value::Object(profile.capabilities), heard, "{said}");
        }
        let one = Profile::able(&object(json!({"roots": {}, "elicitation": {}})));
        let same = Profile::able(&object(json!({"elicitation": {"form": {}}, "roots": {}})));
        assert_eq!(one.key(), same.key());
    }

    #[test]
    fn questions_are_held_against_abilities_and_modes() {
        let can = |said: Value, mode: Option<&str>| {
            let params = mode.map(|mode| RawJson::from_json(&json!({"mode": mode})));
            can_answer(&object(said), "elicitation", params.as_ref())
        };
        assert!(can(json!({"elicitation": {}}), None));
        assert!(can(json!({"elicitation": {}}), Some("form")));
        assert!(!can(json!({"elicitation": {}}), Some("url")));
        assert!(can(json!({"elicitation": {"url": {}}}), Some("url")));
        assert!(!can(json!({"elicitation": {"url": {}}}), None));
        assert!(can(
            json!({"elicitation": {"form": {}, "url": {}}}),
            Some("url")
        ));
        assert!(!can(json!({"sampling": {}}), None));
    }
}
