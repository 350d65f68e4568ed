use std::time::Duration;

use bridge_model::JobId;
use bridge_process::{CommandSpec, RemoteKind};
use serde_json::json;

use super::*;
use crate::{
    config,
    config::{Mode, SettingsArgs, Transport, WorkspaceScope},
};

fn settings() -> Settings {
    let mut settings = SettingsArgs::default().resolve().unwrap();
    // These tests count only the servers of the file.
    settings.files.server = false;
    settings
}

fn read_text(text: &str) -> Result<Loaded, Vec<Fault>> {
    let lookup = |name: &str| match name {
        "TOKEN" => Some("hunter2".to_owned()),
        _ => None,
    };
    read(text.as_bytes(), &settings(), &lookup)
}

fn read_json(document: &Value) -> Result<Loaded, Vec<Fault>> {
    read_text(&document.to_string())
}

/// Reads one valid server with these keys in addition to its command.
fn read_server(keys: Value) -> Result<Loaded, Vec<Fault>> {
    let mut server = json!({"command": "run"});
    let Value::Object(keys) = keys else {
        panic!("an object")
    };
    server.as_object_mut().unwrap().extend(keys);
    read_json(&json!({"mcpServers": {"excel": server}}))
}

fn only(loaded: &Loaded) -> &ServerSpec {
    assert_eq!(loaded.servers.len(), 1);
    &loaded.servers[0]
}

fn command(spec: &ServerSpec) -> &CommandSpec {
    match &spec.transport {
        Transport::Stdio(command) => command,
        Transport::Remote(_) => panic!("a stdio server"),
    }
}

fn lines(faults: &[Fault]) -> String {
    let lines: Vec<_> = faults.iter().map(ToString::to_string).collect();
    lines.join("\n")
}

#[test]
fn a_claude_desktop_file_works_as_it_is() {
    let loaded = read_json(&json!({"mcpServers": {
        "time": {"command": "uvx", "args": ["mcp-server-time"], "env": {"TZ": "Asia/Tokyo"}},
    }}));
    let loaded = loaded.unwrap();
    let spec = only(&loaded);
    assert_eq!(command(spec).program, "uvx");
    assert_eq!(command(spec).env["TZ"], "Asia/Tokyo");
    assert_eq!(
        (spec.mode, spec.workspace),
        (Mode::Stateful, WorkspaceScope::Chat)
    );
    assert_eq!(spec.idle_timeout, Duration::from_mins(30));
    assert_eq!(spec.timeout, Duration::from_mins(5));
    assert_eq!(spec.max_processes_per_chat, 1);
    assert_eq!(loaded.warnings, [""; 0]);
}

#[test]
fn every_key_arrives_in_either_spelling() {
    let ours = json!({
        "args": ["a"], "env": {"A": "b"}, "cwd": "sub", "mode": "stateless", "workspace": "own",
        "idle_timeout": 0.5, "timeout": 7, "max_processes_per_chat": 2, "concurrency": 3,
        "enabledTools": ["t"], "disabledTools": ["u"], "usage_guide": "g",
        "post_instruction": "p", "file_path_fields": ["f"], "resolve_path_fields": ["r"],
        "resolve_uri_fields": ["u"],
        "before_end": {"tool": "save", "arguments": {"n": 1}}, "type": "stdio",
    });
    let mut theirs = ours.as_object().unwrap().clone();
    for (alias, key) in schema::ALIASES {
        if let Some(value) = theirs.shift_remove(key) {
            theirs.insert(alias.into(), value);
        }
    }
    let (ours, theirs) = (
        read_server(ours).unwrap(),
        read_server(theirs.into()).unwrap(),
    );
    assert_eq!(only(&ours), only(&theirs));
    assert_eq!((ours.warnings.len(), theirs.warnings.len()), (0, 0));
    let spec = only(&ours);
    assert_eq!(spec.idle_timeout, Duration::from_millis(500));
    assert_eq!(spec.concurrency.unwrap().get(), 3);
    assert_eq!(
        spec.before_end.as_ref().unwrap().arguments.as_str(),
        r#"{"n":1}"#
    );
    let twice = read_server(json!({"idle_timeout": 1, "idleTimeout": 2})).unwrap_err();
    assert!(
        lines(&twice).contains("mcpServers.excel.idleTimeout"),
        "{twice:?}"
    );
}

