//! `mcpo-bridge openwebui`: the connections from Open WebUI to the bridge.

mod connection;

use std::fmt;

use bridge_model::hex;
use clap::{Args, Subcommand, ValueEnum};
use connection::{Admin, MakeArgs, Maker, same_origin};
use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use super::{
    Failure, SettingsArgs,
    local::{block_on, until_signal},
    output::{BOLD, plain, print, print_json, warn},
};
use crate::config::{Secret, ServerSpec};

/// The commands.
#[derive(Subcommand)]
pub enum OpenWebUiCommand {
    /// Print the connections for a new Open WebUI (`TOOL_SERVER_CONNECTIONS`)
    #[command(after_help = CONNECTIONS_HELP)]
    Connections(ConnectionsArgs),
    /// Update the connections of a running Open WebUI to match this configuration
    #[command(after_help = SYNC_HELP)]
    Sync(SyncArgs),
    /// Print the path of openapi.json for connections that cannot send a key when fetching the document
    #[command(after_help = SPEC_PATH)]
    SpecPath,
}

const SPEC_PATH: &str = "\
A connection with auth type session sends the user's token and, in a custom header, the API key. When Open \
WebUI fetches openapi.json, it sends neither. With MCPO_STRICT_AUTH, use the printed path instead of \
openapi.json in the connection. The path gives access to documents only, and it changes with the key.

Examples:
  mcpo-bridge openwebui spec-path --api-key-file key.txt";

/// Runs the command.
pub fn run(command: OpenWebUiCommand, settings: &SettingsArgs) -> Result<(), Failure> {
    match command {
        OpenWebUiCommand::Connections(args) => print_connections(args, settings),
        OpenWebUiCommand::Sync(args) => sync(args, settings),
        OpenWebUiCommand::SpecPath => spec_path(settings),
    }
}

fn spec_path(settings: &SettingsArgs) -> Result<(), Failure> {
    let settings = settings.resolve()?;
    let keys = &settings.access.keys;
    if keys.is_empty() {
        let why = "no API key is configured, so openapi.json requires none; set MCPO_API_KEY or \
                   MCPO_API_KEY_FILE to the value of the bridge";
        return Err(Failure::usage(why));
    }
    let one = keys.names().count() == 1;
    for (name, secret) in keys.document_secrets() {
        let path = format!("{secret}/openapi.json");
        let line = if one { path } else { format!("{name}\t{path}") };
        print(&format!("{line}\n"))?;
    }
    Ok(())
}

// `mcpo-bridge openwebui sync`: updates a running Open WebUI.

/// Text after the options in `--help`.
const SYNC_HELP: &str = "\
Adds a connection for each server, updates the connections that it created (URL, type, key, headers) and \
removes those whose servers no longer exist. All other connections stay unchanged. In its own connections it \
keeps the on/off switch, the function filter, added headers, and names and access grants that an administrator \
changed. Run it after adding a server or rotating the API key. Keys are never printed.

Examples:
  mcpo-bridge openwebui sync --url http://open-webui:8080 --bridge-url http://mcpo-bridge:8080 \\
      --admin-key-file admin.key --dry-run";

/// How often to retry when the connections change between reading and writing.
const ATTEMPTS: usize = 3;

/// The arguments of `sync`.
#[derive(Args)]
pub struct SyncArgs {
    /// URL of Open WebUI
    #[arg(long, value_name = "URL", env = "MCPO_OPENWEBUI_URL")]
    url: String,
    /// API key or token of an administrator. Prefer the variable or the file: other users of the machine
    /// can read a command line
    #[arg(
        long,
        value_name = "KEY",
        env = "MCPO_OPENWEBUI_ADMIN_KEY",
        hide_env_values = true
    )]
    admin_key: Option<String>,
    /// File that contains the value of --admin-key
    #[arg(long, value_name = "FILE", env = "MCPO_OPENWEBUI_ADMIN_KEY_FILE")]
    admin_key_file: Option<String>,
    /// URL where Open WebUI reaches the bridge [default: the base URL]
    #[arg(long, value_name = "URL")]
    bridge_url: Option<String>,
    /// Show the changes without applying them
    #[arg(long)]
    dry_run: bool,
    /// Take over manually created connections that have the id of one of this configuration's servers
    #[arg(long)]
    adopt: bool,
    #[command(flatten)]
    make: MakeArgs,
}

