//! One user's load, or a machine that does not respond, does not delay other users.

use std::{
    io::Write as _,
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex, mpsc},
    thread,
    time::Duration,
};

use serde_json::{Value, json};

use crate::support::{
    PROMPT, PendingCall, TestBridge, echo, eventually,
    far::{self, Far},
    servers, until, vars, with,
};

/// A machine that accepts connections and sends nothing.
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

    /// A config of `count` servers on that machine, followed by the working one.
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
    let answered = until(PROMPT, || {
        let reply = bridge
            .chat("alice", "c1")
            .call("echo", "counter", json!({}));
        (reply.status == 200).then_some(())
    });
    assert!(answered.is_some(), "{}", bridge.log());
    assert!(far.connections() > 0, "they were asked");
    // Their next attempts fail in the same way, and each new chat starts a process.
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

/// A call that sleeps until its caller hangs up; returns when it runs.
fn long_call(bridge: &TestBridge, user: &str, chat: &str) -> PendingCall {
    let touch = format!("{user}-{chat}");
    let sleeping = json!({"seconds": 3600, "touch": touch});
    let call = bridge.chat(user, chat).begin("echo", "sleep", &sleeping);
    bridge.wait_for_file(&touch);
    call
}

/// The response of each of these calls, in order of arrival.
fn answers(calls: Vec<PendingCall>) -> mpsc::Receiver<String> {
    let (sender, answers) = mpsc::channel();
    for call in calls {
        let sender = sender.clone();
        thread::spawn(move || sender.send(call.rest()));
    }
    answers
}

#[test]
fn calls_that_a_silent_remote_server_does_not_answer_hold_up_no_local_call() {
    let far = Far::start(|seen, stream| {
        if seen.method() == "tools/call" {
            // No response for as long as the test runs.
            thread::sleep(Duration::from_secs(3600));
        }
        far::respond(seen, stream)
    });
    for mode in ["stateful", "stateless"] {
        let before = far.count("POST tools/call");
        let remote = json!({"url": format!("{}/mcp", far.origin), "mode": mode});
        let bridge = TestBridge::builder(servers([("far", remote), ("echo", echo())]))
            .var(vars::MAX_CONCURRENT, 2)
            .start();
        let held: Vec<_> = ["alice", "bob", "carol"]
            .map(|user| {
                let chat = bridge.chat(user, "c1");
                chat.begin("far", "echo", &json!({"text": "a"}))
            })
            .into();
        eventually("all three were asked", || {
            far.count("POST tools/call") == before + 3
        });
        let chat = bridge.chat("dave", "c1");
        assert_eq!(chat.echo("counter", json!({})), 1, "{mode}");
        held.into_iter().for_each(PendingCall::hang_up);
    }
}

#[test]
fn one_user_never_runs_all_calls_nor_do_two() {
    let bridge = TestBridge::builder(servers([("echo", echo())]))
        .var(vars::MAX_CONCURRENT, 8)
        .start();
    // Six are the maximum for one user; the user's other calls wait.
    let mut held: Vec<_> = (0..6)
        .map(|chat| long_call(&bridge, "mallory", &format!("c{chat}")))
        .collect();
    for chat in 6..20 {
        let chat = bridge.chat("mallory", &format!("c{chat}"));
        held.push(chat.begin("echo", "sleep", &json!({"seconds": 3600})));
    }
    held.push(long_call(&bridge, "trent", "c0"));
    held.push(
        bridge
            .chat("trent", "c1")
            .begin("echo", "sleep", &json!({"seconds": 3600})),
    );
    for turn in 1..4 {
        assert_eq!(bridge.chat("carol", "c1").echo("counter", json!({})), turn);
    }
    held.into_iter().for_each(PendingCall::hang_up);
}

#[test]
fn a_newcomer_finds_a_place_in_a_queue_that_one_user_fills() {
    for mode in ["stateful", "stateless", "shared"] {
        // One permit: of a shared server by its concurrency, of the others by the bridge's limit.
        let mut entry = with(echo(), json!({"mode": mode}));
        if mode == "shared" {
            entry = with(entry, json!({"concurrency": 1}));
        }
        let bridge = TestBridge::builder(servers([("echo", entry)]))
            .var(vars::MAX_CONCURRENT, 1)
            .var(vars::MAX_WAITING, 4)
            .start();
        let running = long_call(&bridge, "greedy", "c0");
        let flood = (1..10).map(|chat| {
            let chat = bridge.chat("greedy", &format!("c{chat}"));
            chat.begin("echo", "counter", &json!({}))
        });
        let flood = answers(flood.collect());
        // Four of nine calls may wait.
        for _ in 0..5 {
            let refused = flood.recv_timeout(PROMPT).expect("an answer");
            assert!(refused.starts_with("HTTP/1.1 429"), "{mode}: {refused}");
            assert!(refused.contains("MCPO_MAX_WAITING"), "{mode}: {refused}");
        }
        let chat = bridge.chat("modest", "c1");
        let modest = answers(vec![chat.begin("echo", "counter", &json!({}))]);
        // The newest call of the user with the most calls makes room.
        let refused = flood.recv_timeout(PROMPT).expect("an answer");
        assert!(refused.starts_with("HTTP/1.1 429"), "{mode}: {refused}");
        running.hang_up();
        let answered = modest.recv_timeout(PROMPT).expect("an answer");
        assert!(answered.starts_with("HTTP/1.1 200"), "{mode}: {answered}");
        for _ in 0..3 {
            let answered = flood.recv_timeout(PROMPT).expect("an answer");
            assert!(answered.starts_with("HTTP/1.1 200"), "{mode}: {answered}");
        }
    }
}

