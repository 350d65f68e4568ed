//! The schema of `mcp-servers.json`. Editors show these doc comments as the description of a key.

use std::collections::BTreeSet;

use indexmap::IndexMap;
use jsonschema::paths::LocationSegment;
use schemars::{JsonSchema, schema_for};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::Path;
use crate::config::{Embed, Fault, Launch, Mode, WorkspaceScope};

/// The servers that mcpo-bridge runs, in the file format of Claude Desktop and mcpo, with additional keys. In
/// `command`, `args`, `env`, `cwd`, `url` and `headers`, `${VAR}`, `${VAR:-default}` and
/// `${file:/run/secrets/NAME}` are replaced; `$${` stands for a literal `${`, and any other `$` is literal.
/// Keys that start with `//` or `_comment` are comments.
#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(title = "mcp-servers.json of mcpo-bridge")]
#[expect(
    dead_code,
    reason = "the root of the schema; servers are read separately"
)]
struct ServerFile {
    /// The servers by name. The name is the last part of a server's URLs.
    mcp_servers: IndexMap<String, ServerEntry>,
}

/// One server: either `command` (a program that the bridge starts) or `url` (a remote server).
#[derive(Deserialize, JsonSchema)]
#[expect(
    clippy::doc_markdown,
    reason = "editors show these comments as plain text"
)]
#[expect(
    dead_code,
    reason = "some keys are read elsewhere and are only needed in the schema"
)]
pub(super) struct ServerEntry {
    /// The program to start: a path, or a name to find in PATH. No shell is used.
    #[schemars(length(min = 1))]
    pub command: Option<String>,
    /// The program's arguments. `{MCPO_WORKDIR}` (the chat's folder) and `{MCPO_JOB_ID}` are replaced at its
    /// start. Put secrets in `env`: arguments are visible in the process list.
    pub args: Option<Vec<String>>,
    /// The program's environment variables, in addition to the few that every server gets. `{MCPO_WORKDIR}`
    /// and `{MCPO_JOB_ID}` are replaced; unless the server is shared, also `{MCPO_USER_ID}`,
    /// `{MCPO_USER_NAME}`, `{MCPO_USER_EMAIL}`, `{MCPO_USER_ROLE}` and `{MCPO_USER_GROUPS}`, with the values
    /// of the user for whom it is started.
    pub env: Option<IndexMap<String, String>>,
    /// The directory to start in. Default: the chat's folder, from which a relative path starts.
    #[schemars(length(min = 1))]
    pub cwd: Option<String>,
    /// The transport: `stdio` for a command; for a url `streamable-http` (also `http`), which falls back to
    /// the older `sse` if the server does not support POST, or `sse`.
    #[schemars(extend("enum" = [
        "stdio", "sse", "streamable-http", "streamable_http", "streamablehttp", "streamableHttp",
        "http", null,
    ]))]
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// The http or https URL of a remote server.
    #[schemars(length(min = 1))]
    pub url: Option<String>,
    /// HTTP headers for a remote server. Unless it is shared, `{MCPO_USER_ID}` and the other placeholders of
    /// the user are replaced as in `env`.
    pub headers: Option<IndexMap<String, String>>,
    /// Who shares a running process. `stateful` (the default): one process for each user and chat.
    /// `stateless`: a new process for each call. `shared`: one process for all users, for servers that keep
    /// no state and write no files, such as a clock.
    pub mode: Option<Mode>,
    /// The folder that the server works in. `chat` (the default): the chat's folder, so that servers see each
    /// other's files. `own`: a separate folder within the chat.
    pub workspace: Option<WorkspaceScope>,
    /// Seconds without a call after which a chat's process ends. Default: 1800
    /// (MCPO_STATEFUL_DEFAULT_IDLE_TIMEOUT).
    #[schemars(range(max = 86400), extend("exclusiveMinimum" = 0))]
    pub idle_timeout: Option<f64>,
    /// Maximum seconds of a call, including queue and start. Default: 300 (MCPO_TIMEOUT).
    #[schemars(range(max = 86400), extend("exclusiveMinimum" = 0))]
    pub timeout: Option<f64>,
    /// Maximum number of live processes of this server for one user and chat. Default: 1
    /// (MCPO_STATEFUL_MAX_PROCESSES_PER_CHAT).
    #[schemars(range(min = 1, max = 1000))]
    pub max_processes_per_chat: Option<u16>,
    /// Maximum number of concurrent calls. By default, calls in one folder run one after another.
    #[schemars(range(min = 1, max = 1000))]
    pub concurrency: Option<u16>,
    /// If set, only these tools are offered. Small models can handle about 15.
    #[serde(rename = "enabledTools")]
    pub enabled_tools: Option<Vec<String>>,
    /// Tools that are not offered.
    #[serde(rename = "disabledTools")]
    pub disabled_tools: Option<Vec<String>>,
    /// `true`: the server's lists depend on the session, so MCP clients get tools, prompts and resources from
    /// the chat's own process and not from the catalogue. Tools that are not in the catalogue can then be
    /// called. Default: false.
    pub session_lists: Option<bool>,
    /// Instructions for the model on how to use this server, appended to the descriptions of its tools.
    pub usage_guide: Option<String>,
    /// What the model should say or do after a call that created files, appended to the results of such
    /// calls.
    pub post_instruction: Option<String>,
    /// Kinds of created files that are shown in the chat itself, in addition to their links: `image`, `html`
    /// (a page runs in a sandboxed frame of Open WebUI). Only for connections that send the user's token
    /// (auth type session).
    pub embed: Option<Vec<Embed>>,
    /// Fields in results that name files. Files are found without it; it lists these first.
    pub file_path_fields: Option<Vec<String>>,
    /// Fields in arguments that name files. Relative names become absolute paths within the folder; `file:`
    /// URIs stay URIs.
    pub resolve_path_fields: Option<Vec<String>>,
    /// Fields in arguments that name files or pages by URI. A file's name becomes its `file:` URI; `http:`,
    /// `https:` and `data:` URIs stay unchanged.
    pub resolve_uri_fields: Option<Vec<String>>,
    /// A tool that the bridge calls before it ends a chat's process, to save its work.
    pub before_end: Option<BeforeEndEntry>,
    /// `false`: the program is always started as written. By default, the packages of `uvx`, `npx`, `pipx
    /// run` and `uv run` are installed once, and the program is started directly.
    pub install: Option<bool>,
    /// How processes of a Python server are started. `exec`: each as a new process. `fork`: from a process
    /// that has already imported the server's modules, which takes a fraction of the time and memory. `auto`
    /// (the default): `fork` if the packages are pinned, else `exec`.
    pub launch: Option<Launch>,
    /// Maximum number of warm (pre-started) processes of this server; MCPO_POOL_MAX limits those of all
    /// servers together. Use 0 for a server whose start has effects that only a call should have.
    #[schemars(range(max = 1000))]
    pub pool: Option<u16>,
    /// `true` disables the server.
    pub disabled: Option<bool>,
    /// `false` disables the server.
    pub enabled: Option<bool>,
    /// Headers of the caller's request that are forwarded to the server: to a remote server as headers of the
    /// call, to a program in the call's `_meta`, as `mcpo-bridge/headers`.
    pub client_header_forwarding: Option<ForwardingEntry>,
    /// Who may use the server: users who are in one of the lists. For all others the server does not exist.
    /// Default: all users.
    pub allow: Option<AllowEntry>,
    /// mcpo's OAuth settings. Not supported: add a token to `headers`.
    pub oauth: Option<Map<String, Value>>,
}