/// Compares the connections and applies the changes.
pub fn sync(args: SyncArgs, settings: &SettingsArgs) -> Result<(), Failure> {
    let key = admin_key(args.admin_key, args.admin_key_file)?;
    let maker = Maker::new(args.make, args.bridge_url.as_deref(), settings)?;
    let admin = Admin::new(&args.url, &key)?;
    let work = async {
        let done = synchronize(&admin, &maker, args.adopt, args.dry_run);
        until_signal(done).await?
    };
    let plan = block_on(work)?;
    for text in &plan.notes {
        warn(plain(text));
    }
    print(&report(&plan, args.dry_run))
}

async fn synchronize(
    admin: &Admin,
    maker: &Maker,
    adopt: bool,
    dry: bool,
) -> Result<Plan, Failure> {
    let known = if maker.needs_directory() {
        admin.directory().await?
    } else {
        Directory::default()
    };
    let wanted = maker.connections(&known);
    let rules = maker.rules(adopt);
    for _ in 0..ATTEMPTS {
        let current = admin.connections().await?;
        let plan = plan(&current, &wanted, &rules).map_err(Failure::failed)?;
        if dry || plan.changes.is_empty() {
            return Ok(plan);
        }
        // Plan again if an administrator has changed the connections in the meantime.
        if admin.connections().await? == current {
            admin.set_connections(&plan.connections).await?;
            return Ok(plan);
        }
    }
    Err(Failure::failed(
        "the connections were changed at the same time by someone else; try again",
    ))
}

fn report(plan: &Plan, dry: bool) -> String {
    let mut lines = Vec::new();
    for change in &plan.changes {
        let (sign, name, differences) = match change {
            Change::Added(name) => ('+', name, &[][..]),
            Change::Removed(name) => ('-', name, &[][..]),
            Change::Updated(name, differences) => ('~', name, &differences[..]),
        };
        lines.push(format!("{BOLD}{sign} {}{BOLD:#}", plain(name)));
        let differences = differences.iter();
        lines.extend(differences.map(|line| format!("    {}", plain(line))));
    }
    let end = match (plan.changes.is_empty(), dry) {
        (true, _) => "Open WebUI is up to date.",
        (false, true) => "Nothing was changed (--dry-run).",
        (false, false) => "Connections updated.",
    };
    lines.push(format!("{end}\n"));
    lines.join("\n")
}

fn admin_key(key: Option<String>, file: Option<String>) -> Result<Secret, Failure> {
    let given = |text: Option<String>| text.filter(|text| !text.trim().is_empty());
    let key = match (given(key), given(file)) {
        (Some(key), None) => key,
        (None, Some(file)) => std::fs::read_to_string(&file).map_err(|error| {
            Failure::usage(format!("--admin-key-file: cannot read {file}: {error}"))
        })?,
        (Some(_), Some(_)) => {
            let why = "--admin-key and --admin-key-file are both set; set only one of the two";
            return Err(Failure::usage(why));
        }
        (None, None) => {
            let why = "an administrator's API key or token is required; set --admin-key-file or \
                       MCPO_OPENWEBUI_ADMIN_KEY";
            return Err(Failure::usage(why));
        }
    };
    Ok(Secret::new(key.trim()))
}

// Computes the changes of an Open WebUI's connections. Connections that the bridge did not create are not
// changed, byte for byte. In its own connections, the decisions of an administrator are kept: whether the
// connection is enabled, which functions it has, added headers, and changed names and access grants.

/// The members that the bridge sets; all others belong to the administrator.
const OURS: [&str; 7] = [
    "type",
    "url",
    "path",
    "spec_type",
    "spec",
    "auth_type",
    "key",
];

/// Members that are never shown: they are or may contain secrets.
const SECRET: [&str; 3] = ["key", "path", "headers"];

