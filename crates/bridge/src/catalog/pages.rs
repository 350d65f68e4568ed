//! A list of a server's, all pages of it, each item as it came.

use std::collections::HashSet;

use bridge_model::Job;
use bridge_process::{Child, relative_text};
use bridge_protocol::RawJson;

use crate::catalog::error::LearnError;

/// Pages that are read; a server with more is not honest.
const MAX_PAGES: usize = 1000;

/// What came of a list.
#[derive(Default)]
pub struct Pages {
    /// Each item once.
    pub items: Vec<RawJson>,
    /// What an operator should know of it.
    pub odd: Vec<String>,
}

/// Asks `method` until there are no more pages, and gathers what lies under `key`. The first page must
/// be there; what is odd after it costs nothing but itself.
pub async fn all(child: &Child, method: &str, key: &str, job: &Job) -> Result<Pages, LearnError> {
    let mut pages = Pages::default();
    let mut seen = HashSet::new();
    let mut cursors = HashSet::new();
    let mut cursor: Option<RawJson> = None;
    for number in 1.. {
        let params = match &cursor {
            Some(next) => RawJson::empty_object().with_member("cursor", next),
            None => RawJson::empty_object(),
        };
        let page = match child.request(method, Some(&params)).await? {
            Ok(page) => page,
            Err(error) => {
                let said = relative_text(error.as_str(), &job.paths());
                if number == 1 {
                    return Err(LearnError::Refused(said));
                }
                let what = format!("{method}: page {number} is an error; the rest is left out");
                pages.odd.push(what);
                break;
            }
        };
        if page.members().is_none() {
            if number == 1 {
                return Err(LearnError::BadList);
            }
            pages
                .odd
                .push(format!("{method}: page {number} is no object"));
            break;
        }
        match page.member(key).map(|list| list.elements()) {
            Some(Some(list)) => pages
                .items
                .extend(list.into_iter().filter(|item| seen.insert(item.clone()))),
            Some(None) => pages.odd.push(format!("{method}: \"{key}\" is no list")),
            None => pages.odd.push(format!("{method}: \"{key}\" is missing")),
        }
        let Some(next) = next_cursor(&page) else {
            break;
        };
        if let Some(why) = next.odd {
            pages.odd.push(format!("{method}: nextCursor {why}"));
        }
        let Some(next) = next.cursor else {
            break;
        };
        // One that came before would go on for ever.
        if !cursors.insert(next.clone()) {
            if cursor.as_ref() != Some(&next) {
                pages
                    .odd
                    .push(format!("{method}: its pages lead back to one before"));
            }
            break;
        }
        if number == MAX_PAGES {
            let what = format!("{method}: more than {MAX_PAGES} pages; the rest is left out");
            pages.odd.push(what);
            break;
        }
        cursor = Some(next);
    }
    Ok(pages)
}

struct Next {
    cursor: Option<RawJson>,
    odd: Option<&'static str>,
}

/// What the next page is asked for by. A number goes back as it came: who writes one reads one.
fn next_cursor(page: &RawJson) -> Option<Next> {
    let cursor = page.member("nextCursor")?;
    Some(match cursor.as_bytes().first()? {
        b'"' => Next {
            cursor: Some(cursor),
            odd: None,
        },
        b'0'..=b'9' | b'-' => Next {
            cursor: Some(cursor),
            odd: Some("is a number, not a text"),
        },
        b'n' | b'f' => return None,
        _ => Next {
            cursor: None,
            odd: Some("has the wrong type: pages after it are missing"),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursors_of_every_type_are_told_apart() {
        for (cursor, goes_on, is_odd) in [
            (r#""a""#, true, false),
            (r#""""#, true, false),
            ("3", true, true),
            ("{}", false, true),
            ("true", false, true),
        ] {
            let page = format!(r#"{{"nextCursor":{cursor}}}"#);
            let next = next_cursor(&RawJson::parse(page.into()).unwrap()).unwrap();
            let found = (next.cursor.is_some(), next.odd.is_some());
            assert_eq!(found, (goes_on, is_odd), "{cursor}");
        }
        for end in ["{}", r#"{"nextCursor":null}"#, r#"{"nextCursor":false}"#] {
            assert!(next_cursor(&RawJson::parse(end.into()).unwrap()).is_none());
        }
    }
}
