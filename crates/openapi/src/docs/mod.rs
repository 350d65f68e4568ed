//! Pages for people: Swagger UI for one server, and the list of servers. Everything is in the
//! binary, and every link is relative, so that the pages work under any path prefix.

mod html;
mod index;

#[cfg(test)]
mod tests;

use std::{borrow::Cow, sync::Arc};

use html::escape;

pub use index::{INDEX_CSP, IndexEntry, IndexStatus, index_page};

/// `Content-Security-Policy` of `docs_page`. Swagger UI sets styles inline and shows its icons
/// as data URIs; scripts come from us alone, and calls go to us alone.
pub const DOCS_CSP: &str = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; \
    img-src 'self' data:; font-src 'self' data:; connect-src 'self'; base-uri 'none'; \
    form-action 'none'; frame-ancestors 'none'";

/// Starts Swagger UI. A file of its own: the page's policy allows no inline script.
const START: &str = include_str!("start.js");

/// The docs page of one server. `openapi_url` is the document's address and `assets_url` that of
/// the assets, without a slash at its end; both as seen from the page: `openapi.json` and
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
