//! npm packages: versions are chosen once, then exactly these are installed.

use std::{fs, path::Path};

use bridge_process::launch::{Kind, NodeSet, Resolved};
use serde_json::{Map, Value, json};

use super::{
    folder::{Failed, Record, Work},
    pin::{Packages, Pin},
};

/// No prompts and reports; no registry URL in the lock data.
const QUIET: [&str; 4] = [
    "--no-audit",
    "--no-fund",
    "--loglevel=error",
    "--omit-lockfile-registry-resolved",
];

/// Chooses versions. npm does so by installing them.
pub async fn choose(set: &NodeSet, work: &Work<'_>, anew: bool) -> Result<Packages, Failed> {
    write(work, "package.json", &json!({"private": true}))?;
    let mut args = vec!["install".to_owned()];
    args.extend(QUIET.map(str::to_owned));
    if anew {
        args.push("--prefer-online".to_owned());
    }
    args.extend(set.fetching.iter().cloned());
    args.push("--".to_owned());
    args.extend(set.packages.iter().cloned());
    work.run_in(&set.npm, args, work.stage).await?;
    let package_lock = read(&work.stage.join("package-lock.json"))?;
    Ok(Packages::Node { package_lock })
}

/// Installs the versions of `pin`, unless choosing them has installed them already.
pub async fn install(set: &NodeSet, pin: &Pin, work: &Work<'_>) -> Result<(), Failed> {
    let Packages::Node { package_lock } = &pin.packages else {
        return Err("its entry in the lock file contains Python packages".to_owned());
    };
    if !work.stage.join("node_modules").exists() {
        let asked = &package_lock["packages"][""]["dependencies"];
        let package = json!({"private": true, "dependencies": asked});
        write(work, "package.json", &package)?;
        write(work, "package-lock.json", package_lock)?;
        let mut args = vec!["ci".to_owned()];
        args.extend(QUIET.map(str::to_owned));
        args.extend(set.fetching.iter().cloned());
        work.run_in(&set.npm, args, work.stage).await?;
    }
    Ok(())
}

/// How the program is started; the error is the reason why it cannot be.
pub fn resolve(set: &NodeSet, folder: &Path, record: &Record) -> Result<Resolved, Failed> {
    let modules = folder.join("node_modules");
    let name = match &set.bin {
        Some(name) => name.clone(),
        None => program(&read(&modules.join(&set.main).join("package.json"))?)?,
    };
    let bin = modules.join(".bin");
    let path = bin.join(&name);
    if !path.exists() {
        return Err(format!("its packages contain no program '{name}'"));
    }
    let script = path.display().to_string();
    let (program, args, kind) = if is_for_node(&path) {
        ("node".to_owned(), vec![script], Kind::Node)
    } else {
        (script, Vec::new(), Kind::Other)
    };
    let mut versions = record.pin.versions().into_iter();
    let main = versions.find(|(name, _)| *name == set.main);
    Ok(Resolved {
        program,
        args,
        path: Some(bin),
        kind,
        identity: Some(format!("{} {name}", record.pin.digest())),
        main,
        ..Resolved::default()
    })
}

/// npx's rule: the only program, or the one that has the package's name.
fn program(package: &Value) -> Result<String, Failed> {
    let name = package["name"].as_str().unwrap_or_default();
    let name = name.rsplit('/').next().unwrap_or_default();
    let bins = match &package["bin"] {
        Value::String(_) => return Ok(name.to_owned()),
        Value::Object(bins) => bins.clone(),
        _ => Map::new(),
    };
    let mut files = bins.values();
    let first = files.next();
    let one_file = files.all(|file| Some(file) == first);
    match bins.keys().next() {
        Some(only) if one_file => Ok(only.clone()),
        Some(_) if bins.contains_key(name) => Ok(name.to_owned()),
        _ => Err("its package does not declare which program to run".to_owned()),
    }
}

fn is_for_node(path: &Path) -> bool {
    let content = fs::read(path).unwrap_or_default();
    let first = content.split(|byte| *byte == b'\n').next();
    let first = first.unwrap_or_default().trim_ascii_end();
    first == b"#!/usr/bin/env node"
}

fn read(path: &Path) -> Result<Value, Failed> {
    let text = fs::read(path);
    let text = text.map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    serde_json::from_slice(&text).map_err(|error| format!("{}: {error}", path.display()))
}

fn write(work: &Work<'_>, name: &str, value: &Value) -> Result<(), Failed> {
    work.write(name, &format!("{value:#}\n")).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_is_chosen_as_npx_does() {
        for (package, expected) in [
            (json!({"name": "@s/server", "bin": "x.js"}), Some("server")),
            (
                json!({"name": "server", "bin": {"run": "x.js"}}),
                Some("run"),
            ),
            (
                json!({"name": "server", "bin": {"a": "x.js", "b": "x.js"}}),
                Some("a"),
            ),
            (
                json!({"name": "@s/b", "bin": {"a": "x.js", "b": "y.js"}}),
                Some("b"),
            ),
            (
                json!({"name": "c", "bin": {"a": "x.js", "b": "y.js"}}),
                None,
            ),
            (json!({"name": "c"}), None),
        ] {
            assert_eq!(program(&package).ok().as_deref(), expected, "{package}");
        }
    }

    #[test]
    fn only_plain_node_scripts_are_started_by_node() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("x");
        for (text, node) in [
            ("#!/usr/bin/env node\n", true),
            ("#!/usr/bin/env node\r\nx", true),
            ("#!/usr/bin/env -S node --flag\n", false),
            ("#!/usr/bin/env bun\n", false),
            ("console.log()", false),
        ] {
            fs::write(&file, text).unwrap();
            assert_eq!(is_for_node(&file), node, "{text}");
        }
    }
}
