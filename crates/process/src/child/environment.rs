//! A child's environment: built from nothing, never inherited.

use std::{
    ffi::{OsStr, OsString},
    path::Path,
};

use bridge_model::Job;
use indexmap::IndexMap;

use crate::launch::Resolved;

/// What every child gets of ours, where it is set.
const PASSED: &[&str] = &[
    "PATH",
    "LANG",
    "LANGUAGE",
    "LC_ALL",
    "LC_CTYPE",
    "TZ",
    "TERM",
    // Certificate authorities of company networks.
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "NODE_EXTRA_CA_CERTS",
];

/// What only launchers get: they fetch packages. Proxy URLs may hold passwords.
const PASSED_TO_LAUNCHERS: &[&str] = &[
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "all_proxy",
    "no_proxy",
];
/// Prefixes of the launchers' own settings: package indexes, mirrors, timeouts.
const LAUNCHER_PREFIXES: &[&str] = &["UV_", "PIP_", "NPM_CONFIG_", "npm_config_", "PIPX_"];

const LAUNCHERS: &[&str] = &[
    "uvx", "uv", "npx", "npm", "pnpm", "pnpx", "bunx", "bun", "pipx", "deno", "yarn",
];

/// Launcher caches that all children share, so that the second start is a warm one.
const CACHES: &[(&str, &str)] = &[
    ("UV_CACHE_DIR", "uv/cache"),
    ("UV_TOOL_DIR", "uv/tools"),
    ("UV_PYTHON_INSTALL_DIR", "uv/python"),
    ("PIPX_HOME", "pipx"),
    ("npm_config_cache", "npm"),
    ("NODE_COMPILE_CACHE", "node-compile-cache"),
    ("DENO_DIR", "deno"),
    ("BUN_INSTALL_CACHE_DIR", "bun"),
];

/// Which of the bridge's own variables a program gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Passed {
    /// What every child gets.
    Little,
    /// Proxies too: for a server that its launcher would have passed them on to.
    Network,
    /// Package indexes too.
    Launcher,
}

/// Everything that a child of this program sees; `tmp` is how it is to spell its job's own. Later entries win:
/// what its environment needs, the server's own `env`, then the names that say where it works.
pub fn environment(
    program: &str,
    installed: Option<&Resolved>,
    job: &Job,
    tmp: &Path,
    tools_dir: &Path,
    own: impl IntoIterator<Item = (String, String)>,
) -> Vec<(OsString, OsString)> {
    let passed = match (is_launcher(program), installed) {
        (false, _) => Passed::Little,
        (true, Some(_)) => Passed::Network,
        (true, None) => Passed::Launcher,
    };
    let mut env = base(passed, tools_dir, &job.home(), tmp);
    let needed = installed.into_iter().flat_map(|found| found.env.clone());
    env.extend(needed);
    let own = own.into_iter();
    env.extend(own.map(|(name, value)| (name.into(), value.into())));
    if let Some(first) = installed.and_then(|found| found.path.as_ref()) {
        let path = env.get(OsStr::new("PATH")).cloned().unwrap_or_default();
        let parts = std::iter::once(first.clone()).chain(std::env::split_paths(&path));
        if let Ok(path) = std::env::join_paths(parts) {
            env.insert("PATH".into(), path);
        }
    }
    env.insert("MCPO_WORKDIR".into(), job.work().into());
    env.insert("MCPO_JOB_ID".into(), job.id().to_string().into());
    env.into_iter().collect()
}

/// What package managers see when they work for us: of the server's own variables only their
/// settings, for a server's secrets are none of their business.
pub fn environment_for_installing(
    tools_dir: &Path,
    scratch: &Path,
    own: &IndexMap<String, String>,
) -> Vec<(OsString, OsString)> {
    let mut env = base(Passed::Launcher, tools_dir, scratch, scratch);
    let theirs = own.iter().filter(|(name, value)| {
        passes(OsStr::new(name), Passed::Launcher) && !value.contains("{MCPO_")
    });
    env.extend(theirs.map(|(name, value)| (name.into(), value.into())));
    env.into_iter().collect()
}

fn base(passed: Passed, tools_dir: &Path, home: &Path, tmp: &Path) -> IndexMap<OsString, OsString> {
    let mut env: IndexMap<OsString, OsString> = std::env::vars_os()
        .filter(|(name, _)| passes(name, passed))
        .collect();
    let caches = CACHES
        .iter()
        .map(|(name, folder)| ((*name).into(), tools_dir.join(folder).into()));
    env.extend(caches);
    env.insert("npm_config_update_notifier".into(), "false".into());
    env.insert("HOME".into(), home.into());
    env.insert("TMPDIR".into(), tmp.into());
    env
}

fn passes(name: &OsStr, passed: Passed) -> bool {
    let Some(name) = name.to_str() else {
        return false;
    };
    let setting = |prefix: &&str| name.starts_with(*prefix);
    PASSED.contains(&name)
        || passed != Passed::Little && PASSED_TO_LAUNCHERS.contains(&name)
        || passed == Passed::Launcher && LAUNCHER_PREFIXES.iter().any(setting)
}

fn is_launcher(program: &str) -> bool {
    let name = Path::new(program).file_name().and_then(OsStr::to_str);
    name.is_some_and(|name| LAUNCHERS.contains(&name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_of_ours_never_pass() {
        for secret in [
            "MCPO_API_KEY",
            "MCPO_JWT_SECRET",
            "AWS_SECRET_ACCESS_KEY",
            "HOME",
            "USER",
        ] {
            assert!(!passes(OsStr::new(secret), Passed::Launcher), "{secret}");
        }
        assert!(passes(OsStr::new("PATH"), Passed::Little));
    }

    #[test]
    fn only_launchers_learn_the_proxy_and_the_index() {
        for name in ["HTTPS_PROXY", "UV_INDEX_URL", "npm_config_registry"] {
            assert!(passes(OsStr::new(name), Passed::Launcher), "{name}");
            assert!(!passes(OsStr::new(name), Passed::Little), "{name}");
        }
        assert!(passes(OsStr::new("HTTPS_PROXY"), Passed::Network));
        assert!(!passes(OsStr::new("UV_INDEX_URL"), Passed::Network));
        assert!(is_launcher("/usr/local/bin/uvx"));
        assert!(!is_launcher("python3"));
    }

    #[test]
    fn of_a_servers_secrets_package_managers_see_none() {
        let own = [
            ("API_TOKEN", "hunter2"),
            ("UV_INDEX_URL", "https://index.example"),
            ("UV_CACHE_DIR", "{MCPO_WORKDIR}/cache"),
        ];
        let own = own.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let env = environment_for_installing(Path::new("/t"), Path::new("/s"), &own.into());
        let value = |name: &str| {
            let found = env.iter().find(|(known, _)| known == name);
            found.map(|(_, value)| value.to_str().unwrap().to_owned())
        };
        assert_eq!(value("API_TOKEN"), None);
        assert_eq!(value("UV_INDEX_URL").unwrap(), "https://index.example");
        assert_eq!(value("UV_CACHE_DIR").unwrap(), "/t/uv/cache");
        assert_eq!(value("HOME").unwrap(), "/s");
    }
}
