//! All routes, by the path of a request.

use std::{borrow::Cow, sync::Arc};

use axum::http::Method;
use bridge_model::ServerName;
use bridge_openapi::path_segment;
use percent_encoding::percent_decode_str;

use crate::config::{Directory, Listen, RESERVED_NAMES};

/// The pattern for logs and metrics if no route matches.
const NO_PATTERN: &str = "none";

/// The route of a path. Names are percent-decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route<'p> {
    Health,
    Live,
    Ready,
    Metrics,
    RootDocument,
    Index,
    Asset(Cow<'p, str>),
    /// A tool, a document or a page of a server.
    Server(Mount, Cow<'p, str>, Cow<'p, str>),
    /// One server, or all of them.
    Mcp(Option<Cow<'p, str>>),
    /// Uploads at `/files` itself, downloads below it.
    Files(&'p str),
    Unknown,
    /// The path is not UTF-8.
    NotText,
}

impl<'p> Route<'p> {
    /// Parses the path below the base. A trailing slash is significant only in the name of a tool. A single server's
    /// tools may have the names of the bridge's own routes that accept no calls.
    fn parse(path: &'p str, single: Option<&'p str>, calls: bool) -> Self {
        let bare = path.trim_end_matches('/');
        let (first, rest) = match bare.strip_prefix('/').map(|bare| bare.split_once('/')) {
            Some(Some((first, rest))) => (first, Some(rest)),
            _ => (bare.strip_prefix('/').unwrap_or_default(), None),
        };
        let of_single = |leaf| match single {
            Some(single) => with(leaf, |leaf| {
                Self::Server(Mount::Single, single.into(), leaf)
            }),
            None => Self::Unknown,
        };
        match (first, rest) {
            ("", None) => Self::Unknown,
            ("mcp", None) => Self::Mcp(None),
            ("files", _) => Self::Files(bare),
            (leaf, None) if single.is_some() && calls => of_single(leaf),
            ("health", None) => Self::Health,
            ("health", Some("live")) => Self::Live,
            ("health", Some("ready")) => Self::Ready,
            ("metrics", None) => Self::Metrics,
            ("openapi.json", None) => Self::RootDocument,
            ("docs", None) => Self::Index,
            ("docs", Some(rest)) => match rest.strip_prefix("assets/") {
                Some(file) if !file.contains('/') => with(file, Self::Asset),
                _ => Self::Unknown,
            },
            ("mcp", Some(server)) => with(server, |server| Self::Mcp(Some(server))),
            ("mcpo", Some(_)) => Self::of_server(Mount::Mcpo, &path["/mcpo/".len()..]),
            (_, Some(_)) => Self::of_server(Mount::Root, &path[1..]),
            (leaf, None) => of_single(leaf),
        }
    }

    fn of_server(mount: Mount, path: &'p str) -> Self {
        match path.split_once('/') {
            Some((server, leaf)) if !server.is_empty() && !leaf.is_empty() => {
                let (Some(server), Some(leaf)) = (decoded(server), decoded(leaf)) else {
                    return Self::NotText;
                };
                // At the root a server with the name of one of the bridge's routes has no address.
                if mount == Mount::Root && RESERVED_NAMES.contains(&&*server) {
                    return Self::Unknown;
                }
                Self::Server(mount, server, leaf)
            }
            _ => Self::Unknown,
        }
    }

    /// The supported methods.
    pub fn methods(&self) -> &'static [Method] {
        const ALL: [Method; 4] = [Method::GET, Method::HEAD, Method::POST, Method::DELETE];
        match self {
            Self::Mcp(_) => &ALL,
            Self::Server(..) | Self::Files("/files") => &ALL[..3],
            Self::Unknown | Self::NotText => &[],
            _ => &ALL[..2],
        }
    }

    /// Whether it is a health check.
    pub fn is_health(&self) -> bool {
        matches!(self, Self::Health | Self::Live | Self::Ready)
    }

    /// The pattern for logs and metrics: never the path itself, since links contain tokens.
    fn pattern(&self) -> &'static str {
        match self {
            Self::Health => "/health",
            Self::Live => "/health/live",
            Self::Ready => "/health/ready",
            Self::Metrics => "/metrics",
            Self::RootDocument => "/openapi.json",
            Self::Index => "/docs",
            Self::Asset(_) => "/docs/assets/{file}",
            Self::Server(Mount::Mcpo, ..) => "/mcpo/{server}/{*leaf}",
            Self::Server(Mount::Root, ..) => "/{server}/{*leaf}",
            Self::Server(Mount::Single, ..) => "/{leaf}",
            Self::Mcp(None) => "/mcp",
            Self::Mcp(Some(_)) => "/mcp/{*server}",
            Self::Files("/files") => "/files",
            Self::Files(_) => "/files/{*path}",
            Self::Unknown | Self::NotText => NO_PATTERN,
        }
    }
}

