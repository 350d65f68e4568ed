//! One user's load, or a machine that does not answer, holds up nobody else.

use std::{
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use serde_json::{Value, json};

use crate::support::{TestBridge, echo, until, vars};

/// The wrong way takes a minute or more.
const SOON: Duration = Duration::from_secs(30);

/// A machine that takes connections and says nothing.
struct Silent {
    address: SocketAddr,
    taken: Arc<Mutex<Vec<TcpStream>>>,
}

impl Silent {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("an address");
        let taken = Arc::new(Mutex::new(Vec::new()));
        let kept = taken.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                kept.lock().expect("a lock").push(stream);
            }
        });
        Self { address, taken }
    }

    fn connections(&self) -> usize {
        self.taken.lock().expect("a lock").len()
    }

    /// So many entries for servers there, and behind them the good one.
    fn beside_echo(&self, count: usize, mode: &str) -> Value {
        let mut entries = serde_json::Map::new();
        for number in 0..count {
            let url = format!("http://{}/{number}/mcp", self.address);
            entries.insert(format!("far{number}"), json!({"url": url, "mode": mode}));
        }
        entries.insert("echo".to_owned(), echo());
        json!({ "mcpServers": entries })
    }
}

fn is_ready_beside(count: usize) {
    let far = Silent::start();
    let bridge = TestBridge::builder(far.beside_echo(count, "shared"))
        .var(vars::MAX_STARTS, 1)
        .start();
    let answered = until(SOON, || {
        let reply = bridge
            .chat("alice", "c1")
            .call("echo", "counter", json!({}));
        (reply.status == 200).then_some(())
    });
    assert!(answered.is_some(), "{}", bridge.log());
    assert!(far.connections() > 0, "they were asked");
    // Their next attempts are no different, and each new chat starts a process.
    for chat in 2..5 {
        let chat = bridge.chat("alice", &format!("c{chat}"));
        assert_eq!(chat.echo("counter", json!({})), 1);
    }
}

#[test]
fn silent_remote_servers_hold_up_no_local_start() {
    for count in [4, 10, 60] {
        is_ready_beside(count);
    }
}
