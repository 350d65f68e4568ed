//! Arguments as sent, paths made absolute where the config asks.

use std::path::Path;

use indexmap::IndexMap;
use serde_json::{Value, value::RawValue};

use super::CallError;
use crate::{artifacts::RelativePath, model::RawJson};

/// Makes the named top-level arguments absolute; all others keep their bytes.
pub fn resolve(fields: &[String], arguments: &RawJson, work: &Path) -> Result<RawJson, CallError> {
    if fields.is_empty() {
        return Ok(arguments.clone());
    }
    let Ok(mut members) = arguments.read::<IndexMap<String, Box<RawValue>>>() else {
        return Ok(arguments.clone());
    };
    for field in fields {
        let Some(member) = members.get_mut(field) else {
            continue;
        };
        let Ok(name) = serde_json::from_str::<String>(member.get()) else {
            continue;
        };
        let inside = Path::new(&name)
            .strip_prefix(work)
            .unwrap_or(Path::new(&name));
        let bad = || CallError::BadPath {
            field: field.clone(),
        };
        let path = work.join(RelativePath::parse(inside).map_err(|_| bad())?.as_path());
        let path = path.to_str().ok_or_else(bad)?;
        *member = RawValue::from_string(Value::from(path).to_string()).map_err(|_| bad())?;
    }
    RawJson::from_value(&members).map_err(|error| CallError::Internal(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolved(arguments: &str) -> Result<String, CallError> {
        let arguments = RawJson::parse(arguments.to_owned().into()).unwrap();
        let raw = resolve(&["file".into()], &arguments, Path::new("/jobs/x/work"))?;
        Ok(raw.as_str().to_owned())
    }

    #[test]
    fn names_become_paths_and_the_rest_stays() {
        let out = resolved(r#"{"n":1.0,"file":"a b/c.xlsx","m":1e400}"#).unwrap();
        assert_eq!(
            out,
            r#"{"n":1.0,"file":"/jobs/x/work/a b/c.xlsx","m":1e400}"#
        );
        assert_eq!(resolved(r#"{"file":7}"#).unwrap(), r#"{"file":7}"#);
    }

    #[test]
    fn paths_that_leave_are_refused() {
        for bad in ["../x", "/etc/passwd", "a/../../b", ""] {
            let arguments = serde_json::json!({"file": bad}).to_string();
            assert!(
                matches!(resolved(&arguments), Err(CallError::BadPath { .. })),
                "{bad}"
            );
        }
    }
}
