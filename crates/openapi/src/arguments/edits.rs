//! Corrections, written into the bytes as they were sent: everything else keeps its spelling.

use std::collections::HashMap;

use bridge_protocol::RawJson;
use bytes::Bytes;
use indexmap::IndexMap;
use serde_json::{Value, value::RawValue};

use super::{
    fixes::{Fix, Fixes},
    steps::Step,
};

/// What changes below one value.
#[derive(Default)]
pub struct Edits(HashMap<Step, Edit>);

enum Edit {
    Drop,
    /// Another text, and what changes in that.
    Replace(Box<str>, Edits),
    Inside(Edits),
}

impl Edits {
    /// Takes corrections of `value` in, and carries them out on it.
    pub fn add(&mut self, fixes: Fixes, value: &mut Value) {
        'fixes: for (path, fix) in fixes {
            let Some((last, above)) = path.split_last() else {
                continue;
            };
            let mut edits = &mut *self;
            let mut parent = Some(&mut *value);
            for step in above {
                let inner = edits.0.entry(step.clone());
                let inner = inner.or_insert_with(|| Edit::Inside(Self::default()));
                let (Edit::Inside(inner) | Edit::Replace(_, inner)) = inner else {
                    continue 'fixes;
                };
                edits = inner;
                parent = parent.and_then(|parent| step.of_mut(parent));
            }
            let Some(parent) = parent else { continue };
            edits.0.insert(last.clone(), Edit::of(fix, last, parent));
        }
    }

    /// The body with the corrections in it.
    pub fn write(&self, body: &RawJson) -> Result<RawJson, serde_json::Error> {
        let mut text = String::with_capacity(body.as_bytes().len());
        self.rewrite(body.as_str(), &mut text)?;
        RawJson::parse(Bytes::from(text))
    }

    fn rewrite(&self, raw: &str, out: &mut String) -> Result<(), serde_json::Error> {
        if self.0.is_empty() {
            out.push_str(raw);
        } else if raw.starts_with('{') {
            out.push('{');
            for (key, value) in serde_json::from_str::<IndexMap<String, &RawValue>>(raw)? {
                let step = Step::Key(key);
                let edit = self.0.get(&step);
                if matches!(edit, Some(Edit::Drop)) {
                    continue;
                }
                separate(out, '{');
                let Step::Key(key) = step else { continue };
                out.push_str(&serde_json::to_string(&key)?);
                out.push(':');
                Edit::write(edit, value.get(), out)?;
            }
            out.push('}');
        } else {
            out.push('[');
            for (index, value) in serde_json::from_str::<Vec<&RawValue>>(raw)?
                .into_iter()
                .enumerate()
            {
                separate(out, '[');
                Edit::write(self.0.get(&Step::Index(index)), value.get(), out)?;
            }
            out.push(']');
        }
        Ok(())
    }
}

fn separate(out: &mut String, open: char) {
    if !out.ends_with(open) {
        out.push(',');
    }
}

impl Edit {
    fn of(fix: Fix, last: &Step, parent: &mut Value) -> Self {
        match fix {
            Fix::Drop => {
                if let (Value::Object(members), Step::Key(key)) = (parent, last) {
                    members.shift_remove(key);
                }
                Self::Drop
            }
            Fix::Replace { text, value } => {
                if let Some(place) = last.of_mut(parent) {
                    *place = value;
                }
                Self::Replace(text, Edits::default())
            }
        }
    }

    fn write(edit: Option<&Self>, raw: &str, out: &mut String) -> Result<(), serde_json::Error> {
        match edit {
            None | Some(Self::Drop) => out.push_str(raw),
            Some(Self::Replace(text, edits)) => edits.rewrite(text, out)?,
            Some(Self::Inside(edits)) => edits.rewrite(raw, out)?,
        }
        Ok(())
    }
}
