//! A process without the peer key gets no request and no token, and its responses are not accepted,
//! whatever the jobs folder contains.

use std::{
    fs::{self, File},
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use rustix::fs::{FlockOperation, flock};
use serde_json::{Value, json};

use crate::support::{
    Client, FakeOpenWebUi, KEY, Replicas, TestBridge, echo, eventually, servers, vars,
};

const TOKEN: &str = "eyJ-bobs-token-for-open-webui";
const PEER_KEY: &str = "a peer key that is long enough for all";
/// A secret argument of the call.
const ARGUMENT: &str = "an argument that is a secret";
const FAKE: &str = "FAKE REPLICA ANSWER";

/// Accepts connections and records the received bytes. Runs until the test's process ends.
#[derive(Clone)]
struct Wire {
    address: SocketAddr,
    /// The received bytes of each connection.
    heard: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Wire {
    fn start(serve: impl Fn(TcpStream, &mut dyn FnMut(&[u8])) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("an address");
        let heard: Arc<Mutex<Vec<Vec<u8>>>> = Arc::default();
        let (all, serve) = (heard.clone(), Arc::new(serve));
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (all, serve) = (all.clone(), serve.clone());
                thread::spawn(move || {
                    let number = {
                        let mut all = all.lock().expect("no panic");
                        all.push(Vec::new());
                        all.len() - 1
                    };
                    let mut hear = |bytes: &[u8]| {
                        all.lock().expect("no panic")[number].extend_from_slice(bytes);
                    };
                    serve(stream, &mut hear);
                });
            }
        });
        Self { address, heard }
    }

    fn heard(&self) -> Vec<Vec<u8>> {
        self.heard.lock().expect("no panic").clone()
    }

    /// All received bytes, as text.
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.heard().concat()).into_owned()
    }
}

/// Answers every request, first with `begins`.
fn liar(begins: &'static str) -> Wire {
    Wire::start(move |mut stream, hear| {
        let mut buffer = [0; 4096];
        let mut began = false;
        while let Ok(count @ 1..) = stream.read(&mut buffer) {
            hear(&buffer[..count]);
            let answer = format!(
                "{}HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n\"{FAKE}\"",
                if began { "" } else { begins },
                FAKE.len() + 2
            );
            began = true;
            if stream.write_all(answer.as_bytes()).is_err() {
                return;
            }
        }
    })
}

/// A record of a bridge that does not exist, kept up to date, and its lock, held.
struct FakeReplica {
    id: String,
    record: PathBuf,
    lock: PathBuf,
    _held: File,
    over: Arc<AtomicBool>,
    beating: Option<thread::JoinHandle<()>>,
}

impl FakeReplica {
    fn join(bridge: &TestBridge, address: SocketAddr) -> Self {
        let folder = bridge.jobs().join(".bridge/instances");
        let known = fs::read_dir(&folder).expect("records");
        let known = known
            .map(|entry| entry.expect("an entry").path())
            .find(|path| path.extension().is_some_and(|kind| kind == "json"))
            .expect("a bridge's record");
        let mut fields: Value =
            serde_json::from_str(&fs::read_to_string(known).expect("a record")).expect("JSON");
        let id = uuid::Uuid::new_v4().to_string();
        fields["instance"] = json!(id);
        fields["address"] = json!(format!("http://{address}"));
        let lock = folder.join(format!("{id}.lock"));
        let held = File::create(&lock).expect("a lock");
        flock(&held, FlockOperation::NonBlockingLockExclusive).expect("it is locked");
        let record = folder.join(format!("{id}.json"));
        let over = Arc::new(AtomicBool::new(false));
        let (path, stop) = (record.clone(), over.clone());
        let mut renew = move || {
            fields["renewed_at"] = json!(jiff::Timestamp::now().to_string());
            let new = path.with_extension("new");
            fs::write(&new, fields.to_string()).expect("it is written");
            fs::rename(&new, &path).expect("it is shown");
        };
        renew();
        let beating = thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                renew();
                thread::sleep(Duration::from_millis(100));
            }
        });
        Self {
            id,
            record,
            lock,
            _held: held,
            over,
            beating: Some(beating),
        }
    }

    /// Writes its name into each chat's lease.
    fn take_all(&self, bridge: &TestBridge, address: SocketAddr) {
        for folder in bridge.workspaces() {
            let path = folder.join("lease");
            let Ok(text) = fs::read_to_string(&path) else {
                continue;
            };
            let mut lease: Value = serde_json::from_str(&text).expect("a lease");
            lease["instance"] = json!(self.id);
            lease["address"] = json!(format!("http://{address}"));
            lease["fence"] = json!(lease["fence"].as_u64().expect("a number") + 1);
            fs::write(path, lease.to_string()).expect("it is written");
        }
    }
}

