//! The public base URL, which all returned links begin with.

use std::{fmt, net::IpAddr, str::FromStr};

use url::Url;

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