/// The tool call that saves work.
#[derive(Deserialize, JsonSchema)]
#[schemars(inline)]
pub(super) struct BeforeEndEntry {
    /// The tool's name.
    #[schemars(length(min = 1))]
    pub tool: String,
    /// Its arguments.
    pub arguments: Option<Map<String, Value>>,
}

/// Who may use a server.
#[derive(Deserialize, JsonSchema)]
#[schemars(inline)]
pub(super) struct AllowEntry {
    /// Users, by id or by email address, which is case-insensitive.
    pub users: Option<Vec<String>>,
    /// Groups, by name or id, as in the request's header for groups.
    pub groups: Option<Vec<String>>,
    /// Roles. Open WebUI has `admin` and `user`.
    pub roles: Option<Vec<String>>,
    /// Names of API keys, for programs that identify no user.
    pub keys: Option<Vec<String>>,
}

/// Which headers of a request are forwarded. Names are case-insensitive; `X-Tenant-*` and `*` match several
/// headers.
#[derive(Deserialize, JsonSchema)]
#[schemars(inline)]
pub(super) struct ForwardingEntry {
    /// Nothing is forwarded unless this is `true`.
    pub enabled: Option<bool>,
    /// Only these headers. Without a list, all except those that must be named: Authorization, Cookie.
    pub whitelist: Option<Vec<String>>,
    /// Never these headers, regardless of the whitelist.
    pub blacklist: Option<Vec<String>>,
    /// mcpo's setting; it has no effect.
    #[expect(dead_code, reason = "accepted without effect")]
    pub debug_headers: Option<bool>,
}

