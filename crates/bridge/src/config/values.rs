//! Values of settings with rules of their own: a secret is never printed, API keys are stored as hashes, and the
//! public base URL can begin a link.

use std::{fmt, net::IpAddr, str::FromStr};

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use sha2::{Digest, Sha256};
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};
use url::Url;

// A text that must never appear in a log, an error or a dump.

/// A secret value. `Debug` shows that there is one, but not its content.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Box<str>);

impl Secret {
    /// Wraps a value.
    pub fn new(text: impl Into<Box<str>>) -> Self {
        Self(text.into())
    }

    /// The value itself: for headers, environments and comparisons, never for output.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[hidden]")
    }
}

// The API keys, stored as hashes, so that they cannot be printed.

/// `MCPO_API_KEY`: named keys. Two keys may share a name, so that a key can be rotated without a change of
/// its principal.
#[derive(Clone, Default)]
pub struct KeyRing(Vec<NamedKey>);

#[derive(Clone)]
struct NamedKey {
    name: Box<str>,
    digest: [u8; 32],
}

/// Why a list of keys was refused; contains no part of a key.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidKeys {
    /// Several keys without a name would be the same principal.
    #[error("several keys have no name: write each as NAME:KEY")]
    Unnamed,
    /// The text before the colon is not a valid name.
    #[error(
        "key number {0} has an invalid name: use 1 to 64 letters, digits, '.', '_', '-' before \
         the colon (a key that contains a colon needs a name)"
    )]
    Name(usize),
    /// The text after the colon is empty.
    #[error("key number {0} is empty: write NAME:KEY")]
    Empty(usize),
}

/// The name of a key that has no name in the setting.
const UNNAMED: &str = "default";

impl KeyRing {
    /// Parses keys that are separated by commas or line ends, each `NAME:KEY` or, once, `KEY` (which is then
    /// named `default`). Empty entries are skipped.
    pub fn parse(text: &str) -> Result<Self, InvalidKeys> {
        let mut keys = Vec::new();
        let mut unnamed = 0;
        for (index, (name, key)) in entries(text).enumerate() {
            unnamed += usize::from(name.is_none());
            let name = name.unwrap_or(UNNAMED);
            if !is_name(name) {
                return Err(InvalidKeys::Name(index + 1));
            }
            if key.is_empty() {
                return Err(InvalidKeys::Empty(index + 1));
            }
            keys.push(NamedKey {
                name: name.into(),
                digest: Sha256::digest(key).into(),
            });
        }
        if unnamed > 1 {
            return Err(InvalidKeys::Unnamed);
        }
        // In mcpo a single key with a colon is one key, and its callers send the whole text.
        if let [key] = keys.as_slice()
            && unnamed == 0
        {
            let digest = Sha256::digest(text.trim()).into();
            let name = key.name.clone();
            keys.push(NamedKey { name, digest });
        }
        Ok(Self(keys))
    }

    /// The keys in clear with their names, from a text that [`KeyRing::parse`] accepts.
    pub fn in_clear(text: &str) -> Vec<(String, Secret)> {
        let named =
            |(name, key): (Option<&str>, _)| (name.unwrap_or(UNNAMED).to_owned(), Secret::new(key));
        entries(text).map(named).collect()
    }

    /// Whether no key is set: then no route requires one.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The name of the key that equals `offered`. Takes constant time: all keys are compared, as hashes, so
    /// neither the length nor a matching prefix can be measured.
    pub fn find(&self, offered: &[u8]) -> Option<&str> {
        let digest: [u8; 32] = Sha256::digest(offered).into();
        // 0 means none, so that the selection needs no branch.
        let mut found = 0_u64;
        for (number, key) in (1_u64..).zip(&self.0) {
            let same: Choice = key.digest.ct_eq(&digest);
            found.conditional_assign(&number, same);
        }
        let index = usize::try_from(found.checked_sub(1)?).ok()?;
        Some(&self.0[index].name)
    }

    /// For each key the path component that gives access to documents, and nothing else, without the key: it
    /// changes with the key, and does not reveal it.
    pub fn document_secrets(&self) -> impl Iterator<Item = (&str, String)> {
        self.0.iter().map(|key| (&*key.name, key.document_secret()))
    }

    /// The same for a key in clear.
    pub fn document_secret(key: &Secret) -> String {
        let digest = Sha256::digest(key.expose()).into();
        let name = UNNAMED.into();
        NamedKey { name, digest }.document_secret()
    }

    /// Whether a path component is one of those. Takes constant time.
    pub fn opens_documents(&self, offered: &str) -> bool {
        let same = |key: &NamedKey| key.document_secret().as_bytes().ct_eq(offered.as_bytes());
        let none = Choice::from(0);
        let found = self.0.iter().fold(none, |found, key| found | same(key));
        found.into()
    }

