//! Several bridges on one jobs folder, behind a load balancer that does not know chats.

use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::{
    ALL, Client, Mcp, Replicas, TestBridge, echo, eventually, just_echo, promptly, result_of,
    servers, vars, with,
};

#[track_caller]
fn count(client: &Client) -> Value {
    let answer = client.call("echo", "counter", json!({}));
    answer.ok()
}

#[test]
fn sixty_chats_count_right_though_every_call_meets_another_bridge() {
    let replicas = Replicas::start(3, &just_echo());
    let chats: Vec<usize> = (0..60).collect();
    thread::scope(|scope| {
        for some in chats.chunks(8) {
            let replicas = &replicas;
            scope.spawn(move || {
                for turn in 1..=4 {
                    for chat in some {
                        let user = format!("u{}", chat % 7);
                        let client = replicas.next(&user, &format!("c{chat}"));
                        assert_eq!(count(&client), turn, "chat {chat}");
                    }
                }
            });
        }
    });
    assert_eq!(replicas.workspaces().len(), 60);
    assert_eq!(replicas.owners(), [0, 1, 2], "the work is shared");
}

#[test]
fn first_calls_of_a_chat_everywhere_at_once_meet_in_one_process_and_folder() {
    let replicas = Replicas::start(3, &just_echo());
    for round in 0..5 {
        let chat = format!("c{round}");
        let counts: BTreeSet<u64> = thread::scope(|scope| {
            let calls: Vec<_> = (0..9)
                .map(|_| {
                    let client = replicas.next("alice", &chat);
                    scope.spawn(move || count(&client).as_u64().expect("a count"))
                })
                .collect();
            calls
                .into_iter()
                .map(|call| call.join().expect("an answer"))
                .collect()
        });
        assert_eq!(counts, (1..=9).collect(), "round {round}");
        assert_eq!(replicas.workspaces().len(), round + 1);
    }
}

#[test]
fn a_named_session_is_found_from_every_bridge() {
    let replicas = Replicas::start(2, &just_echo());
    let [one, two] = [0, 1].map(|index| replicas.bridges[index].client());
    let first = one.call("echo", "counter", json!({}));
    let session = first.header("X-MCPO-Session").to_owned();
    assert_eq!(first.ok(), 1);
    let second = two.in_session(&session).call("echo", "counter", json!({}));
    assert_eq!(second.header("X-MCPO-Session"), session);
    assert_eq!(second.ok(), 2);
}

#[test]
fn chats_of_a_killed_bridge_go_on_elsewhere_with_their_files_and_are_told() {
    // On one host a lock shows that it has ended, and no call waits until its lease expires.
    let ttl = [(vars::LEASE_TTL, "100")];
    let mut replicas = Replicas::with(3, &just_echo(), &ttl);
    for chat in 0..9 {
        let client = replicas.bridges[chat % 3].chat("alice", &format!("c{chat}"));
        let file = json!({"name": "kept.txt", "content": format!("of {chat}")});
        client.call("echo", "write_file", file).ok();
        assert_eq!(count(&client), 1);
    }
    replicas.kill_hard(0);
    for chat in 0..9 {
        let client = replicas.bridges[1 + chat % 2].chat("alice", &format!("c{chat}"));
        let answer = promptly("the call", || count(&client));
        if chat % 3 == 0 {
            assert_eq!(answer["result"], 1, "{answer}");
            let notice = answer["notice"].as_str().expect("what was lost");
            assert!(
                notice.contains("restarted") && notice.contains("kept.txt"),
                "{notice}"
            );
        } else {
            assert_eq!(answer, 2, "chat {chat} notices nothing");
        }
        let kept = client.call("echo", "read_file", json!({"name": "kept.txt"}));
        assert_eq!(kept.ok(), format!("of {chat}"));
    }
    assert_eq!(replicas.workspaces().len(), 9);
}

#[test]
fn a_call_that_ran_on_a_killed_bridge_fails_with_a_reason() {
    let mut replicas = Replicas::start(2, &just_echo());
    let chats = [0, 1].map(|index| replicas.bridges[index].chat("alice", "c"));
    assert_eq!(count(&chats[0]), 1);
    let sleep = json!({"seconds": 60, "touch": "began"});
    let pending = chats[1].begin("echo", "sleep", &sleep);
    replicas.bridges[0].wait_for_file("began");
    replicas.kill_hard(0);
    let answer = pending.rest();
    assert!(answer.starts_with("HTTP/1.1 502"), "{answer}");
    assert!(answer.contains("check the chat's files"), "{answer}");
    assert_eq!(count(&chats[1])["result"], 1);
}

