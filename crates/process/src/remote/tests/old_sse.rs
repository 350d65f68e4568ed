//! The transport of 2024-11-05.

use super::*;

type Line = mpsc::UnboundedSender<Bytes>;

/// A server whose stream has the test's content; POSTs are answered with `code`.
async fn old_server(endpoint: &str, code: u16) -> (Server, Line) {
    let (sender, stream) = mpsc::unbounded_channel::<Bytes>();
    let first = format!("event: endpoint\ndata: {endpoint}\n\n");
    sender.send(first.into()).unwrap();
    let stream = Arc::new(Mutex::new(Some(stream)));
    let server = Server::start(move |seen| {
        let stream = stream.lock().take_if(|_| seen.verb == Method::GET);
        let response = match stream {
            Some(stream) => {
                let body = stream::unfold(stream, async |mut stream| {
                    let bytes = stream.recv().await?;
                    Some((Ok::<_, Infallible>(bytes), stream))
                });
                let kind = [("content-type", "text/event-stream")];
                (kind, Body::from_stream(body)).into_response()
            }
            None => status(code, "Accepted"),
        };
        std::future::ready(response)
    })
    .await;
    (server, sender)
}

fn open(server: &Server) -> Bridge {
    let mut spec = spec(server.url.clone());
    spec.kind = RemoteKind::Sse;
    Bridge::open(&spec, options())
}

#[tokio::test]
async fn messages_go_to_the_endpoint_and_answers_come_on_the_stream() {
    let (mut server, stream) = old_server("/messages?session=1", 202).await;
    server.url.set_username("me").unwrap();
    let mut bridge = open(&server);
    bridge.ask(1, "initialize", &json!({})).await;
    assert_eq!(server.next().await.verb, Method::GET);
    let posted = server.next().await;
    assert_eq!(posted.target, "/messages?session=1");
    assert_eq!(posted.header("x-team"), "a");
    let answer = Bytes::from_static(b"event: message\ndata: {\"id\":1,\"result\":{}}\n\n");
    stream.send(answer).unwrap();
    assert_eq!(bridge.line().await.unwrap(), r#"{"id":1,"result":{}}"#);
    drop(stream);
    bridge.assert_ended().await;
    timeout(PATIENCE, bridge.handle.gone()).await.unwrap();
}

#[tokio::test]
async fn an_endpoint_elsewhere_is_refused() {
    let mut elsewhere = Server::legacy(|_| None).await;
    for endpoint in [elsewhere.url.as_str(), "//[", "http://127.0.0.1:1/"] {
        let (server, _stream) = old_server(endpoint, 202).await;
        let mut bridge = open(&server);
        bridge.ask(1, "initialize", &json!({})).await;
        let error = bridge.error(1).await;
        assert!(
            error.contains("no message endpoint on its own origin"),
            "{error}"
        );
        bridge.assert_ended().await;
    }
    assert!(elsewhere.seen.try_recv().is_err());
}

#[tokio::test]
async fn a_refused_message_is_an_error() {
    let (server, _stream) = old_server("messages", 403).await;
    let mut bridge = open(&server);
    bridge.call(1, "x").await;
    assert!(bridge.error(1).await.contains("403 Forbidden"));
    bridge.stdin = None;
    bridge.assert_ended().await;
}

#[tokio::test]
async fn a_server_without_the_transport_is_an_error() {
    let server = Server::legacy(|_| None).await;
    let mut bridge = open(&server);
    bridge.ask(1, "initialize", &json!({})).await;
    assert!(bridge.error(1).await.contains("405 Method Not Allowed"));
    bridge.assert_ended().await;
}