    /// The names, in the order given; a name with several keys is returned once.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let earlier =
            |index: usize, name: &str| self.0[..index].iter().any(|key| &*key.name == name);
        let names = self.0.iter().map(|key| &*key.name).enumerate();
        names.filter_map(move |(index, name)| (!earlier(index, name)).then_some(name))
    }
}

/// Each key, with its name if it has one.
fn entries(text: &str) -> impl Iterator<Item = (Option<&str>, &str)> {
    let entries = text.split([',', '\n', '\r']).map(str::trim);
    let entries = entries.filter(|entry| !entry.is_empty());
    entries.map(|entry| match entry.split_once(':') {
        Some((name, key)) => (Some(name.trim()), key.trim()),
        None => (None, entry),
    })
}

impl NamedKey {
    fn document_secret(&self) -> String {
        let digest = Sha256::new()
            .chain_update("mcpo-bridge: documents\0")
            .chain_update(self.digest)
            .finalize();
        BASE64_URL_SAFE_NO_PAD.encode(&digest[..16])
    }
}

fn is_name(text: &str) -> bool {
    let good = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    (1..=64).contains(&text.len()) && text.chars().all(good)
}

impl fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.names()).finish()
    }
}

// The public base URL, which all returned links begin with.

/// `MCPO_BASE_URL`: an absolute `http`/`https` URL with an optional path, or `/` for links
/// relative to the origin of the page that shows them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BaseUrl {
    /// `/`: links start with a slash.
    Relative,
    /// Links start with this URL; it has no query, no fragment and no credentials.
    Absolute(Url),
}

/// The text is not a valid base URL.
#[derive(Debug, thiserror::Error)]
#[error("not an absolute http or https URL without query, fragment and credentials, nor '/'")]
pub struct InvalidBaseUrl;

impl BaseUrl {
    /// The URL at which a browser on this machine reaches a bridge that listens on this port.
    pub fn local(port: u16, tls: bool) -> Self {
        let scheme = if tls { "https" } else { "http" };
        let url = Url::parse(&format!("{scheme}://localhost:{port}"));
        url.map_or(Self::Relative, Self::Absolute)
    }

    /// The host name or address, lower case, without port; IPv6 without brackets.
    pub fn host(&self) -> Option<String> {
        match self {
            Self::Relative => None,
            Self::Absolute(url) => url
                .host_str()
                .map(|host| host.trim_matches(['[', ']']).to_owned()),
        }
    }

    /// The origin of pages at this URL, as browsers write it.
    pub fn origin(&self) -> Option<String> {
        match self {
            Self::Relative => None,
            Self::Absolute(url) => Some(url.origin().ascii_serialization()),
        }
    }

    /// The host, if it is probably known only in the bridge's own network: a name without a dot, such as a
    /// container's, one of Docker's or Kubernetes' own, or an unspecified address.
    pub fn internal_host(&self) -> Option<String> {
        let host = self.host()?;
        let internal = match host.parse::<IpAddr>() {
            Ok(address) => address.is_unspecified(),
            Err(_) => {
                host != "localhost" && !host.contains('.')
                    || [".docker.internal", ".svc", ".cluster.local"]
                        .iter()
                        .any(|end| host.ends_with(end))
            }
        };
        internal.then_some(host)
    }
}

impl FromStr for BaseUrl {
    type Err = InvalidBaseUrl;
    fn from_str(text: &str) -> Result<Self, InvalidBaseUrl> {
        if text == "/" {
            return Ok(Self::Relative);
        }
        let url = Url::parse(text).map_err(|_| InvalidBaseUrl)?;
        let http = matches!(url.scheme(), "http" | "https") && url.has_host();
        let bare = url.query().is_none() && url.fragment().is_none();
        let open = url.username().is_empty() && url.password().is_none();
        if http && bare && open {
            Ok(Self::Absolute(url))
        } else {
            Err(InvalidBaseUrl)
        }
    }
}

