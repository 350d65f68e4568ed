//! The addresses of servers.

use bridge_model::ServerName;
use bridge_openapi::path_segment;

use crate::{app::App, config::Listen};

/// Which of its addresses a server is asked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Front {
    /// `/mcpo/{server}/…`
    Mcpo,
    /// `/{server}/…`
    Root,
    /// `/…`, for a single server.
    Single,
}

/// The address of a server's operations, as its document names it.
pub fn server_url(listen: &Listen, front: Front, server: &str) -> String {
    let outside = format!("{}{}", listen.root_path, listen.path_prefix);
    let server = path_segment(server);
    match front {
        Front::Mcpo => format!("{outside}/mcpo/{server}"),
        Front::Root => format!("{outside}/{server}"),
        Front::Single if outside.is_empty() => "/".to_owned(),
        Front::Single => outside,
    }
}

/// A server whose name has slashes, and what follows it in a path.
pub struct Named {
    path: String,
    server: usize,
}

impl Named {
    /// The server's name, and the rest.
    pub fn parts(&self) -> (&str, &str) {
        (&self.path[..self.server], &self.path[self.server + 1..])
    }
}

/// Where names have slashes, the longest of them that the path begins with is meant. `None` where the
/// first part of the path is the server's name, as nearly always.
pub fn with_slashes(app: &App, server: &str, leaf: &str) -> Option<Named> {
    let config = app.directory.config();
    let names = config.servers.keys().map(ServerName::as_str);
    let of_two = |name: &str| name.len() > server.len() || name == server;
    let mut names = names
        .filter(|name| name.contains('/') && of_two(name))
        .peekable();
    names.peek()?;
    let path = format!("{server}/{leaf}");
    let begins = |name: &&str| {
        path.strip_prefix(*name)
            .is_some_and(|rest| rest.starts_with('/'))
    };
    let server = names.filter(begins).map(str::len).max()?;
    Some(Named { path, server })
}