fn decoded(name: &str) -> Option<Cow<'_, str>> {
    percent_decode_str(name).decode_utf8().ok()
}

fn with<'p>(name: &'p str, route: impl FnOnce(Cow<'p, str>) -> Route<'p>) -> Route<'p> {
    decoded(name).map_or(Route::NotText, route)
}

/// The routes according to the settings.
#[derive(Debug)]
pub struct Routes {
    /// Prefixes of all routes, the longest first.
    bases: Vec<String>,
    /// A single server, which is also served at the root.
    single: Option<ServerName>,
}

impl Routes {
    /// A proxy may strip the root path, or leave it.
    pub fn new(listen: &Listen, single: Option<ServerName>) -> Self {
        let prefix = listen.path_prefix.clone();
        let root = (!listen.root_path.is_empty()).then(|| format!("{}{prefix}", listen.root_path));
        let bases = root.into_iter().chain([prefix]).collect();
        Self { bases, single }
    }

    /// The route of a path, and its pattern.
    pub fn find<'p>(&'p self, method: &Method, path: &'p str) -> (Route<'p>, Arc<str>) {
        let single = self.single.as_ref().map(ServerName::as_str);
        let calls = method == Method::POST;
        for base in &self.bases {
            let Some(path) = path.strip_prefix(base.as_str()) else {
                continue;
            };
            let route = Route::parse(path, single, calls);
            match route {
                Route::Unknown => {}
                Route::NotText => return (route, NO_PATTERN.into()),
                _ => {
                    let pattern = format!("{base}{}", route.pattern());
                    return (route, pattern.into());
                }
            }
        }
        (Route::Unknown, NO_PATTERN.into())
    }
}

// The addresses of servers.

/// The address at which a server is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mount {
    /// `/mcpo/{server}/…`
    Mcpo,
    /// `/{server}/…`
    Root,
    /// `/…`, for a single server.
    Single,
}

/// The URL of a server's operations, for its document.
pub fn server_url(listen: &Listen, mount: Mount, server: &str) -> String {
    let outside = format!("{}{}", listen.root_path, listen.path_prefix);
    let server = path_segment(server);
    match mount {
        Mount::Mcpo => format!("{outside}/mcpo/{server}"),
        Mount::Root => format!("{outside}/{server}"),
        Mount::Single if outside.is_empty() => "/".to_owned(),
        Mount::Single => outside,
    }
}