#[test]
fn who_hangs_up_anywhere_stops_the_work_where_it_is_done() {
    let replicas = Replicas::start(2, &just_echo());
    let chats = [0, 1].map(|index| replicas.bridges[index].chat("alice", "c"));
    assert_eq!(count(&chats[0]), 1);
    let sleep = json!({"seconds": 61, "touch": "began"});
    let pending = chats[1].begin("echo", "sleep", &sleep);
    replicas.bridges[0].wait_for_file("began");
    pending.hang_up();
    // In order: this call gets its turn after the end of the other.
    assert_eq!(result_of(&count(&chats[1])), 2);
    let cancelled = chats[1].call("echo", "cancelled", json!({})).ok();
    assert_eq!(cancelled, json!([61]));
}

#[test]
fn a_stopped_bridge_is_succeeded_and_finds_itself_fenced_when_it_wakes() {
    let replicas = Replicas::with(2, &just_echo(), &[(vars::LEASE_TTL, "8")]);
    let chats = [0, 1].map(|index| replicas.bridges[index].chat("alice", "c"));
    let file = json!({"name": "kept.txt", "content": "x"});
    chats[0].call("echo", "write_file", file).ok();
    assert_eq!(count(&chats[0]), 1);
    replicas.wait_until_acquainted(0);
    replicas.bridges[0].signal(Signal::STOP);
    let taken = promptly("the takeover", || count(&chats[1]));
    assert_eq!(taken["result"], 1, "{taken}");
    assert!(
        taken["notice"]
            .as_str()
            .is_some_and(|notice| notice.contains("kept.txt"))
    );
    replicas.bridges[0].signal(Signal::CONT);
    // Whichever event it notices first, its old child does no more work.
    assert_eq!(count(&chats[0]), 2, "it sends the call on");
    eventually("the old child is gone", || replicas.owners() == [1]);
    assert_eq!(count(&chats[0]), 3);
    assert_eq!(replicas.workspaces().len(), 1);
    replicas.bridges[0].wait_for_log("took over this chat");
}

#[test]
fn a_call_under_way_on_a_bridge_that_stops_dead_is_not_run_twice() {
    let replicas = Replicas::with(2, &just_echo(), &[(vars::LEASE_TTL, "8")]);
    let chats = [0, 1].map(|index| replicas.bridges[index].chat("alice", "c"));
    assert_eq!(count(&chats[0]), 1);
    replicas.wait_until_acquainted(0);
    let sleep = json!({"seconds": 60, "touch": "began"});
    let direct = chats[0].begin("echo", "sleep", &sleep);
    replicas.bridges[0].wait_for_file("began");
    replicas.bridges[0].signal(Signal::STOP);
    // The sleeping call has the chat's turn, so this one has not begun; but no other bridge can
    // know that.
    let taken = count(&chats[1]);
    assert_eq!(result_of(&taken), 1, "{taken}");
    assert_eq!(
        replicas.owners(),
        [1],
        "the old child was ended before that"
    );
    replicas.bridges[0].signal(Signal::CONT);
    let answer = direct.rest();
    assert!(answer.starts_with("HTTP/1.1 409"), "{answer}");
    assert!(answer.contains("may have been executed"), "{answer}");
    assert!(!answer.contains("call again"), "{answer}");
    assert!(!answer.to_lowercase().contains("retry-after"), "{answer}");
    let begun = chats[1].call("echo", "sleeping", json!({})).ok();
    assert_eq!(begun, 0, "the new child was asked once, to count");
}

