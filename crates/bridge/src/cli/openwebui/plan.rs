//! What has to change in an Open WebUI's connections. Connections that we did not create stay as they are,
//! byte for byte. In ours, what an administrator decides stays: whether it is switched on, which functions it
//! has, added headers, and changed names and access grants.

use serde_json::{Map, Value};

use super::{
    connection::same_origin,
    marker::{self, Marker},
};

/// What we say of a connection; everything else of it is the administrator's.
const OURS: [&str; 7] = [
    "type",
    "url",
    "path",
    "spec_type",
    "spec",
    "auth_type",
    "key",
];
/// What is never shown: it is a secret, or may hold one.
const SECRET: [&str; 3] = ["key", "path", "headers"];

/// The connections as they should be, and what that changes.
pub struct Plan {
    /// All of them, in their order; new ones come last.
    pub connections: Vec<Value>,
    /// What differs.
    pub changes: Vec<Change>,
    /// What was left alone and deserves a look.
    pub notes: Vec<String>,
}

/// One difference.
#[derive(Debug, PartialEq, Eq)]
pub enum Change {
    /// There was none for this server.
    Added(String),
    /// What differs in it, a line each.
    Updated(String, Vec<String>),
    /// Its server is gone.
    Removed(String),
}

/// How to plan.
pub struct Rules<'a> {
    /// Whose connections are ours.
    pub owner: &'a str,
    /// Where ours lead to.
    pub bridge: &'a str,
    /// The names, in lower case, of headers that we set.
    pub headers: &'a [String],
    /// A connection of the same id and type that is not ours becomes ours.
    pub adopt: bool,
}

/// Compares. An error names the connection that stands in the way.
pub fn plan(current: &[Value], wanted: &[Value], rules: &Rules<'_>) -> Result<Plan, String> {
    let mut plan = Plan {
        connections: Vec::new(),
        changes: Vec::new(),
        notes: Vec::new(),
    };
    let mut open: Vec<Option<&Value>> = wanted.iter().map(Some).collect();
    for connection in current {
        let own = Marker::of(connection).filter(|marker| marker.owner == rules.owner);
        let place = match &own {
            Some(marker) => open
                .iter()
                .position(|wanted| is_of(*wanted, &marker.server)),
            None => open.iter().position(|wanted| collides(connection, *wanted)),
        };
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

fn is_of(wanted: Option<&Value>, server: &str) -> bool {
    let marker = wanted.and_then(Marker::of);
    marker.is_some_and(|marker| marker.server == server)
}

/// Open WebUI tells connections apart by their ids, for each type.
fn collides(connection: &Value, wanted: Option<&Value>) -> bool {
    let id = &connection["info"]["id"];
    wanted.is_some_and(|wanted| {
        id.is_string() && wanted["info"]["id"] == *id && kind(wanted) == kind(connection)
    })
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
        // An empty value need not replace an absent one.
        if !current[key].is_null() || wanted[key] != "" {
            now[key] = wanted[key].clone();
        }
    }
    now["info"]["id"] = wanted["info"]["id"].clone();
    let Some(mut marker) = Marker::of(wanted) else {
        return now;
    };
    // An adopted one keeps the grants and the name that it has.
    let unchanged = |ours: Option<&String>, there: String| ours.is_some_and(|ours| *ours == there);
    if unchanged(own.map(|own| &own.info), marker::info_digest(current)) {
        for key in ["name", "description"] {
            now["info"][key] = wanted["info"][key].clone();
        }
    } else {
        marker.info = own.map(|own| own.info.clone()).unwrap_or_default();
    }
    if unchanged(own.map(|own| &own.grants), marker::grants_digest(current)) {
        if marker.grants != marker::grants_digest(current) {
            now["config"]["access_grants"] = wanted["config"]["access_grants"].clone();
        }
    } else {
        marker.grants = own.map(|own| own.grants.clone()).unwrap_or_default();
    }
    now["headers"] = Value::Object(headers(current, wanted, &marker, rules));
    now
}

/// The administrator's headers as they are, and ours as they should be.
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
    headers.insert(marker::HEADER.to_owned(), marker.to_string().into());
    headers
}

/// One line for each difference, without secrets.
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

#[cfg(test)]
mod tests;
