//! Names at the endpoint of all servers: `{server}_{name}`, as models' interfaces take them.
//!
//! A name depends on its server, on itself and on which servers are configured, never on what other
//! servers offer or whether they run: whoever noted a name still means the same by it when another
//! server comes, fails or changes.

use std::fmt::Write as _;

use bridge_model::ServerName;
use sha2::{Digest as _, Sha256};

/// Models' interfaces take names of up to 64 of `[A-Za-z0-9_-]`.
const LONGEST: usize = 64;
/// Hexadecimal digits at the end of a name that had to be changed.
const DIGITS: usize = 8;
/// How much of a server's name stands in a changed name, where the tool's is long too.
const SERVER_PART: usize = 27;

/// Gives one server's tools and prompts their names.
pub struct Namer<'a> {
    server: &'a ServerName,
    /// What names of servers begin with whose own name begins with this one's.
    rivals: Vec<String>,
}

impl<'a> Namer<'a> {
    /// For `server`, beside all that are configured.
    pub fn new<'b>(
        server: &'a ServerName,
        configured: impl Iterator<Item = &'b ServerName>,
    ) -> Self {
        let own = format!("{server}_");
        let prefixes = configured.map(|other| format!("{other}_"));
        Self {
            server,
            rivals: prefixes
                .filter(|other| other.starts_with(&own) && *other != own)
                .collect(),
        }
    }

    /// The name at the endpoint of what the server calls `own`.
    pub fn name(&self, own: &str) -> String {
        let plain = format!("{}_{own}", self.server);
        if self.stays(&plain) {
            plain
        } else {
            self.changed(own, 0)
        }
    }

    /// A plain name says which server it is of, and no changed name looks like it.
    fn stays(&self, plain: &str) -> bool {
        plain.len() <= LONGEST
            && plain.bytes().all(is_usual)
            && !ends_in_digits(plain)
            && !self.rivals.iter().any(|rival| plain.starts_with(rival))
    }

    /// What is left of both names, and a hash of them. `turn` gives another one, should two hashes
    /// ever be the same.
    pub fn changed(&self, own: &str, turn: u32) -> String {
        let mut hash = Sha256::new();
        for part in [self.server.as_str(), own] {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        hash.update(turn.to_be_bytes());
        let mut digits = String::with_capacity(DIGITS);
        for byte in &hash.finalize()[..DIGITS / 2] {
            let _ = write!(digits, "{byte:02x}");
        }
        let server = server_part(self.server);
        let room = LONGEST - DIGITS - server.len() - 2;
        let own = usual(own);
        let own = &own[..own.len().min(room)];
        format!("{server}_{own}_{digits}")
    }
}

/// Whether `name` may be the name of something of this server's.
pub fn may_be_of(server: &ServerName, name: &str) -> bool {
    let begins_with = |start: &str| {
        name.strip_prefix(start)
            .is_some_and(|rest| rest.starts_with('_'))
    };
    begins_with(server.as_str()) || begins_with(&server_part(server))
}

/// What all names of this server begin with.
pub fn beginning(server: &ServerName) -> String {
    let part = server_part(server);
    // Plain names have the rest of a long one.
    let long = part.len() == SERVER_PART;
    if long { part } else { format!("{part}_") }
}

fn server_part(server: &ServerName) -> String {
    let mut part = usual(server.as_str());
    part.truncate(SERVER_PART);
    part
}

fn is_usual(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-'
}

/// With one `_` for each run of other characters.
fn usual(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut replaced = false;
    for c in text.chars() {
        let fits = c.is_ascii() && is_usual(c as u8);
        match (fits, replaced) {
            (true, _) => out.push(c),
            (false, false) => out.push('_'),
            (false, true) => {}
        }
        replaced = !fits;
    }
    out
}

fn ends_in_digits(name: &str) -> bool {
    let Some((_, end)) = name.rsplit_once('_') else {
        return false;
    };
    let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    end.len() == DIGITS && end.bytes().all(is_digit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn name(server: &str, own: &str, configured: &[&str]) -> String {
        let server: ServerName = server.parse().unwrap();
        let all: Vec<ServerName> = configured
            .iter()
            .map(|name| name.parse().unwrap())
            .collect();
        Namer::new(&server, all.iter()).name(own)
    }

    #[test]
    fn usual_names_stay() {
        assert_eq!(
            name("excel", "write_range", &["excel", "word"]),
            "excel_write_range"
        );
        let longest = "x".repeat(64 - "excel_".len());
        assert_eq!(
            name("excel", &longest, &["excel"]),
            format!("excel_{longest}")
        );
    }

    #[test]
    fn others_are_shortened_with_a_hash_that_does_not_change() {
        for (server, own, expected) in [
            (
                "excel",
                "admin.tools/list",
                "excel_admin_tools_list_f0a28069",
            ),
            ("表計算", "書く", "____f196e5d3"),
            ("a b", "c", "a_b_c_0ba54489"),
            // Looks like a changed name.
            ("git", "show_0badcafe", "git_show_0badcafe_80ac0297"),
        ] {
            assert_eq!(name(server, own, &[server, "other"]), expected);
        }
        let long = name("excel", &"x".repeat(100), &["excel"]);
        assert_eq!(long.len(), 64);
        assert_ne!(long, name("excel", &"x".repeat(101), &["excel"]));
    }

    #[test]
    fn two_servers_that_could_mean_the_same_name_never_do() {
        let both = ["a", "a_b"];
        assert_eq!(name("a_b", "c", &both), "a_b_c");
        let other = name("a", "b_c", &both);
        assert!(
            other.starts_with("a_b_c_") && other.len() == "a_b_c_".len() + 8,
            "{other}"
        );
        assert_eq!(name("a", "c", &both), "a_c");
    }

    proptest! {
        #[test]
        fn names_can_be_used_and_say_whose_they_are(
            servers in proptest::collection::btree_set("[ab_]{1,4}|[ab_ 表]{1,6}|[a-z]{60,64}", 1..8),
            tools in proptest::collection::btree_set("[ab_]{0,3}|[ab_./表]{0,6}|[a-f0-9_]{8,80}", 1..8),
            unrelated in "[x-z]{1,9}",
        ) {
            let all: Vec<ServerName> = servers.iter().filter_map(|name| name.parse().ok()).collect();
            let more: Vec<ServerName> = all.iter().cloned().chain(unrelated.parse().ok()).collect();
            let mut seen = std::collections::HashMap::new();
            for server in &all {
                for tool in &tools {
                    let name = Namer::new(server, all.iter()).name(tool);
                    prop_assert!(!name.is_empty() && name.len() <= 64, "{name}");
                    prop_assert!(name.bytes().all(is_usual), "{name}");
                    prop_assert!(may_be_of(server, &name), "{name} of {server}");
                    prop_assert_eq!(&Namer::new(server, more.iter()).name(tool), &name);
                    let before = seen.insert(name.clone(), (server, tool));
                    prop_assert!(before.is_none(), "{name}: {before:?} and {server} {tool}");
                }
            }
        }
    }
}
