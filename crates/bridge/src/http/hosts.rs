//! Only requests to the bridge's own hosts and origins reach a handler: a page that rebinds its own name to
//! the bridge's address (DNS rebinding) must not act with a browser's rights.

use std::net::SocketAddr;

use axum::http::{HeaderMap, Uri, header, request::Parts, uri::Authority};
use bridge_model::Caller;

use super::{Problem, route::Route};
use crate::{
    app::App,
    config::{ServerAccess, ServerSpec},
    error_table::ErrorKind,
};

/// Refuses unknown `Host` and `Origin` with 403. Health checks are sent to an address and are exempt, as are
/// downloads.
pub fn check(app: &App, route: &Route<'_>, parts: &Parts) -> Result<(), Problem> {
    let refuse = |text: &str| Err(Problem::new(ErrorKind::UNKNOWN_HOST, text));
    if route.is_health() || matches!(route, Route::Files(path) if *path != "/files") {
        return Ok(());
    }
    if !names_us(app, &parts.uri, &parts.headers) {
        return refuse("this host name is not allowed; add it to MCPO_ALLOWED_HOSTS");
    }
    let origins = &app.identity.origins;
    let mut sent = parts.headers.get_all(header::ORIGIN).iter();
    if !sent.all(|origin| origins.admits(origin)) {
        return refuse(
            "this origin is not allowed; add it to MCPO_CORS_ALLOW_ORIGINS, or set MCPO_BASE_URL \
             if it is the bridge's own",
        );
    }
    Ok(())
}

/// Whether a request's host is one of this bridge, which is not so for a page that rebound its name.
fn names_us(app: &App, uri: &Uri, headers: &HeaderMap) -> bool {
    let allowed = &app.settings.listen.allowed_hosts;
    // HTTP/1.1 requires Host; an absolute request target takes precedence.
    match uri.host() {
        Some(target) => known(target, allowed),
        None => host(headers).is_some_and(|host| known(&host, allowed)),
    }
}

/// The host of the only `Host` header.
fn host(headers: &HeaderMap) -> Option<String> {
    let mut all = headers.get_all(header::HOST).iter();
    let one: Authority = all.next()?.to_str().ok()?.parse().ok()?;
    all.next().is_none().then(|| one.host().to_owned())
}

fn known(host: &str, allowed: &[String]) -> bool {
    let host = host.trim_matches(['[', ']']);
    let named = |name: &String| name == "*" || name.eq_ignore_ascii_case(host);
    allowed.iter().any(named)
}

// Readers of documents, pages and metrics.

/// The sender of a request for a document.
pub struct Reader<'r> {
    /// The request.
    pub parts: &'r Parts,
    /// The address of the peer.
    pub peer: SocketAddr,
}

impl Reader<'_> {
    /// Refuses a reader who may not see documents.
    pub async fn admit(&self, app: &App) -> Result<(), Problem> {
        let ip = self.peer.ip();
        app.identity
            .authenticate_document(&self.parts.method, &self.parts.headers, ip)
            .await?;
        Ok(())
    }

    /// The reader as far as the request identifies one, for content that is not public.
    pub fn caller(&self, app: &App) -> Caller {
        app.identity.reader(&self.parts.headers, self.peer.ip())
    }

    /// Whether the reader may see the bridge's own state.
    pub fn is_operator(&self, app: &App) -> bool {
        let headers = &self.parts.headers;
        names_us(app, &self.parts.uri, headers) && app.identity.is_operator(headers, self.peer.ip())
    }

    /// Whether the reader may see a server.
    pub fn sees(&self, app: &App, spec: &ServerSpec) -> bool {
        // A server for all callers needs no identification of the reader.
        spec.allow.is_none() || spec.access(&self.caller(app)) != ServerAccess::None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_brackets_and_case_do_not_matter() {
        let allowed = ["localhost".to_owned(), "::1".to_owned()];
        for (sent, good) in [
            ("localhost", true),
            ("LOCALHOST:8080", true),
            ("[::1]:8080", true),
            ("evil.example", false),
            ("localhost.evil.example", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, sent.parse().unwrap());
            assert_eq!(
                host(&headers).is_some_and(|host| known(&host, &allowed)),
                good,
                "{sent}"
            );
        }
    }

    #[test]
    fn two_hosts_are_no_host() {
        let mut headers = HeaderMap::new();
        headers.append(header::HOST, "localhost".parse().unwrap());
        headers.append(header::HOST, "evil.example".parse().unwrap());
        assert_eq!(host(&headers), None);
    }
}
