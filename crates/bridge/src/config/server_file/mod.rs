//! `mcp-servers.json`: the file format of Claude Desktop and mcpo, with keys of our own.
//!
//! Reading goes text → value (no key twice) → schema (types and ranges) → keys (comments,
//! spellings) → references → specs. Each step adds its faults; a good file has none of them.

use std::{collections::BTreeSet, path::Path as FilePath, sync::Arc};

use bridge_model::ServerName;
use indexmap::IndexMap;
use serde_json::{Map, Value};

use super::{Fault, Faults, RESERVED_NAMES, ServerSpec, Settings, read_bounded};
use build::Builder;
use interpolate::Lookup;
use path::Path;

mod build;
mod builtin;
mod interpolate;
mod json_text;
mod keys;
mod path;
mod schema;
mod shape;
mod users;

pub use builtin::LINK_FIELD;
pub use schema::json_schema;

/// A file that was read, checked and found good.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// In the order of the file, disabled ones left out.
    pub servers: IndexMap<ServerName, Arc<ServerSpec>>,
    /// One sentence each; no secrets.
    pub warnings: Vec<String>,
}

/// Why there is no configuration. Holds no secrets.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file itself.
    #[error("{path}: cannot be read ({source}); {}", remedy(source))]
    Unreadable {
        /// As given.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// What is in it.
    #[error(transparent)]
    Faulty(#[from] Faults),
}

/// What to do about a server file that cannot be read.
pub fn remedy(error: &std::io::Error) -> &'static str {
    match error.kind() {
        std::io::ErrorKind::NotFound => {
            "create it with `mcpo-bridge init`, or set --config / MCPO_CONFIG_FILE to an existing file"
        }
        std::io::ErrorKind::PermissionDenied => {
            "make the file and its directories readable for the user that runs mcpo-bridge"
        }
        _ => "set --config / MCPO_CONFIG_FILE to a readable JSON file",
    }
}

/// Bytes of a server file or its lock file: more than any has.
pub const LARGEST_FILE: u64 = 16 * 1024 * 1024;

/// What is to be served: the one server of the command line, else the file's.
pub fn servers(settings: &Settings) -> Result<Loaded, ConfigError> {
    match &settings.command_line.server {
        Some(server) => {
            let origin = "the command line".to_owned();
            load_bytes(server.document.expose().as_bytes(), origin, settings)
        }
        None => load(&settings.config_file, settings),
    }
}

/// Reads and checks the file; blocks on files. References are read anew each time.
pub fn load(path: &FilePath, settings: &Settings) -> Result<Loaded, ConfigError> {
    let bytes = read_bounded(path, LARGEST_FILE).map_err(|source| ConfigError::Unreadable {
        path: path.display().to_string(),
        source,
    })?;
    load_bytes(&bytes, path.display().to_string(), settings)
}

fn load_bytes(bytes: &[u8], origin: String, settings: &Settings) -> Result<Loaded, ConfigError> {
    let lookup = |name: &str| {
        let given = settings.command_line.env.iter().rev();
        let mut given = given.filter(|(known, _)| known == name);
        let given = given.next().map(|(_, value)| value.expose().to_owned());
        given.or_else(|| std::env::var(name).ok())
    };
    read(bytes, settings, &lookup).map_err(|faults| ConfigError::Faulty(Faults { origin, faults }))
}

fn read(bytes: &[u8], settings: &Settings, lookup: Lookup) -> Result<Loaded, Vec<Fault>> {
    let parsed = json_text::parse(bytes).map_err(|error| {
        let problem = format!("not JSON: {error}");
        let fix = "JSON has no trailing commas and no comments, but keys that begin with // are \
                   ignored";
        vec![Fault::new("", problem, fix)]
    })?;
    let twice = |path: String| {
        let fix = "keep one of them";
        Fault::new(path, "the key stands more than once", fix)
    };
    let mut faults: Vec<Fault> = parsed.duplicates.into_iter().map(twice).collect();
    let mut document = parsed.value;
    if let Value::Object(root) = &mut document {
        keys::drop_comments(root);
        root.shift_remove("$schema");
        faults.extend(missing_servers(root));
    }
    let disabled = disabled(&document);
    let shape = shape::faults(&document).into_iter().filter(|fault| {
        // That there are no servers is told above, in better words.
        let root = fault.place.is_empty() && document.is_object();
        !root
            && !disabled
                .iter()
                .any(|name| Path::server(name).holds(&fault.place))
    });
    faults.extend(shape);
    let Value::Object(root) = document else {
        return Err(faults);
    };
    let named = root
        .get("mcpServers")
        .is_some_and(|servers| servers.get(builtin::FILES).is_some());
    let mut loaded = build(root, &disabled, faults, settings, lookup)?;
    builtin::add(&mut loaded, settings, named);
    Ok(loaded)
}