/// The new connections, and the changes.
pub struct Plan {
    /// All connections, in their order; new ones are last.
    pub connections: Vec<Value>,
    /// The changes.
    pub changes: Vec<Change>,
    /// Connections that were not changed and need the administrator's attention.
    pub notes: Vec<String>,
}

/// One difference.
#[derive(Debug, PartialEq, Eq)]
pub enum Change {
    /// The server had no connection.
    Added(String),
    /// The differences, one line each.
    Updated(String, Vec<String>),
    /// Its server no longer exists.
    Removed(String),
}

/// The rules for a plan.
pub struct Rules<'a> {
    /// The owner in the marker of the bridge's own connections.
    pub owner: &'a str,
    /// The base URL of the bridge's own connections.
    pub bridge: &'a str,
    /// Lower-case names of the headers that the bridge sets.
    pub headers: Vec<String>,
    /// Take over a foreign connection that has the same id and type.
    pub adopt: bool,
}

/// Compares the connections. The error names the conflicting connection.
pub fn plan(current: &[Value], wanted: &[Value], rules: &Rules<'_>) -> Result<Plan, String> {
    let mut plan = Plan {
        connections: Vec::new(),
        changes: Vec::new(),
        notes: Vec::new(),
    };
    let mut open: Vec<Option<&Value>> = wanted.iter().map(Some).collect();
    for connection in current {
        let own = Marker::read(connection).filter(|marker| marker.owner == rules.owner);
        let place = open.iter().position(|wanted| match (wanted, &own) {
            (Some(wanted), Some(own)) => {
                Marker::read(wanted).is_some_and(|marker| marker.server == own.server)
            }
            (Some(wanted), None) => collides(connection, wanted),
            (None, _) => false,
        });
        match (place.and_then(|place| open[place].take()), own) {
            (Some(wanted), None) if !rules.adopt => return Err(in_the_way(wanted, connection)),
            (Some(wanted), own) => {
                let now = updated(connection, wanted, own.as_ref(), rules);
                let lines = differences(connection, &now);
                if !lines.is_empty() {
                    plan.changes.push(Change::Updated(name(connection), lines));
                }
                plan.connections.push(now);
            }
            (None, Some(marker)) if same_origin(url(connection), rules.bridge) => {
                plan.changes.push(Change::Removed(marker.server));
            }
            (None, Some(_)) => {
                plan.notes.push(format!(
                    "{} points to {}, not to this bridge, and is left unchanged; give each bridge a \
                     different --owner, or remove the connection in Open WebUI",
                    name(connection),
                    url(connection)
                ));
                plan.connections.push(connection.clone());
            }
            (None, None) => plan.connections.push(connection.clone()),
        }
    }
    for wanted in open.into_iter().flatten() {
        plan.changes.push(Change::Added(name(wanted)));
        plan.connections.push(wanted.clone());
    }
    Ok(plan)
}

/// Open WebUI distinguishes the connections of each type by their ids.
fn collides(connection: &Value, wanted: &Value) -> bool {
    let id = &connection["info"]["id"];
    id.is_string() && wanted["info"]["id"] == *id && kind(wanted) == kind(connection)
}

fn kind(connection: &Value) -> &str {
    connection["type"].as_str().unwrap_or("openapi")
}

fn in_the_way(wanted: &Value, connection: &Value) -> String {
    format!(
        "a connection with the id {} to {} already exists and was not created by mcpo-bridge; remove it \
         in Open WebUI, or take it over with --adopt",
        wanted["info"]["id"],
        url(connection)
    )
}