/// Other spellings of keys: those of mcpo and Claude, and those in the style of the rest of the file.
pub(super) const ALIASES: [(&str, &str); 12] = [
    ("enabled_tools", "enabledTools"),
    ("disabled_tools", "disabledTools"),
    ("idleTimeout", "idle_timeout"),
    ("maxProcessesPerChat", "max_processes_per_chat"),
    ("sessionLists", "session_lists"),
    ("usageGuide", "usage_guide"),
    ("postInstruction", "post_instruction"),
    ("filePathFields", "file_path_fields"),
    ("resolvePathFields", "resolve_path_fields"),
    ("resolveUriFields", "resolve_uri_fields"),
    ("beforeEnd", "before_end"),
    ("clientHeaderForwarding", "client_header_forwarding"),
];

/// The JSON Schema (2020-12) of `mcp-servers.json`, committed as `docs/mcp-servers.schema.json`.
pub fn json_schema() -> Value {
    let mut schema = schema_for!(ServerFile).to_value();
    tidy(&mut schema);
    let comments = json!({"^(//|_comment)": true});
    schema["properties"]["mcpServers"]["patternProperties"] = comments.clone();
    schema["properties"]["$schema"] = json!({"type": "string"});
    if let Some(keys) = schema["$defs"]["ServerEntry"]["properties"].as_object_mut() {
        for map in ["env", "headers"] {
            keys[map]["patternProperties"] = comments.clone();
        }
        for (alias, key) in ALIASES {
            let mut same = keys[key].clone();
            same["description"] = format!("The same as `{key}`.").into();
            keys.insert(alias.into(), same);
        }
    }
    schema
}

/// All keys that a server may have, including other spellings.
pub(super) fn server_keys() -> Vec<String> {
    let schema = json_schema();
    let keys = schema["$defs"]["ServerEntry"]["properties"].as_object();
    keys.into_iter().flat_map(Map::keys).cloned().collect()
}

/// Removes formats such as `uint16`, which JSON Schema does not have and editors report, and the line ends of
/// this file in descriptions.
fn tidy(schema: &mut Value) {
    match schema {
        Value::Object(object) => {
            if object.get("format").is_some_and(Value::is_string) {
                object.shift_remove("format");
            }
            if let Some(Value::String(text)) = object.get_mut("description") {
                *text = text.replace('\n', " ");
            }
            object.values_mut().for_each(tidy);
        }
        Value::Array(list) => list.iter_mut().for_each(tidy),
        _ => {}
    }
}

