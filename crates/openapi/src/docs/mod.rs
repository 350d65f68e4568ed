//! HTML pages: Swagger UI for one server, and the list of servers. All files are in the
//! binary, and every link is relative, so that the pages work under any path prefix.

use std::{borrow::Cow, fmt::Write, sync::Arc};

/// `Content-Security-Policy` of `docs_page`. Swagger UI sets styles inline and has its icons
/// as data URIs; scripts and calls are limited to the bridge's origin.
pub const DOCS_CSP: &str = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; \
    img-src 'self' data:; font-src 'self' data:; connect-src 'self'; base-uri 'none'; \
    form-action 'none'; frame-ancestors 'none'";

/// Starts Swagger UI. A separate file, because the page's policy allows no inline script.
const START: &str = include_str!("start.js");

/// The docs page of one server. `openapi_url` is the document's address and `assets_url` that of
/// the assets, without a trailing slash; both relative to the page: `openapi.json` and
/// `../../docs/assets`.
pub fn docs_page(title: &str, openapi_url: &str, assets_url: &str) -> String {
    let [title, openapi_url, assets] = [title, openapi_url, assets_url].map(escape);
    format!(
        r#"<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<title>{title}</title>
<link rel="icon" type="image/png" href="{assets}/favicon-32x32.png">
<link rel="stylesheet" href="{assets}/swagger-ui.css">
</head>
<body>
<div id="swagger-ui" data-openapi="{openapi_url}"></div>
<noscript>This page needs JavaScript. The document itself: <a href="{openapi_url}">{openapi_url}</a></noscript>
<script src="{assets}/swagger-ui-bundle.js"></script>
<script src="{assets}/start.js"></script>
</body>
</html>
"#
    )
}

/// A file of `assets_url` by its name: its content type and bytes. They change only with the
/// binary, so caching by version is safe.
pub fn asset(path: &str) -> Option<(Cow<'static, str>, Cow<'static, [u8]>)> {
    const SERVED: [&str; 4] = [
        "swagger-ui.css",
        "swagger-ui-bundle.js",
        "favicon-16x16.png",
        "favicon-32x32.png",
    ];
    if path == "start.js" {
        return Some((
            "text/javascript; charset=utf-8".into(),
            START.as_bytes().into(),
        ));
    }
    if !SERVED.contains(&path) {
        return None;
    }
    let config = Arc::new(utoipa_swagger_ui::Config::from("unused"));
    let file = utoipa_swagger_ui::serve(path, config).ok()??;
    Some((file.content_type.into(), file.bytes))
}

// HTML escaping.

/// Escapes for text and for quoted attributes.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
        .replace('\'', "&#39;")
}

// The page that lists the servers.

/// `Content-Security-Policy` of `index_page`: it has no scripts, and its styles are inline.
pub const INDEX_CSP: &str = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; \
    base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// One server in the list.
#[derive(Debug, Clone, Copy)]
pub struct IndexEntry<'a> {
    /// Its name in the config.
    pub name: &'a str,
    /// Its own title, if known.
    pub title: Option<&'a str>,
    /// Its status.
    pub status: IndexStatus<'a>,
    /// The address of its routes, relative to the page, percent-encoded, without a trailing slash:
    /// `mcpo/excel`. It must never contain a server's own text.
    pub url: &'a str,
}

/// Whether a server can be called.
#[derive(Debug, Clone, Copy)]
pub enum IndexStatus<'a> {
    /// Its tools are known.
    Ready {
        /// The number of offered tools.
        tools: usize,
    },
    /// The list of its tools is being read.
    Starting,
    /// It failed to start; the start is retried.
    Failed {
        /// The reason, for users.
        reason: &'a str,
    },
}

const STYLE: &str = include_str!("index.css");

/// A plain page without scripts, light or dark according to the reader's system.
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

#[cfg(test)]
mod tests {
    use super::{IndexEntry, IndexStatus, asset, docs_page, index_page};

    const EVIL: &str = r#"<script>alert("x")</script>'&"#;

    #[test]
    fn nothing_of_a_servers_text_becomes_markup() {
        let entry = IndexEntry {
            name: EVIL,
            title: Some(EVIL),
            status: IndexStatus::Failed { reason: EVIL },
            url: EVIL,
        };
        for page in [docs_page(EVIL, EVIL, EVIL), index_page(&[entry])] {
            assert!(!page.contains("<script>"), "{page}");
            assert!(!page.contains("alert(\""));
            assert!(page.contains("&lt;script&gt;alert(&quot;x&quot;)&lt;/script&gt;&#39;&amp;"));
        }
    }

    #[test]
    fn every_asset_of_the_page_is_in_the_binary() {
        let page = docs_page("Excel", "openapi.json", "../../docs/assets");
        let names: Vec<&str> = page
            .split("../../docs/assets/")
            .skip(1)
            .filter_map(|rest| rest.split('"').next())
            .collect();
        assert_eq!(
            names,
            [
                "favicon-32x32.png",
                "swagger-ui.css",
                "swagger-ui-bundle.js",
                "start.js"
            ]
        );
        for name in names {
            let (kind, bytes) = asset(name).unwrap_or_else(|| panic!("{name} is missing"));
            assert!(!bytes.is_empty());
            let expected = match name.rsplit('.').next() {
                Some("js") => "text/javascript",
                Some("css") => "text/css",
                _ => "image/png",
            };
            assert!(kind.starts_with(expected), "{name}: {kind}");
        }
    }

    #[test]
    fn only_named_assets_are_served() {
        for path in [
            "",
            "/",
            "index.html",
            "../start.js",
            "swagger-initializer.js",
            "start.js/",
        ] {
            assert!(asset(path).is_none(), "{path}");
        }
    }

    #[test]
    fn the_pages_load_nothing_from_elsewhere() {
        let entry = IndexEntry {
            name: "excel",
            title: None,
            status: IndexStatus::Starting,
            url: "mcpo/excel",
        };
        for page in [
            docs_page("Excel", "openapi.json", "../docs/assets"),
            index_page(&[entry]),
        ] {
            assert!(!page.contains("//"), "{page}");
            assert!(
                !page.contains("=\"/"),
                "an absolute path breaks under a prefix: {page}"
            );
        }
    }

    #[test]
    fn the_index_tells_how_each_server_is() {
        let entry = |name, status| IndexEntry {
            name,
            title: Some("Title"),
            status,
            url: "mcpo/x",
        };
        insta::assert_snapshot!(index_page(&[
            entry("time", IndexStatus::Ready { tools: 1 }),
            entry("excel", IndexStatus::Ready { tools: 14 }),
            entry("slow", IndexStatus::Starting),
            entry(
                "dead",
                IndexStatus::Failed {
                    reason: "uvx: not found"
                }
            ),
        ]));
        assert!(index_page(&[]).contains("No servers"));
    }
}
