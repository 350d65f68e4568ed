//! A list of a server's, all pages of it, each item as it came.

use serde_json::{Map, Value, json, value::RawValue};

use super::learn::LearnError;
use crate::{artifacts, child::Child, model::RawJson, store::Job};

/// Pages that are read; a server with more is not honest.
const MAX_PAGES: usize = 1000;

/// Asks `method` until there are no more pages, and gathers what lies under `key`.
pub async fn all(
    child: &Child,
    method: &str,
    key: &str,
    job: &Job,
) -> Result<Vec<RawJson>, LearnError> {
    let mut items = Vec::new();
    let mut cursor: Option<String> = None;
    for _ in 0..MAX_PAGES {
        let params = match &cursor {
            Some(next) => json!({"cursor": next}),
            None => Value::Object(Map::new()),
        };
        let answer = child.request(method, Some(&RawJson::of(&params))).await?;
        let page = answer.map_err(|error| {
            LearnError::Refused(artifacts::relative_text(error.as_str(), &job.paths()))
        })?;
        let page = page.into_bytes();
        let members: indexmap::IndexMap<String, &RawValue> =
            serde_json::from_slice(&page).map_err(LearnError::BadList)?;
        if let Some(list) = members.get(key) {
            let list: Vec<&RawValue> =
                serde_json::from_str(list.get()).map_err(LearnError::BadList)?;
            items.extend(list.into_iter().map(|item| RawJson::within(&page, item)));
        }
        let next = members
            .get("nextCursor")
            .and_then(|next| serde_json::from_str(next.get()).ok());
        // A cursor that stays the same would go on for ever.
        if next.is_none() || next == cursor {
            break;
        }
        cursor = next;
    }
    Ok(items)
}
