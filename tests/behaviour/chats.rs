//! The process and folder of each call: one user's chat is one session.

use std::thread;

use crate::support::{
    LONG, TestBridge, echo, eventually, kill_process, odd, promptly, result_of, rude, servers,
    vars, with,
};
use serde_json::json;

fn start() -> TestBridge {
    TestBridge::start(servers([("echo", echo())]))
}

#[test]
fn calls_of_one_chat_share_a_process_and_a_folder() {
    let bridge = start();
    let chat = bridge.chat("alice", "c1");
    assert_eq!(chat.echo("counter", json!({})), 1);
    assert_eq!(chat.echo("counter", json!({})), 2);
    assert_eq!(chat.echo("where", json!({})), chat.echo("where", json!({})));
    assert_eq!(bridge.workspaces().len(), 1);
}

#[test]
fn another_chat_and_another_user_start_from_nothing() {
    let bridge = start();
    let client = bridge.chat("alice", "c1");
    client.echo("remember", json!({"value": "secret"}));
    client.echo("write_file", json!({"name": "a.txt", "content": "secret"}));
    for (user, chat) in [("alice", "c2"), ("bob", "c1")] {
        let other = bridge.chat(user, chat);
        assert_eq!(other.echo("recall", json!({})), json!(null));
        assert_eq!(other.echo("list_files", json!({})), json!([]));
    }
}

#[test]
fn servers_of_one_chat_see_each_others_files() {
    let bridge = TestBridge::start(servers([("echo", echo()), ("second", echo())]));
    let chat = bridge.chat("alice", "c1");
    chat.echo(
        "write_file",
        json!({"name": "chart.txt", "content": "columns"}),
    );
    let read = chat.call("second", "read_file", json!({"name": "chart.txt"}));
    assert_eq!(read.ok(), "columns");
}

#[test]
fn a_server_with_a_workspace_of_its_own_sees_nobody_elses_files() {
    let own = with(echo(), json!({"workspace": "own"}));
    let bridge = TestBridge::start(servers([("echo", echo()), ("own", own)]));
    let chat = bridge.chat("alice", "c1");
    chat.echo("write_file", json!({"name": "a.txt", "content": "a"}));
    assert_eq!(chat.call("own", "list_files", json!({})).ok(), json!([]));
}

#[test]
fn twenty_chats_writing_the_same_name_each_get_their_own_bytes_back() {
    let bridge = start();
    // The chat ids repeat between users: a chat id alone must not select anything.
    let chats: Vec<_> = (0..20)
        .map(|n| (format!("u{}", n % 5), format!("c{}", n / 5)))
        .collect();
    let calls: Vec<_> = chats
        .into_iter()
        .map(|(user, chat)| {
            let client = bridge.chat(&user, &chat);
            thread::spawn(move || {
                let canary = format!("canary of {user} in {chat}");
                let file = json!({"name": "report.txt", "content": canary});
                let link = client.call("echo", "write_file", file).link("report.txt");
                (canary, client.download(&link).text(), link)
            })
        })
        .collect();
    let mut links = Vec::new();
    for call in calls {
        let (canary, downloaded, link) = call.join().expect("the call succeeds");
        assert_eq!(downloaded, canary);
        links.push(link);
    }
    links.sort();
    links.dedup();
    assert_eq!(links.len(), 20, "every chat has a link of its own");
    assert_eq!(bridge.workspaces().len(), 20);
}

#[test]
fn calls_in_one_chat_run_in_order_and_other_chats_do_not_wait_for_them() {
    let bridge = start();
    let busy = bridge.chat("alice", "c1");
    let arguments = json!({"seconds": LONG, "touch": "asleep", "until": "wake"});
    let sleeping = busy.begin("echo", "sleep", &arguments);
    bridge.wait_for_file("asleep");
    let second = {
        let busy = busy.clone();
        thread::spawn(move || busy.echo("running", json!({})))
    };
    promptly("calls of another chat", || {
        for count in 1..20 {
            assert_eq!(bridge.chat("bob", "c1").echo("counter", json!({})), count);
        }
    });
    assert!(!second.is_finished(), "it waits for its turn");
    bridge.wake("asleep");
    assert!(sleeping.rest().contains("slept"));
    assert_eq!(
        result_of(&second.join().expect("an answer")),
        1,
        "the process gets the second call when it has answered the first"
    );
}

#[test]
fn a_slow_start_of_one_chat_does_not_hold_up_another_server() {
    let folder = tempfile::tempdir().expect("a folder");
    let wait = folder.path().join("wait");
    let slow = with(odd("waits"), json!({"env": {"WAIT_FILE": wait}}));
    let bridge = TestBridge::start(servers([("slow", slow), ("echo", echo())]));
    let first = bridge.chat("alice", "c0");
    first.call("slow", "log_line", json!({})).ok();
    std::fs::write(&wait, "").expect("the file");
    let before = bridge.children().len();
    let pending = bridge
        .chat("alice", "c1")
        .begin("slow", "log_line", &json!({}));
    eventually("it is starting", || bridge.children().len() > before);
    promptly("a call of another chat", || {
        bridge
            .chat("alice", "c2")
            .echo("echo", json!({"text": "soon"}));
    });
    pending.hang_up();
}

