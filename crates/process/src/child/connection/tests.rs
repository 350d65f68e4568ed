use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, DuplexStream, Lines};

use super::*;

#[derive(Default)]
struct Heard(Mutex<Vec<Vec<u8>>>);

impl NoiseLog for Heard {
    fn noise(&self, line: &[u8]) {
        self.0.lock().push(line.to_vec());
    }
}

/// The child's side of a conversation, played by the test.
struct Played {
    connection: Connection,
    reads: Lines<BufReader<DuplexStream>>,
    writes: DuplexStream,
    noise: Arc<Heard>,
    heard: Arc<Mutex<Vec<String>>>,
}

impl Played {
    fn new() -> Self {
        let (stdin, child_stdin) = tokio::io::duplex(1 << 16);
        let (child_stdout, stdout) = tokio::io::duplex(1 << 16);
        let (noise, heard) = (Arc::new(Heard::default()), Arc::new(Mutex::new(Vec::new())));
        let notes = heard.clone();
        let listener: Listener = Arc::new(move |said| notes.lock().push(said.method.to_string()));
        let connection = Connection::open(
            stdin,
            stdout,
            1000,
            listener,
            Arc::new(|line| line),
            noise.clone(),
        );
        let reads = BufReader::new(child_stdin).lines();
        Self {
            connection,
            reads,
            writes: child_stdout,
            noise,
            heard,
        }
    }

    async fn hears(&mut self) -> Value {
        serde_json::from_str(&self.reads.next_line().await.unwrap().unwrap()).unwrap()
    }

    async fn says(&mut self, line: &str) {
        self.writes
            .write_all(format!("{line}\n").as_bytes())
            .await
            .unwrap();
    }

    fn asks(&self, method: &'static str) -> tokio::task::JoinHandle<Result<Outcome, Closed>> {
        let connection = self.connection.clone();
        tokio::spawn(async move { connection.request(method, None).await })
    }
}

#[tokio::test]
async fn answers_find_their_request_whatever_comes_between() {
    let mut child = Played::new();
    let (one, two) = (child.asks("one"), child.asks("two"));
    let (first, second) = (child.hears().await, child.hears().await);
    child.says("log line").await;
    child
        .says(r#"{"method":"notifications/message","params":{}}"#)
        .await;
    child.says(r#"{"id":9,"method":"ping"}"#).await;
    child.says(r#"{"id":"r","method":"roots/list"}"#).await;
    child.says(r#"{"id":4711,"result":"nobody asked"}"#).await;
    for asked in [second, first] {
        let (id, method) = (&asked["id"], &asked["method"]);
        child
            .says(&json!({"id": id, "result": method}).to_string())
            .await;
    }
    assert_eq!(one.await.unwrap().unwrap().unwrap().as_str(), r#""one""#);
    assert_eq!(two.await.unwrap().unwrap().unwrap().as_str(), r#""two""#);
    assert_eq!(child.hears().await["result"], json!({}));
    let refused = child.hears().await;
    assert_eq!(
        (&refused["id"], &refused["error"]["code"]),
        (&json!("r"), &json!(-32601))
    );
    assert_eq!(*child.heard.lock(), ["notifications/message"]);
    assert_eq!(*child.noise.0.lock(), [b"log line".to_vec()]);
}

#[tokio::test]
async fn a_caller_who_leaves_is_cancelled() {
    let mut child = Played::new();
    let call = child.asks("slow");
    let asked = child.hears().await;
    call.abort();
    let cancelled = child.hears().await;
    assert_eq!(cancelled["method"], "notifications/cancelled");
    assert_eq!(cancelled["params"]["requestId"], asked["id"]);
}

#[tokio::test]
async fn an_ended_stream_fails_who_waits_and_who_comes_later() {
    let mut child = Played::new();
    let call = child.asks("x");
    child.hears().await;
    drop(child.writes);
    assert_eq!(call.await.unwrap().unwrap_err(), Closed::StreamEnded);
    assert!(!child.connection.is_open());
    assert_eq!(
        child.connection.request("y", None).await.unwrap_err(),
        Closed::StreamEnded
    );
}

#[tokio::test]
async fn a_line_above_the_limit_ends_the_conversation_only() {
    let mut child = Played::new();
    let call = child.asks("x");
    child.hears().await;
    child.says(&"x".repeat(5000)).await;
    assert_eq!(call.await.unwrap().unwrap_err(), Closed::LineTooLong);
}

#[tokio::test]
async fn closing_stdin_lets_the_last_answer_in() {
    let mut child = Played::new();
    let call = child.asks("x");
    let asked = child.hears().await;
    child.connection.close_stdin();
    assert!(child.reads.next_line().await.unwrap().is_none());
    child
        .says(&json!({"id": asked["id"], "result": 1}).to_string())
        .await;
    assert_eq!(call.await.unwrap().unwrap().unwrap().as_str(), "1");
}

#[tokio::test(start_paused = true)]
async fn a_child_that_closed_its_stdin_is_no_longer_asked() {
    let Played {
        connection,
        reads,
        writes: _stdout,
        ..
    } = Played::new();
    drop(reads);
    for _ in 0..2 {
        let asked = tokio::time::timeout(Duration::from_secs(60), connection.request("m", None));
        assert_eq!(asked.await.unwrap().unwrap_err(), Closed::StreamEnded);
    }
    assert!(!connection.is_open());
}
