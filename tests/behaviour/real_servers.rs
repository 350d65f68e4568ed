//! The servers of `mcp-servers.json.example`, from the package index: slow and with network access,
//! therefore ignored by default. `cargo test real_servers -- --ignored`, with `uv` on the PATH.

use std::{fs, process::Command};

use crate::support::{Client, TestBridge, at_the_root};
use serde_json::{Value, json};

/// The developer may configure the source of packages: these variables are passed to the launchers.
fn is_for_launchers(name: &str) -> bool {
    let name = name.to_ascii_uppercase();
    [
        "UV_",
        "SSL_CERT_",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "ALL_PROXY",
        "NO_PROXY",
    ]
    .iter()
    .any(|start| name.starts_with(start))
}

fn start() -> TestBridge {
    let text = fs::read_to_string(at_the_root("mcp-servers.json.example")).expect("the example");
    let mut config: Value = serde_json::from_str(&text).expect("JSON");
    let chart = json!({
        "command": "uv",
        "args": ["run", "--quiet", "--script", at_the_root("examples/chart_server.py")],
    });
    config["mcpServers"]["chart"] = chart;
    let names: Vec<_> = config["mcpServers"]
        .as_object()
        .expect("servers")
        .keys()
        .collect();
    assert_eq!(names, ["time", "excel", "powerpoint", "chart"]);
    let settings = TestBridge::builder(config);
    let passed = std::env::vars().filter(|(name, _)| is_for_launchers(name));
    let settings = passed.fold(settings, |settings, (name, value)| {
        settings.var(&name, value)
    });
    let bridge = settings.var("MCPO_START_TIMEOUT", 180).start();
    crate::support::until(std::time::Duration::from_mins(3), || {
        let known = |server: &str| {
            bridge
                .client()
                .get(&format!("/{server}/openapi.json"))
                .status
                == 200
        };
        ["time", "excel", "powerpoint", "chart"]
            .iter()
            .all(|server| known(server))
            .then_some(())
    })
    .expect("every server is learnt");
    bridge
}

/// Saves the link's content as `name` and checks it with `scripts/verify_files.py`.
fn verify(client: &Client, link: &str, name: &str, conditions: &[&str]) {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join(name);
    fs::write(&file, client.download(link).body).expect("the file is saved");
    let output = Command::new("uv")
        .args([
            "run",
            "--quiet",
            "--no-project",
            "--with",
            "openpyxl==3.1.5",
            "--with",
            "python-pptx==1.0.2",
        ])
        .arg(at_the_root("scripts/verify_files.py"))
        .arg(file)
        .args(conditions)
        .output()
        .expect("uv runs");
    assert!(output.status.success(), "{output:?}");
}

#[test]
#[ignore = "downloads servers from the package index"]
fn a_workbook_its_picture_and_a_deck_are_made_in_one_chat() {
    let bridge = start();
    let chat = bridge.chat("alice", "c1");
    let call = |server: &str, tool: &str, arguments: Value| {
        let reply = chat.call(server, tool, arguments);
        let text = reply.ok().to_string();
        assert!(!text.contains("\"error\""), "{server} {tool}: {text}");
        reply
    };
    let time = call(
        "time",
        "get_current_time",
        json!({"timezone": "Asia/Tokyo"}),
    );
    assert_eq!(time.json()["timezone"], "Asia/Tokyo");

    call(
        "excel",
        "create_workbook",
        json!({"path": "report.xlsx", "sheets": ["Sales"]}),
    );
    let rows = json!([
        ["Month", "Sales"],
        ["Jan", 100],
        ["Feb", 150],
        ["Total", "=SUM(B2:B3)"]
    ]);
    let write = json!({"path": "report.xlsx", "sheet": "Sales", "at": "A1", "rows": rows});
    let workbook = call("excel", "write_range", write).link("report.xlsx");
    let cells = ["--cell", "Sales!B3=150", "--cell", "Sales!B4==SUM(B2:B3)"];
    verify(&chat, &workbook, "report.xlsx", &cells);

    let draw = json!({"workbook": "report.xlsx", "sheet": "Sales", "range": "A1:B3", "picture": "sales.png"});
    call("chart", "draw_chart", draw).link("sales.png");

    call("powerpoint", "create_presentation", json!({"id": "deck"}));
    let slide = json!({"presentation_id": "deck", "layout_index": 5, "title": "Sales"});
    call("powerpoint", "add_slide", slide);
    let picture = json!({
        "presentation_id": "deck", "slide_index": 0, "operation": "add",
        "image_source": "sales.png", "left": 1, "top": 2, "width": 8,
    });
    call("powerpoint", "manage_image", picture);
    let save = json!({"presentation_id": "deck", "file_path": "deck.pptx"});
    let deck = call("powerpoint", "save_presentation", save).link("deck.pptx");
    let wanted = ["--slides", "1", "--pictures", "1", "--text", "Sales"];
    verify(&chat, &deck, "deck.pptx", &wanted);
}
