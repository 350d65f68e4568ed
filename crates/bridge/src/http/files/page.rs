//! Error answers for downloads: a page for users, a problem document (RFC 9457) for programs.

use axum::{
    body::Body,
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    response::Response,
};
use serde_json::json;

use crate::{config::Lang, http::files};

/// Why there is no file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Problem {
    /// The link never existed, or was deleted long ago.
    NotFound,
    /// The link has expired.
    Expired,
    /// The link was revoked.
    Revoked,
    /// The disk failed.
    Unreadable,
}

/// Title, reason, and remedy.
type Words = [&'static str; 3];

impl Problem {
    fn status(self) -> StatusCode {
        match self {
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::Expired | Self::Revoked => StatusCode::GONE,
            Self::Unreadable => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    fn english(self) -> Words {
        let again = "Ask for a new link in the chat.";
        match self {
            Self::NotFound => [
                "File not found",
                "This link does not lead to a file. It may have been copied incompletely.",
                "Open the link directly in the chat, or ask for a new link there.",
            ],
            Self::Expired => [
                "This link has expired",
                "Download links work for a limited time, and this one has expired.",
                again,
            ],
            Self::Revoked => [
                "This link was revoked",
                "The file is no longer available at this link.",
                again,
            ],
            Self::Unreadable => [
                "The file cannot be read right now",
                "The server could not read the file from its storage.",
                "Try again in a moment. If the problem persists, contact your administrator.",
            ],
        }
    }

    fn japanese(self) -> Words {
        let again = "チャットで新しいリンクを依頼してください。";
        match self {
            Self::NotFound => [
                "ファイルが見つかりません",
                "このリンクに対応するファイルはありません。リンクの一部が欠けている可能性があります。",
                "チャットに表示されたリンクを直接開くか、新しいリンクを依頼してください。",
            ],
            Self::Expired => [
                "リンクの有効期限が切れました",
                "ダウンロードリンクには有効期限があり、このリンクは期限が切れています。",
                again,
            ],
            Self::Revoked => [
                "リンクは取り消されました",
                "このリンクのファイルは利用できなくなりました。",
                again,
            ],
            Self::Unreadable => [
                "現在ファイルを読み込めません",
                "サーバーがストレージからファイルを読み込めませんでした。",
                "しばらくしてからもう一度お試しください。解決しない場合は管理者にご連絡ください。",
            ],
        }
    }
}

/// The page or the document, in the requested language.
pub fn answer(problem: Problem, fallback: Lang, asked: &HeaderMap) -> Response {
    let language = language(asked).unwrap_or(fallback);
    let (code, words) = match language {
        Lang::En => ("en", problem.english()),
        Lang::Ja => ("ja", problem.japanese()),
    };
    let (kind, body) = if text(asked, &header::ACCEPT).contains("text/html") {
        ("text/html; charset=utf-8", html(code, words))
    } else {
        ("application/problem+json", document(problem, words))
    };
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = problem.status();
    let headers = response.headers_mut();
    files::protect(headers);
    for (name, value) in [
        (header::CONTENT_TYPE, kind),
        (header::CONTENT_LANGUAGE, code),
        (header::CONTENT_SECURITY_POLICY, PAGE_POLICY),
        (header::CACHE_CONTROL, "no-store"),
        (header::VARY, "accept, accept-language"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

const PAGE_POLICY: &str = "sandbox; default-src 'none'; style-src 'unsafe-inline'";

fn document(problem: Problem, [title, reason, advice]: Words) -> String {
    json!({
        "type": "about:blank",
        "title": title,
        "status": problem.status().as_u16(),
        "detail": format!("{reason} {advice}"),
    })
    .to_string()
}

fn html(language: &str, [title, reason, advice]: Words) -> String {
    format!(
        "<!doctype html>
<html lang=\"{language}\">
<meta charset=\"utf-8\">
<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">
<title>{title}</title>
<style>
  :root {{ color-scheme: light dark; }}
  body {{ font: 1.05rem/1.7 system-ui, sans-serif; max-width: 34rem; margin: 18vh auto 0; padding: 0 1.5rem; }}
  h1 {{ font-size: 1.5rem; line-height: 1.35; }}
  p.reason {{ opacity: .75; }}
</style>
<h1>{title}</h1>
<p class=\"reason\">{reason}</p>
<p>{advice}</p>
</html>
"
    )
}

/// The supported language that the browser prefers; the first one of equal preferences.
fn language(asked: &HeaderMap) -> Option<Lang> {
    let mut best = None;
    let mut best_weight = 0.0_f32;
    for wish in text(asked, &header::ACCEPT_LANGUAGE).split(',') {
        let mut parts = wish.split(';');
        let tag = parts.next().unwrap_or_default().trim().to_ascii_lowercase();
        let known = match tag.split('-').next() {
            Some("ja") => Lang::Ja,
            Some("en") => Lang::En,
            _ => continue,
        };
        let weight = parts.find_map(|part| part.trim().strip_prefix("q=")?.parse().ok());
        let weight = weight.unwrap_or(1.0);
        if weight > best_weight {
            (best, best_weight) = (Some(known), weight);
        }
    }
    best
}

fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> &'a str {
    let value = headers.get(name).and_then(|value| value.to_str().ok());
    value.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(accept_language: &'static str) -> Option<Lang> {
        let mut headers = HeaderMap::new();
        let value = HeaderValue::from_static(accept_language);
        headers.insert(header::ACCEPT_LANGUAGE, value);
        language(&headers)
    }

    #[test]
    fn the_browsers_favourite_of_our_languages_wins() {
        assert_eq!(chosen("ja,en-US;q=0.9"), Some(Lang::Ja));
        assert_eq!(chosen("de, en-GB;q=0.8, ja;q=0.9"), Some(Lang::Ja));
        assert_eq!(chosen("EN"), Some(Lang::En));
        assert_eq!(chosen("ja;q=0, de"), None);
        assert_eq!(chosen("*"), None);
    }
}
