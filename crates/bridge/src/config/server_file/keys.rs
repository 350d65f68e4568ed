//! Which keys there are: comments out, other spellings to ours, and a hint for the unknown.

use serde_json::{Map, Value};

use super::{path::Path, schema::ALIASES};
use crate::config::Fault;

/// Keys that are there for people.
pub(super) fn is_comment(key: &str) -> bool {
    key.starts_with("//") || key.starts_with("_comment")
}

/// Takes the comments out of an object and of the objects in it; `before_end` excepted, whose
/// arguments belong to a tool.
pub(super) fn drop_comments(object: &mut Map<String, Value>) {
    object.retain(|key, _| !is_comment(key));
    for (key, value) in object.iter_mut() {
        if let Value::Object(inner) = value
            && key != "before_end"
            && key != "beforeEnd"
        {
            drop_comments(inner);
        }
    }
}

/// Gives aliased keys their own name, and drops nulls, which mean "not given". Returns a fault
/// for each key that is given in both spellings.
pub(super) fn normalise(server: &mut Map<String, Value>, path: &Path) -> Vec<Fault> {
    server.retain(|_, value| !value.is_null());
    let mut faults = Vec::new();
    for (alias, key) in ALIASES {
        let Some(value) = server.shift_remove(alias) else {
            continue;
        };
        if server.contains_key(key) {
            faults.push(Fault::new(
                path.key(alias),
                format!("{key} is given, too, and means the same"),
                "keep one of the two",
            ));
        } else {
            server.insert(key.into(), value);
        }
    }
    faults
}

/// Keys of a server in other clients' files, and what to do with each here.
const ELSEWHERE: [(&str, &str); 24] = [
    // Windsurf, Gemini CLI, Continue.
    ("serverUrl", "rename it to url"),
    ("httpUrl", "rename it to url"),
    ("uri", "rename it to url"),
    ("endpoint", "rename it to url"),
    ("transport", "rename it to type"),
    ("transportType", "rename it to type"),
    // VS Code.
    (
        "envFile",
        "put its variables into env, as ${NAME} or ${file:/run/secrets/NAME}",
    ),
    ("dev", "nothing is watched here; remove it"),
    ("gallery", "remove it"),
    // Cline, Roo Code, Gemini CLI: whether the user is asked before a call.
    (
        "alwaysAllow",
        "who may use a server is said in allow; remove it",
    ),
    (
        "autoApprove",
        "who may use a server is said in allow; remove it",
    ),
    ("trust", "who may use a server is said in allow; remove it"),
    ("includeTools", "rename it to enabledTools"),
    ("excludeTools", "rename it to disabledTools"),
    ("tools", "name the useful tools in enabledTools"),
    // LibreChat.
    ("initTimeout", "MCPO_START_TIMEOUT bounds all starts"),
    ("serverInstructions", "write them into usage_guide"),
    ("chatMenu", "remove it"),
    // Codex.
    (
        "startup_timeout_sec",
        "MCPO_START_TIMEOUT bounds all starts",
    ),
    ("tool_timeout_sec", "rename it to timeout"),
    ("http_headers", "rename it to headers"),
    (
        "env_http_headers",
        "write them into headers, as \"${NAME}\"",
    ),
    (
        "bearer_token_env_var",
        "write \"Authorization\": \"Bearer ${NAME}\" into headers",
    ),
    ("requestInit", "put its headers into headers"),
];

/// What another client's key is here.
pub(super) fn elsewhere(key: &str) -> Option<&'static str> {
    let known = ELSEWHERE.iter().find(|(known, _)| *known == key);
    known.map(|(_, what)| *what)
}

/// A warning for each key of `object` that is not in `known`.
pub(super) fn unknown(object: &Map<String, Value>, path: &Path, known: &[&str]) -> Vec<String> {
    let is_known = |key: &str| known.contains(&key);
    let strange = object.keys().filter(|key| !is_known(key));
    let warning = |key: &String| {
        let hint = match (elsewhere(key), nearest(key, known.iter().copied())) {
            (Some(what), _) => what.to_owned(),
            (None, Some(name)) => format!("did you mean {name}?"),
            (None, None) => "check its spelling, or remove it".into(),
        };
        format!("{}: unknown key, ignored; {hint}", path.key(key))
    };
    strange.map(warning).collect()
}

/// The name that `key` was probably meant to be.
pub(super) fn nearest<'a>(key: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let plain = |text: &str| text.replace(['_', '-', ' '], "").to_lowercase();
    let key = plain(key);
    let distance = |name: &str| strsim::damerau_levenshtein(&key, &plain(name));
    let (name, distance) = known
        .map(|name| (name, distance(name)))
        .min_by_key(|(_, d)| *d)?;
    // A third of the letters wrong is another word.
    (distance * 3 <= key.chars().count()).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suggests_what_was_meant_and_nothing_far() {
        let known = ["command", "args", "idle_timeout", "timeout"];
        let nearest = |key| nearest(key, known.into_iter());
        assert_eq!(nearest("comand"), Some("command"));
        assert_eq!(nearest("IdleTimeOut"), Some("idle_timeout"));
        assert_eq!(nearest("arg"), Some("args"));
        assert_eq!(nearest("description"), None);
        assert_eq!(nearest(""), None);
    }
}