fn updated(current: &Value, wanted: &Value, own: Option<&Marker>, rules: &Rules<'_>) -> Value {
    let mut now = current.clone();
    for key in OURS {
        // An empty value does not replace a missing one.
        if !current[key].is_null() || wanted[key] != "" {
            now[key] = wanted[key].clone();
        }
    }
    now["info"]["id"] = wanted["info"]["id"].clone();
    let Some(mut marker) = Marker::read(wanted) else {
        return now;
    };
    // An adopted connection keeps its grants and its name.
    let unchanged = |ours: Option<&String>, there: String| ours.is_some_and(|ours| *ours == there);
    if unchanged(own.map(|own| &own.info), info_digest(current)) {
        for key in ["name", "description"] {
            now["info"][key] = wanted["info"][key].clone();
        }
    } else {
        marker.info = own.map(|own| own.info.clone()).unwrap_or_default();
    }
    if unchanged(own.map(|own| &own.grants), grants_digest(current)) {
        if marker.grants != grants_digest(current) {
            now["config"]["access_grants"] = wanted["config"]["access_grants"].clone();
        }
    } else {
        marker.grants = own.map(|own| own.grants.clone()).unwrap_or_default();
    }
    now["headers"] = Value::Object(headers(current, wanted, &marker, rules));
    now
}

/// The headers of `current` that an administrator added, plus the bridge's own headers.
fn headers(
    current: &Value,
    wanted: &Value,
    marker: &Marker,
    rules: &Rules<'_>,
) -> Map<String, Value> {
    let members = |of: &Value| of["headers"].as_object().cloned().unwrap_or_default();
    let theirs = |name: &String| !rules.headers.contains(&name.to_ascii_lowercase());
    let mut headers = members(current);
    headers.retain(|name, _| theirs(name));
    headers.extend(members(wanted));
    headers.insert(HEADER.to_owned(), marker.to_string().into());
    headers
}

/// One line per difference, without secrets.
fn differences(before: &Value, now: &Value) -> Vec<String> {
    let mut lines = Vec::new();
    let keys = OURS.iter().copied().chain(["headers"]);
    for key in keys.filter(|key| before[key] != now[key]) {
        lines.push(if SECRET.contains(&key) {
            format!("{key}: changed")
        } else {
            format!("{key}: {} → {}", before[key], now[key])
        });
    }
    for key in ["id", "name", "description"] {
        let (old, new) = (&before["info"][key], &now["info"][key]);
        if old != new {
            lines.push(format!("{key}: {old} → {new}"));
        }
    }
    let grants = |of: &Value| of["config"]["access_grants"].clone();
    if grants(before) != grants(now) {
        lines.push(format!("access grants: {} → {}", who(before), who(now)));
    }
    lines
}

fn who(connection: &Value) -> String {
    let grants = connection["config"]["access_grants"].as_array();
    let names = grants.into_iter().flatten().map(|grant| {
        let text = |key: &str| grant[key].as_str().unwrap_or("?");
        match text("principal_id") {
            "*" => "everyone".to_owned(),
            id => format!("{} {id}", text("principal_type")),
        }
    });
    let names: Vec<_> = names.collect();
    if names.is_empty() {
        "administrators".to_owned()
    } else {
        names.join(", ")
    }
}

fn name(connection: &Value) -> String {
    let id = connection["info"]["id"].as_str();
    id.unwrap_or("(no id)").to_owned()
}

fn url(connection: &Value) -> &str {
    connection["url"].as_str().unwrap_or_default()
}

// `mcpo-bridge openwebui connections`: for a new Open WebUI.

/// Text after the options in `--help`.
const CONNECTIONS_HELP: &str = "\
Prints the value of TOOL_SERVER_CONNECTIONS, which Open WebUI reads only while its database is new. For a \
running Open WebUI use `mcpo-bridge openwebui sync`.

Without --show-key the output contains ${MCPO_API_KEY} instead of the key, and with --session \
${MCPO_SPEC_PATH} instead of the path that `mcpo-bridge openwebui spec-path` prints. Ids of users and groups \
in `allow` become access grants; email addresses and group names need a running Open WebUI.

Examples:
  mcpo-bridge openwebui connections --bridge-url http://mcpo-bridge:8080
  TOOL_SERVER_CONNECTIONS=$(mcpo-bridge openwebui connections --show-key --compact)";

/// Printed instead of a key.
const PLACEHOLDER: &str = "${MCPO_API_KEY}";

/// Printed instead of the path that `spec-path` prints.
const PATH_PLACEHOLDER: &str = "${MCPO_SPEC_PATH}";