#[test]
fn a_shared_server_takes_its_turns_by_user() {
    let shared = with(echo(), json!({"mode": "shared", "concurrency": 4}));
    let bridge = TestBridge::start(servers([("echo", shared)]));
    let sleep = |chat: &str| {
        let chat = bridge.chat("mallory", chat);
        chat.begin("echo", "sleep", &json!({"seconds": 3600}))
    };
    let held: Vec<_> = (0..12).map(|chat| sleep(&format!("c{chat}"))).collect();
    let modest = bridge.chat("modest", "c1");
    eventually("three sleep", || modest.echo("sleeping", json!({})) == 3);
    // It gets the fourth permit repeatedly, ahead of nine waiting calls.
    for _ in 0..5 {
        assert_eq!(modest.echo("sleeping", json!({})), 3);
    }
    held.into_iter().for_each(PendingCall::hang_up);
}

#[test]
fn a_flood_waits_in_the_bridge_and_not_in_a_shared_server() {
    let shared = with(echo(), json!({"mode": "shared"}));
    let bridge = TestBridge::builder(servers([("echo", shared)]))
        .var(vars::SERVER_CALLS_PER_USER, 3)
        .start();
    let held: Vec<_> = (0..40)
        .map(|chat| {
            let chat = bridge.chat("mallory", &format!("c{chat}"));
            chat.begin("echo", "sleep", &json!({"seconds": 3600}))
        })
        .collect();
    let modest = bridge.chat("modest", "c1");
    eventually("three sleep", || modest.echo("sleeping", json!({})) == 3);
    for _ in 0..5 {
        assert_eq!(modest.echo("sleeping", json!({})), 3);
    }
    held.into_iter().for_each(PendingCall::hang_up);
}

#[test]
fn a_user_with_many_chats_ends_his_own_sessions_and_no_one_elses() {
    let bridge = TestBridge::builder(servers([("echo", echo())]))
        .var(vars::MAX_TOTAL_PROCESSES, 6)
        .var(vars::POOL_MAX, 0)
        .start();
    let others = ["bob", "carol", "dave"];
    for user in others {
        assert_eq!(bridge.chat(user, "c1").echo("counter", json!({})), 1);
    }
    for chat in 0..9 {
        let chat = bridge.chat("mallory", &format!("c{chat}"));
        assert_eq!(chat.echo("counter", json!({})), 1);
    }
    for user in others {
        assert_eq!(
            bridge.chat(user, "c1").echo("counter", json!({})),
            2,
            "{user}"
        );
    }
    // mallory's newest sessions are still there; a new user's session ends one of mallory's.
    assert_eq!(bridge.chat("mallory", "c8").echo("counter", json!({})), 2);
    assert_eq!(bridge.chat("erin", "c1").echo("counter", json!({})), 1);
    for user in others {
        assert_eq!(
            bridge.chat(user, "c1").echo("counter", json!({})),
            3,
            "{user}"
        );
    }
}

#[test]
fn one_user_leaves_places_for_processes_to_others() {
    let bridge = TestBridge::builder(servers([("echo", echo())]))
        .var(vars::MAX_TOTAL_PROCESSES, 4)
        .var(vars::MAX_CONCURRENT, 16)
        .var(vars::POOL_MAX, 0)
        .start();
    // Three of four are busy, so none of them can be ended.
    let held: Vec<_> = (0..3)
        .map(|chat| long_call(&bridge, "mallory", &format!("c{chat}")))
        .collect();
    let chat = bridge.chat("mallory", "c3");
    let fourth = answers(vec![chat.begin("echo", "counter", &json!({}))]);
    for user in ["bob", "carol"] {
        assert_eq!(bridge.chat(user, "c1").echo("counter", json!({})), 1);
    }
    assert!(fourth.try_recv().is_err(), "it waits");
    held.into_iter().for_each(PendingCall::hang_up);
    let answered = fourth.recv_timeout(PROMPT).expect("an answer");
    assert!(answered.starts_with("HTTP/1.1 200"), "{answered}");
}

