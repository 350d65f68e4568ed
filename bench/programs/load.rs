//! The load that every contender is put under: pre-built requests on kept connections.
//!
//! `load --url http://127.0.0.1:1/path --connections 64 --seconds 5 --body '{"text":"{n}"}'`
//!
//! `{n}` in the body is the number of the call, in eight digits, and must come back in the answer, as
//! must what `--expect` names.
//! `--calls N` instead of `--seconds`; `--interval MS` starts a call only every so often; `--get`
//! downloads. `--stdio COMMAND …`, the last option, speaks to a child's pipes instead, after the
//! lines of `--first`. Prints one JSON object.

use std::{
    io::{self, BufRead as _, BufReader, Write as _},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use memchr::memmem;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

/// Of a body, what is kept to look for the number: larger ones are read and dropped.
const KEPT: usize = 64 * 1024;
const PATIENCE: Duration = Duration::from_secs(120);

#[derive(Default)]
struct Plan {
    address: String,
    path: String,
    headers: String,
    body: String,
    expect: String,
    get: bool,
    connections: usize,
    threads: usize,
    seconds: f64,
    warm: f64,
    calls: u64,
    interval: Duration,
    first: Vec<String>,
    stdio: Vec<String>,
}

fn plan() -> Plan {
    let mut plan = Plan {
        connections: 1,
        threads: 1,
        calls: u64::MAX,
        seconds: f64::INFINITY,
        ..Plan::default()
    };
    let mut given = std::env::args().skip(1);
    while let Some(option) = given.next() {
        let mut value = || given.next().unwrap_or_else(|| panic!("{option} VALUE"));
        match option.as_str() {
            "--url" => {
                let url = value();
                let rest = url.strip_prefix("http://").expect("http://");
                let (address, path) = rest.split_once('/').expect("a path");
                (plan.address, plan.path) = (address.to_owned(), format!("/{path}"));
            }
            "--header" => plan.headers = format!("{}{}\r\n", plan.headers, value()),
            "--body" => plan.body = value(),
            "--expect" => plan.expect = value(),
            "--get" => plan.get = true,
            "--connections" => plan.connections = value().parse().expect("a number"),
            "--threads" => plan.threads = value().parse().expect("a number"),
            "--seconds" => plan.seconds = value().parse().expect("seconds"),
            "--warm" => plan.warm = value().parse().expect("seconds"),
            "--calls" => plan.calls = value().parse().expect("a number"),
            "--interval" => plan.interval = Duration::from_millis(value().parse().expect("ms")),
            "--first" => plan.first.push(value()),
            "--stdio" => {
                plan.stdio = given.collect();
                break;
            }
            _ => panic!("no such option: {option}"),
        }
    }
    plan
}

/// What one connection saw.
#[derive(Default)]
struct Seen {
    nanoseconds: Vec<u64>,
    bytes: u64,
    errors: u64,
    first_error: Option<String>,
}

impl Seen {
    fn note(&mut self, counts: bool, began: Instant, outcome: Result<u64, String>) {
        match outcome {
            Ok(bytes) if counts => {
                let took = began.elapsed().as_nanos();
                self.nanoseconds
                    .push(u64::try_from(took).unwrap_or(u64::MAX));
                self.bytes += bytes;
            }
            Ok(_) => {}
            Err(why) => {
                self.errors += 1;
                self.first_error.get_or_insert(why);
            }
        }
    }
}

/// When calls begin, begin to count, and end: the same for all connections.
#[derive(Clone, Copy)]
struct Clock {
    counts: Instant,
    ends: Option<Instant>,
}

impl Clock {
    fn start(plan: &Plan) -> Self {
        let counts = Instant::now() + Duration::from_secs_f64(plan.warm);
        let ends = plan.seconds.is_finite();
        let ends = ends.then(|| counts + Duration::from_secs_f64(plan.seconds));
        Self { counts, ends }
    }
}

struct Connection {
    plan: Arc<Plan>,
    stream: Option<TcpStream>,
    buffer: Vec<u8>,
    request: Vec<u8>,
}

impl Connection {
    async fn call(&mut self, number: u64) -> Result<u64, String> {
        let answered = timeout(PATIENCE, self.exchange(number)).await;
        let outcome = answered.unwrap_or_else(|_| Err("no answer in time".to_owned()));
        if outcome.is_err() {
            self.stream = None;
        }
        outcome
    }

    async fn exchange(&mut self, number: u64) -> Result<u64, String> {
        let plan = self.plan.clone();
        let text = |error: io::Error| error.to_string();
        let mut stream = if let Some(stream) = self.stream.take() {
            stream
        } else {
            let stream = TcpStream::connect(&plan.address).await.map_err(text)?;
            stream.set_nodelay(true).map_err(text)?;
            stream
        };
        let digits = format!("{number:08}");
        let body = plan.body.replace("{n}", &digits);
        let method = if plan.get { "GET" } else { "POST" };
        self.request.clear();
        let (path, headers, length) = (&plan.path, &plan.headers, body.len());
        write!(
            self.request,
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\n\
             Content-Length: {length}\r\n{headers}\r\n{body}",
            plan.address
        )
        .map_err(text)?;
        stream.write_all(&self.request).await.map_err(text)?;
        let (bytes, close) = self.answer(&mut stream, &plan, digits.as_bytes()).await?;
        if !close {
            self.stream = Some(stream);
        }
        Ok(bytes)
    }

    /// Bytes of the answer's body, and whether the connection ends with it.
    async fn answer(
        &mut self,
        stream: &mut TcpStream,
        plan: &Plan,
        digits: &[u8],
    ) -> Result<(u64, bool), String> {
        let buffer = &mut self.buffer;
        let mut filled = 0;
        let head = loop {
            filled += more(stream, &mut buffer[filled..]).await?;
            if let Some(end) = memmem::find(&buffer[..filled], b"\r\n\r\n") {
                break end + 4;
            }
        };
        let text = String::from_utf8_lossy(&buffer[..head]).to_ascii_lowercase();
        let header = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            line.map(|value| value.trim().to_owned())
        };
        let close = header("connection:").is_some_and(|value| value == "close");
        let length = header("content-length:").map(|value| value.parse::<u64>());
        let length = length.transpose().map_err(|error| error.to_string())?;
        // The body that is there already comes to the buffer's begin.
        buffer.copy_within(head..filled, 0);
        filled -= head;
        let mut kept = Vec::new();
        let mut total = filled as u64;
        let whole = |total: u64, tail: &[u8]| match length {
            Some(length) => total >= length,
            None => tail.ends_with(b"0\r\n\r\n"),
        };
        let keep = |kept: &mut Vec<u8>, bytes: &[u8]| {
            let room = KEPT.saturating_sub(kept.len());
            kept.extend_from_slice(&bytes[..bytes.len().min(room)]);
        };
        keep(&mut kept, &buffer[..filled]);
        while !whole(total, &buffer[..filled]) {
            filled = more(stream, buffer).await?;
            total += filled as u64;
            keep(&mut kept, &buffer[..filled]);
        }
        let said = || String::from_utf8_lossy(&kept[..kept.len().min(300)]).into_owned();
        if !text.starts_with("http/1.1 200") {
            let status = text.lines().next().unwrap_or_default().to_owned();
            return Err(format!("{status}: {}", said()));
        }
        if plan.body.contains("{n}") && memmem::find(&kept, digits).is_none() {
            return Err(format!("somebody else's answer: {}", said()));
        }
        if memmem::find(&kept, plan.expect.as_bytes()).is_none() {
            return Err(format!("an answer without {}: {}", plan.expect, said()));
        }
        Ok((total, close))
    }
}