#[test]
fn all_faults_come_at_once_with_path_value_and_fix() {
    let faults = read_json(&json!({"mcpServers": {
        "excel": {"command": "x", "idle_timeout": -1, "mode": "statefull", "args": "a b"},
        "word": {"command": "x", "url": "http://x", "max_processes_per_chat": 0},
        "pdf": {},
        "typo": {"comand": "x"},
        "a//b": {"command": "x"},
        "env": {"command": "x", "env": {"PORT": 8080, "A": "${UNSET_ONE}"}},
        "text": "uvx",
    }}));
    let faults = faults.unwrap_err();
    let text = lines(&faults);
    for line in [
        "mcpServers.excel.idle_timeout = -1: ",
        "mcpServers.excel.mode = \"statefull\": ",
        "mcpServers.excel.args: ",
        "mcpServers.word: both",
        "mcpServers.word.max_processes_per_chat = 0: ",
        "mcpServers.pdf: missing \"command\" or \"url\"",
        r#"rename "comand" to "command""#,
        "mcpServers.a//b: ",
        "mcpServers.env.env.PORT: ",
        "mcpServers.env.env.A: the variable UNSET_ONE is not set; set UNSET_ONE",
        "mcpServers.text: ",
    ] {
        assert!(text.contains(line), "{line}\n---\n{text}");
    }
    assert_eq!(faults.len(), 11, "{text}");
}

#[test]
fn numbers_have_their_ranges() {
    for (key, good, bad) in [
        ("timeout", json!(86400), json!(86400.5)),
        ("timeout", json!(0.001), json!(0)),
        ("idle_timeout", json!(1e-9), json!("1800")),
        ("concurrency", json!(1), json!(0)),
        ("max_processes_per_chat", json!(1000), json!(1.5)),
        ("pool", json!(0), json!(-1)),
    ] {
        assert!(read_server(json!({key: good})).is_ok(), "{key}");
        let faults = read_server(json!({key: bad})).unwrap_err();
        assert_eq!(faults.len(), 1, "{}", lines(&faults));
    }
    let spec = read_server(json!({"idle_timeout": 1e-300})).unwrap();
    assert!(!only(&spec).idle_timeout.is_zero());
}

#[test]
fn no_fault_and_no_warning_shows_a_secret() {
    let secret = "hunter2";
    let shapes = [
        json!({"mcpServers": {"a": {"command": [secret], "args": secret, "env": secret}}}),
        json!({"mcpServers": {"a": {"command": "x", "env": {"K": [secret]}, "oauth": secret}}}),
        json!({"mcpServers": {"a": {"url": "ftp://u:hunter2@x/hunter2"}}}),
        json!({"mcpServers": {"a": {"url": "${TOKEN}"}}}),
        json!({"mcpServers": {"a": {"url": "http://x", "headers": {"K": "${TOKEN}\n"}}}}),
        json!({"mcpServers": {"a": {"command": "x", "args": ["${TOKEN} ${UNSET}"]}}}),
        json!({"mcpServers": {"a": {"command": "x", "args": ["${TOKEN}\u{0}"]}}}),
        json!({"mcpServers": {"a": {"command": "x", "timeout": {"K": secret}}}}),
        json!({"mcpServers": {"a": secret}}),
        json!({"mcpServers": secret}),
        json!(secret),
    ];
    for shape in shapes {
        let text = lines(&read_json(&shape).unwrap_err());
        assert!(!text.is_empty() && !text.contains(secret), "{text}");
    }
    let broken = r#"{"mcpServers": {"a": {"env": {"K": "hunter2" "L": 1}}}}"#;
    let text = lines(&read_text(broken).unwrap_err());
    assert!(
        text.contains("line 1 column 46") && !text.contains(secret),
        "{text}"
    );
    let good =
        json!({"mcpServers": {"a": {"command": "x", "env": {"K": "${TOKEN}"}, "odd": secret}}});
    let loaded = read_json(&good).unwrap();
    assert_eq!(command(only(&loaded)).env["K"], secret);
    assert!(!format!("{loaded:?}").contains(secret), "{loaded:?}");
}

#[test]
fn a_value_that_a_reference_gave_changes_the_version() {
    let text = r#"{"mcpServers": {"a": {"command": "x", "env": {"K": "${KEY}"}}}}"#;
    let with = |value: &str| {
        let lookup = |_: &str| Some(value.to_owned());
        read(text.as_bytes(), &settings(), &lookup).unwrap()
    };
    let (one, two) = (with("1"), with("2"));
    assert_ne!(only(&one).version(), only(&two).version());
}