/// The arguments of `connections`.
#[derive(Args)]
pub struct ConnectionsArgs {
    /// URL where Open WebUI reaches the bridge [default: the base URL]
    #[arg(long, alias = "url", value_name = "URL")]
    bridge_url: Option<String>,
    /// Print the API key itself
    #[arg(long)]
    show_key: bool,
    /// Print the JSON on one line
    #[arg(long)]
    compact: bool,
    #[command(flatten)]
    make: MakeArgs,
}

/// Prints the connections.
fn print_connections(args: ConnectionsArgs, settings: &SettingsArgs) -> Result<(), Failure> {
    let mut maker = Maker::new(args.make, args.bridge_url.as_deref(), settings)?;
    if !args.show_key {
        maker.hide_key(PLACEHOLDER, PATH_PLACEHOLDER);
    }
    let connections = maker.connections(&Directory::default());
    if args.compact {
        print(&format!("{}\n", serde_json::Value::from(connections)))
    } else {
        print_json(&connections)
    }
}

// Access grants of a connection, derived from `allow`: Open WebUI should not offer users a server that
// refuses them.

/// Who sees servers without `allow`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Grant {
    /// All users
    #[default]
    Everyone,
    /// Administrators only
    Admins,
}

/// The known users and groups of an Open WebUI.
#[derive(Debug, Default)]
pub struct Directory {
    /// Id and mail address.
    pub users: Vec<(String, String)>,
    /// Id and name.
    pub groups: Vec<(String, String)>,
}

/// The grants of a connection, and the names in `allow` without a grant.
pub fn grants(spec: &ServerSpec, otherwise: Grant, known: &Directory) -> (Vec<Value>, Vec<String>) {
    let allow = match (&spec.allow, otherwise) {
        (Some(allow), _) => allow,
        (None, Grant::Everyone) => return (vec![grant("user", "*")], Vec::new()),
        (None, Grant::Admins) => return (Vec::new(), Vec::new()),
    };
    // Administrators see every connection, and users with any other role cannot sign in.
    if allow.roles.iter().any(|role| role == "user") {
        return (vec![grant("user", "*")], Vec::new());
    }
    let (mut grants, mut unknown) = (Vec::new(), Vec::new());
    let mut add = |kind: &str, name: &str, id: Option<&str>| match id {
        Some(id) => grants.push(grant(kind, id)),
        None => unknown.push(name.to_owned()),
    };
    for name in &allow.users {
        let same = |email: &str| email.to_lowercase() == name.to_lowercase();
        let mut users = known.users.iter();
        let found = users.find(|(id, email)| id == name || same(email));
        add("user", name, found.map(|(id, _)| &**id).or(as_id(name)));
    }
    for name in &allow.groups {
        let mut groups = known.groups.iter();
        let found = groups.find(|(id, called)| id == name || called == name);
        add("group", name, found.map(|(id, _)| &**id).or(as_id(name)));
    }
    for role in allow.roles.iter().filter(|role| *role != "admin") {
        add("role", role, None);
    }
    (grants, unknown)
}

/// The name as an id of Open WebUI, if it is a UUID: such a name needs no directory.
fn as_id(name: &str) -> Option<&str> {
    uuid::Uuid::parse_str(name).is_ok().then_some(name)
}

fn grant(kind: &str, id: &str) -> Value {
    json!({"principal_type": kind, "principal_id": id, "permission": "read"})
}

// How the bridge recognizes its own connections: by a header. Open WebUI's page for editing connections keeps
// headers, but drops unknown members.

/// Name of the header.
pub const HEADER: &str = "X-MCPO-Connection";

/// `owner/server; grants=…; info=…`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Marker {
    /// Identifies the bridge, if several manage connections in one Open WebUI.
    pub owner: String,
    /// The server in the config.
    pub server: String,
    /// Digest of the access grants that the bridge set; if the current digest differs, an administrator
    /// changed them.
    pub grants: String,
    /// Digest of the name and description that the bridge set.
    pub info: String,
}

