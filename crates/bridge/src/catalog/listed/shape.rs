//! An object held against rules for its members.

use std::collections::HashMap;

use bridge_protocol::{Member, RawJson};

use super::text;

/// A member, and what it must be.
pub type Rule = (&'static str, fn(&RawJson) -> Fit);

/// What becomes of a member.
pub enum Fit {
    /// It stays as it is.
    Fits,
    /// This stands in its place, and why.
    Instead(RawJson, String),
    /// It is left out, and why.
    Leave(String),
}

/// The object with each member as its rule has it, and what had to be changed; `None` for what is no
/// object. Members in their order; every byte stays where nothing has to be changed.
pub fn shaped(raw: &RawJson, rules: &[Rule], faults: &mut Vec<String>) -> Option<RawJson> {
    let members = raw.members()?;
    let before = faults.len();
    let names: Vec<Option<String>> = members.iter().map(|it| it.name.read().ok()).collect();
    // Of two with one name, readers take the last.
    let last: HashMap<&str, usize> = names
        .iter()
        .enumerate()
        .filter_map(|(place, name)| Some((name.as_deref()?, place)))
        .collect();
    let mut kept = Vec::with_capacity(members.len());
    for (place, (member, name)) in members.into_iter().zip(&names).enumerate() {
        let Some(name) = name else {
            faults.push("the name of a member is no Unicode text".to_owned());
            continue;
        };
        if last.get(name.as_str()) != Some(&place) {
            faults.push(format!("{name} is there twice"));
            continue;
        }
        let mut value = member.value;
        if let Some((sound, why)) = text::sound(&value) {
            faults.push(format!("{name} {why}"));
            value = sound;
        }
        let rule = rules.iter().find(|(known, _)| known == name);
        match rule.map_or(Fit::Fits, |(_, rule)| rule(&value)) {
            Fit::Fits => {}
            Fit::Instead(other, why) => {
                faults.push(format!("{name} {why}"));
                value = other;
            }
            Fit::Leave(why) => {
                faults.push(format!("{name} {why}"));
                continue;
            }
        }
        kept.push(Member {
            name: member.name,
            value,
        });
    }
    if faults.len() == before {
        return Some(raw.clone());
    }
    Some(RawJson::of_members(&kept))
}

/// What is wrong with a value of the wrong type.
pub fn wrong(raw: &RawJson) -> String {
    let is_null = raw.as_str() == "null";
    let why = if is_null {
        "is null"
    } else {
        "has the wrong type"
    };
    why.to_owned()
}

/// A list whose elements are as `element` gives them back.
pub fn each(raw: &RawJson, element: impl Fn(&RawJson) -> Option<RawJson>) -> Fit {
    let Some(elements) = raw.elements() else {
        return leave(raw);
    };
    let kept: Vec<RawJson> = elements.iter().filter_map(element).collect();
    if kept == elements {
        return Fit::Fits;
    }
    let kept = RawJson::of_elements(&kept);
    Fit::Instead(kept, "has elements that do not fit".to_owned())
}

pub fn leave(raw: &RawJson) -> Fit {
    Fit::Leave(wrong(raw))
}