#[test]
fn remote_servers_follow_mcpo() {
    let kind = |keys: Value| {
        let mut server = json!({"url": "https://mcp.example/mcp", "headers": {"A": "b"}});
        let Value::Object(keys) = keys else {
            panic!("an object")
        };
        server.as_object_mut().unwrap().extend(keys);
        let loaded = read_json(&json!({"mcpServers": {"r": server}})).unwrap();
        match &only(&loaded).transport {
            Transport::Remote(remote) => remote.kind,
            Transport::Stdio(_) => panic!("a remote server"),
        }
    };
    assert_eq!(kind(json!({})), RemoteKind::StreamableHttp);
    assert_eq!(kind(json!({"type": "sse"})), RemoteKind::Sse);
    for http in ["streamable-http", "streamablehttp", "http"] {
        assert_eq!(kind(json!({"type": http})), RemoteKind::StreamableHttp);
    }
    for (server, location) in [
        (
            json!({"url": "http://x", "type": "stdio"}),
            "mcpServers.r.type",
        ),
        (json!({"command": "x", "type": "sse"}), "mcpServers.r.type"),
        (
            json!({"url": "http://x", "headers": {"a b": "c"}}),
            "mcpServers.r.headers[\"a b\"]",
        ),
        (json!({"url": "mcp.example"}), "mcpServers.r.url"),
    ] {
        let faults = read_json(&json!({"mcpServers": {"r": server}})).unwrap_err();
        assert_eq!(faults[0].location, location);
    }
}

#[test]
fn comments_are_silent_and_unknown_keys_are_not() {
    let loaded = read_json(&json!({
        "$schema": "x", "//": ["a"], "_comment": 1, "mcpservers": {},
        "mcpServers": {
            "// how": "to", "_comment2": {},
            "excel": {
                "//": 1, "_comment": [], "comand": "x", "command": "run", "description": "d",
                "env": {"//": "no variable", "A": "b"},
                "before_end": {"tool": "t", "argument": {}, "arguments": {"//": "kept"}},
                "oauth": {}, "client_header_forwarding": {"enabled": false, "whitlist": []},
            },
            "mcp": {"command": "x"},
        },
    }));
    let loaded = loaded.unwrap();
    assert_eq!(
        loaded.warnings,
        [
            "mcpservers: unknown key, ignored; did you mean mcpServers?",
            "mcpServers.excel.comand: unknown key, ignored; did you mean command?",
            "mcpServers.excel.description: unknown key, ignored; check the spelling, or remove it",
            "mcpServers.excel.before_end.argument: unknown key, ignored; did you mean arguments?",
            "mcpServers.excel.client_header_forwarding.whitlist: unknown key, ignored; did you mean \
             whitelist?",
            "mcpServers.excel.oauth: ignored because the bridge does not support OAuth: add a \
             token to headers, such as \"Authorization\": \"Bearer ${file:/run/secrets/TOKEN}\"",
            "mcpServers.mcp: served only under /mcpo/mcp because /mcp is a path of the bridge",
        ]
    );
    let spec = &loaded.servers["excel"];
    assert_eq!(command(spec).env.len(), 1);
    assert_eq!(
        spec.before_end.as_ref().unwrap().arguments.as_str(),
        r#"{"//":"kept"}"#
    );
}

#[test]
fn a_disabled_server_is_left_out_with_its_faults() {
    let loaded = read_json(&json!({"mcpServers": {
        "a": {"command": 7, "mode": "x", "env": {"K": "${UNSET}"}, "disabled": true},
        "b": {"enabled": false},
        "c": {"command": "x", "disabled": false, "enabled": true},
    }}));
    let names: Vec<_> = loaded.unwrap().servers.into_keys().collect();
    assert_eq!(names, ["c".parse().unwrap()]);
}