#[test]
fn a_hostile_chat_id_selects_a_chat_and_nothing_else() {
    let bridge = start();
    let id = "temporary:../../../../tmp/evil é";
    assert_eq!(bridge.chat("alice", id).echo("counter", json!({})), 1);
    assert_eq!(bridge.chat("alice", id).echo("counter", json!({})), 2);
    let workspace = bridge.workspaces().pop().expect("a workspace");
    assert!(workspace.starts_with(bridge.jobs()));
    assert!(!std::path::Path::new("/tmp/evil é").exists());
}

#[test]
fn an_empty_chat_header_is_no_chat() {
    let bridge = start();
    for _ in 0..2 {
        assert_eq!(bridge.chat("alice", "").echo("counter", json!({})), 1);
    }
}

#[test]
fn a_call_without_a_chat_names_a_session_that_can_be_gone_on_with() {
    let bridge = start();
    let first = bridge.client().call("echo", "counter", json!({}));
    assert_eq!(first.ok(), 1);
    let session = first.header("X-MCPO-Session").to_owned();
    assert!(session.len() >= 22, "128 bits: {session}");
    let client = bridge.client().in_session(&session);
    assert_eq!(client.echo("counter", json!({})), 2);
    assert_eq!(bridge.client().echo("counter", json!({})), 1);
}

#[test]
fn an_anonymous_caller_cannot_make_up_a_session() {
    let bridge = start();
    for made_up in ["mine", "1111111111111111111111", "../../etc"] {
        let reply = bridge
            .client()
            .in_session(made_up)
            .call("echo", "counter", json!({}));
        assert_eq!(reply.status, 404, "{made_up}: {}", reply.text());
    }
}

#[test]
fn a_session_belongs_to_the_user_it_was_made_for() {
    let bridge = start();
    let alice = bridge
        .client()
        .as_user("alice")
        .call("echo", "counter", json!({}));
    let session = alice.header("X-MCPO-Session").to_owned();
    assert!(!session.is_empty());
    let bob = bridge.client().as_user("bob").in_session(&session);
    assert_eq!(bob.call("echo", "counter", json!({})).status, 404);
}

#[test]
fn an_idle_session_ends_and_the_next_call_says_what_was_lost() {
    let idle = with(echo(), json!({"idle_timeout": 1}));
    let bridge = TestBridge::start(servers([("echo", idle)]));
    let chat = bridge.chat("alice", "c1");
    // Only one call, because on a busy machine the child may have ended before a second one.
    chat.echo("write_file", json!({"name": "kept.txt", "content": "kept"}));
    eventually("the idle child ends", || bridge.children().is_empty());
    let answer = chat.echo("counter", json!({}));
    assert_eq!(answer["result"], 1);
    let notice = answer["notice"].as_str().expect("a notice");
    assert!(notice.contains("kept.txt"), "{notice}");
    let read = chat.echo("read_file", json!({"name": "kept.txt"}));
    assert_eq!(*result_of(&read), "kept");
}

#[test]
fn work_is_saved_before_an_idle_session_ends() {
    let save =
        json!({"tool": "write_file", "arguments": {"name": "saved.txt", "content": "saved"}});
    let careful = with(echo(), json!({"idle_timeout": 1, "before_end": save}));
    let bridge = TestBridge::start(servers([("echo", careful)]));
    let chat = bridge.chat("alice", "c1");
    let pid = chat.echo("where", json!({}))["pid"].clone();
    eventually("the idle child ends", || {
        !bridge.children().iter().any(|process| pid == process.pid)
    });
    let answer = chat.echo("read_file", json!({"name": "saved.txt"}));
    assert_eq!(answer["result"], "saved");
}

#[test]
fn a_restarted_bridge_gives_the_chat_its_folder_back() {
    let mut bridge = start();
    let file = json!({"name": "a.txt", "content": "before"});
    let link = bridge
        .chat("alice", "c1")
        .call("echo", "write_file", file)
        .link("a.txt");
    bridge.restart();
    let chat = bridge.chat("alice", "c1");
    let answer = chat.echo("read_file", json!({"name": "a.txt"}));
    assert_eq!(answer["result"], "before");
    assert!(
        answer["notice"]
            .as_str()
            .is_some_and(|notice| notice.contains("a.txt"))
    );
    assert_eq!(chat.download(&link).text(), "before");
    assert_eq!(
        bridge.chat("bob", "c1").echo("list_files", json!({})),
        json!([])
    );
}

