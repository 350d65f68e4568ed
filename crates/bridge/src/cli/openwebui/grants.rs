//! Who sees a connection in Open WebUI, derived from `allow`: users should not be offered a server that
//! refuses them.

use clap::ValueEnum;
use serde_json::{Value, json};

use crate::config::{Allow, ServerSpec};

/// Who sees servers without `allow`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Grant {
    /// All users
    #[default]
    Everyone,
    /// Administrators only
    Admins,
}

/// Users and groups of an Open WebUI, as far as they are known.
#[derive(Debug, Default)]
pub struct Directory {
    /// Id and mail address.
    pub users: Vec<(String, String)>,
    /// Id and name.
    pub groups: Vec<(String, String)>,
}

/// The grants of a connection, and the names of `allow` for which there is none.
pub fn grants(spec: &ServerSpec, otherwise: Grant, known: &Directory) -> (Vec<Value>, Vec<String>) {
    match (&spec.allow, otherwise) {
        (Some(allow), _) => of(allow, known),
        (None, Grant::Everyone) => (vec![grant("user", "*")], Vec::new()),
        (None, Grant::Admins) => (Vec::new(), Vec::new()),
    }
}

fn of(allow: &Allow, known: &Directory) -> (Vec<Value>, Vec<String>) {
    // Administrators see every connection, and who has no other role may not sign in.
    if allow.roles().any(|role| role == "user") {
        return (vec![grant("user", "*")], Vec::new());
    }
    let (mut grants, mut unknown) = (Vec::new(), Vec::new());
    let mut add = |kind: &str, name: &str, id: Option<&str>| match id {
        Some(id) => grants.push(grant(kind, id)),
        None => unknown.push(name.to_owned()),
    };
    for name in allow.users() {
        let same = |email: &str| email.to_lowercase() == name.to_lowercase();
        let found = known
            .users
            .iter()
            .find(|(id, email)| id == name || same(email));
        add("user", name, found.map(|(id, _)| &**id).or(as_id(name)));
    }
    for name in allow.groups() {
        let found = known
            .groups
            .iter()
            .find(|(id, called)| id == name || called == name);
        add("group", name, found.map(|(id, _)| &**id).or(as_id(name)));
    }
    for role in allow.roles().filter(|role| *role != "admin") {
        add("role", role, None);
    }
    (grants, unknown)
}

/// Open WebUI's ids are UUIDs: such a name needs no directory.
fn as_id(name: &str) -> Option<&str> {
    uuid::Uuid::parse_str(name).is_ok().then_some(name)
}

fn grant(kind: &str, id: &str) -> Value {
    json!({"principal_type": kind, "principal_id": id, "permission": "read"})
}