// Wrong types and ranges: the JSON Schema finds them, and this file has their messages.

/// One error for each location that does not match the schema.
pub(super) fn faults(document: &Value) -> Vec<Fault> {
    let validator = match jsonschema::validator_for(&json_schema()) {
        Ok(validator) => validator,
        Err(error) => panic!("our own schema compiles: {error}"),
    };
    let mut seen = BTreeSet::new();
    let errors = validator.iter_errors(document);
    errors
        .filter(|error| seen.insert(error.instance_path().as_str().to_owned()))
        .map(|error| fault(error.instance_path().segments(), error.instance()))
        .collect()
}

fn fault<'a>(segments: impl Iterator<Item = LocationSegment<'a>>, value: &Value) -> Fault {
    let mut path = Path::root();
    let mut keys = Vec::new();
    for segment in segments {
        path = match &segment {
            LocationSegment::Property(key) => path.key(key),
            LocationSegment::Index(index) => path.index(*index),
        };
        keys.push(segment.to_string());
    }
    let (expected, shown) = match keys.as_slice() {
        [] => (r#"an object: {"mcpServers": {…}}"#, false),
        [_] => (
            r#"an object with the servers: {"excel": {"command": …}}"#,
            false,
        ),
        [_, _] => (r#"an object: {"command": …} or {"url": …}"#, false),
        [_, _, key, ..] => expected(key),
    };
    let fault = Fault::new(
        path,
        format!("invalid value ({})", describe(value)),
        format!("expected {expected}"),
    );
    if shown && !value.is_object() && !value.is_array() {
        fault.with_value(value)
    } else {
        fault
    }
}

/// The expected value of a key, and whether an invalid value may be shown because it cannot contain a secret.
fn expected(key: &str) -> (&'static str, bool) {
    let alias = ALIASES.iter().find(|(alias, _)| *alias == key);
    let key = alias.map_or(key, |(_, key)| key);
    let what = match key {
        "command" => r#"a string: the program; put its arguments in "args""#,
        "args" => r#"a list of strings, such as ["--port", "8080"]"#,
        "env" | "headers" => r#"an object of strings, with numbers in quotes: "8080""#,
        "cwd" => "a string: the directory",
        "url" => "a string: an http or https URL",
        "type" => r#"one of "stdio", "streamable-http", "sse""#,
        "mode" => r#"one of "stateful", "stateless", "shared""#,
        "workspace" => r#""chat" or "own""#,
        "idle_timeout" | "timeout" => {
            "a number of seconds without quotes, more than 0 and at most 86400; other clients' \
             files have milliseconds"
        }
        "max_processes_per_chat" | "concurrency" => "a whole number without quotes, from 1 to 1000",
        "pool" => "a whole number without quotes, from 0 to 1000",
        "disabled" | "enabled" | "install" | "session_lists" => "true or false, without quotes",
        "launch" => r#"one of "auto", "exec", "fork""#,
        "usage_guide" | "post_instruction" => "a string",
        "enabledTools" | "disabledTools" => {
            r#"a list of tool names: ["read_sheet", "write_sheet"]"#
        }
        "file_path_fields" | "resolve_path_fields" | "resolve_uri_fields" => {
            r#"a list of field names: ["file_path"]"#
        }
        "embed" => r#"a list of "image" and "html""#,
        "before_end" => r#"an object: {"tool": "save", "arguments": {"name": "backup"}}"#,
        "client_header_forwarding" => {
            r#"an object: {"enabled": true, "whitelist": ["X-Tenant-*"], "blacklist": []}"#
        }
        "allow" => {
            r#"an object of lists: {"users": ["ann@example.com"], "groups": ["sales"], "roles": ["admin"]}"#
        }
        "oauth" => "an object, as in mcpo",
        _ => {
            return (
                "a value as described in docs/mcp-servers.schema.json",
                false,
            );
        }
    };
    (what, !HIDDEN.contains(&key))
}

/// Keys whose values may contain secrets.
const HIDDEN: [&str; 7] = [
    "args",
    "env",
    "headers",
    "url",
    "client_header_forwarding",
    "allow",
    "oauth",
];

/// The type of a value, without the value.
fn describe(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(text) if text.is_empty() => "an empty string",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

// Keys: comments are removed, other spellings are replaced, and unknown keys get a hint.

/// Whether a key is a comment.
pub(super) fn is_comment(key: &str) -> bool {
    key.starts_with("//") || key.starts_with("_comment")
}

/// Removes the comments from an object and the objects in it, except `before_end`, whose arguments belong to
/// a tool.
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

/// Replaces other spellings of keys, and removes nulls, which count as absent. Returns an error for each key
/// that is given in both spellings.
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
                format!("\"{key}\" is set too and has the same meaning"),
                "keep one of the two",
            ));
        } else {
            server.insert(key.into(), value);
        }
    }
    faults
}

