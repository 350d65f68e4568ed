//! A server as configured: a command line or a URL, and the placeholders for user values in it.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use bridge_model::{Caller, JobId, Principal};
use indexmap::IndexMap;
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
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
