//! A child's environment: built from nothing, never inherited.

use std::{
    ffi::{OsStr, OsString},
    path::Path,
};

use indexmap::IndexMap;

use crate::store::Job;

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

/// Everything that a child of this program sees. Later entries win: the server's own `env`, then
/// the overlay of one call, then the names that say where it works.
pub fn environment(
    program: &str,
    job: &Job,
    tools_dir: &Path,
    own: impl IntoIterator<Item = (String, String)>,
    overlay: &[(String, String)],
) -> Vec<(OsString, OsString)> {
    let launcher = is_launcher(program);
    let mut env: IndexMap<OsString, OsString> = std::env::vars_os()
        .filter(|(name, _)| passes(name, launcher))
        .collect();
    let caches = CACHES
        .iter()
        .map(|(name, folder)| ((*name).into(), tools_dir.join(folder).into()));
    env.extend(caches);
    env.insert("npm_config_update_notifier".into(), "false".into());
    env.insert("HOME".into(), job.home().into());
    env.insert("TMPDIR".into(), job.tmp().into());
    let own = own.into_iter().chain(overlay.iter().cloned());
    env.extend(own.map(|(name, value)| (name.into(), value.into())));
    env.insert("MCPO_WORKDIR".into(), job.work().into());
    env.insert("MCPO_JOB_ID".into(), job.id().to_string().into());
    env.into_iter().collect()
}

fn passes(name: &OsStr, launcher: bool) -> bool {
    let Some(name) = name.to_str() else {
        return false;
    };
    let setting = |prefix: &&str| name.starts_with(*prefix);
    PASSED.contains(&name)
        || launcher
            && (PASSED_TO_LAUNCHERS.contains(&name) || LAUNCHER_PREFIXES.iter().any(setting))
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
            assert!(!passes(OsStr::new(secret), true), "{secret}");
        }
        assert!(passes(OsStr::new("PATH"), false));
    }

    #[test]
    fn only_launchers_learn_the_proxy_and_the_index() {
        for name in ["HTTPS_PROXY", "UV_INDEX_URL", "npm_config_registry"] {
            assert!(passes(OsStr::new(name), true), "{name}");
            assert!(!passes(OsStr::new(name), false), "{name}");
        }
        assert!(is_launcher("/usr/local/bin/uvx"));
        assert!(!is_launcher("python3"));
    }
}