#[test]
fn bridges_are_replaced_one_by_one_without_a_failed_request() {
    let config = just_echo();
    let mut replicas = Replicas::with(3, &config, &[(vars::DRAIN_DELAY, "5")]);
    let (stop, calls) = (AtomicBool::new(false), AtomicUsize::new(0));
    let balancer = |addresses: &[Client], chat: usize| {
        // Like a load balancer: a bridge that is not ready gets no requests.
        let mut turn = chat;
        while !stop.load(Ordering::Relaxed) {
            turn += 1;
            let client = &addresses[turn % addresses.len()];
            if client.is_ready() {
                let answer = client.call("echo", "counter", json!({}));
                assert_eq!(answer.status, 200, "{}", answer.text());
                calls.fetch_add(1, Ordering::Relaxed);
            }
        }
    };
    for index in 0..3 {
        let addresses: Vec<Vec<Client>> = (0..6)
            .map(|chat| {
                let clients = replicas.bridges.iter();
                clients
                    .map(|bridge| bridge.chat("alice", &format!("c{chat}")))
                    .collect()
            })
            .collect();
        stop.store(false, Ordering::Relaxed);
        let old = &mut replicas.bridges[index];
        thread::scope(|scope| {
            for (chat, addresses) in addresses.iter().enumerate() {
                let balancer = &balancer;
                scope.spawn(move || balancer(addresses, chat));
            }
            let before = calls.load(Ordering::Relaxed);
            eventually("calls run", || calls.load(Ordering::Relaxed) > before + 30);
            old.signal(Signal::TERM);
            let status = old.wait_for_exit();
            assert_eq!(status.code(), Some(0));
            let before = calls.load(Ordering::Relaxed);
            eventually("calls run on", || {
                calls.load(Ordering::Relaxed) > before + 30
            });
            stop.store(true, Ordering::Relaxed);
        });
        replicas.bridges[index].restart();
    }
    assert_eq!(replicas.workspaces().len(), 6);
}

#[test]
fn a_bridge_that_is_about_to_end_hands_over_what_comes() {
    let mut replicas = Replicas::with(2, &just_echo(), &[(vars::DRAIN_DELAY, "20")]);
    let [old, new] = [0, 1].map(|index| &replicas.bridges[index]);
    let chat = old.chat("alice", "c");
    assert_eq!(count(&chat), 1);
    let sleep = json!({"seconds": 2, "touch": "began"});
    let running = chat.begin("echo", "sleep", &sleep);
    old.wait_for_file("began");
    old.signal(Signal::TERM);
    eventually("it is not ready", || !old.client().is_ready());
    assert!(new.client().is_ready());
    // A call of this chat still runs there: the next one waits for its end, and then moves.
    let moved = count(&chat);
    assert_eq!(moved["result"], 1, "{moved}");
    assert!(running.rest().starts_with("HTTP/1.1 200"));
    assert_eq!(count(&old.chat("bob", "d")), 1);
    assert_eq!(replicas.owners(), [1]);
    let mcp = Mcp::legacy(old.chat("alice", "e"), "echo", &json!({}));
    assert_eq!(mcp.text("counter", json!({})), "1");
    assert_eq!(replicas.bridges[0].wait_for_exit().code(), Some(0));
    assert_eq!(count(&replicas.bridges[1].chat("bob", "d")), 2);
}

#[test]
fn links_work_on_every_bridge() {
    let replicas = Replicas::start(3, &just_echo());
    let file = json!({"name": "a.txt", "content": "bytes"});
    let made = replicas.bridges[0].chat("alice", "c");
    let url = made.call("echo", "write_file", file).link("a.txt");
    for bridge in &replicas.bridges {
        let found = bridge.client().download(&url);
        assert_eq!((found.status, found.text().as_str()), (200, "bytes"));
    }
}

#[test]
fn nobody_else_speaks_as_a_bridge() {
    let replicas = Replicas::with(2, &just_echo(), &[(vars::API_KEY, "secret-key")]);
    let bridge = &replicas.bridges[0];
    let unsigned = "eyJhbGciOiJub25lIn0.eyJhdWQiOiJ4In0.";
    for value in ["", "x", unsigned] {
        let client = bridge.client().bearer("secret-key");
        let client = client.header("X-MCPO-Peer", value);
        for path in ["/echo/counter", "/mcp/echo", "/files/x/y", "/health/live"] {
            let answer = client.post(path, "{}");
            assert_eq!(answer.status, 403, "{path} {value}: {}", answer.text());
        }
    }
    // Without a key the behaviour is unchanged.
    let answer = bridge.chat("alice", "c").call("echo", "counter", json!({}));
    assert_eq!(answer.status, 401);
    // Forwarded requests do not need the client's key again.
    let keyed = |bridge: &TestBridge| bridge.chat("alice", "c").bearer("secret-key");
    assert_eq!(count(&keyed(&replicas.bridges[0])), 1);
    assert_eq!(count(&keyed(&replicas.bridges[1])), 2);
    let env = keyed(&replicas.bridges[1]).call("echo", "env", json!({}));
    assert!(!env.text().contains("secret-key"));
}