#[test]
fn remote_sessions_and_processes_do_not_end_each_other() {
    let far = Far::start(far::respond);
    let url = format!("{}/mcp", far.origin);
    let config = servers([("far", json!({"url": url})), ("echo", echo())]);
    let bridge = TestBridge::builder(config)
        .var(vars::MAX_TOTAL_PROCESSES, 1)
        .var(vars::POOL_MAX, 0)
        .start();
    let chat = bridge.chat("alice", "c1");
    assert_eq!(chat.echo("counter", json!({})), 1);
    let answer = bridge
        .chat("bob", "c1")
        .call("far", "echo", json!({"text": "a"}));
    assert_eq!(answer.ok(), "a");
    assert_eq!(chat.echo("counter", json!({})), 2);
}

#[test]
fn idle_sessions_make_room_where_descriptors_run_out() {
    let bridge = TestBridge::builder(servers([("echo", echo())]))
        .var(vars::POOL_MAX, 0)
        .start();
    for chat in 0..8 {
        let chat = bridge.chat("mallory", &format!("c{chat}"));
        assert_eq!(chat.echo("counter", json!({})), 1);
    }
    assert_eq!(bridge.chat("bob", "c1").echo("counter", json!({})), 1);
    bridge.leave_descriptors(8);
    for chat in 0..4 {
        let chat = bridge.chat("carol", &format!("c{chat}"));
        assert_eq!(chat.call("echo", "counter", json!({})).ok(), 1);
    }
    assert_eq!(bridge.chat("bob", "c1").echo("counter", json!({})), 2);
    assert_eq!(bridge.chat("mallory", "c7").echo("counter", json!({})), 2);
    bridge.wait_for_log("an idle one was stopped");
}

#[test]
fn bodies_of_one_user_leave_memory_for_those_of_others() {
    let bridge = TestBridge::builder(servers([("echo", echo())]))
        .var(vars::BODY_MEMORY, "64MiB")
        .var(vars::QUEUE_TIMEOUT, 1)
        .start();
    bridge.chat("alice", "c").echo("counter", json!({}));
    // Of the 24 MiB for large bodies each takes 6, and is never completed.
    let slow: Vec<_> = (0..4)
        .map(|number| {
            let head = format!(
                "POST /echo/echo HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
                 X-OpenWebUI-User-Id: mallory\r\nX-OpenWebUI-Chat-Id: c{number}\r\n\
                 Content-Length: {}\r\n\r\n{}",
                6 << 20,
                " ".repeat(200_000)
            );
            let mut stream = TcpStream::connect(bridge.address()).expect("the bridge listens");
            stream.write_all(head.as_bytes()).expect("it is sent");
            stream
        })
        .collect();
    let large = json!({"text": "a".repeat(3_000_000)});
    eventually("mallory's share is used up", || {
        let reply = bridge
            .chat("mallory", "c")
            .call("echo", "echo", large.clone());
        reply.status == 503 && reply.text().contains("no_memory")
    });
    let reply = bridge
        .chat("alice", "c")
        .call("echo", "echo", large.clone());
    assert_eq!(reply.status, 200, "{}", reply.text());
    drop(slow);
    eventually("his memory comes back", || {
        let reply = bridge
            .chat("mallory", "c")
            .call("echo", "echo", large.clone());
        reply.status == 200
    });
}

#[test]
fn one_user_has_his_share_of_the_disk_in_all_chats() {
    let mut bridge = TestBridge::builder(servers([("echo", echo())]))
        .var(vars::MAX_USER_BYTES, 1 << 20)
        .var(vars::FILES_SERVER, true)
        .var(vars::LOG_LEVEL, "DEBUG")
        .start();
    let write = |bridge: &TestBridge, user: &str, chat: &str, name: &str, bytes: usize| {
        let file = json!({"name": name, "content": "x".repeat(bytes)});
        bridge.chat(user, chat).call("echo", "write_file", file)
    };
    // The file and its link: 800,000 bytes.
    write(&bridge, "alice", "c1", "first.txt", 400_000).ok();
    for (started, chat) in [(1, "c2"), (2, "c3")] {
        // After a restart the records contain the usage.
        eventually("the clean-up has counted", || {
            bridge
                .log()
                .matches("\"message\":\"clean-up finished\"")
                .count()
                >= started
        });
        let over = write(&bridge, "alice", chat, "over.txt", 400_000);
        assert_eq!(over.status, 507, "{}", over.text());
        assert!(
            over.text().contains("MCPO_MAX_USER_BYTES"),
            "{}",
            over.text()
        );
        // The user can read, and delete files.
        let alice = bridge.chat("alice", chat);
        let listed = alice.call("mcpo/files", "list_files", json!({})).ok();
        assert!(listed.to_string().contains("over.txt"), "{listed}");
        let gone = alice.call("mcpo/files", "delete_file", json!({"name": "over.txt"}));
        assert_eq!(gone.status, 200, "{}", gone.text());
        write(&bridge, "alice", chat, "small.txt", 10_000).ok();
        write(
            &bridge,
            &format!("other of {chat}"),
            chat,
            "other.txt",
            400_000,
        )
        .ok();
        let large = vec![0; 400_000];
        let upload = alice.post_parts("/files", &[("file", Some("up.bin"), &large)]);
        assert_eq!(upload.status, 507, "{}", upload.text());
        bridge.restart();
    }
}
