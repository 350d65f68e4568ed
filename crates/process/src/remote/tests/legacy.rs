//! Features of revisions with sessions.

use super::*;

#[tokio::test]
async fn the_session_and_its_revision_go_with_everything_until_it_is_closed() {
    let mut server = Server::legacy(|_| None).await;
    let mut bridge = Bridge::to(&server);
    bridge.introduce().await;
    let first = server.next().await;
    assert_eq!(first.header("mcp-session-id"), "");
    assert_eq!(
        first.header("accept"),
        "application/json, text/event-stream"
    );
    assert_eq!(first.header("content-type"), "application/json");
    server.until("notifications/initialized").await;
    let listening = server.next().await;
    assert_eq!(listening.verb, Method::GET);
    assert_eq!(listening.header("accept"), "text/event-stream");
    bridge.ask(1, "tools/list", &json!({})).await;
    assert_eq!(bridge.hear().await["result"]["asked"], "tools/list");
    let asked = server.next().await;
    bridge.stdin = None;
    let goodbye = server.next().await;
    assert_eq!(goodbye.verb, Method::DELETE);
    for seen in [listening, asked, goodbye] {
        assert_eq!(seen.header("mcp-session-id"), "session-1");
        assert_eq!(seen.header("mcp-protocol-version"), "2025-06-18");
        assert_eq!(seen.header("authorization"), "Bearer configured");
        assert_eq!(seen.header("x-team"), "a");
    }
    bridge.assert_ended().await;
    timeout(PATIENCE, bridge.handle.gone()).await.unwrap();
}

#[tokio::test]
async fn dropping_the_handle_ends_the_pipe_and_closes_the_session() {
    let mut server = Server::legacy(|seen| {
        (seen.method() == "tools/call").then(|| open_events(": working\n\n"))
    })
    .await;
    let mut bridge = Bridge::ready(&mut server).await;
    bridge.call(1, "slow").await;
    server.until("tools/call").await;
    let Bridge {
        mut stdout, handle, ..
    } = bridge;
    drop(handle);
    let end = timeout(PATIENCE, stdout.next_line()).await.unwrap();
    assert_eq!(end.unwrap(), None);
    server.until_verb(Method::DELETE).await;
}

#[tokio::test]
async fn messages_keep_their_bytes_and_become_one_line() {
    let odd = r#"{"b":1.0,"a":1e400,"n":18446744073709551616,"s":"\ud83d\u000a\n"}"#;
    let pretty = format!("{{\n  \"jsonrpc\": \"2.0\",\r\n  \"id\": 1,\n  \"result\": {odd}\n}}\n");
    let mut server = Server::legacy(move |_| Some(json_body(&pretty))).await;
    let mut bridge = Bridge::to(&server);
    bridge.ask(1, "tools/list", &json!({})).await;
    let line = bridge.line().await.unwrap();
    assert!(line.contains(odd), "{line}");
    server.next().await;
    let message = format!(r#"{{ "jsonrpc":"2.0","id":2, "method":"x","params":{odd} }}"#);
    bridge.write(&message).await;
    assert_eq!(server.next().await.body, message);
}

#[tokio::test]
async fn what_comes_before_the_result_stays_in_order() {
    let mut server = Server::legacy(|seen| {
        if seen.method() != "tools/call" {
            return None;
        }
        let progress = |n: u8| {
            let note = json!({"method": "notifications/progress", "params": {"progress": n}});
            format!(": ping\r\nevent: message\r\ndata: {note}\r\n\r\n")
        };
        let notes: String = (0..20).map(progress).collect();
        let result = "data: {\"id\":1,\ndata: \"result\":{}}\n\n";
        Some(events(&format!(
            "id: 0\ndata:\n\nevent: ping\ndata: x\n\n{notes}{result}"
        )))
    })
    .await;
    let mut bridge = Bridge::ready(&mut server).await;
    bridge.call(1, "slow").await;
    for n in 0..20 {
        assert_eq!(bridge.hear().await["params"]["progress"], n);
    }
    assert_eq!(bridge.line().await.unwrap(), r#"{"id":1, "result":{}}"#);
}

#[tokio::test]
async fn requests_travel_side_by_side_and_their_answers_never_mix() {
    let both = Arc::new(tokio::sync::Barrier::new(20));
    let server = Server::start(move |seen| {
        let both = both.clone();
        async move {
            // No request is answered before all have arrived.
            both.wait().await;
            let letter =
                char::from(b'a' + u8::try_from(seen.message["id"].as_u64().unwrap()).unwrap());
            seen.result(&json!({"text": letter.to_string().repeat(200_000)}))
        }
    })
    .await;
    let mut bridge = Bridge::to(&server);
    for id in 0..20 {
        bridge.call(id, "big").await;
    }
    let mut answered = Vec::new();
    for _ in 0..20 {
        let answer = bridge.hear().await;
        let id = answer["id"].as_u64().unwrap();
        let letter = char::from(b'a' + u8::try_from(id).unwrap());
        assert_eq!(answer["result"]["text"], letter.to_string().repeat(200_000));
        answered.push(id);
    }
    answered.sort_unstable();
    assert_eq!(answered, (0..20).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_cancellation_is_posted_and_then_the_stream_is_dropped() {
    let (dropped, mut was_dropped) = mpsc::unbounded_channel();
    let mut server = Server::legacy(move |seen| {
        (seen.method() == "tools/call").then(|| guarded(dropped.clone()))
    })
    .await;
    let mut bridge = Bridge::ready(&mut server).await;
    bridge.call(1, "slow").await;
    server.until("tools/call").await;
    let cancel =
        json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 1}});
    bridge.say(&cancel).await;
    let seen = server.until("notifications/cancelled").await;
    assert_eq!(seen.header("mcp-session-id"), "session-1");
    timeout(PATIENCE, was_dropped.recv()).await.unwrap();
}

/// A stream without events; reports when it is dropped.
pub fn guarded(dropped: mpsc::UnboundedSender<()>) -> Response {
    struct Guard(mpsc::UnboundedSender<()>);
    impl Drop for Guard {
        fn drop(&mut self) {
            let _ = self.0.send(());
        }
    }
    let guard = Guard(dropped);
    let beats = stream::unfold(guard, |guard| async {
        // hyper notices only when it reads that the peer has closed, so the silence can be
        // complete.
        std::future::pending::<()>().await;
        Some((Ok::<_, Infallible>(Bytes::new()), guard))
    });
    let first = stream::iter([Ok(Bytes::from_static(b": begun\n\n"))]);
    let body = Body::from_stream(first.chain(beats));
    ([("content-type", "text/event-stream")], body).into_response()
}