#[test]
fn users_stay_apart_whichever_bridge_they_meet() {
    let replicas = Replicas::start(2, &just_echo());
    let [one, two] = [0, 1].map(|index| &replicas.bridges[index]);
    assert_eq!(count(&one.chat("alice", "c")), 1);
    assert_eq!(count(&two.chat("bob", "c")), 1);
    assert_eq!(count(&one.chat("bob", "c")), 2);
    assert_eq!(count(&two.chat("alice", "c")), 2);
}

#[test]
fn bridges_with_different_keys_refuse_each_other() {
    let config = just_echo();
    let mut replicas = Replicas::with(1, &config, &[(vars::LEASE_TTL, "2")]);
    let stranger = TestBridge::builder(config)
        .jobs(replicas.jobs())
        .var(vars::LEASE_TTL, "2")
        .var(vars::DRAIN_DELAY, 0)
        .var(vars::PEER_KEY, "another key, which is long enough")
        .start();
    assert_eq!(count(&replicas.bridges[0].chat("alice", "c")), 1);
    let answer = stranger
        .chat("alice", "c")
        .call("echo", "counter", json!({}));
    assert_eq!(
        answer.expect(503)["type"],
        "urn:mcpo-bridge:problem:elsewhere"
    );
    stranger.wait_for_log("MCPO_PEER_KEY");
    replicas.bridges.push(stranger);
}

#[test]
fn clearing_up_on_one_bridge_leaves_what_another_works_in() {
    let echoes = servers([
        ("echo", echo()),
        ("fresh", with(echo(), json!({"mode": "stateless"}))),
    ]);
    let often = [(vars::FILE_RETENTION, "0"), (vars::CLEANUP_INTERVAL, "1")];
    let mut replicas = Replicas::with(2, &echoes, &often);
    let chat = replicas.bridges[0].chat("alice", "c");
    assert_eq!(count(&chat), 1);
    // At its start, too.
    replicas.bridges[1].restart();
    replicas.bridges[1].command(&["gc"]);
    let fresh = replicas.bridges[1].client();
    let called = fresh.call("fresh", "env", json!({})).ok();
    let spent = called["MCPO_JOB_ID"].as_str().expect("a folder");
    let spent = replicas.jobs().join(spent);
    let what = format!("a folder of its own goes: {}", spent.display());
    eventually(&what, || !spent.exists());
    assert_eq!(replicas.workspaces().len(), 1);
    assert_eq!(count(&chat), 2);
}

#[test]
fn headers_that_a_server_gets_reach_it_on_another_bridge() {
    let forwarding = json!({"enabled": true, "whitelist": ["X-Tenant", "Authorization"]});
    let server = with(echo(), json!({"client_header_forwarding": forwarding}));
    let config = servers([("echo", server), ("plain", echo())]);
    let replicas = Replicas::with(2, &config, &[(vars::API_KEY, "the-key")]);
    let at = |index: usize| {
        let client = replicas.bridges[index].chat("alice", "c");
        let client = client.bearer("the-key").header("X-Tenant", "a");
        client.header("X-Other", "b")
    };
    assert_eq!(count(&at(0)), 1);
    let wanted = json!({"x-tenant": "a"});
    let meta = at(1).call("echo", "meta", json!({})).ok();
    assert_eq!(result_of(&meta)["mcpo-bridge/headers"], wanted, "{meta}");
    let mcp = Mcp::legacy(at(1), ALL, &json!({}));
    let meta = mcp.text("echo_meta", json!({}));
    assert!(meta.contains(r#"{"x-tenant": "a"}"#), "{meta}");
    let meta = at(1).call("plain", "meta", json!({})).ok();
    assert!(!meta.to_string().contains("x-tenant"), "{meta}");
    assert_eq!(replicas.owners(), [0]);
}