/// For servers with slashes in their names: the longest name that is a prefix of the path, and the rest of the path.
/// `None` if the first segment of the path is the server's name, as nearly always.
pub fn with_slashes(directory: &Directory, server: &str, leaf: &str) -> Option<(String, String)> {
    let config = directory.config();
    let names = config.servers.keys().map(ServerName::as_str);
    let of_two = |name: &str| name.len() > server.len() || name == server;
    let mut names = names
        .filter(|name| name.contains('/') && of_two(name))
        .peekable();
    names.peek()?;
    let path = format!("{server}/{leaf}");
    let rest = |name: &str| path.strip_prefix(name)?.strip_prefix('/');
    let found = names.filter_map(|name| Some((name, rest(name)?)));
    let (server, rest) = found.max_by_key(|(name, _)| name.len())?;
    Some((server.to_owned(), rest.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::SettingsArgs;

    fn routes(root: &str, prefix: &str, single: bool) -> Routes {
        let mut listen = SettingsArgs::default().resolve().unwrap().listen;
        (listen.root_path, listen.path_prefix) = (root.to_owned(), prefix.to_owned());
        Routes::new(&listen, single.then(|| "one".parse().unwrap()))
    }

    fn leaf<'p>(mount: Mount, server: &'p str, leaf: &'p str) -> Route<'p> {
        Route::Server(mount, server.into(), leaf.into())
    }

    #[test]
    fn each_path_has_its_route() {
        let routes = routes("", "", false);
        for (path, expected) in [
            ("/health", Route::Health),
            ("/health/", Route::Health),
            ("/health/live", Route::Live),
            ("/health/x", Route::Unknown),
            ("/docs/assets/a.js", Route::Asset("a.js".into())),
            ("/docs/assets/a/b", Route::Unknown),
            ("/mcp", Route::Mcp(None)),
            ("/mcp/", Route::Mcp(None)),
            ("/mcp/a/b/", Route::Mcp(Some("a/b".into()))),
            ("/files", Route::Files("/files")),
            ("/files/t/n", Route::Files("/files/t/n")),
            ("/mcpo/time/now", leaf(Mount::Mcpo, "time", "now")),
            ("/mcpo/time/now/", leaf(Mount::Mcpo, "time", "now/")),
            ("/mcpo/ti%6de/a%2Fb", leaf(Mount::Mcpo, "time", "a/b")),
            ("/mcpo/health/a/b", leaf(Mount::Mcpo, "health", "a/b")),
            ("/time/now", leaf(Mount::Root, "time", "now")),
            ("/mcp%6f/now", Route::Unknown),
            ("/mcpo/%ff/x", Route::NotText),
            ("/mcpo//x", Route::Unknown),
            ("/mcpo/time", Route::Unknown),
            ("/time", Route::Unknown),
            ("/", Route::Unknown),
            ("", Route::Unknown),
            ("//time/x", Route::Unknown),
        ] {
            assert_eq!(routes.find(&Method::GET, path).0, expected, "{path}");
        }
    }

    #[test]
    fn each_route_has_its_methods() {
        let routes = routes("", "", false);
        for (path, expected) in [
            ("/health", "GET HEAD"),
            ("/files", "GET HEAD POST"),
            ("/files/t/n", "GET HEAD"),
            ("/mcpo/time/now", "GET HEAD POST"),
            ("/mcp", "GET HEAD POST DELETE"),
            ("/nowhere", ""),
        ] {
            let (route, _) = routes.find(&Method::GET, path);
            let methods = route.methods().iter().map(Method::as_str);
            assert_eq!(methods.collect::<Vec<_>>().join(" "), expected, "{path}");
        }
    }

    #[test]
    fn what_proxies_and_settings_put_in_front_is_a_part_of_the_pattern() {
        let routes = routes("/api", "/p", false);
        for (path, expected, label) in [
            ("/api/p/health", Route::Health, "/api/p/health"),
            ("/p/health", Route::Health, "/p/health"),
            ("/health", Route::Unknown, "none"),
            ("/px/health", Route::Unknown, "none"),
            ("/p/p/x", leaf(Mount::Root, "p", "x"), "/p/{server}/{*leaf}"),
        ] {
            let (route, pattern) = routes.find(&Method::GET, path);
            assert_eq!((route, &*pattern), (expected, label), "{path}");
        }
    }

    #[test]
    fn a_single_server_is_at_the_root() {
        let routes = routes("", "", true);
        for (path, expected) in [
            ("/now", leaf(Mount::Single, "one", "now")),
            ("/now/", leaf(Mount::Single, "one", "now")),
            ("/health", Route::Health),
            ("/a/b", leaf(Mount::Root, "a", "b")),
            ("/", Route::Unknown),
        ] {
            assert_eq!(routes.find(&Method::GET, path).0, expected, "{path}");
        }
        let called = routes.find(&Method::POST, "/health").0;
        assert_eq!(called, leaf(Mount::Single, "one", "health"));
    }
}