impl fmt::Display for BaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Relative => f.write_str("/"),
            Self::Absolute(url) => f.write_str(url.as_str().trim_end_matches('/')),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_output_shows_it() {
        let secret = Secret::new("hunter2");
        assert_eq!(format!("{secret:?}"), "[hidden]");
        assert_eq!(secret.expose(), "hunter2");
    }

    #[test]
    fn finds_the_holder_of_a_key() {
        let ring = KeyRing::parse("lone-key, alice:k1\nbob:k2:with:colons,,\r\n").unwrap();
        assert_eq!(ring.find(b"lone-key"), Some("default"));
        assert_eq!(ring.find(b"k1"), Some("alice"));
        assert_eq!(ring.find(b"k2:with:colons"), Some("bob"));
        for wrong in ["", "k", "k11", "K1", "alice:k1", "default"] {
            assert_eq!(ring.find(wrong.as_bytes()), None, "{wrong}");
        }
    }

    #[test]
    fn an_empty_ring_opens_for_nobody() {
        let ring = KeyRing::parse(" , \n").unwrap();
        assert!(ring.is_empty());
        assert_eq!(ring.find(b""), None);
    }

    #[test]
    fn a_name_may_hold_two_keys_while_one_is_rotated() {
        let ring = KeyRing::parse("webui:old,webui:new").unwrap();
        assert_eq!(ring.find(b"old"), Some("webui"));
        assert_eq!(ring.find(b"new"), Some("webui"));
    }

    #[test]
    fn a_single_key_with_a_colon_is_known_in_full_too() {
        let ring = KeyRing::parse("top:secret").unwrap();
        assert_eq!(ring.find(b"secret"), Some("top"));
        assert_eq!(ring.find(b"top:secret"), Some("top"));
        assert_eq!(ring.names().collect::<Vec<_>>(), ["top"]);
        let ring = KeyRing::parse("top:secret,b:c").unwrap();
        assert_eq!(ring.find(b"top:secret"), None);
    }

    #[test]
    fn refuses_lists_that_are_ambiguous() {
        assert_eq!(KeyRing::parse("a,b").unwrap_err(), InvalidKeys::Unnamed);
        assert_eq!(KeyRing::parse("a:").unwrap_err(), InvalidKeys::Empty(1));
        assert_eq!(KeyRing::parse("k,:b").unwrap_err(), InvalidKeys::Name(2));
        assert_eq!(KeyRing::parse("a b:c").unwrap_err(), InvalidKeys::Name(1));
    }

    #[test]
    fn each_key_opens_documents_by_a_word_of_its_own_that_says_nothing_of_it() {
        let ring = KeyRing::parse("alice:k1,bob:k2").unwrap();
        let words: Vec<_> = ring.document_secrets().collect();
        assert_eq!(words.len(), 2);
        assert_ne!(words[0].1, words[1].1);
        for (_, word) in &words {
            assert_eq!(word.len(), 22, "{word}");
            assert!(ring.opens_documents(word));
            let own = ["k1", "k2"].map(|key| KeyRing::document_secret(&Secret::new(key)));
            assert!(own.contains(word));
            assert!(!ring.opens_documents(&word[1..]));
            assert_eq!(ring.find(word.as_bytes()), None, "it is no key");
        }
        for wrong in ["k1", "", "alice"] {
            assert!(!ring.opens_documents(wrong), "{wrong}");
        }
    }

    #[test]
    fn debug_shows_names_only() {
        let ring = KeyRing::parse("alice:hunter2").unwrap();
        assert_eq!(format!("{ring:?}"), "[\"alice\"]");
    }

    #[test]
    fn is_shown_without_a_slash_at_its_end() {
        for (base, shown) in [
            ("/", "/"),
            ("http://localhost:8080", "http://localhost:8080"),
            ("https://x.example/", "https://x.example"),
            ("https://x.example/mcpo/", "https://x.example/mcpo"),
        ] {
            let base: BaseUrl = base.parse().unwrap();
            assert_eq!(base.to_string(), shown);
        }
    }

    #[test]
    fn names_its_host_as_a_host_header_would() {
        let host = |text: &str| text.parse::<BaseUrl>().unwrap().host();
        assert_eq!(host("/"), None);
        assert_eq!(host("http://LocalHost:8080").unwrap(), "localhost");
        assert_eq!(host("http://[::1]:8080").unwrap(), "::1");
    }

    #[test]
    fn knows_names_that_a_browser_can_hardly_reach() {
        let internal = |host: &str| {
            let url = format!("http://{host}:8080");
            url.parse::<BaseUrl>().unwrap().internal_host().is_some()
        };
        for host in [
            "mcpo-bridge",
            "0.0.0.0",
            "[::]",
            "host.docker.internal",
            "mcpo-bridge.default.svc",
            "mcpo-bridge.default.svc.cluster.local",
        ] {
            assert!(internal(host), "{host}");
        }
        for host in ["localhost", "127.0.0.1", "[::1]", "192.0.2.10", "x.example"] {
            assert!(!internal(host), "{host}");
        }
        assert_eq!("/".parse::<BaseUrl>().unwrap().internal_host(), None);
    }

    #[test]
    fn refuses_what_would_break_links_or_leak() {
        for bad in [
            "",
            "localhost:8080",
            "ftp://x/",
            "http://x/?a=b",
            "http://x/#a",
            "http://u:p@x/",
            "javascript:alert(1)",
            "//x/",
            "/mcpo",
        ] {
            assert!(bad.parse::<BaseUrl>().is_err(), "{bad}");
        }
    }
}
