//! The built-in server `files`: lists the files of a chat, creates links to them and deletes them.
//!
//! It is a server like any other, with MCP on stdin and stdout in the chat's folder. The bridge creates the
//! link, because the answer names the file (`file_path_fields`).

use std::{
    io::{self, BufRead as _, Write as _},
    path::Path,
    process::ExitCode,
};

use bridge_protocol::{code, method};
use bridge_state::remove_tree;
use serde_json::{Value, json};

use crate::{
    artifacts::{Limits, RelativePath, Snapshot, mime_type, remove_file},
    config::LINK_FIELD,
};

/// The depth of nested folders that are scanned; each level needs a descriptor.
const DEPTH: usize = 500;
/// The number of names in one answer, since a model reads all of them.
const LISTED: usize = 200;

/// Serves the current directory until its input ends.
pub fn serve() -> ExitCode {
    let mut out = io::stdout().lock();
    for line in io::stdin().lock().lines() {
        let Ok(line) = line else { break };
        let answer = serde_json::from_str(&line).ok();
        let answer = answer.and_then(|message: Value| answer_to(&message, Path::new(".")));
        let Some(answer) = answer else { continue };
        if writeln!(out, "{answer}")
            .and_then(|()| out.flush())
            .is_err()
        {
            break;
        }
    }
    ExitCode::SUCCESS
}

/// The response; `None` for a notification.
fn answer_to(message: &Value, work: &Path) -> Option<Value> {
    let id = message.get("id")?;
    let method = message["method"].as_str()?;
    let done = match method {
        method::INITIALIZE => Ok(initialize(&message["params"])),
        method::PING => Ok(json!({})),
        method::TOOLS_LIST => Ok(json!({ "tools": tools() })),
        method::TOOLS_CALL => call(&message["params"], work),
        _ => Err((
            code::METHOD_NOT_FOUND,
            format!("Method not found: {method}"),
        )),
    };
    Some(match done {
        Ok(result) => json!({"jsonrpc": "2.0", "id": id, "result": result}),
        Err((code, message)) => {
            json!({"jsonrpc": "2.0", "id": id, "error": {"code": code, "message": message}})
        }
    })
}

fn initialize(params: &Value) -> Value {
    let version = params["protocolVersion"].as_str().unwrap_or("2025-11-25");
    json!({
        "protocolVersion": version,
        "capabilities": {"tools": {}},
        "serverInfo": {"name": "files", "version": env!("CARGO_PKG_VERSION")},
        "instructions": "The files of this chat. Links expire: create a new link before you show \
                         an old one again.",
    })
}

fn tools() -> Value {
    serde_json::from_str(include_str!("files_server_tools.json")).expect("a constant list")
}

fn call(params: &Value, work: &Path) -> Result<Value, (i64, String)> {
    let tool = params["name"].as_str().unwrap_or_default();
    let name = params["arguments"]["name"].as_str().unwrap_or_default();
    let done = match tool {
        "list_files" => list(work),
        "get_link" => link(work, name),
        "delete_file" => delete(work, name),
        "clear_temporary_files" => clear(work),
        _ => return Err((code::INVALID_PARAMS, format!("Unknown tool: {tool}"))),
    };
    Ok(match done {
        Ok(value) => json!({"content": [{"type": "text", "text": value.to_string()}]}),
        Err(why) => json!({"content": [{"type": "text", "text": why}], "isError": true}),
    })
}

fn look(work: &Path) -> Result<Snapshot, String> {
    // Without a limit, because files of a full chat are deleted this way.
    let limits = Limits {
        entries: u64::MAX,
        depth: DEPTH,
    };
    Snapshot::take(work, &limits).map_err(|error| error.to_string())
}

fn list(work: &Path) -> Result<Value, String> {
    let seen = look(work)?;
    let files = seen.sizes().map(|(path, size)| {
        let name = path.display();
        json!({"name": name, "size": size, "mime_type": mime_type(&name)})
    });
    let files: Vec<_> = files.collect();
    let more = files.len().saturating_sub(LISTED);
    let mut listed = json!({ "files": files[..files.len() - more] });
    if more > 0 {
        listed["more"] = more.into();
    }
    Ok(listed)
}

fn find(work: &Path, name: &str) -> Result<RelativePath, String> {
    let seen = look(work)?;
    let found = RelativePath::parse(name).ok();
    let found = found.filter(|path| seen.files().any(|known| known == path));
    found.ok_or_else(|| format!("no file '{name}' in this chat; call list_files to see the files"))
}

fn link(work: &Path, name: &str) -> Result<Value, String> {
    let path = find(work, name)?;
    Ok(json!({ LINK_FIELD: path.display() }))
}