#[test]
fn a_file_without_servers_says_what_to_do() {
    for (text, part) in [
        ("{}", "add \"mcpServers\""),
        (r#"{"mcp_servers": {}}"#, "rename mcp_servers to mcpServers"),
        (r#"{"servers": {}}"#, "rename servers to mcpServers"),
        (r#"{"mcpServers": []}"#, "an object with the servers"),
        ("[]", "an object"),
        ("", "line 1 column 0"),
        ("{\"mcpServers\": {},\n}", "line 2 column 1"),
    ] {
        let faults = read_text(text).unwrap_err();
        assert_eq!(faults.len(), 1, "{text}: {}", lines(&faults));
        assert!(lines(&faults).contains(part), "{text}: {}", lines(&faults));
    }
    let empty = read_text("\u{feff}{\"mcpServers\": {}}").unwrap();
    assert_eq!((empty.servers.len(), empty.warnings.len()), (0, 1));
}

#[test]
fn a_key_that_stands_twice_is_a_fault() {
    let faults = read_text(r#"{"mcpServers": {"a": {"command": "x"}, "a": {"command": "y"}}}"#);
    assert_eq!(faults.unwrap_err()[0].location, "mcpServers.a");
}

#[test]
fn switched_off_stateful_servers_run_stateless() {
    let mut settings = settings();
    settings.stateful.enabled = false;
    let text =
        r#"{"mcpServers": {"a": {"command": "x"}, "b": {"command": "x", "mode": "shared"}}}"#;
    let loaded = read(text.as_bytes(), &settings, &|_| None).unwrap();
    assert_eq!(loaded.servers["a"].mode, Mode::Stateless);
    assert_eq!(loaded.servers["b"].mode, Mode::Shared);
    assert_eq!(loaded.warnings.len(), 1);
    settings.stateful.enabled = true;
    settings.default_mode = Mode::Shared;
    let loaded = read(text.as_bytes(), &settings, &|_| None).unwrap();
    assert_eq!(loaded.servers["a"].mode, Mode::Shared);
}

#[test]
fn the_start_config_is_good_and_pinned() {
    let loaded = read_text(config::start_config()).unwrap();
    assert_eq!(loaded.warnings, [""; 0]);
    for name in ["time", "excel", "powerpoint"] {
        let spec = &loaded.servers[name];
        let resolved = command(spec).resolve(
            FilePath::new("/w"),
            &JobId::random(),
            &bridge_process::UserValues::default(),
        );
        assert!(
            resolved.args.iter().any(|arg| arg.contains("==")),
            "{name} has no pin"
        );
        let tools = spec.enabled_tools.as_ref().map_or(0, Vec::len);
        assert!(tools <= 15, "{name}");
    }
}

#[test]
fn a_missing_file_says_how_to_get_one() {
    let error = load(FilePath::new("/nowhere/mcp-servers.json"), &settings()).unwrap_err();
    let denied = std::io::Error::from(std::io::ErrorKind::PermissionDenied);
    assert!(remedy(&denied).contains("readable for the user"));
    let text = error.to_string();
    assert!(
        text.contains("/nowhere/mcp-servers.json") && text.contains("init"),
        "{text}"
    );
}

#[test]
fn what_other_clients_and_shells_write_is_explained() {
    let warned = |keys: Value| read_server(keys).unwrap().warnings.join("\n");
    assert!(warned(json!({"cwd": "~"})).contains("~ is not expanded"));
    assert!(warned(json!({"command": "~/bin/run"})).contains("~ is not expanded"));
    let words = warned(json!({"command": "npx -y some-server"}));
    assert!(
        words.contains(r#""command": "npx""#) && words.contains(r#"["-y","some-server"]"#),
        "{words}"
    );
    assert_eq!(warned(json!({"command": "run"})), "");
    let words = warned(json!({"timeout": 60000}));
    assert!(
        words.contains("16.7 hours") && words.contains("write 60"),
        "{words}"
    );
    assert_eq!(warned(json!({"timeout": 9000})), "");
    let refused = read_server(json!({"timeout": 600_000})).unwrap_err();
    assert!(lines(&refused).contains("milliseconds"));
    for (key, word) in [
        ("autoApprove", "allow"),
        ("envFile", "env"),
        ("includeTools", "enabledTools"),
    ] {
        let words = warned(json!({key: []}));
        assert!(words.contains(key) && words.contains(word), "{words}");
    }
    for key in ["serverUrl", "httpUrl", "endpoint"] {
        let server = json!({"mcpServers": {"a": {key: "https://example.com/mcp"}}});
        let faults = lines(&read_json(&server).unwrap_err());
        let words = format!("rename \"{key}\" to \"url\"");
        assert!(faults.contains(&words), "{faults}");
    }
    let servers = json!({"a": {"command": "run"}});
    for (document, words) in [
        (
            json!({"mcp.servers": servers}),
            "move the content of mcp.servers",
        ),
        (
            json!({"mcp": {"servers": servers}}),
            "move the content of mcp.servers",
        ),
        (
            json!({"amp.mcpServers": servers}),
            "move the content of amp.mcpServers",
        ),
        (
            json!({"context_servers": servers}),
            "rename context_servers to mcpServers",
        ),
        (json!({"servers": servers}), "rename servers to mcpServers"),
    ] {
        let faults = lines(&read_json(&document).unwrap_err());
        assert!(faults.contains(words), "{faults}");
    }
}

#[test]
fn names_as_registries_write_them_are_names() {
    let long = "x".repeat(200);
    let names = [
        "github.com/owner/servers/tree/main/time",
        "@scope/name",
        "com.atlassian/x",
        long.as_str(),
    ];
    for name in names {
        let loaded = read_json(&json!({"mcpServers": {name: {"command": "run"}}})).unwrap();
        assert_eq!(only(&loaded).name.as_str(), name);
        assert_eq!(loaded.warnings, [""; 0]);
    }
    let loaded = read_json(&json!({"mcpServers": {"files/x": {"command": "run"}}})).unwrap();
    let warning = &loaded.warnings[0];
    assert!(
        warning.contains("/files is a path of the bridge"),
        "{warning}"
    );
    for name in [
        "", ".", "a/", "/a", "a//b", "a/../b", "a?b", "a%2Fb", "a\\b",
    ] {
        let document = json!({"mcpServers": {name: {"command": "run"}}});
        assert!(read_json(&document).is_err(), "{name}");
    }
}
