//! Only hosts and origins that are ours reach a handler: a page that rebinds its own name to our
//! address must not act in a browser's name.

use std::borrow::Cow;

use axum::{
    http::{HeaderMap, HeaderValue, StatusCode, Uri, header, uri::Authority},
    response::{IntoResponse as _, Response},
};
use url::Url;

use super::Problem;
use crate::app::App;

/// Refuses unknown `Host` and `Origin` with 403. Health checks come by address and are exempt.
pub fn check(app: &App, uri: &Uri, headers: &HeaderMap) -> Result<(), Response> {
    let listen = &app.settings.listen;
    let path = [&listen.root_path, &listen.path_prefix]
        .iter()
        .fold(uri.path(), |path, front| {
            path.strip_prefix(front.as_str()).unwrap_or(path)
        });
    let exempt = path == "/health" || path.starts_with("/health/") || path.starts_with("/files/");
    if exempt {
        return Ok(());
    }
    // HTTP/1.1 sends Host; an absolute request target counts over it.
    let known_host = match uri.host() {
        Some(target) => known(target, &listen.allowed_hosts),
        None => host(headers).is_some_and(|host| known(&host, &listen.allowed_hosts)),
    };
    if !known_host {
        return Err(refuse("Host"));
    }
    let origin = headers.get(header::ORIGIN);
    if !origin.is_none_or(|origin| known_origin(origin, app)) {
        return Err(refuse("Origin"));
    }
    Ok(())
}

fn refuse(header: &str) -> Response {
    let text = format!("the {header} header names no host of this bridge (MCPO_ALLOWED_HOSTS)");
    Problem::new(StatusCode::FORBIDDEN, "unknown_host", text.into()).into_response()
}

fn host(headers: &HeaderMap) -> Option<Cow<'_, str>> {
    let mut all = headers.get_all(header::HOST).iter();
    let one = all.next()?.to_str().ok()?;
    if all.next().is_some() {
        return None;
    }
    if let Some(host) = plain_host(one) {
        return Some(host.into());
    }
    let authority: Authority = one.parse().ok()?;
    Some(authority.host().to_owned().into())
}

/// Of a name with at most a port, which is how nearly all are sent.
fn plain_host(sent: &str) -> Option<&str> {
    let (host, port) = sent.split_once(':').unwrap_or((sent, "0"));
    let letter = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    let plain = !host.is_empty() && host.bytes().all(letter);
    (plain && port.parse::<u16>().is_ok()).then_some(host)
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