async fn more(stream: &mut TcpStream, buffer: &mut [u8]) -> Result<usize, String> {
    match stream.read(buffer).await {
        Ok(0) => Err("the connection ended in an answer".to_owned()),
        Ok(read) => Ok(read),
        Err(error) => Err(error.to_string()),
    }
}

async fn caller(plan: Arc<Plan>, clock: Clock, numbers: Arc<AtomicU64>) -> Seen {
    let mut seen = Seen::default();
    let mut connection = Connection {
        buffer: vec![0; if plan.get { 1 << 20 } else { 1 << 18 }],
        plan: plan.clone(),
        stream: None,
        request: Vec::new(),
    };
    let mut next = Instant::now();
    loop {
        if !plan.interval.is_zero() {
            tokio::time::sleep_until(next.into()).await;
            next += plan.interval;
        }
        let began = Instant::now();
        let number = numbers.fetch_add(1, Ordering::Relaxed);
        if number >= plan.calls || clock.ends.is_some_and(|end| began >= end) {
            return seen;
        }
        let outcome = connection.call(number).await;
        seen.note(began >= clock.counts, began, outcome);
    }
}

async fn over_http(plan: Arc<Plan>, clock: Clock) -> Vec<Seen> {
    let numbers = Arc::new(AtomicU64::new(0));
    let mut callers = tokio::task::JoinSet::new();
    for _ in 0..plan.connections {
        callers.spawn(caller(plan.clone(), clock, numbers.clone()));
    }
    callers.join_all().await
}