impl Drop for FakeReplica {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(beating) = self.beating.take() {
            let _ = beating.join();
        }
        let _ = fs::remove_file(&self.record);
        let _ = fs::remove_file(&self.lock);
    }
}

/// Bob, whose requests contain his own token.
fn bob(bridge: &TestBridge) -> Client {
    let client = bridge.client().bearer(TOKEN).header("X-MCPO-Key", KEY);
    client.in_chat("bobs-chat")
}

fn say(client: &Client) -> crate::support::Reply {
    client.call("echo", "echo", json!({"text": ARGUMENT}))
}

#[test]
fn a_fake_replica_gets_no_request_and_no_token() {
    let openwebui = FakeOpenWebUi::start();
    openwebui.user(TOKEN, "bob", "user");
    let url = openwebui.url();
    let usual = [
        (vars::API_KEY, KEY),
        (vars::OPENWEBUI_URL, url.as_str()),
        (vars::LEASE_TTL, "2"),
    ];
    let switches = "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\n\
                    Upgrade: mcpo-bridge-peer\r\n\r\n";
    for (bridges, key, begins) in [
        (1, None, ""),
        (1, Some(PEER_KEY), switches),
        (2, None, switches),
        (2, Some(PEER_KEY), ""),
    ] {
        let mut set = usual.to_vec();
        set.extend(key.map(|key| (vars::PEER_KEY, key)));
        let replicas = Replicas::with(bridges, &servers([("echo", echo())]), &set);
        let first = &replicas.bridges[0];
        assert!(say(&bob(first)).text().contains(ARGUMENT));
        let wire = liar(begins);
        let fake = FakeReplica::join(first, wire.address);
        fake.take_all(first, wire.address);
        for bridge in &replicas.bridges {
            let answer = say(&bob(bridge));
            let text = answer.text();
            assert!(!text.contains(FAKE), "{bridges} {key:?}: {text}");
            assert_eq!(answer.status, 503, "{bridges} {key:?}: {text}");
            // It cannot prove its identity; on a busy machine it sometimes only counts as not
            // responding.
            assert!(text.contains("cannot be reached"), "{text}");
        }
        eventually("operators are told", || {
            let health = first.client().bearer(KEY).get("/health").json();
            health["warnings"].to_string().contains(&fake.id)
        });
        drop(fake);
        let heard = wire.text();
        assert!(!heard.is_empty(), "it was asked to prove itself");
        for secret in [TOKEN, ARGUMENT, "bob", "/echo", KEY] {
            assert!(!heard.contains(secret), "{bridges} {key:?}: {heard}");
        }
        eventually("Bob's chat goes on", || say(&bob(first)).status == 200);
    }
}

/// A proxy to `to`; `change` makes it modify the responses.
fn relay(to: Arc<Mutex<Option<SocketAddr>>>, change: Arc<AtomicBool>) -> Wire {
    Wire::start(move |stream, hear| {
        let to = to.lock().expect("no panic").expect("an address");
        let there = TcpStream::connect(to).expect("the bridge listens");
        let (mut from, mut back) = (
            there.try_clone().expect("a socket"),
            stream.try_clone().expect("a socket"),
        );
        let change = change.clone();
        let answers = thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = from.read(&mut buffer) {
                if change.load(Ordering::Relaxed) {
                    buffer[count / 2] ^= 1;
                }
                if back.write_all(&buffer[..count]).is_err() {
                    break;
                }
            }
            let _ = back.shutdown(Shutdown::Both);
        });
        let (mut stream, mut there) = (stream, there);
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = stream.read(&mut buffer) {
            hear(&buffer[..count]);
            if there.write_all(&buffer[..count]).is_err() {
                break;
            }
        }
        let _ = there.shutdown(Shutdown::Both);
        let _ = answers.join();
    })
}

