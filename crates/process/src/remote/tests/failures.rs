//! Servers that fail, and the errors that callers get.

use tokio::io::AsyncReadExt as _;

use super::*;

#[tokio::test]
async fn refusals_name_status_and_host_but_no_secret() {
    let mut server = Server::legacy(|seen| match seen.message["params"]["name"].as_str()? {
        "401" => Some(status(401, r#"{"error":"invalid_token"}"#)),
        "503" => Some(status(503, "<html>")),
        "html" => Some(([("content-type", "text/html")], "<html>").into_response()),
        "202" => Some(status(202, "")),
        "other" => Some(json_body(r#"{"id":99,"result":{}}"#)),
        _ => None,
    })
    .await;
    server.url.set_query(Some("key=hunter2"));
    server.url.set_username("me").unwrap();
    server.url.set_password(Some("hunter2")).unwrap();
    let mut bridge = Bridge::ready(&mut server).await;
    let expected = [
        ("401", "HTTP status 401 Unauthorized"),
        ("503", "HTTP status 503"),
        ("html", "neither JSON nor an event stream"),
        ("202", "without a reply"),
    ];
    for (tool, words) in expected {
        bridge.call(1, tool).await;
        let error = bridge.error(1).await;
        assert!(error.contains(words), "{error}");
        assert!(error.contains("127.0.0.1:"), "{error}");
        assert!(!error.contains("hunter2"), "{error}");
    }
    bridge.call(1, "other").await;
    assert_eq!(bridge.hear().await["id"], 99);
    assert!(bridge.error(1).await.contains("without a reply"));
    bridge.call(2, "fine").await;
    assert_eq!(bridge.hear().await["id"], 2);
    assert_eq!(server.next().await.target, "/mcp?key=hunter2");
}

#[tokio::test]
async fn json_rpc_errors_pass_whatever_the_status() {
    let own = r#"{"id":1,"error":{"code":-32020,"message":"m","data":1.0}, "x":{}}"#;
    let nameless = r#"{"jsonrpc":"2.0","id":null,"error":{"code":-32000,"message":"busy"}}"#;
    let server = Server::start(move |seen| {
        let is_first = seen.message["id"] == 1;
        let answer = if is_first {
            (400, own)
        } else {
            (503, nameless)
        };
        std::future::ready(status(answer.0, answer.1))
    })
    .await;
    let mut bridge = Bridge::to(&server);
    bridge.call(1, "a").await;
    assert_eq!(bridge.line().await.unwrap(), own);
    bridge.call(2, "a").await;
    assert_eq!(bridge.error(2).await, "busy");
}

/// Reads each request on a connection; answers the first `answered` and closes the connection at
/// the next.
async fn hangs_up(answered: usize) -> (Url, mpsc::UnboundedReceiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let (sender, seen) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        let mut left = answered;
        loop {
            let (mut socket, _) = listener.accept().await.unwrap();
            loop {
                let mut request = vec![0; 16 * 1024];
                let Ok(length @ 1..) = socket.read(&mut request).await else {
                    break;
                };
                let text = String::from_utf8_lossy(&request[..length]).into_owned();
                let _ = sender.send(text);
                if left == 0 {
                    break;
                }
                left -= 1;
                let body = r#"{"id":1,"result":{}}"#;
                let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length:";
                let answer = format!("{head} {}\r\n\r\n{body}", body.len());
                socket.write_all(answer.as_bytes()).await.unwrap();
            }
        }
    });
    (url.parse().unwrap(), seen)
}

#[tokio::test]
async fn a_call_is_never_sent_twice() {
    for answered in [0, 1] {
        let (url, mut seen) = hangs_up(answered).await;
        let mut bridge = Bridge::open(&spec(url), options());
        for _ in 0..answered {
            bridge.call(1, "charge").await;
            bridge.hear().await;
        }
        bridge.call(1, "charge").await;
        let error = bridge.error(1).await;
        assert!(error.contains("connection lost"), "{error}");
        let mut calls = 0;
        while seen.try_recv().is_ok() {
            calls += 1;
        }
        assert_eq!(calls, answered + 1);
    }
}

#[tokio::test]
async fn a_question_without_effects_is_asked_twice_at_most() {
    let (url, mut seen) = hangs_up(0).await;
    let mut bridge = Bridge::open(&spec(url), options());
    bridge.ask(1, "tools/list", &json!({})).await;
    bridge.error(1).await;
    let mut asked = 0;
    while seen.try_recv().is_ok() {
        asked += 1;
    }
    assert_eq!(asked, 2);
}

#[tokio::test]
async fn a_server_that_cannot_be_reached_is_an_error() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let url: Url = format!("http://{address}/").parse().unwrap();
    let mut bridge = Bridge::open(&spec(url.clone()), options());
    bridge.call(1, "early").await;
    let error = bridge.error(1).await;
    assert!(error.contains("refused"), "{error}");
    let nowhere: Url = "http://nowhere.invalid/".parse().unwrap();
    let mut bridge = Bridge::open(&spec(nowhere), options());
    bridge.call(1, "early").await;
    let error = bridge.error(1).await;
    assert!(error.contains("no connection"), "{error}");
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_an_error_at_once() {
    let mut server = Server::legacy(|seen| match seen.message["params"]["name"].as_str()? {
        "json" => Some(broken("application/json", r#"{"id":1,"#)),
        "events" => Some(broken(
            "text/event-stream",
            "data: {\"method\":\"n\"}\n\ndata: {\"id\":1,\"result\":{}}\n",
        )),
        "ended" => Some(events("data: {\"method\":\"n\"}\n\n")),
        _ => None,
    })
    .await;
    let mut bridge = Bridge::ready(&mut server).await;
    bridge.call(1, "json").await;
    assert!(bridge.error(1).await.contains("connection lost"));
    bridge.call(1, "events").await;
    assert_eq!(bridge.hear().await["method"], "n");
    assert!(bridge.error(1).await.contains("connection lost"));
    bridge.call(1, "ended").await;
    assert_eq!(bridge.hear().await["method"], "n");
    assert!(bridge.error(1).await.contains("without a reply"));
    assert_eq!(server.count("tools/call"), 3);
}

#[tokio::test]
async fn a_silent_server_costs_no_more_than_the_idle_timeout() {
    let server = Server::start(async |seen: Received| {
        if seen.message["params"]["name"] == "head" {
            std::future::pending::<()>().await;
        }
        open_events(": here\n\n")
    })
    .await;
    let options = RemoteOptions {
        idle_timeout: Duration::from_millis(100),
        ..options()
    };
    let mut bridge = Bridge::with(&server, options);
    for tool in ["head", "body"] {
        bridge.call(1, tool).await;
        let error = bridge.error(1).await;
        assert!(error.contains("sent nothing for 0.1 seconds"), "{error}");
    }
}

#[tokio::test]
async fn answers_above_the_limit_cost_their_call_and_nothing_else() {
    let endless = || stream::repeat(Ok::<_, Infallible>(Bytes::from_static(&[b'x'; 1024])));
    let mut server = Server::legacy(move |seen| {
        let kind = match seen.message["params"]["name"].as_str()? {
            "json" => "application/json",
            "event" => "text/event-stream",
            "known" => return Some(json_body(&"x".repeat(50_000))),
            _ => return None,
        };
        let start = stream::iter([Ok(Bytes::from_static(b"data: "))]);
        let body = Body::from_stream(start.chain(endless()));
        Some(([("content-type", kind)], body).into_response())
    })
    .await;
    let options = RemoteOptions {
        max_message: 40_000,
        ..options()
    };
    let mut bridge = Bridge::ready_with(&mut server, options).await;
    for tool in ["json", "event", "known"] {
        bridge.call(1, tool).await;
        let error = bridge.error(1).await;
        assert!(error.contains("larger than 40000 bytes"), "{error}");
    }
    bridge.call(2, "small").await;
    assert_eq!(bridge.hear().await["id"], 2);
}

#[tokio::test]
async fn redirects_stay_within_the_origin() {
    let mut elsewhere = Server::legacy(|_| None).await;
    let target = elsewhere.url.to_string();
    let mut server = Server::legacy(move |seen| {
        let moved = |code: u16, to: &str| {
            let mut response = status(code, "");
            response
                .headers_mut()
                .insert("location", to.parse().unwrap());
            Some(response)
        };
        let tool = seen.message["params"]["name"].as_str()?;
        match (tool, seen.target.as_str()) {
            ("elsewhere", _) => moved(307, &target),
            ("found", _) => moved(302, "/mcp/"),
            ("moved", "/mcp") => moved(308, "/mcp/"),
            ("round", _) => moved(307, "/mcp"),
            _ => None,
        }
    })
    .await;
    let mut bridge = Bridge::ready(&mut server).await;
    for tool in ["elsewhere", "found", "round"] {
        bridge.call(1, tool).await;
        let error = bridge.error(1).await;
        assert!(error.contains("redirects"), "{error}");
    }
    assert!(elsewhere.seen.try_recv().is_err());
    server.count("");
    bridge.call(2, "moved").await;
    assert_eq!(bridge.hear().await["id"], 2);
    let (before, after) = (server.next().await, server.next().await);
    assert_eq!(after.target, "/mcp/");
    assert_eq!(after.body, before.body);
    assert_eq!(after.header("authorization"), "Bearer configured");
}

#[tokio::test]
async fn a_lost_session_ends_the_pipe_after_the_answer() {
    let terminated = r#"{"jsonrpc":"2.0","id":"server-error","error":{"code":-32600,"message":"Session terminated"}}"#;
    let invalid = r#"{"jsonrpc":"2.0","id":null,"error":{"code":-32000,"message":"Bad Request: No valid session ID provided"}}"#;
    for (code, body) in [(404, ""), (404, terminated), (400, invalid)] {
        let mut server =
            Server::legacy(move |seen| (seen.method() == "tools/call").then(|| status(code, body)))
                .await;
        let mut bridge = Bridge::ready(&mut server).await;
        bridge.call(1, "any").await;
        assert!(bridge.error(1).await.contains("ended the session"));
        bridge.assert_ended().await;
        timeout(PATIENCE, bridge.handle.gone()).await.unwrap();
        let mut verbs = std::iter::from_fn(|| server.seen.try_recv().ok());
        assert!(verbs.all(|seen| seen.verb != Method::DELETE));
    }
}

#[tokio::test]
async fn an_unknown_method_loses_no_session() {
    let mut server = Server::legacy(|seen| {
        let error = r#"{"id":1,"error":{"code":-32601,"message":"unknown"}}"#;
        (seen.method() == "x/y").then(|| status(404, error))
    })
    .await;
    let mut bridge = Bridge::ready(&mut server).await;
    bridge.ask(1, "x/y", &json!({})).await;
    assert_eq!(bridge.error(1).await, "unknown");
    bridge.call(2, "fine").await;
    assert_eq!(bridge.hear().await["id"], 2);
}
