//! Streams that break and are resumed, and the session's own stream.

use super::*;

fn initialized_stream(text: &'static str) -> impl Fn(&Received) -> Option<Response> + Clone {
    move |seen| (seen.verb == Method::GET).then(|| open_events(text))
}

#[tokio::test]
async fn a_call_goes_on_where_its_stream_broke() {
    let mut server = Server::legacy(|seen| {
        if seen.method() == "tools/call" {
            let text = "retry: 1\nid: a-1\ndata: {\"method\":\"one\"}\n\n";
            return Some(broken("text/event-stream", text));
        }
        match seen.header("last-event-id") {
            // A server may close the connection between events, and do so again.
            "a-1" => Some(events("id: a-2\ndata: {\"method\":\"two\"}\n\n")),
            "a-2" => Some(events("id: a-3\ndata: {\"id\":1,\"result\":{}}\n\n")),
            _ => None,
        }
    })
    .await;
    let mut bridge = Bridge::ready(&mut server).await;
    bridge.call(1, "long").await;
    assert_eq!(bridge.hear().await["method"], "one");
    assert_eq!(bridge.hear().await["method"], "two");
    assert_eq!(bridge.hear().await["id"], 1);
    let mut seen = std::iter::from_fn(|| server.seen.try_recv().ok()).collect::<Vec<_>>();
    seen.retain(|seen| seen.method() == "tools/call");
    assert_eq!(seen.len(), 1);
}

#[tokio::test]
async fn a_call_whose_stream_cannot_go_on_fails() {
    let mut server = Server::legacy(|seen| {
        let text = "id: 1\nretry: 1\ndata:\n\n";
        (seen.method() == "tools/call").then(|| broken("text/event-stream", text))
    })
    .await;
    let mut bridge = Bridge::ready(&mut server).await;
    bridge.call(1, "long").await;
    assert!(bridge.error(1).await.contains("connection lost"));
}

#[tokio::test]
async fn the_server_asks_on_its_own_stream_and_is_answered() {
    let ask = "id: 5\ndata: {\"id\":\"s\",\"method\":\"ping\"}\n\n";
    let mut server = Server::legacy(initialized_stream(ask)).await;
    let mut bridge = Bridge::ready(&mut server).await;
    assert_eq!(
        bridge.line().await.unwrap(),
        r#"{"id":"s","method":"ping"}"#
    );
    bridge
        .write(r#"{"jsonrpc":"2.0","id":"s","result":{}}"#)
        .await;
    let posted = server.until_verb(Method::POST).await;
    assert_eq!(posted.body, r#"{"jsonrpc":"2.0","id":"s","result":{}}"#);
    assert_eq!(posted.header("mcp-session-id"), "session-1");
}

#[tokio::test]
async fn the_own_stream_is_taken_up_again() {
    let mut server = Server::legacy(|seen| {
        let is_get = seen.verb == Method::GET;
        is_get.then(|| match seen.header("last-event-id") {
            "" => broken(
                "text/event-stream",
                "retry: 1\nid: 1\ndata: {\"method\":\"a\"}\n\n",
            ),
            "1" => events("id: 2\ndata: {\"method\":\"b\"}\n\n"),
            _ => open_events("data: {\"method\":\"c\"}\n\n"),
        })
    })
    .await;
    let mut bridge = Bridge::ready(&mut server).await;
    for method in ["a", "b", "c"] {
        assert_eq!(bridge.hear().await["method"], method);
    }
}

#[tokio::test]
async fn a_session_that_is_gone_is_seen_on_the_own_stream() {
    let mut server = Server::legacy(|seen| {
        (seen.verb == Method::GET).then(|| match seen.header("last-event-id") {
            "" => events("retry: 1\nid: 1\ndata:\n\n"),
            _ => status(404, ""),
        })
    })
    .await;
    let mut bridge = Bridge::ready(&mut server).await;
    bridge.assert_ended().await;
}

#[tokio::test]
async fn a_flood_on_the_own_stream_leaves_calls_alone() {
    let flood = Box::leak(format!("data: {}", "x".repeat(100_000)).into_boxed_str());
    let mut server = Server::legacy(initialized_stream(flood)).await;
    let options = RemoteOptions {
        max_message: 10_000,
        ..options()
    };
    let mut bridge = Bridge::ready_with(&mut server, options).await;
    server.until_verb(Method::GET).await;
    bridge.call(1, "fine").await;
    assert_eq!(bridge.hear().await["id"], 1);
}
