//! The page that lists the servers.

use std::fmt::Write;

use super::html::escape;

/// `Content-Security-Policy` of `index_page`: it has no scripts, and its styles are inline.
pub const INDEX_CSP: &str = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; \
    base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// One server in the list.
#[derive(Debug, Clone, Copy)]
pub struct IndexEntry<'a> {
    /// Its name in the config.
    pub name: &'a str,
    /// What it calls itself, if known.
    pub title: Option<&'a str>,
    /// How it is.
    pub status: IndexStatus<'a>,
    /// Where its routes are, as seen from the page, percent-encoded, without a slash at its end:
    /// `mcpo/excel`. A server's own text must never be in it.
    pub url: &'a str,
}

/// Whether a server can be called.
#[derive(Debug, Clone, Copy)]
pub enum IndexStatus<'a> {
    /// Its tools are known.
    Ready {
        /// How many it offers.
        tools: usize,
    },
    /// It is being asked for its tools.
    Starting,
    /// It did not start; it is tried again.
    Failed {
        /// Why, for people.
        reason: &'a str,
    },
}

const STYLE: &str = include_str!("index.css");

/// A plain page without scripts, light or dark as the reader's system is.
pub fn index_page(servers: &[IndexEntry<'_>]) -> String {
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"referrer\" content=\"no-referrer\">\n\
         <link rel=\"icon\" href=\"data:,\">\n\
         <title>mcpo-bridge</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n\
         <h1>mcpo-bridge</h1>\n"
    );
    if servers.is_empty() {
        page.push_str("<p>No servers are configured: add one to <code>mcpServers</code>.</p>\n");
    } else {
        page.push_str("<ul class=\"servers\">\n");
        for server in servers {
            entry(server, &mut page);
        }
        page.push_str("</ul>\n");
    }
    let _ = write!(
        page,
        "<footer>version {}</footer>\n</main>\n</body>\n</html>\n",
        env!("CARGO_PKG_VERSION")
    );
    page
}

fn entry(server: &IndexEntry<'_>, page: &mut String) {
    let [name, url] = [server.name, server.url].map(escape);
    let (class, label) = match server.status {
        IndexStatus::Ready { tools: 1 } => ("ready", "1 tool".into()),
        IndexStatus::Ready { tools } => ("ready", format!("{tools} tools")),
        IndexStatus::Starting => ("starting", "starting".into()),
        IndexStatus::Failed { .. } => ("failed", "failed".into()),
    };
    let _ = write!(
        page,
        "<li class=\"{class}\">\n<h2>{name}</h2>\n<span class=\"status\">{label}</span>\n"
    );
    if let Some(title) = server.title.filter(|title| *title != server.name) {
        let _ = writeln!(page, "<p class=\"title\">{}</p>", escape(title));
    }
    if let IndexStatus::Failed { reason } = server.status {
        let _ = writeln!(page, "<p class=\"reason\">{}</p>", escape(reason));
    }
    let _ = write!(
        page,
        "<p class=\"links\"><a href=\"{url}/docs\">Docs</a> \
         <a href=\"{url}/openapi.json\">openapi.json</a></p>\n</li>\n"
    );
}
