//! The life of the service: config → build → run → drain.
//!
//! ```text
//! Running ──SIGTERM, SIGINT──▶ Handing over: new calls go to the other replicas on the folder, if any
//!    Handing over ──noticed, and calls done──▶ Draining: no new calls, running ones finish
//!    Draining ──done, or grace period over──▶ Ending: children end, leases are released ──▶ exit 0
//!    any ──second signal──▶ immediate exit; supervisors kill the remaining children
//! ```

mod background;
mod channel;
mod connections;
mod open;
mod tls;
mod wire;

use std::{
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bridge_state::{ChatStore, Membership, StoreError};
use channel::Channels;
use futures_util::future::{Either, ready};
use open::Limits;
use sha2::{Digest as _, Sha256};
use tokio::{
    net::TcpListener,
    signal::unix::{Signal, SignalKind, signal},
    sync::{Notify, watch},
    task::JoinHandle,
    time::{Instant, timeout, timeout_at},
};

use crate::{
    app::App,
    config,
    config::{ConfigError, LARGEST_FILE, Settings, read_bounded},
    http, limits,
    replicas::{is_asked_for, origin, reachable_at},
};

/// Up to an eighth of all connections may be new ones of one address; minimum and maximum of that number.
const MIN_NEW: usize = 16;

const MAX_NEW: usize = 256;

/// How long binding a port in use is retried, and the interval.
const PORT_TAKEN: Duration = Duration::from_secs(5);

const TRY_AGAIN: Duration = Duration::from_millis(50);

/// Time for answers to be sent after the grace period.
const LINGER: Duration = Duration::from_secs(1);

/// Maximum time for the end of all children: the longest `before_end`, and twice the kill grace.
const END_TIME: Duration = Duration::from_secs(60);

/// Why the service could not start.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The server file.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The jobs folder.
    #[error("{0}")]
    Store(#[from] StoreError),
    /// The address.
    #[error("cannot listen on {host}:{port}: {error} (MCPO_HOST, MCPO_PORT)")]
    Listen {
        /// As configured.
        host: String,
        /// As configured.
        port: u16,
        /// The error of the operating system.
        error: io::Error,
    },
    /// The certificate or its key.
    #[error(transparent)]
    Tls(#[from] tls::TlsError),
    /// A task that should run until the bridge stops has panicked: without it the bridge would not serve
    /// requests, or would not do its background work.
    #[error("{0}; the bridge cannot continue and exits")]
    Broken(String),
    /// Signals, or the file for the port.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// How the service ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// After a graceful shutdown.
    Cleanly,
    /// After a second signal.
    AtOnce,
}

/// Serves until a signal ends it. The bound address is written to `port_file`, for tests and
/// scripts that request port 0; `started` is called with that address and the number of servers.
pub async fn serve(
    mut settings: Settings,
    port_file: Option<PathBuf>,
    started: impl FnOnce(&Settings, SocketAddr, usize),
) -> Result<Ended, ServeError> {
    let mut signals = Signals::new()?;
    let config = config::servers(&settings)?;
    let variables = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    let misspelt = config::misspelt_variables(variables);
    settings.warnings.extend(misspelt);
    let tls = settings.listen.tls.as_ref().map(tls::Acceptor::load);
    let tls = tls.transpose()?;
    let listener = listen(&settings).await?;
    let address = listener.local_addr()?;
    settings.listen.bound_to(address.port());
    let reachable = reachable_at(settings.replicas.address.as_ref(), address);
    let certificate = tls.as_ref().map(tls::Acceptor::fingerprint);
    let membership = Membership {
        address: reachable
            .as_deref()
            .map(|address| origin(address, certificate)),
        ttl: settings.replicas.lease_ttl,
        mends_leases: true,
    };
    let warnings = limits::fit_connections(&mut settings);
    settings.warnings.extend(warnings);
    let store = ChatStore::open(&settings.jobs_dir, &membership)?;
    let app = App::new(settings, store, config)?;
    app.core.replicas.watch()?;
    let open_files = limits::raise_open_files();
    tracing::debug!(?open_files, "limits");
    app.fit_system(open_files);
    for warning in app.warnings() {
        tracing::warn!("{warning}");
    }
    app.apply(app.core.directory.config()).await;
    let mut background = background::start(&app, signals.hangups());
    let tls = tls.map(watch::Sender::new);
    let served = tls.as_ref().map(watch::Sender::subscribe);
    if let (Some(files), Some(current)) = (app.core.settings.listen.tls.clone(), tls) {
        background.also(tls::watch_certificate(
            app.clone(),
            files,
            reachable,
            current,
        ));
    }
    if let Some(path) = port_file {
        write_whole(&path, &format!("{address}\n"))?;
    }
    // Built here, so that its problems stop the start. A background task would report them too late.
    let service = Arc::new(http::Service::new(&app));
    let servers = app.core.directory.config().servers.len();
    started(&app.core.settings, address, servers);
    tracing::info!(%address, servers, "serving");
    let mut server = tokio::spawn(answer(app.clone(), service, listener, served));
    tokio::select! {
        () = signals.stop() => {}
        ended = &mut server => return Err(ServeError::Broken(died(ended))),
        why = background.broken() => return Err(ServeError::Broken(why)),
    }
    tracing::info!("stopping: waiting for running calls; a second signal exits immediately");
    let until = Instant::now() + app.core.settings.limits.shutdown_grace;
    let ended = async {
        hand_over(&app, until).await;
        app.core.engine.stopping.cancel();
        drain(&app, server, until).await;
    };
    tokio::select! {
        () = ended => {}
        () = signals.stop() => {
            app.store.leave();
            return Ok(Ended::AtOnce);
        }
    }
    background.stop().await;
    app.condition.close().await;
    app.store.leave();
    tracing::info!("stopped");
    Ok(Ended::Cleanly)
}

/// Why a task ended that should run until the bridge stops.
fn died(ended: Result<(), tokio::task::JoinError>) -> String {
    let why = ended.map_or_else(
        |error| error.to_string(),
        |()| "it returned unexpectedly".to_owned(),
    );
    format!("the task that accepts connections failed: {why}")
}

/// Answers requests until the bridge stops, and then the requests in progress.
async fn answer(
    app: Arc<App>,
    service: Arc<http::Service>,
    listener: TcpListener,
    tls: Option<watch::Receiver<tls::Acceptor>>,
) {
    let listen = &app.core.settings.listen;
    let most = listen.max_connections;
    let limits = Limits {
        most,
        new_per_address: (most / 8).clamp(MIN_NEW, MAX_NEW),
        head: listen.head_timeout,
        body: listen.body_timeout,
        idle: listen.keep_alive,
    };
    let answer = move |peer, request| {
        let service = service.clone();
        // In a box, because the future has some kilobytes, and hyper moves it several times.
        Box::pin(async move { service.answer(peer, request).await })
    };
    let stopping = app.core.engine.stopping.clone();
    let channels = Channels::new(app.core.replicas.proof(), stopping.clone());
    let open = channels.clone();
    let service = move |peer, request| {
        if is_asked_for(&request) {
            return Either::Left(ready(open.open(peer, request, answer.clone())));
        }
        Either::Right(answer(peer, request))
    };
    connections::serve(listener, tls, limits, service, stopping).await;
    channels.ended().await;
}

/// Retries while the port is in use: a child process of a bridge that was killed a moment ago may still
/// hold the listener, between fork and exec of a supervisor.
async fn listen(settings: &Settings) -> Result<TcpListener, ServeError> {
    let (host, port) = (&settings.listen.host, settings.listen.port);
    let until = Instant::now() + PORT_TAKEN;
    let mut told = false;
    loop {
        let error = match TcpListener::bind((host.as_str(), port)).await {
            Ok(listener) => {
                // The accept queue has the maximum length of the system (net.core.somaxconn): when it is full,
                // the kernel drops the handshakes of a burst.
                if let Err(error) = rustix::net::listen(&listener, i32::MAX) {
                    tracing::debug!(%error, "the listener's backlog cannot be changed");
                }
                return Ok(listener);
            }
            Err(error) => error,
        };
        if error.kind() != io::ErrorKind::AddrInUse || Instant::now() >= until {
            let host = host.clone();
            return Err(ServeError::Listen { host, port, error });
        }
        if !std::mem::replace(&mut told, true) {
            let seconds = PORT_TAKEN.as_secs();
            tracing::info!(port, "port in use; retrying for {seconds} s");
        }
        tokio::time::sleep(TRY_AGAIN).await;
    }
}

/// If other replicas share the folder, they get all new requests, and each chat as soon as no call of
/// it runs here. This replica accepts requests until load balancers had time to notice.
async fn hand_over(app: &Arc<App>, until: Instant) {
    let looker = app.clone();
    let look = move || looker.core.replicas.watch();
    let _ = tokio::task::spawn_blocking(look).await;
    app.core.replicas.prove().await;
    if app.core.replicas.others().is_empty() {
        return;
    }
    app.core.replicas.drain();
    let store = app.store.clone();
    let tell = move || store.drain();
    if let Ok(Err(error)) = tokio::task::spawn_blocking(tell).await {
        tracing::warn!(%error, "other replicas cannot be notified that this one is stopping");
    }
    app.core.engine.sessions.drain();
    app.core.engine.running.close();
    let noticed = Instant::now() + app.core.settings.replicas.drain_delay;
    tokio::time::sleep_until(noticed.min(until)).await;
    let _ = timeout_at(until, app.core.engine.running.wait()).await;
}

/// Lets running calls and downloads finish within the grace period, then ends every child.
async fn drain(app: &Arc<App>, server: tokio::task::JoinHandle<()>, until: Instant) {
    let engine = &app.core.engine;
    engine.running.close();
    let grace = app.core.settings.limits.shutdown_grace;
    if timeout_at(until, engine.running.wait()).await.is_err() {
        tracing::warn!(
            ?grace,
            "calls are still running and are cancelled (MCPO_SHUTDOWN_GRACE)"
        );
        engine.ending.cancel();
    }
    // Downloads have the rest of the grace period, and answers a short time to be sent; then open
    // connections end with the process.
    let _ = timeout_at(until.max(Instant::now() + LINGER), server).await;
    engine.children.wake();
    let ended = async {
        engine.running.wait().await;
        tokio::join!(engine.sessions.end_all(), engine.shared.end_all());
        tokio::join!(app.installer.close(), app.core.catalog.close());
        engine.children.none_left().await;
    };
    if tokio::time::timeout(END_TIME, ended).await.is_err() {
        tracing::error!(
            "some server processes have not exited; their supervisors kill them when this process \
             exits"
        );
    }
}

/// Writes the file atomically: readers never see a part of it.
fn write_whole(path: &Path, text: &str) -> io::Result<()> {
    let staged = path.with_extension("tmp");
    std::fs::write(&staged, text)?;
    std::fs::rename(staged, path)
}

// Signals.

/// The signals of this process, caught from its construction on.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Arc<Notify>,
}

impl Signals {
    /// SIGTERM and SIGINT stop the process; SIGHUP reloads.
    pub fn new() -> io::Result<Self> {
        let hangup = Arc::new(Notify::new());
        let (mut hangups, notify) = (signal(SignalKind::hangup())?, hangup.clone());
        tokio::spawn(async move {
            while hangups.recv().await.is_some() {
                notify.notify_one();
            }
        });
        let terminate = signal(SignalKind::terminate())?;
        let interrupt = signal(SignalKind::interrupt())?;
        Ok(Self {
            terminate,
            interrupt,
            hangup,
        })
    }

    /// Waits for SIGTERM or SIGINT.
    pub async fn stop(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }

    /// Notified at each SIGHUP.
    pub fn hangups(&self) -> Arc<Notify> {
        self.hangup.clone()
    }
}

// The server file is read again on SIGHUP and when it changes. An invalid file changes nothing.

/// Poll interval of the file. Notifications would miss bind mounts and Kubernetes' links.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// A file that is being replaced may be missing for a moment: it counts as deleted after this number of
/// polls.
const MISSING_LOOKS: u32 = 2;

/// After this time, a disk that does not answer is logged.
const PATIENCE: Duration = Duration::from_secs(30);

type FilesDigest = Option<[u8; 32]>;

/// Watches until the future is dropped.
pub async fn watch_server_file(app: Arc<App>, hangups: Arc<Notify>) {
    let settings = &app.core.settings;
    let from_file = settings.command_line.server.is_none();
    let looks = settings.hot_reload && from_file;
    let mut seen = if from_file { look(&app).await } else { None };
    let mut missing = 0;
    loop {
        let hangup = hangups.notified();
        let asked = if looks {
            timeout(LOOK_EVERY, hangup).await.is_ok()
        } else {
            hangup.await;
            true
        };
        let now = if from_file { look(&app).await } else { None };
        missing = if now.is_none() { missing + 1 } else { 0 };
        let changed = now.is_some() && now != seen;
        if asked || changed || missing == MISSING_LOOKS {
            // An unreadable file is reloaded as well, because that reports the error.
            seen = now;
            reload(&app).await;
        }
    }
}

/// A hash of the server file and of the lock file, if there is one; `None` if the server file cannot be read.
async fn look(app: &App) -> FilesDigest {
    let settings = app.core.settings.clone();
    let read = move || {
        let text = read_bounded(&settings.config_file, LARGEST_FILE).ok()?;
        let lock = read_bounded(&settings.lock_file, LARGEST_FILE);
        let digest = Sha256::new()
            .chain_update(text)
            .chain_update(lock.unwrap_or_default());
        Some(digest.finalize().into())
    };
    patiently(app, tokio::task::spawn_blocking(read)).await?
}

/// Waits for the disk without a timeout, and logs a long wait. A panic, which would be a bug of the
/// bridge, must not end the watcher.
async fn patiently<T>(app: &App, mut work: JoinHandle<T>) -> Option<T> {
    let done = if let Ok(done) = timeout(PATIENCE, &mut work).await {
        done
    } else {
        let (before, waited) = (app.reload_fault(), PATIENCE.as_secs());
        refuse(
            app,
            &format!("the disk did not respond within {waited} s; still waiting"),
        );
        let done = work.await;
        app.set_reload_fault(before);
        done
    };
    let done = done.inspect_err(|error| refuse(app, &error.to_string()));
    done.ok()
}

fn refuse(app: &App, why: &str) {
    let fault = format!(
        "the server file could not be reloaded; the previous configuration stays active: {why}"
    );
    tracing::error!("{fault}");
    app.set_reload_fault(Some(fault));
}

async fn reload(app: &Arc<App>) {
    let settings = app.core.settings.clone();
    let load = move || config::servers(&settings);
    match patiently(app, tokio::task::spawn_blocking(load)).await {
        Some(Ok(loaded)) => {
            for warning in &loaded.warnings {
                tracing::warn!("{warning}");
            }
            tracing::info!(servers = loaded.servers.len(), "server file reloaded");
            app.set_reload_fault(None);
            app.apply(Arc::new(loaded)).await;
        }
        Some(Err(error)) => refuse(app, &error.to_string()),
        None => {}
    }
}
