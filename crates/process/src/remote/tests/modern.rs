//! Revisions since 2026-07-28: no session, and headers that repeat values from the body.

use super::*;

fn params(more: &Value) -> Value {
    let mut params = more.clone();
    params["_meta"] = json!({"io.modelcontextprotocol/protocolVersion": "2026-07-28"});
    params
}

#[tokio::test]
async fn headers_repeat_the_body_and_no_session_is_kept() {
    let mut server = Server::legacy(|seen| {
        let mut response = seen.result(&json!({}));
        let session = "unwanted".parse().unwrap();
        response.headers_mut().insert("mcp-session-id", session);
        Some(response)
    })
    .await;
    let schema = json!({"properties": {"region": {"type": "string", "x-mcp-header": "Region"}}});
    let find: ToolSchema =
        Arc::new(move |tool| (tool == "täst").then(|| RawJson::from_json(&schema)));
    let options = RemoteOptions {
        tool_schema: Some(find),
        ..options()
    };
    let mut bridge = Bridge::with(&server, options);
    let call = params(&json!({"name": "täst", "arguments": {"region": "eu"}}));
    bridge.ask(1, "tools/call", &call).await;
    bridge.hear().await;
    let seen = server.next().await;
    assert_eq!(seen.header("mcp-protocol-version"), "2026-07-28");
    assert_eq!(seen.header("mcp-method"), "tools/call");
    assert_eq!(seen.header("mcp-name"), "=?base64?dMOkc3Q=?=");
    assert_eq!(seen.header("mcp-param-region"), "eu");
    bridge.ask(2, "server/discover", &params(&json!({}))).await;
    bridge.hear().await;
    let seen = server.next().await;
    assert_eq!(seen.header("mcp-method"), "server/discover");
    assert_eq!(seen.header("mcp-name"), "");
    assert_eq!(seen.header("mcp-session-id"), "");
    bridge.stdin = None;
    bridge.assert_ended().await;
    assert!(server.seen.try_recv().is_err());
}

#[tokio::test]
async fn cancelling_closes_the_stream_and_says_nothing() {
    let (dropped, mut was_dropped) = mpsc::unbounded_channel();
    let mut server =
        Server::start(move |_| std::future::ready(super::legacy::guarded(dropped.clone()))).await;
    let mut bridge = Bridge::to(&server);
    let call = params(&json!({"name": "slow"}));
    bridge.ask(1, "tools/call", &call).await;
    server.next().await;
    let cancel =
        json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 1}});
    bridge.say(&cancel).await;
    timeout(PATIENCE, was_dropped.recv()).await.unwrap();
    assert!(server.seen.try_recv().is_err());
}

#[tokio::test]
async fn news_may_take_longer_than_any_call() {
    let (news, later) = mpsc::unbounded_channel::<Bytes>();
    let later = Arc::new(Mutex::new(Some(later)));
    let mut server = Server::start(move |seen| {
        let later = later.clone();
        async move {
            if seen.method() != "subscriptions/listen" {
                // Never answered: this call shows that the timeout has expired.
                return open_events(": here\n\n");
            }
            let later = later.lock().take().unwrap();
            let body = stream::unfold(later, async |mut later| {
                let news = later.recv().await?;
                Some((Ok::<_, Infallible>(news), later))
            });
            let kind = [("content-type", "text/event-stream")];
            (kind, Body::from_stream(body)).into_response()
        }
    })
    .await;
    let options = RemoteOptions {
        idle_timeout: Duration::from_millis(100),
        ..options()
    };
    let mut bridge = Bridge::with(&server, options);
    news.send(Bytes::from_static(b": welcome\n\n")).unwrap();
    bridge
        .ask(1, "subscriptions/listen", &params(&json!({})))
        .await;
    server.until("subscriptions/listen").await;
    bridge
        .ask(2, "tools/call", &params(&json!({"name": "slow"})))
        .await;
    bridge.error(2).await;
    news.send(Bytes::from_static(b"data: {\"method\":\"news\"}\n\n"))
        .unwrap();
    assert_eq!(bridge.hear().await["method"], "news");
}

#[tokio::test]
async fn a_broken_stream_is_not_taken_up_again() {
    let mut server = Server::legacy(|_| {
        let text = "id: 1\nretry: 1\ndata: {\"method\":\"n\"}\n\n";
        Some(broken("text/event-stream", text))
    })
    .await;
    let mut bridge = Bridge::to(&server);
    bridge
        .ask(1, "tools/call", &params(&json!({"name": "x"})))
        .await;
    bridge.hear().await;
    assert!(bridge.error(1).await.contains("connection lost"));
    server.next().await;
    assert!(server.seen.try_recv().is_err());
}
