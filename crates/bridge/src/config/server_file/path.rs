//! A place in the file, as people write it: `mcpServers.excel.args[2]`.

use std::fmt;

/// A path of keys and indexes. Keys that would be misread are put into `["…"]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Path(String);

impl Path {
    pub(super) fn root() -> Self {
        Self(String::new())
    }

    pub(super) fn server(name: &str) -> Self {
        Self("mcpServers".into()).key(name)
    }

    pub(super) fn key(&self, key: &str) -> Self {
        let plain = |c: char| !c.is_control() && !c.is_whitespace() && !".[]\"".contains(c);
        if key.is_empty() || !key.chars().all(plain) {
            return Self(format!("{}[{key:?}]", self.0));
        }
        let dot = if self.0.is_empty() { "" } else { "." };
        Self(format!("{}{dot}{key}", self.0))
    }

    /// Whether `place` is this place or one within it.
    pub(super) fn holds(&self, place: &str) -> bool {
        let rest = place.strip_prefix(&self.0);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
    }

    pub(super) fn index(&self, index: usize) -> Self {
        Self(format!("{}[{index}]", self.0))
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<Path> for String {
    fn from(path: Path) -> Self {
        path.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_holds_itself_and_what_is_in_it() {
        let path = Path::server("a");
        for inner in [
            path.clone(),
            path.key("env"),
            path.key("x.y"),
            path.index(0),
        ] {
            assert!(path.holds(&inner.to_string()), "{inner}");
        }
        assert!(!path.holds("mcpServers.ab") && !path.holds("mcpServers"));
    }

    #[test]
    fn odd_keys_stay_readable() {
        let path = Path::server("a.b").key("env").key("").key("X").index(3);
        assert_eq!(path.to_string(), r#"mcpServers["a.b"].env[""].X[3]"#);
        assert_eq!(Path::server("日本").to_string(), "mcpServers.日本");
    }
}
