//! What the config may pass on of the user for whom a server works.

use bridge_model::{Caller, Principal};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};

/// The values of `{MCPO_USER_ID}` and its like; empty where nobody said, or proved, who it is.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct UserValues {
    id: String,
    name: String,
    email: String,
    role: String,
    groups: String,
}

/// The placeholders.
pub const USER_PLACEHOLDERS: [&str; 5] = [
    "{MCPO_USER_ID}",
    "{MCPO_USER_NAME}",
    "{MCPO_USER_EMAIL}",
    "{MCPO_USER_ROLE}",
    "{MCPO_USER_GROUPS}",
];

/// What no header can hold as it is, and the sign that begins what is encoded.
const IN_HEADERS: &AsciiSet = &CONTROLS.add(b'%');

impl UserValues {
    /// Of whoever calls. Control characters are left out: no variable and no header takes all of
    /// them.
    pub fn of(caller: &Caller) -> Self {
        let Principal::User(id) = &caller.principal else {
            return Self::default();
        };
        let clean = |text: &str| text.chars().filter(|c| !c.is_control()).collect::<String>();
        let known = |text: &Option<Box<str>>| clean(text.as_deref().unwrap_or_default());
        let user = &caller.user;
        Self {
            id: clean(id),
            name: known(&user.name),
            email: known(&user.email),
            role: known(&user.role),
            groups: clean(&user.groups.join(",")),
        }
    }

    /// Each placeholder with its value.
    pub(super) fn pairs(&self) -> [(&'static str, &str); 5] {
        let values = [&self.id, &self.name, &self.email, &self.role, &self.groups];
        let mut values = values.into_iter();
        USER_PLACEHOLDERS.map(|name| (name, values.next().map_or("", String::as_str)))
    }

    /// The same for headers: percent-encoded where it must be, as Open WebUI does it.
    pub(super) fn in_headers(&self) -> Self {
        let encoded = |text: &str| utf8_percent_encode(text, IN_HEADERS).to_string();
        Self {
            id: encoded(&self.id),
            name: encoded(&self.name),
            email: encoded(&self.email),
            role: encoded(&self.role),
            groups: encoded(&self.groups),
        }
    }
}

/// Whether a text asks for something of the user.
pub fn asks_for_user(text: &str) -> bool {
    USER_PLACEHOLDERS.iter().any(|name| text.contains(name))
}

/// Puts the values of placeholders in, in one pass, so that nothing in an inserted value is taken
/// for a placeholder.
pub(super) fn fill<'a>(text: &'a str, values: &[(&str, &'a str)]) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('{') {
        let (before, from) = rest.split_at(at);
        out.push_str(before);
        let found = values.iter().find_map(|(name, value)| {
            let after = from.strip_prefix(name)?;
            Some((*value, after))
        });
        let (value, after) = found.unwrap_or(("{", &from[1..]));
        out.push_str(value);
        rest = after;
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use bridge_model::UserInfo;

    fn ann() -> UserValues {
        UserValues::of(&Caller {
            principal: Principal::User("a-1".into()),
            user: UserInfo {
                name: Some("Änn {MCPO_USER_ID}\r\nX-Evil: 1\0".into()),
                groups: vec!["a".into(), "b".into()],
                ..UserInfo::default()
            },
            ..Caller::nobody(Ipv4Addr::LOCALHOST.into())
        })
    }

    #[test]
    fn values_are_put_in_once_and_hold_no_controls() {
        let text = "{MCPO_USER_ID}|{MCPO_USER_NAME}|{MCPO_USER_GROUPS}|{MCPO_USER_ROLE}|{X}";
        assert_eq!(
            fill(text, &ann().pairs()),
            "a-1|Änn {MCPO_USER_ID}X-Evil: 1|a,b||{X}"
        );
        assert!(asks_for_user(text) && !asks_for_user("{MCPO_WORKDIR}"));
    }

    #[test]
    fn in_headers_they_are_ascii() {
        let values = ann().in_headers();
        let name = fill("{MCPO_USER_NAME}", &values.pairs());
        assert_eq!(name, "%C3%84nn {MCPO_USER_ID}X-Evil: 1");
    }

    #[test]
    fn a_key_and_nobody_have_no_values() {
        for principal in [Principal::Key("k".into()), Principal::Anonymous] {
            let mut caller = Caller::nobody(Ipv4Addr::LOCALHOST.into());
            caller.principal = principal;
            assert!(UserValues::of(&caller) == UserValues::default());
        }
    }
}
