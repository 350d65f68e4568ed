//! Whom a server is there for, and what it is told of them.

use bridge_process::{USER_PLACEHOLDERS, asks_for_user};

use super::{build::Builder, path::Path, schema::AllowEntry};
use crate::config::{Allow, Mode, ServerSpec, Transport};

impl Builder<'_> {
    /// The lists of `allow`; a fault where they name nobody.
    pub(super) fn allow(&mut self, entry: AllowEntry, path: &Path) -> Option<Allow> {
        let path = path.key("allow");
        let list = |list: Option<Vec<String>>| list.unwrap_or_default();
        let (users, groups) = (list(entry.users), list(entry.groups));
        let (roles, keys) = (list(entry.roles), list(entry.keys));
        let mut named = [&users, &groups, &roles, &keys].into_iter().flatten();
        if named.clone().next().is_none() {
            let fix = r#"name somebody, such as "groups": ["sales"], or switch the server off with "disabled": true"#;
            self.fault(path, "it names nobody", fix);
            return None;
        }
        if named.any(|name| name.trim().is_empty()) {
            self.fault(path, "a name in it is empty", "remove it");
            return None;
        }
        self.warn_of_allow(&keys, &path);
        Some(Allow::new(&users, &groups, &roles, &keys))
    }

    fn warn_of_allow(&mut self, keys: &[String], path: &Path) {
        let access = &self.settings.access;
        let known = |key: &&String| access.keys.names().any(|name| name == key.trim());
        let strange: Vec<_> = keys.iter().filter(|key| !known(key)).collect();
        for key in strange {
            let path = path.key("keys");
            self.warnings
                .push(format!("{path}: there is no API key named {key:?}"));
        }
        let proof = !access.keys.is_empty() || access.jwt_secret.is_some();
        if !proof && access.trusted_proxies.is_empty() {
            self.warnings.push(format!(
                "{path}: nobody gets in, because nobody can prove who he is: set MCPO_API_KEY for \
                 Open WebUI"
            ));
        }
    }

    /// Of the user only variables and headers are made, of servers that work for one user at a
    /// time: arguments show in the list of processes, and could be taken for options.
    pub(super) fn check_placeholders(&mut self, spec: &ServerSpec, path: &Path) {
        let mut public: Vec<(Path, &str)> = Vec::new();
        let mut private: Vec<(Path, &str)> = Vec::new();
        let cwd;
        match &spec.transport {
            Transport::Stdio(command) => {
                public.push((path.key("command"), &command.program));
                let args = command.args.iter().enumerate();
                public.extend(args.map(|(at, arg)| (path.key("args").index(at), &**arg)));
                if let Some(given) = &command.cwd {
                    cwd = given.to_string_lossy();
                    public.push((path.key("cwd"), &cwd));
                }
                let env = command.env.iter();
                private.extend(env.map(|(name, value)| (path.key("env").key(name), &**value)));
            }
            Transport::Remote(remote) => {
                public.push((path.key("url"), remote.url.as_str()));
                let headers = remote.headers.iter();
                private
                    .extend(headers.map(|(name, value)| (path.key("headers").key(name), &**value)));
            }
        }
        let all = USER_PLACEHOLDERS.join(", ");
        // A URL has its braces encoded.
        let asks = |text: &str| {
            asks_for_user(text) || asks_for_user(&text.replace("%7B", "{").replace("%7D", "}"))
        };
        for (place, _) in public.into_iter().filter(|(_, text)| asks(text)) {
            let fix = "put it into env (of a url: into headers), where other processes and logs do \
                       not show it";
            self.fault(place, format!("{all} are not replaced here"), fix);
        }
        if spec.mode != Mode::Shared {
            return;
        }
        for (place, _) in private.into_iter().filter(|(_, text)| asks_for_user(text)) {
            let problem = "a shared server works for everybody at once, so there is no one user";
            let fix = r#"set "mode" to "stateful" or "stateless", or remove it"#;
            self.fault(place, problem, fix);
        }
    }
}
