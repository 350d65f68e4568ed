//! `--arg name=value` and `--json` as the tool's arguments.

use std::io::Read as _;

use bridge_openapi::{Unfit, read_body};
use bridge_protocol::RawJson;
use serde_json::{Map, Value};

use crate::cli::Failure;

/// What was given, before the tool's schema was held against it: values of `--arg` are texts.
pub fn given(pairs: Vec<String>, json: Option<&str>) -> Result<RawJson, Failure> {
    match json {
        Some("-") => {
            let mut text = Vec::new();
            let read = std::io::stdin().lock().read_to_end(&mut text);
            read.map_err(|error| Failure::failed(format!("--json -: cannot read stdin: {error}")))?;
            parse(text)
        }
        Some(text) => parse(text.as_bytes().to_vec()),
        None => named(pairs),
    }
}

fn parse(text: Vec<u8>) -> Result<RawJson, Failure> {
    read_body(text.into()).map_err(|error| {
        Failure::usage(format!(
            "--json: invalid JSON: {error}; write an object, such as '{{\"name\": \"value\"}}'"
        ))
    })
}

fn named(pairs: Vec<String>) -> Result<RawJson, Failure> {
    let mut members = Map::new();
    for pair in pairs {
        let Some((name, value)) = pair.split_once('=').filter(|(name, _)| !name.is_empty()) else {
            return Err(Failure::usage(format!("--arg {pair}: expected NAME=VALUE")));
        };
        if members.insert(name.to_owned(), value.into()).is_some() {
            return Err(Failure::usage(format!(
                "--arg {name}: given more than once; use --json for lists and objects"
            )));
        }
    }
    Ok(RawJson::of(&Value::Object(members)))
}

/// Each field with its error.
pub fn refused(server: &str, tool: &str, unfit: Unfit) -> Failure {
    let faults = match unfit {
        Unfit::Faults(faults) => faults,
        Unfit::Stopped(_) => {
            return Failure::failed(
                "validating the arguments took longer than the timeout of the call",
            );
        }
    };
    let lines = faults.iter().map(|fault| {
        let place = fault.loc.iter().skip(1).map(|step| match step {
            Value::String(name) => name.clone(),
            other => other.to_string(),
        });
        let place = place.collect::<Vec<_>>().join(".");
        let colon = if place.is_empty() { "" } else { ": " };
        format!("\n{place}{colon}{}", fault.msg)
    });
    let lines: String = lines.collect();
    Failure::usage(format!(
        "invalid arguments for {tool} (schema: `mcpo-bridge tools {server} --json`; lists and objects need \
         --json):{lines}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[&str]) -> Result<String, Failure> {
        let pairs = pairs.iter().map(ToString::to_string).collect();
        given(pairs, None).map(|raw| raw.as_str().to_owned())
    }

    #[test]
    fn pairs_become_an_object_of_texts() {
        assert_eq!(read(&[]).unwrap(), "{}");
        let members = read(&["a=1", "b=x=y", "c="]).unwrap();
        assert_eq!(members, r#"{"a":"1","b":"x=y","c":""}"#);
    }

    #[test]
    fn what_is_no_pair_or_given_twice_is_refused() {
        for bad in [&["a"][..], &["=1"], &["a=1", "a=2"]] {
            assert!(read(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn json_keeps_its_bytes() {
        let given = given(Vec::new(), Some(r#"{"n":1.0,"m":1e400}"#));
        assert_eq!(given.unwrap().as_str(), r#"{"n":1.0,"m":1e400}"#);
        assert!(super::given(Vec::new(), Some("{")).is_err());
    }
}
