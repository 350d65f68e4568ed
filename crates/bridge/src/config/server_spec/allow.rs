//! Who may use a server.

use bridge_model::{Caller, Principal};

/// `allow` of a server: whom the server is there for. A caller who is in one of the lists is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Allow {
    users: Vec<Name>,
    groups: Vec<Name>,
    roles: Vec<Name>,
    keys: Vec<Name>,
}

/// What a caller may do with a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServerAccess {
    /// Everything.
    Use,
    /// He is believed and names no user: Open WebUI, which asks what there is before anybody
    /// chats. He may read what the server offers, and that is all.
    Read,
    /// There is no such server for him.
    None,
}

/// A name of a list, beside its form for comparing where case does not matter.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Name {
    exact: Box<str>,
    folded: Box<str>,
}

impl Name {
    fn of(text: &str) -> Self {
        let exact = text.trim();
        Self {
            exact: exact.into(),
            folded: exact.to_lowercase().into(),
        }
    }
}

impl Allow {
    /// Lists as the file has them. White space around names does not count.
    pub fn new(users: &[String], groups: &[String], roles: &[String], keys: &[String]) -> Self {
        let names = |list: &[String]| list.iter().map(|text| Name::of(text)).collect();
        Self {
            users: names(users),
            groups: names(groups),
            roles: names(roles),
            keys: names(keys),
        }
    }

    /// Users, by id or mail address.
    pub fn users(&self) -> impl Iterator<Item = &str> {
        exact(&self.users)
    }

    /// Groups, by name or id.
    pub fn groups(&self) -> impl Iterator<Item = &str> {
        exact(&self.groups)
    }

    /// Roles.
    pub fn roles(&self) -> impl Iterator<Item = &str> {
        exact(&self.roles)
    }

    /// What this caller may do.
    pub fn access(&self, caller: &Caller) -> ServerAccess {
        let admitted = match &caller.principal {
            Principal::User(id) => self.has_user(id, caller),
            Principal::Key(name) => has(&self.keys, name),
            Principal::Anonymous => false,
        };
        let names_user = matches!(caller.principal, Principal::User(_));
        match (admitted, caller.trusted && !names_user) {
            (true, _) => ServerAccess::Use,
            (false, true) => ServerAccess::Read,
            (false, false) => ServerAccess::None,
        }
    }

    fn has_user(&self, id: &str, caller: &Caller) -> bool {
        let user = &caller.user;
        let email = user.email.as_deref().map(str::to_lowercase);
        let is_email = |name: &Name| email.as_deref() == Some(&*name.folded);
        has(&self.users, id)
            || self.users.iter().any(is_email)
            || user
                .role
                .as_deref()
                .is_some_and(|role| has(&self.roles, role))
            || user.groups.iter().any(|group| has(&self.groups, group))
    }
}

fn exact(names: &[Name]) -> impl Iterator<Item = &str> {
    names.iter().map(|name| &*name.exact)
}

fn has(names: &[Name], wanted: &str) -> bool {
    names.iter().any(|name| &*name.exact == wanted)
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use bridge_model::UserInfo;

    fn caller(principal: Principal, trusted: bool) -> Caller {
        Caller {
            principal,
            user: UserInfo {
                email: Some("Ann@Example.com".into()),
                role: Some("user".into()),
                groups: vec!["sales".into(), "g-1".into()],
                ..UserInfo::default()
            },
            trusted,
            ..Caller::nobody(IpAddr::from([192, 0, 2, 1]))
        }
    }

    fn ann() -> Caller {
        caller(Principal::User("ann-id".into()), true)
    }

    fn allow(key: &str, name: &str) -> Allow {
        let of = |wanted: &str| {
            if key == wanted {
                vec![name.to_owned()]
            } else {
                Vec::new()
            }
        };
        Allow::new(&of("users"), &of("groups"), &of("roles"), &of("keys"))
    }

    #[test]
    fn one_list_is_enough() {
        for (key, name) in [
            ("users", "ann-id"),
            ("users", " ann@EXAMPLE.com "),
            ("groups", "sales"),
            ("groups", "g-1"),
            ("roles", "user"),
        ] {
            assert_eq!(
                allow(key, name).access(&ann()),
                ServerAccess::Use,
                "{key} {name}"
            );
        }
        for (key, name) in [
            ("users", "ANN-ID"),
            ("users", "ann"),
            ("users", ""),
            ("users", "sales"),
            ("groups", "Sales"),
            ("groups", "ann-id"),
            ("roles", "admin"),
            ("keys", "ann-id"),
        ] {
            assert_eq!(
                allow(key, name).access(&ann()),
                ServerAccess::None,
                "{key} {name}"
            );
        }
    }

    #[test]
    fn who_names_no_user_reads_if_he_is_believed() {
        let nobody = |trusted| caller(Principal::Anonymous, trusted);
        let key = |name: &str| caller(Principal::Key(name.into()), true);
        for allow in [allow("users", "ann-id"), allow("roles", "user")] {
            assert_eq!(allow.access(&nobody(false)), ServerAccess::None);
            assert_eq!(allow.access(&nobody(true)), ServerAccess::Read);
            assert_eq!(allow.access(&key("robot")), ServerAccess::Read);
        }
        let robots = allow("keys", "robot");
        assert_eq!(robots.access(&key("robot")), ServerAccess::Use);
        assert_eq!(robots.access(&key("other")), ServerAccess::Read);
        assert_eq!(
            robots.access(&ann()),
            ServerAccess::None,
            "a user is a user"
        );
    }
}