#[test]
fn over_the_total_the_least_recently_used_session_ends() {
    let bridge = TestBridge::builder(servers([("echo", echo())]))
        .var(vars::MAX_TOTAL_PROCESSES, 2)
        .start();
    for chat in ["c1", "c2", "c1", "c3"] {
        bridge.chat("alice", chat).echo("counter", json!({}));
    }
    // c2 was ended; c1 was used after it and continued.
    assert_eq!(bridge.chat("alice", "c1").echo("counter", json!({})), 3);
    let returned = bridge.chat("alice", "c2").echo("counter", json!({}));
    assert_eq!(returned["result"], 1);
}

#[test]
fn a_stateless_server_gets_a_fresh_process_and_folder_for_each_call() {
    let fresh = with(echo(), json!({"mode": "stateless"}));
    let bridge = TestBridge::start(servers([("echo", fresh)]));
    let chat = bridge.chat("alice", "c1");
    let file = json!({"name": "a.txt", "content": "a"});
    let link = chat.call("echo", "write_file", file).link("a.txt");
    assert_eq!(chat.echo("list_files", json!({})), json!([]));
    assert_eq!(chat.echo("counter", json!({})), 1);
    assert_eq!(chat.echo("counter", json!({})), 1);
    assert_eq!(chat.download(&link).text(), "a");
}

#[test]
fn a_shared_server_serves_everybody_side_by_side() {
    let shared = with(echo(), json!({"mode": "shared"}));
    let bridge = TestBridge::start(servers([("echo", shared)]));
    assert_eq!(bridge.chat("alice", "c1").echo("counter", json!({})), 1);
    assert_eq!(bridge.chat("bob", "c2").echo("counter", json!({})), 2);
    let sleep = json!({"seconds": LONG});
    let sleeping: Vec<_> = (0..5)
        .map(|_| bridge.client().begin("echo", "sleep", &sleep))
        .collect();
    eventually("all five are in the one process", || {
        bridge.client().echo("sleeping", json!({})) == 5
    });
    sleeping
        .into_iter()
        .for_each(crate::support::PendingCall::hang_up);
}

#[test]
fn hanging_up_on_a_shared_server_cancels_that_call_alone() {
    let shared = with(echo(), json!({"mode": "shared"}));
    let bridge = TestBridge::start(servers([("echo", shared)]));
    let client = bridge.client();
    client.echo("counter", json!({}));
    let arguments = json!({"seconds": LONG, "touch": "stays", "until": "wake"});
    let stays = client.begin("echo", "sleep", &arguments);
    let goes = client.begin("echo", "sleep", &json!({"seconds": 61}));
    eventually("both calls are in the child", || {
        client.echo("sleeping", json!({})) == 2
    });
    goes.hang_up();
    eventually("the child hears of the cancellation", || {
        bridge.client().echo("cancelled", json!({})) == json!([61])
    });
    bridge.wake("stays");
    assert!(stays.rest().contains("slept"));
    assert_eq!(bridge.client().echo("counter", json!({})), 2);
}

#[test]
fn the_bridge_without_stateful_servers_runs_them_stateless() {
    let bridge = TestBridge::builder(servers([("echo", echo())]))
        .var(vars::STATEFUL_ENABLED, "false")
        .start();
    for _ in 0..2 {
        assert_eq!(bridge.chat("alice", "c1").echo("counter", json!({})), 1);
    }
    let warnings = bridge.client().get("/health").ok()["warnings"].to_string();
    assert!(warnings.contains("stateless"), "{warnings}");
}

#[test]
fn stateful_calls_without_a_chat_warn_in_health() {
    let bridge = start();
    let warned = || {
        let health = bridge.client().get("/health").ok();
        health["warnings"]
            .to_string()
            .contains("ENABLE_FORWARD_USER_INFO_HEADERS")
    };
    bridge.chat("alice", "c1").echo("counter", json!({}));
    assert!(!warned());
    bridge.client().echo("counter", json!({}));
    assert!(warned());
}

#[test]
fn a_killed_child_of_one_chat_leaves_the_other_chats_alone() {
    let bridge = TestBridge::start(servers([("echo", echo()), ("other", rude("pings_client"))]));
    let (first, second) = (bridge.chat("alice", "c1"), bridge.chat("alice", "c2"));
    second.echo("counter", json!({}));
    let pid = first.echo("where", json!({}))["pid"]
        .as_i64()
        .expect("a pid");
    kill_process(i32::try_from(pid).expect("a pid"));
    assert_eq!(second.echo("counter", json!({})), 2);
    assert_eq!(first.call("other", "poke", json!({})).ok(), "ok");
    assert_eq!(first.echo("counter", json!({}))["result"], 1);
}