fn delete(work: &Path, name: &str) -> Result<Value, String> {
    let path = find(work, name)?;
    remove_file(work, &path).map_err(|error| format!("cannot delete '{name}': {error}"))?;
    Ok(json!({ "deleted": path.display() }))
}

/// Empties the folders beside `work`. Files that are being written meanwhile may remain.
fn clear(work: &Path) -> Result<Value, String> {
    let mut kept = 0_usize;
    for folder in ["../tmp", "../home"] {
        let folder = work.join(folder);
        let is_dir = folder.symlink_metadata().is_ok_and(|found| found.is_dir());
        let entries = is_dir.then(|| std::fs::read_dir(&folder)).transpose();
        let entries = entries.map_err(|error| format!("cannot list the files: {error}"))?;
        for entry in entries.into_iter().flatten().flatten() {
            kept += usize::from(remove_tree(&entry.path()).is_err());
        }
    }
    Ok(json!({ "cleared": true, "not_deleted": kept }))
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    fn ask(work: &Path, tool: &str, name: &str) -> (bool, String) {
        let params = json!({"name": tool, "arguments": {"name": name}});
        let message = json!({"id": 1, "method": "tools/call", "params": params});
        let answer = answer_to(&message, work).expect("an answer");
        let result = &answer["result"];
        let text = result["content"][0]["text"].as_str().expect("a text");
        (result["isError"] != true, text.to_owned())
    }

    #[test]
    fn files_are_listed_found_and_deleted_and_nothing_else_is() {
        let dir = tempfile::tempdir().unwrap();
        let work = dir.path().join("work");
        fs::create_dir_all(work.join("sub")).unwrap();
        fs::write(dir.path().join("secret"), "outside").unwrap();
        fs::write(work.join("sub/a.xlsx"), "four").unwrap();
        fs::write(work.join(".hidden"), "").unwrap();
        symlink("../secret", work.join("link")).unwrap();
        symlink("..", work.join("up")).unwrap();
        let (_, list) = ask(&work, "list_files", "");
        assert!(list.contains(r#""name":"sub/a.xlsx","size":4"#), "{list}");
        assert!(!list.contains("hidden") && !list.contains("link"), "{list}");
        assert_eq!(
            ask(&work, "get_link", "sub/a.xlsx"),
            (true, r#"{"file":"sub/a.xlsx"}"#.into())
        );
        for bad in [
            "",
            "link",
            "up/secret",
            "../secret",
            "sub",
            ".hidden",
            "/etc/passwd",
        ] {
            for tool in ["get_link", "delete_file"] {
                assert!(!ask(&work, tool, bad).0, "{tool} {bad}");
            }
        }
        assert!(ask(&work, "delete_file", "sub/a.xlsx").0);
        assert!(!work.join("sub/a.xlsx").exists());
        assert!(dir.path().join("secret").exists());
    }

    #[test]
    fn what_servers_keep_for_themselves_is_cleared_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        for folder in ["work", "tmp/deep/er", "home/.cache", "outside"] {
            fs::create_dir_all(dir.path().join(folder)).unwrap();
        }
        for file in [
            "work/a",
            "tmp/b",
            "tmp/deep/er/c",
            "home/.cache/d",
            "outside/e",
        ] {
            fs::write(dir.path().join(file), "x").unwrap();
        }
        symlink("../outside", dir.path().join("tmp/link")).unwrap();
        let (good, text) = ask(&dir.path().join("work"), "clear_temporary_files", "");
        assert!(good && text.contains(r#""not_deleted":0"#), "{text}");
        for folder in ["tmp", "home"] {
            let left = fs::read_dir(dir.path().join(folder)).unwrap();
            assert_eq!(left.count(), 0, "{folder}");
        }
        assert!(dir.path().join("work/a").exists() && dir.path().join("outside/e").exists());
        fs::remove_dir(dir.path().join("tmp")).unwrap();
        symlink("outside", dir.path().join("tmp")).unwrap();
        assert!(ask(&dir.path().join("work"), "clear_temporary_files", "").0);
        assert!(dir.path().join("outside/e").exists());
    }

    #[test]
    fn what_it_does_not_know_it_says_and_notifications_get_no_answer() {
        let here = Path::new(".");
        let told = json!({"jsonrpc": "2.0", "method": "notifications/initialized"});
        assert_eq!(answer_to(&told, here), None);
        let asked = json!({"id": "x", "method": "server/discover"});
        assert_eq!(answer_to(&asked, here).unwrap()["error"]["code"], -32601);
    }
}
