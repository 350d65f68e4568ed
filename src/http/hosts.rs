//! Only hosts and origins that are ours reach a handler: a page that rebinds its own name to our
//! address must not act in a browser's name.

use axum::{
    extract::Request,
    http::{HeaderMap, HeaderValue, StatusCode, header, uri::Authority},
    response::{IntoResponse as _, Response},
};
use url::Url;

use super::{Problem, peers::proven};
use crate::app::App;

/// Refuses unknown `Host` and `Origin` with 403. Health checks come by address and are exempt.
pub fn check(app: &App, request: &Request) -> Result<(), Response> {
    let listen = &app.settings.listen;
    let path = request.uri().path();
    let path = [&listen.root_path, &listen.path_prefix]
        .iter()
        .fold(path, |path, front| {
            path.strip_prefix(front.as_str()).unwrap_or(path)
        });
    let exempt = path == "/health" || path.starts_with("/health/") || path.starts_with("/files/");
    // Another replica names this one as it reaches it.
    if !exempt && proven(request.extensions()).is_none() {
        // HTTP/1.1 sends Host; an absolute request target counts over it.
        let target = request.uri().host().map(str::to_owned);
        let host = target.or_else(|| host(request.headers()));
        if !host.is_some_and(|host| known(&host, &listen.allowed_hosts)) {
            return Err(refuse("Host"));
        }
        let origin = request.headers().get(header::ORIGIN);
        if !origin.is_none_or(|origin| known_origin(origin, app)) {
            return Err(refuse("Origin"));
        }
    }
    Ok(())
}

fn refuse(header: &str) -> Response {
    let text = format!("the {header} header names no host of this bridge (MCPO_ALLOWED_HOSTS)");
    Problem::new(StatusCode::FORBIDDEN, "unknown_host", text.into()).into_response()
}

fn host(headers: &HeaderMap) -> Option<String> {
    let mut all = headers.get_all(header::HOST).iter();
    let one = all.next()?.to_str().ok()?;
    if all.next().is_some() {
        return None;
    }
    let authority: Authority = one.parse().ok()?;
    Some(authority.host().to_owned())
}

fn known(host: &str, allowed: &[String]) -> bool {
    let host = host.trim_matches(['[', ']']);
    let named = |name: &String| name == "*" || name.eq_ignore_ascii_case(host);
    allowed.iter().any(named)
}

fn known_origin(origin: &HeaderValue, app: &App) -> bool {
    let listen = &app.settings.listen;
    let Ok(origin) = origin.to_str() else {
        return false;
    };
    let named = |allowed: &String| allowed == "*" || allowed == origin;
    if listen.cors_allow_origins.iter().any(named) {
        return true;
    }
    let url = Url::parse(origin).ok();
    url.and_then(|url| {
        url.host_str()
            .map(|host| known(host, &listen.allowed_hosts))
    })
    .unwrap_or(false)
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