/// One caller on a child's pipes.
fn over_stdio(plan: &Plan, clock: Clock) -> io::Result<Seen> {
    let mut child = Command::new(&plan.stdio[0])
        .args(&plan.stdio[1..])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut stdin = child.stdin.take().expect("piped");
    let mut stdout = BufReader::new(child.stdout.take().expect("piped"));
    let (mut seen, mut line) = (Seen::default(), String::new());
    for first in &plan.first {
        writeln!(stdin, "{first}")?;
        // A notification, which has no id, is not answered.
        if first.contains("\"id\"") {
            stdout.read_line(&mut line)?;
        }
    }
    for number in 0..plan.calls {
        let began = Instant::now();
        if clock.ends.is_some_and(|end| began >= end) {
            break;
        }
        let digits = format!("{number:08}");
        let mut request = plan.body.replace("{n}", &digits);
        request.push('\n');
        stdin.write_all(request.as_bytes())?;
        line.clear();
        stdout.read_line(&mut line)?;
        let right = line.contains(&digits);
        let outcome = right.then_some(line.len() as u64);
        seen.note(
            began >= clock.counts,
            began,
            outcome.ok_or_else(|| line.clone()),
        );
    }
    drop(stdin);
    child.wait()?;
    Ok(seen)
}

#[allow(clippy::cast_precision_loss)] // counts far below 2^52
fn report(seen: Vec<Seen>, seconds: f64) -> serde_json::Value {
    let errors: u64 = seen.iter().map(|one| one.errors).sum();
    let bytes: u64 = seen.iter().map(|one| one.bytes).sum();
    let first_error = seen.iter().find_map(|one| one.first_error.clone());
    let mut all: Vec<u64> = seen.into_iter().flat_map(|one| one.nanoseconds).collect();
    all.sort_unstable();
    let rank = |percent: usize| {
        let index = (all.len() * percent).div_ceil(100).saturating_sub(1);
        all.get(index).map(|nanoseconds| *nanoseconds as f64 / 1e6)
    };
    json!({
        "calls": all.len(), "errors": errors, "first_error": first_error, "bytes": bytes,
        "seconds": seconds, "per_second": all.len() as f64 / seconds,
        "p50_ms": rank(50), "p90_ms": rank(90), "p99_ms": rank(99), "max_ms": rank(100),
    })
}

fn main() {
    let plan = Arc::new(plan());
    let clock = Clock::start(&plan);
    let seen = if plan.stdio.is_empty() {
        let mut runtime = match plan.threads {
            1 => tokio::runtime::Builder::new_current_thread(),
            _ => tokio::runtime::Builder::new_multi_thread(),
        };
        let runtime = runtime.worker_threads(plan.threads).enable_all().build();
        let runtime = runtime.expect("a runtime");
        runtime.block_on(over_http(plan, clock))
    } else {
        vec![over_stdio(&plan, clock).expect("the child takes and answers calls")]
    };
    println!("{}", report(seen, clock.counts.elapsed().as_secs_f64()));
}