impl Marker {
    /// The marker of a connection; `None` if the bridge did not create it.
    pub fn read(connection: &Value) -> Option<Self> {
        let headers = connection["headers"].as_object()?;
        let mut headers = headers.iter();
        let ours = headers.find(|(name, _)| name.eq_ignore_ascii_case(HEADER));
        let mut parts = ours?.1.as_str()?.split(';').map(str::trim);
        let (owner, server) = parts.next()?.split_once('/')?;
        let decoded = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
        let mut rest = parts.filter_map(|part| part.split_once('='));
        let mut digest = |wanted: &str| {
            let found = rest.find(|(name, _)| *name == wanted);
            found.map_or_else(String::new, |(_, digest)| digest.to_owned())
        };
        Some(Self {
            owner: decoded(owner),
            server: decoded(server),
            grants: digest("grants"),
            info: digest("info"),
        })
    }
}

impl fmt::Display for Marker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let encoded = |text| utf8_percent_encode(text, NON_ALPHANUMERIC);
        let (owner, server) = (encoded(&self.owner), encoded(&self.server));
        let (grants, info) = (&self.grants, &self.info);
        write!(f, "{owner}/{server}; grants={grants}; info={info}")
    }
}

/// A short digest of the grants of a connection; independent of their order and of other members that Open
/// WebUI stores with them.
pub fn grants_digest(connection: &Value) -> String {
    let grants = connection["config"]["access_grants"].as_array();
    let lines = grants.into_iter().flatten().map(|grant| {
        let text = |key: &str| grant[key].as_str().unwrap_or_default();
        let (kind, id) = (text("principal_type"), text("principal_id"));
        format!("{kind} {id} {}", text("permission"))
    });
    let mut lines: Vec<String> = lines.collect();
    lines.sort();
    digest(&lines.join("\n"))
}

/// A short digest of name and description.
pub fn info_digest(connection: &Value) -> String {
    let text = |key: &str| connection["info"][key].as_str().unwrap_or_default();
    digest(&format!("{}\n{}", text("name"), text("description")))
}

fn digest(text: &str) -> String {
    hex(&Sha256::digest(text)[..6])
}

#[cfg(test)]
mod plan_tests {
    use serde_json::json;

    use super::*;

    const BRIDGE: &str = "http://bridge:8080";

    fn wanted(server: &str, grants: &Value) -> Value {
        let mut connection = json!({
            "type": "openapi", "url": format!("{BRIDGE}/mcpo/{server}"), "path": "openapi.json",
            "spec_type": "url", "spec": "", "auth_type": "bearer", "key": "sesame",
            "info": {"id": server, "name": server, "description": ""},
            "config": {"enable": true, "function_name_filter_list": "", "access_grants": grants},
        });
        let marker = Marker {
            owner: "b".into(),
            server: server.into(),
            grants: grants_digest(&connection),
            info: info_digest(&connection),
        };
        connection["headers"] =
            json!({"X-MCPO-Connection": marker.to_string(), "X-Chat": "{{CHAT_ID}}"});
        connection
    }

    fn everyone() -> Value {
        json!([{"principal_type": "user", "principal_id": "*", "permission": "read"}])
    }

    fn ours(server: &str) -> Value {
        wanted(server, &everyone())
    }

    /// A connection that an administrator created.
    fn theirs(id: &str) -> Value {
        json!({"type": "openapi", "url": "http://other/x", "path": "p", "auth_type": "none", "key": "",
           "headers": null, "config": {"enable": false, "odd": [1]}, "info": {"id": id}, "new": 1.0})
    }

    fn run(current: &[Value], wanted: &[Value], adopt: bool) -> Result<Plan, String> {
        let headers = ["x-mcpo-connection", "x-mcpo-key", "x-chat"].map(str::to_owned);
        let rules = Rules {
            owner: "b",
            bridge: BRIDGE,
            headers: headers.to_vec(),
            adopt,
        };
        let plan = plan(current, wanted, &rules)?;
        // A second run changes nothing.
        let again = super::plan(&plan.connections, wanted, &rules)?;
        assert_eq!(again.connections, plan.connections);
        assert_eq!(again.changes, []);
        Ok(plan)
    }