#[test]
fn who_relays_between_bridges_reads_nothing_repeats_nothing_and_changes_nothing() {
    let (to, change) = (Arc::default(), Arc::new(AtomicBool::new(false)));
    let wire = relay(Arc::clone(&to), change.clone());
    let config = servers([("echo", echo())]);
    let usual = [(vars::LEASE_TTL, "2"), (vars::PEER_KEY, PEER_KEY)];
    let mut replicas = Replicas::with(0, &config, &usual);
    for address in [Some(wire.address), None] {
        let mut builder = TestBridge::builder(config.clone())
            .jobs(replicas.jobs())
            .var(vars::DRAIN_DELAY, 0);
        for (name, value) in usual {
            builder = builder.var(name, value);
        }
        if let Some(address) = address {
            builder = builder.var("MCPO_PEER_ADDRESS", address);
        }
        let bridge = builder.start();
        to.lock().expect("no panic").get_or_insert(bridge.address());
        replicas.bridges.push(bridge);
    }
    let [home, away] = [0, 1].map(|index| replicas.bridges[index].chat("bob", "bobs-chat"));
    let count = |client: &Client| client.call("echo", "counter", json!({}));
    assert_eq!(count(&home).ok(), 1);
    assert_eq!(count(&away).ok(), 2);
    assert!(say(&away).text().contains(ARGUMENT));
    let heard = wire.text();
    assert!(heard.contains("mcpo-bridge-peer"), "it went by the relay");
    for secret in [ARGUMENT, "bob", "counter", "x-mcpo-peer", "/echo"] {
        assert!(!heard.to_lowercase().contains(secret), "{secret}: {heard}");
    }
    // The same bytes again, on new connections: all at once, and then again.
    for bytes in wire.heard() {
        for _ in 0..2 {
            let mut again = TcpStream::connect(replicas.bridges[0].address()).expect("it listens");
            again.write_all(&bytes).expect("they are sent");
            let _ = again.shutdown(Shutdown::Write);
            let mut answer = Vec::new();
            let _ = again.read_to_end(&mut answer);
            let answer = String::from_utf8_lossy(&answer).into_owned();
            assert!(!answer.contains(ARGUMENT), "{answer}");
        }
    }
    assert_eq!(count(&home).ok(), 3, "nothing was done twice");
    // Responses modified in transit are not accepted.
    change.store(true, Ordering::Relaxed);
    let answer = count(&away);
    assert!([502, 503].contains(&answer.status), "{}", answer.text());
    change.store(false, Ordering::Relaxed);
    eventually("it goes on", || count(&away).status == 200);
}

#[test]
fn operators_hear_of_a_peer_key_that_servers_can_read() {
    let warned = |replicas: &Replicas| {
        let health = replicas.bridges[0].client().get("/health").json();
        health["warnings"]
            .to_string()
            .contains("peer key is stored in it")
    };
    let config = servers([("echo", echo())]);
    let mut replicas = Replicas::start(1, &config);
    assert!(!warned(&replicas), "alone it is used for nothing");
    let second = TestBridge::builder(config.clone())
        .jobs(replicas.jobs())
        .var(vars::DRAIN_DELAY, 0)
        .start();
    replicas.bridges.push(second);
    eventually("/health says so", || warned(&replicas));
    replicas.bridges[0].wait_for_log("peer key is stored in it");
    let replicas = Replicas::with(2, &config, &[(vars::PEER_KEY, PEER_KEY)]);
    replicas.wait_until_acquainted(0);
    assert!(!warned(&replicas));
}
