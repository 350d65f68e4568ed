//! Runs a separate bridge for each test, and asserts that it leaves nothing behind.

use std::{
    fs::{self, File, OpenOptions},
    net::{SocketAddr, TcpListener},
    path::PathBuf,
    process::{Child, Command, ExitStatus, Output, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process as send, prlimit};
use serde_json::Value;
use tempfile::TempDir;

use super::{
    Client, PROMPT, Process, eventually, folders, is_stopped, kill_process, processes_of, until,
    vars,
};

const START: Duration = Duration::from_secs(60);
/// Timeout of the bridge's end: its grace period for children, with a margin for a busy machine.
const STOP: Duration = Duration::from_secs(60);
/// Size of the end of the log that a failing test prints, in bytes.
const LOG_SHOWN: usize = 16 * 1024;

/// The settings of a test before the bridge starts.
pub struct Builder {
    config: Value,
    variables: Vec<(String, String)>,
    arguments: Vec<String>,
    /// A jobs folder shared with other bridges.
    jobs: Option<PathBuf>,
}

impl Builder {
    /// Uses a jobs folder that other bridges may use, too; the caller checks and removes it.
    #[must_use]
    pub fn jobs(mut self, path: PathBuf) -> Self {
        self.jobs = Some(path);
        self
    }

    /// Sets an environment variable of the bridge.
    #[must_use]
    #[allow(clippy::needless_pass_by_value)] // numbers and texts alike, without a reference at each call
    pub fn var(mut self, name: &str, value: impl ToString) -> Self {
        self.variables.push((name.to_owned(), value.to_string()));
        self
    }

    /// Adds an argument after `serve`.
    #[must_use]
    pub fn arg(mut self, argument: &str) -> Self {
        self.arguments.push(argument.to_owned());
        self
    }

    /// Starts the bridge and waits until it is ready and knows the lists of the well-behaved servers: a
    /// call waits for them for a few seconds only, and a busy machine takes longer.
    #[track_caller]
    pub fn start(self) -> TestBridge {
        let mut bridge = self.prepare();
        bridge.launch();
        bridge.wait_for_well_behaved();
        bridge
    }

    /// Creates the folders and the config without starting the bridge, for tests of commands and of
    /// failed starts.
    pub fn prepare(self) -> TestBridge {
        let root = tempfile::Builder::new().prefix("mcpo-test-").tempdir();
        let root = root.expect("a temporary folder");
        for folder in ["jobs", "tools", "tmp", "home", "config"] {
            fs::create_dir(root.path().join(folder)).expect("a folder");
        }
        let bridge = TestBridge {
            root,
            settings: self,
            running: None,
            killed: false,
        };
        bridge.write_config(&bridge.settings.config);
        bridge
    }
}

/// Whether it is one of the test servers that answer at once.
fn is_well_behaved(entry: &Value) -> bool {
    let script = entry["args"][0].as_str().unwrap_or_default();
    let script = script.rsplit('/').next().unwrap_or_default();
    let names = [
        "asking", "bytes", "dialog", "echo", "library", "modern", "places",
    ];
    names
        .iter()
        .any(|name| script == format!("{name}_server.py"))
}

struct Running {
    child: Child,
    address: SocketAddr,
}

/// A running bridge with its own jobs, tools and config folders.
pub struct TestBridge {
    root: TempDir,
    settings: Builder,
    running: Option<Running>,
    /// Whether it was killed by SIGKILL and not restarted since: incomplete files may be left.
    killed: bool,
}

impl TestBridge {
    pub fn builder(config: Value) -> Builder {
        Builder {
            config,
            variables: Vec::new(),
            arguments: Vec::new(),
            jobs: None,
        }
    }

    #[track_caller]
    pub fn start(config: Value) -> Self {
        Self::builder(config).start()
    }

    /// As `start`, and waits until every server's lists are known or have failed, however slow the
    /// machine is.
    #[track_caller]
    pub fn ready(config: Value) -> Self {
        let bridge = Self::start(config);
        eventually("every server is known", || {
            let servers = bridge.client().get("/health").json()["servers"].take();
            let servers = servers.as_object().expect("servers");
            servers
                .values()
                .all(|server| server["status"] != "starting")
        });
        bridge
    }

    /// Starts the bridge again, on the same folders.
    #[track_caller]
    pub fn restart(&mut self) {
        if self.running.is_some() {
            self.stop();
        }
        self.launch();
    }

    fn wait_for_well_behaved(&self) {
        let config = self.settings.config["mcpServers"].as_object();
        let entries = config.into_iter().flatten();
        let names = entries.filter(|(_, entry)| is_well_behaved(entry));
        let names: Vec<_> = names.map(|(name, _)| name).collect();
        let mut client = self.client();
        let keys = self.settings.variables.iter();
        if let Some((_, keys)) = keys.rev().find(|(name, _)| name == vars::API_KEY) {
            // The first of `NAME:KEY,…`: `/health` shows servers only with a key.
            let key = keys.split(',').next().unwrap_or_default();
            client = client.bearer(key.rsplit(':').next().unwrap_or_default());
        }
        until(START, || {
            let health: Value = serde_json::from_slice(&client.get("/health").body).ok()?;
            let is_starting = |name: &&String| health["servers"][*name]["status"] == "starting";
            (!names.iter().any(is_starting)).then_some(())
        });
    }

    /// A client without any header: anonymous, without a chat, from loopback.
    #[track_caller]
    pub fn client(&self) -> Client {
        Client::new(self.address())
    }

    /// A client with the headers of Open WebUI on this machine, for `user` in `chat`.
    #[track_caller]
    pub fn chat(&self, user: &str, chat: &str) -> Client {
        self.client().as_user(user).in_chat(chat)
    }

    #[track_caller]
    pub fn address(&self) -> SocketAddr {
        self.running.as_ref().expect("the bridge runs").address
    }

    pub fn jobs(&self) -> PathBuf {
        let shared = self.settings.jobs.clone();
        shared.unwrap_or_else(|| self.root.path().join("jobs"))
    }

    pub fn tools(&self) -> PathBuf {
        self.root.path().join("tools")
    }

    pub fn config_file(&self) -> PathBuf {
        self.root.path().join("config/mcp-servers.json")
    }

    /// Replaces the config file atomically, as an editor does.
    pub fn write_config(&self, config: &Value) {
        self.write_config_text(&format!("{config:#}"));
    }

    /// The same for text that may be invalid JSON.
    pub fn write_config_text(&self, text: &str) {
        let new = self.config_file().with_extension("new");
        fs::write(&new, text).expect("the config is written");
        fs::rename(new, self.config_file()).expect("the config is replaced");
    }

    /// The workspace folders, which are named by their job ids.
    pub fn workspaces(&self) -> Vec<PathBuf> {
        folders::workspaces(&self.jobs())
    }

    /// The `work` folder that contains `name`.
    #[track_caller]
    pub fn work_with(&self, name: &str) -> PathBuf {
        let works = self.workspaces().into_iter().map(|job| job.join("work"));
        let found = works.into_iter().find(|work| work.join(name).exists());
        found.unwrap_or_else(|| panic!("no workspace has {name}"))
    }

    /// Waits until a child has created `work/{name}` in some workspace.
    #[track_caller]
    pub fn wait_for_file(&self, name: &str) {
        eventually(&format!("{name} is in a workspace"), || self.has_file(name));
    }

    /// Ends the call of `sleep` whose `touch` is this file and whose `until` is `wake`.
    #[track_caller]
    pub fn wake(&self, touched: &str) {
        fs::write(self.work_with(touched).join("wake"), "").expect("the file is written");
    }

    /// Waits until this number of calls wait for a permit.
    #[track_caller]
    pub fn wait_for_waiting_calls(&self, calls: usize) {
        eventually("the calls wait", || {
            self.client().get("/health").json()["load"]["waiting_calls"] == calls
        });
    }

    /// Whether a workspace has a file of this name.
    pub fn has_file(&self, name: &str) -> bool {
        self.workspaces()
            .iter()
            .any(|path| path.join("work").join(name).exists())
    }

    /// Running processes caused by this test, without the bridge itself.
    pub fn children(&self) -> Vec<Process> {
        let own = self
            .running
            .as_ref()
            .map(|running| running.child.id().cast_signed());
        let mut all = processes_of(self.root.path());
        all.retain(|process| Some(process.pid) != own);
        all
    }

    /// Lowers the bridge's limit on open files so that it can open only this number of additional files.
    pub fn leave_descriptors(&self, count: usize) {
        let pid = self.running.as_ref().expect("the bridge runs").child.id();
        let listed = fs::read_dir(format!("/proc/{pid}/fd")).expect("its descriptors");
        let numbers = listed.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        let used: std::collections::HashSet<usize> = numbers.collect();
        let mut free = (0..).filter(|number| !used.contains(number));
        let limit = free.nth(count).expect("numbers do not end");
        let pid = Pid::from_raw(pid.cast_signed());
        let lower = Rlimit {
            current: Some(limit as u64),
            maximum: getrlimit(Resource::Nofile).maximum,
        };
        prlimit(pid, Resource::Nofile, lower).expect("a lower limit");
    }

    /// The complete lines that the bridge has written to stdout and stderr. A separate thread writes
    /// them, so a line may appear after the response of its request: use [`Self::wait_for_log`] for lines
    /// that must appear, and [`Self::finished_log`] for lines that must not.
    pub fn log(&self) -> String {
        let raw = fs::read(self.log_file()).unwrap_or_default();
        let mut log = String::from_utf8_lossy(&raw).into_owned();
        log.truncate(log.rfind('\n').map_or(0, |end| end + 1));
        log
    }

    /// Waits until the log contains this text, and returns the log.
    #[track_caller]
    pub fn wait_for_log(&self, words: &str) -> String {
        eventually(&format!("the log has `{words}`"), || {
            self.log().contains(words)
        });
        self.log()
    }

    /// Ends the bridge and returns the whole log.
    #[track_caller]
    pub fn finished_log(mut self) -> String {
        self.stop();
        self.log()
    }

    /// Runs another command of the binary with this test's settings, until it exits.
    pub fn command(&self, arguments: &[&str]) -> Output {
        let mut command = self.binary();
        command.args(arguments).output().expect("the binary runs")
    }

    /// Runs `serve`, which must refuse to start, and returns its output.
    #[track_caller]
    pub fn refuses_to_start(&self) -> (Option<i32>, String) {
        let mut command = self.serve();
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it runs");
        let ended = until(START, || child.try_wait().expect("a status"));
        if ended.is_none() {
            let _ = child.kill();
        }
        let output = child.wait_with_output().expect("its output");
        assert!(ended.is_some(), "the bridge started: {output:?}");
        assert!(
            !output.status.success(),
            "a refusal has an exit code: {output:?}"
        );
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8(said).expect("UTF-8");
        (output.status.code(), said)
    }

    pub fn pid(&self) -> u32 {
        self.running.as_ref().expect("the bridge runs").child.id()
    }

    pub fn signal(&self, signal: Signal) {
        let id = self.running.as_ref().expect("the bridge runs").child.id();
        let pid = Pid::from_raw(id.cast_signed()).expect("a process id");
        send(pid, signal).expect("the bridge can be signalled");
        if signal == Signal::STOP {
            eventually("each thread stands still", || is_stopped(id.cast_signed()));
        }
    }

    /// Waits until the bridge has ended by itself.
    #[track_caller]
    pub fn wait_for_exit(&mut self) -> ExitStatus {
        let running = self.running.as_mut().expect("the bridge runs");
        let status = until(STOP, || running.child.try_wait().expect("a status"));
        let status = status.expect("the bridge ends within its grace");
        self.running = None;
        status
    }

    /// SIGKILLs the bridge; its children must end by themselves.
    #[track_caller]
    pub fn kill_hard(&mut self) {
        let mut running = self.running.take().expect("the bridge runs");
        running.child.kill().expect("the bridge can be killed");
        running.child.wait().expect("the bridge is gone");
        self.killed = true;
        self.assert_no_process();
    }

    /// Ends the bridge and asserts that nothing is left behind. Dropping does the same.
    pub fn finish(self) {
        drop(self);
    }

    #[track_caller]
    pub fn stop(&mut self) {
        let address = self.address();
        self.signal(Signal::TERM);
        let status = self.wait_for_exit();
        assert_eq!(status.code(), Some(0), "SIGTERM is a good end");
        let port = TcpListener::bind(address);
        assert!(port.is_ok(), "the port is still taken: {port:?}");
    }

    /// A killed process may need a moment to disappear.
    #[track_caller]
    fn assert_nothing_left(&self) {
        self.assert_no_process();
        if !self.killed && self.settings.jobs.is_none() {
            folders::assert_clean(&self.jobs(), &self.root.path().join("tmp"));
        }
    }

    #[track_caller]
    fn assert_no_process(&self) {
        let gone = until(PROMPT, || self.children().is_empty().then_some(()));
        let left: Vec<_> = self.children().iter().map(ToString::to_string).collect();
        assert!(
            gone.is_some() || left.is_empty(),
            "processes were left behind: {left:#?}"
        );
    }

    fn launch(&mut self) {
        let port_file = self.root.path().join("port");
        let _ = fs::remove_file(&port_file);
        let mut child = self.serve().spawn().expect("the bridge starts");
        let bound = until(START, || {
            let ended = child.try_wait().expect("a status");
            assert!(
                ended.is_none(),
                "the bridge ended with {ended:?}:\n{}",
                self.log()
            );
            let text = fs::read_to_string(&port_file).ok()?;
            text.strip_suffix('\n')?.parse().ok()
        });
        // Stored before any other step can fail, so that the drop ends it.
        let address = bound.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 0)));
        self.running = Some(Running { child, address });
        self.killed = false;
        assert!(bound.is_some(), "the bridge never wrote its address");
        let client = self.client();
        let ready = until(START, || {
            (client.get("/health/ready").status == 200).then_some(())
        });
        assert!(ready.is_some(), "the bridge never became ready");
    }

    fn serve(&self) -> Command {
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.log_file());
        let log = log.expect("the log opens");
        let second: File = log.try_clone().expect("the log opens twice");
        let mut command = self.binary();
        command
            .arg("serve")
            .arg("--port-file")
            .arg(self.root.path().join("port"))
            .args(&self.settings.arguments)
            .stdout(log)
            .stderr(second);
        command
    }

    /// The binary with an environment without the developer's variables, and with an open descriptor
    /// inherited from the starting process.
    fn binary(&self) -> Command {
        let root = self.root.path();
        let mut command = Command::new("sh");
        command
            .args(["-c", "exec 9</dev/null; exec \"$0\" \"$@\""])
            .arg(env!("CARGO_BIN_EXE_mcpo-bridge"))
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", root.join("home"))
            .env("TMPDIR", root.join("tmp"))
            .env("MCPO_HOST", "127.0.0.1")
            .env("MCPO_PORT", "0")
            .env("MCPO_CONFIG_FILE", self.config_file())
            .env("MCPO_JOBS_DIR", self.jobs())
            .env("MCPO_TOOLS_DIR", root.join("tools"))
            // One server less to start; its own tests enable it.
            .env("MCPO_FILES_SERVER", "false")
            // Processes and folders without a call would disturb counting those of calls; the pool's own
            // tests enable it, and MCPO_TEST_POOL enables it for all tests.
            .env(
                "MCPO_POOL_MAX",
                std::env::var("MCPO_TEST_POOL").as_deref().unwrap_or("0"),
            )
            .envs(
                self.settings
                    .variables
                    .iter()
                    .map(|(name, value)| (name, value)),
            )
            .current_dir(root)
            .stdin(Stdio::null());
        command
    }

    fn log_file(&self) -> PathBuf {
        self.root.path().join("bridge.log")
    }

    fn print_log(&self) {
        let log = self.log();
        let start = log.ceil_char_boundary(log.len().saturating_sub(LOG_SHOWN));
        eprintln!(
            "--- the bridge's log ---\n{}--- end of the log ---",
            &log[start..]
        );
    }

    /// Cleans up the machine even if the bridge did not.
    fn sweep(&mut self) {
        if let Some(mut running) = self.running.take() {
            let _ = running.child.kill();
            let _ = running.child.wait();
        }
        for process in self.children() {
            eprintln!("left behind: {process}");
            kill_process(process.pid);
        }
    }
}

impl Drop for TestBridge {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.print_log();
            self.sweep();
            return;
        }
        let checks = std::panic::AssertUnwindSafe(|| {
            if self.running.is_some() {
                self.stop();
            }
            self.assert_nothing_left();
        });
        if let Err(fault) = std::panic::catch_unwind(checks) {
            self.print_log();
            self.sweep();
            std::panic::resume_unwind(fault);
        }
    }
}