    #[test]
    fn new_ones_come_last_and_gone_ones_go_and_others_stay() {
        let current = [theirs("a"), ours("gone"), theirs("b")];
        let plan = run(&current, &[ours("new")], false).unwrap();
        assert_eq!(plan.connections, [theirs("a"), theirs("b"), ours("new")]);
        let expected = [Change::Removed("gone".into()), Change::Added("new".into())];
        assert_eq!(plan.changes, expected);
    }

    #[test]
    fn a_new_key_and_address_are_taken_over_without_being_shown() {
        let mut old = ours("a");
        old["key"] = "old-secret".into();
        old["url"] = "http://before:1/mcpo/a".into();
        let plan = run(&[old], &[ours("a")], false).unwrap();
        assert_eq!(plan.connections, [ours("a")]);
        let shown = format!("{:?}", plan.changes);
        assert!(
            shown.contains("key: changed") && shown.contains("http://before:1"),
            "{shown}"
        );
        assert!(
            !shown.contains("secret") && !shown.contains("sesame"),
            "{shown}"
        );
    }

    #[test]
    fn what_an_administrator_changed_stays() {
        let mut edited = ours("a");
        edited["config"] = json!({"enable": false, "function_name_filter_list": "x", "access_grants":
        [{"principal_type": "group", "principal_id": "g", "permission": "read"}]});
        edited["info"]["name"] = "Ours!".into();
        edited["headers"]["X-Own"] = "1".into();
        edited["forward_cookies"] = false.into();
        let admins = wanted("a", &json!([]));
        for wanted in [ours("a"), admins] {
            let plan = run(std::slice::from_ref(&edited), &[wanted], false).unwrap();
            assert_eq!(plan.connections, std::slice::from_ref(&edited));
            assert_eq!(plan.changes, []);
        }
    }

    #[test]
    fn what_nobody_changed_follows_the_config() {
        let plan = run(&[ours("a")], &[wanted("a", &json!([]))], false).unwrap();
        assert_eq!(plan.connections, [wanted("a", &json!([]))]);
        let shown = format!("{:?}", plan.changes);
        assert!(shown.contains("everyone → administrators"), "{shown}");
    }

    #[test]
    fn who_has_the_same_id_is_in_the_way_unless_he_is_adopted() {
        let refused = run(&[theirs("a")], &[ours("a")], false).err().unwrap();
        assert!(refused.contains("--adopt") && refused.contains("http://other/x"));
        let plan = run(&[theirs("a")], &[ours("a")], true).unwrap();
        let adopted = &plan.connections[0];
        assert_eq!(adopted["url"], ours("a")["url"]);
        assert_eq!(adopted["config"], theirs("a")["config"], "the grants stay");
        // The same id in a connection of another type is no conflict.
        let mut mcp = theirs("a");
        mcp["type"] = "mcp".into();
        assert_eq!(
            run(&[mcp], &[ours("a")], false).unwrap().connections.len(),
            2
        );
    }

    #[test]
    fn another_bridges_connections_are_not_removed() {
        let mut elsewhere = ours("x");
        elsewhere["url"] = "http://other-bridge/mcpo/x".into();
        let plan = run(&[elsewhere.clone()], &[], false).unwrap();
        assert_eq!((plan.connections, plan.notes.len()), (vec![elsewhere], 1));
        let mut owner = ours("x");
        owner["headers"]["X-MCPO-Connection"] = "other/x; grants=; info=".into();
        let plan = run(std::slice::from_ref(&owner), &[], false).unwrap();
        assert_eq!((plan.connections, plan.notes.len()), (vec![owner], 0));
    }

    #[test]
    fn odd_connections_harm_nothing() {
        let odd = [
            json!({}),
            json!({"headers": "text", "info": null}),
            json!(null),
            json!({"info": 1}),
        ];
        let plan = run(&odd, &[ours("a")], false).unwrap();
        assert_eq!(plan.connections[..4], odd);
    }
}