fn build(
    mut root: Map<String, Value>,
    disabled: &BTreeSet<String>,
    faults: Vec<Fault>,
    settings: &Settings,
    lookup: Lookup,
) -> Result<Loaded, Vec<Fault>> {
    let mut warnings = keys::unknown(&root, &Path::root(), &["mcpServers"]);
    let Some(Value::Object(entries)) = root.shift_remove("mcpServers") else {
        return Err(faults);
    };
    if entries.is_empty() {
        warnings.push("mcpServers is empty: there is nothing to serve".into());
    }
    let misshapen: Vec<String> = faults.iter().map(|fault| fault.place.clone()).collect();
    let known = schema::server_keys();
    let known: Vec<&str> = known.iter().map(String::as_str).collect();
    let mut builder = Builder {
        settings,
        lookup,
        faults,
        warnings,
    };
    let mut servers = IndexMap::new();
    for (name, entry) in entries {
        let Value::Object(keys) = entry else { continue };
        if disabled.contains(&name) {
            continue;
        }
        if let Some(spec) = server(&mut builder, &name, keys, &misshapen, &known) {
            servers.insert(spec.name.clone(), Arc::new(spec));
        }
    }
    if !builder.faults.is_empty() {
        return Err(builder.faults);
    }
    Ok(Loaded {
        servers,
        warnings: builder.warnings,
    })
}

fn server(
    builder: &mut Builder,
    name: &str,
    mut keys: Map<String, Value>,
    misshapen: &[String],
    known: &[&str],
) -> Option<ServerSpec> {
    let path = Path::server(name);
    let well_shaped = !misshapen.iter().any(|place| path.holds(place));
    let double = keys::normalise(&mut keys, &path);
    builder.faults.extend(double);
    warn(builder, name, &keys, &path, known);
    match name.parse() {
        Ok(name) => builder.server(&name, keys, well_shaped),
        Err(error) => {
            let problem = "not a usable name for a server";
            builder
                .faults
                .push(Fault::new(path, problem, format!("{error}")));
            None
        }
    }
}

fn warn(builder: &mut Builder, name: &str, keys: &Map<String, Value>, path: &Path, known: &[&str]) {
    let unknown = keys::unknown(keys, path, known);
    builder.warnings.extend(unknown);
    let nested: [(&str, &[&str]); 3] = [
        ("allow", &["users", "groups", "roles", "keys"]),
        ("before_end", &["tool", "arguments"]),
        (
            "client_header_forwarding",
            &["enabled", "whitelist", "blacklist", "debug_headers"],
        ),
    ];
    for (key, names) in nested {
        if let Some(Value::Object(inner)) = keys.get(key) {
            let unknown = keys::unknown(inner, &path.key(key), names);
            builder.warnings.extend(unknown);
        }
    }
    if keys
        .get("oauth")
        .is_some_and(|value| value["enabled"] != false)
    {
        let place = path.key("oauth");
        builder.warnings.push(format!(
            "{place}: ignored, because the bridge does no OAuth of its own: put a token into \
             headers, such as \"Authorization\": \"Bearer ${{file:/run/secrets/TOKEN}}\""
        ));
    }
    let first = name.split('/').next().unwrap_or_default();
    if RESERVED_NAMES.contains(&first) {
        builder.warnings.push(format!(
            "{path}: served under /mcpo/{name} only, because /{first} is the bridge's own"
        ));
    }
}

/// Servers that are switched off: nothing in them is a fault.
fn disabled(document: &Value) -> BTreeSet<String> {
    let entries = document.get("mcpServers").and_then(Value::as_object);
    let off = |entry: &Value| entry["disabled"] == true || entry["enabled"] == false;
    entries
        .into_iter()
        .flatten()
        .filter(|(_, entry)| off(entry))
        .map(|(name, _)| name.clone())
        .collect()
}

fn missing_servers(root: &Map<String, Value>) -> Option<Fault> {
    if root.contains_key("mcpServers") {
        return None;
    }
    let names = ["mcpServers", "servers"];
    let close = |key: &str| keys::nearest(key, names.into_iter()).is_some();
    // VS Code's, Zed's, Codex's and Amp's settings.
    let other = |key: &str| {
        matches!(
            key,
            "mcp.servers" | "context_servers" | "mcp_servers" | "amp.mcpServers"
        )
    };
    let meant = root.keys().find(|key| close(key) || other(key));
    let nested = || {
        root.iter().find_map(|(outer, value)| {
            let inner = value.as_object()?.keys().find(|key| close(key))?;
            Some(format!("{outer}.{inner}"))
        })
    };
    let fix = match meant.cloned().or_else(nested) {
        Some(key) if key.contains('.') => {
            format!("move what is in {key} into \"mcpServers\" at the top of the file")
        }
        Some(key) => format!("rename {key} to mcpServers"),
        None => r#"add "mcpServers": {"time": {"command": "uvx", "args": ["mcp-server-time"]}}"#
            .to_owned(),
    };
    Some(Fault::new("mcpServers", "it is missing", fix))
}

#[cfg(test)]
mod tests;
