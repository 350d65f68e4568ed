//! Against the Python SDK's server: `cargo test remote -- --ignored`, with `uv` on the PATH.

use super::*;

const SCRIPT: &str = r#"
import os, sys, threading
from mcp.server import MCPServer
from mcp.server.mcpserver import Context

server = MCPServer("real")

@server.tool()
def echo(text: str) -> str:
    return text

@server.tool()
async def count(upto: int, ctx: Context) -> str:
    for n in range(upto):
        await ctx.report_progress(n, upto)
    return "done"

# Whoever started us is uv: its end reaches us only as the end of stdin.
threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
server.run(sys.argv[1], port=int(sys.argv[2]))
"#;

/// A server on a free port, once it listens.
async fn python(transport: &str) -> (tokio::process::Child, Url) {
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = free.local_addr().unwrap().port();
    drop(free);
    let child = tokio::process::Command::new("uv")
        .args(["run", "-q", "--no-project", "--with", "mcp>=2,<3"])
        .args(["python", "-c", SCRIPT, transport, &port.to_string()])
        .stdin(std::process::Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("uv runs");
    let path = if transport == "sse" { "sse" } else { "mcp" };
    let url = format!("http://127.0.0.1:{port}/{path}").parse().unwrap();
    let listens = async {
        while tokio::net::TcpStream::connect(("127.0.0.1", port))
            .await
            .is_err()
        {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let start = timeout(Duration::from_secs(120), listens);
    start.await.expect("the server starts");
    (child, url)
}

async fn call_both_tools(bridge: &mut Bridge, meta: &Value) {
    let params = |name: &str, arguments: &Value| {
        let mut meta = meta.clone();
        meta["progressToken"] = json!("t");
        json!({"name": name, "arguments": arguments, "_meta": meta})
    };
    let echo = params("echo", &json!({"text": "a\n\u{2028}😀"}));
    bridge.ask(1, "tools/call", &echo).await;
    let answer = bridge.hear().await;
    let text = answer["result"]["content"][0]["text"].as_str();
    assert_eq!(text, Some("a\n\u{2028}😀"), "{answer}");
    bridge
        .ask(2, "tools/call", &params("count", &json!({"upto": 20})))
        .await;
    for n in 0..20 {
        let note = bridge.hear().await;
        assert_eq!(
            note["params"]["progress"].as_f64(),
            Some(f64::from(n)),
            "{note}"
        );
    }
    let done = bridge.hear().await;
    assert_eq!(done["result"]["content"][0]["text"], "done", "{done}");
}

#[tokio::test]
#[ignore = "fetches the Python SDK"]
async fn the_python_sdk_in_both_eras() {
    let (_child, url) = python("streamable-http").await;
    let mut bridge = Bridge::open(&spec(url.clone()), options());
    bridge.introduce().await;
    call_both_tools(&mut bridge, &json!({})).await;
    bridge.stdin = None;
    bridge.assert_ended().await;

    let mut bridge = Bridge::open(&spec(url), options());
    let meta = json!({
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientInfo": {"name": "test", "version": "1"},
        "io.modelcontextprotocol/clientCapabilities": {},
    });
    let discover = json!({ "_meta": meta });
    bridge.ask(0, "server/discover", &discover).await;
    let offer = bridge.hear().await;
    assert!(offer["result"]["supportedVersions"].is_array(), "{offer}");
    call_both_tools(&mut bridge, &meta).await;
}

#[tokio::test]
#[ignore = "fetches the Python SDK"]
async fn the_python_sdk_over_the_old_transport() {
    let (_child, url) = python("sse").await;
    let spec = RemoteSpec {
        kind: RemoteKind::Sse,
        ..spec(url)
    };
    let mut bridge = Bridge::open(&spec, options());
    bridge.introduce().await;
    call_both_tools(&mut bridge, &json!({})).await;
}