/// Keys of other clients' files, and the remedy for each.
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
        "add its variables to env, as ${NAME} or ${file:/run/secrets/NAME}",
    ),
    ("dev", "not supported; remove it"),
    ("gallery", "remove it"),
    // Cline, Roo Code, Gemini CLI: whether the user is asked before a call.
    ("alwaysAllow", "use allow to restrict access; remove it"),
    ("autoApprove", "use allow to restrict access; remove it"),
    ("trust", "use allow to restrict access; remove it"),
    ("includeTools", "rename it to enabledTools"),
    ("excludeTools", "rename it to disabledTools"),
    ("tools", "list the useful tools in enabledTools"),
    // LibreChat.
    (
        "initTimeout",
        "use MCPO_START_TIMEOUT, which applies to all servers",
    ),
    ("serverInstructions", "use usage_guide"),
    ("chatMenu", "remove it"),
    // Codex.
    (
        "startup_timeout_sec",
        "use MCPO_START_TIMEOUT, which applies to all servers",
    ),
    ("tool_timeout_sec", "rename it to timeout"),
    ("http_headers", "rename it to headers"),
    ("env_http_headers", "add them to headers, as \"${NAME}\""),
    (
        "bearer_token_env_var",
        "add \"Authorization\": \"Bearer ${NAME}\" to headers",
    ),
    ("requestInit", "move its headers to headers"),
];

/// The remedy for a key of another client's file.
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
            (None, None) => "check the spelling, or remove it".into(),
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
    // With more than a third of the letters different, it is another word.
    (distance * 3 <= key.chars().count()).then_some(name)
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    /// `UPDATE_DOCS=1 cargo test` writes the file anew.
    #[test]
    fn the_committed_schema_is_the_programs() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/mcp-servers.schema.json");
        let text = format!("{:#}\n", json_schema());
        if std::env::var_os("UPDATE_DOCS").is_some() {
            fs::write(&file, &text).unwrap();
        }
        let committed = fs::read_to_string(&file).unwrap_or_default();
        assert!(
            committed == text,
            "run: UPDATE_DOCS=1 cargo test the_committed_schema"
        );
    }

    #[test]
    fn every_key_tells_what_it_is_for() {
        let schema = json_schema();
        let keys = schema["$defs"]["ServerEntry"]["properties"]
            .as_object()
            .unwrap();
        assert!(keys.len() > 30, "{}", keys.len());
        for (key, schema) in keys {
            assert!(schema["description"].is_string(), "{key}");
        }
    }
}

#[cfg(test)]
mod shape_tests {
    use super::*;

    #[test]
    fn every_key_of_the_schema_has_its_words() {
        let schema = json_schema();
        let keys = schema["$defs"]["ServerEntry"]["properties"]
            .as_object()
            .unwrap();
        for key in keys.keys() {
            assert!(!expected(key).0.contains("docs/"), "{key}");
        }
    }
}

#[cfg(test)]
mod keys_tests {
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
