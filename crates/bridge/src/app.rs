//! Assembles the parts of the bridge. All other modules get what they need as arguments.

use std::{
    num::NonZeroUsize,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock, Weak, atomic::AtomicBool},
    time::Instant,
};

use bridge_model::ServerName;
use bridge_process::Listener;
use bridge_protocol::jsonrpc::Said;
use bridge_state::{ChatStore, StoreError};
use parking_lot::Mutex;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    admission::Admission,
    body::BodyMemory,
    call::{CallEngine, DiskShares, RecordQueue, snapshot_limits},
    catalog::{Catalog, Knowledge},
    child::{ChildSettings, Children},
    condition::Condition,
    config::{DEFAULT_MAX_TOTAL_PROCESSES, Directory, Loaded, Settings},
    core::Core,
    identity::Identity,
    install::{Installer, InstallerSettings},
    limits, mcp,
    memory::{Cap, memory_limit, stateful_cap},
    openwebui::OpenWebUi,
    replicas::{PeerKey, Replicas},
    session::{PoolSettings, SessionSettings, Sessions, SharedChildren},
    telemetry::{Metrics, ServerState},
};

/// With fewer stateful processes than this, a warning is shown: they serve only a few users.
const FEW_PROCESSES: usize = 10;

/// The running bridge.
pub struct App {
    /// The parts that the endpoints share.
    pub core: Arc<Core>,
    /// Installs the servers' environments.
    pub installer: Arc<Installer>,
    /// The data that outlives the process.
    pub store: Arc<ChatStore>,
    /// The state of the machine.
    pub condition: Arc<Condition>,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// The MCP endpoints.
    pub mcp: Arc<mcp::Endpoint>,
    /// When this process started.
    pub started: Instant,
    /// Whether the lists of every server were requested once.
    pub acquainted: AtomicBool,
    reload_fault: Mutex<Option<String>>,
    cap_warning: Mutex<Option<String>>,
    system_cap: OnceLock<Cap>,
}

impl App {
    /// Builds the bridge; it does nothing before [`App::apply`].
    pub fn new(
        settings: Settings,
        store: ChatStore,
        config: Loaded,
    ) -> Result<Arc<Self>, StoreError> {
        let key = PeerKey::new(settings.replicas.key.as_ref(), &store)?;
        let (settings, store) = (Arc::new(settings), Arc::new(store));
        let metrics = Arc::new(Metrics::new());
        let children = child_settings(&settings, &store);
        let children = Arc::new(Children::new(children, metrics.clone()));
        let catalog = Arc::new(Catalog::new(children.clone(), store.clone()));
        let installer = installer_settings(&settings);
        let installer = Arc::new(Installer::new(installer, children.clone()));
        let listener = listener(Arc::downgrade(&catalog));
        let sessions = Arc::new(Sessions::new(
            session_settings(&settings),
            children.clone(),
            store.clone(),
            metrics.clone(),
            listener.clone(),
        ));
        connect(&children, &catalog, &sessions, &installer);
        let shared = Arc::new(SharedChildren::new(
            children.clone(),
            store.clone(),
            listener,
            settings.limits.server_calls_per_user.get(),
        ));
        let engine = Arc::new(CallEngine {
            settings: settings.clone(),
            admission: Admission::new(&settings.limits),
            children,
            sessions,
            shared,
            store: store.clone(),
            openwebui: openwebui(&settings, &metrics),
            metrics: metrics.clone(),
            running: TaskTracker::new(),
            disk: Arc::new(DiskShares::new(settings.clone(), store.clone())),
            records: RecordQueue::new(settings.files.retention),
            measuring: tokio::sync::Semaphore::new(1),
            stopping: CancellationToken::new(),
            ending: CancellationToken::new(),
        });
        let sessions = engine.sessions.clone();
        let replicas = Replicas::new(&settings, key, store.clone(), sessions, metrics.clone());
        let admission = engine.admission.clone();
        metrics.watch_queue(move || admission.load());
        let min_free = settings.files.min_free_disk_bytes;
        let core = Arc::new(Core {
            directory: Arc::new(Directory::new(config)),
            identity: Arc::new(Identity::new(&settings, engine.openwebui.clone())),
            catalog,
            engine,
            bodies: BodyMemory::new(
                settings.listen.body_memory_bytes,
                settings.listen.body_memory_per_user_bytes,
                settings.listen.max_body_values,
                settings.limits.queue_timeout,
            ),
            replicas: Arc::new(replicas),
            settings,
            calls_without_chat: AtomicBool::new(false),
        });
        let mcp = Arc::new(mcp::Endpoint {
            core: core.clone(),
            sessions: mcp::McpSessions::default(),
            pending_inputs: mcp::PendingInputs::default(),
            views: mcp::Views::default(),
        });
        Ok(Arc::new(Self {
            condition: Arc::new(Condition::new(store.clone(), min_free)),
            core,
            installer,
            store,
            metrics,
            mcp,
            started: Instant::now(),
            acquainted: AtomicBool::new(false),
            reload_fault: Mutex::default(),
            cap_warning: Mutex::default(),
            system_cap: OnceLock::new(),
        }))
    }

    /// Activates a server file: unchanged servers keep their sessions; sessions of the others end
    /// with their calls.
    pub async fn apply(&self, config: Arc<Loaded>) {
        // This comes first, so that no locked server is started as written in the meantime.
        let specs = config.servers.values().cloned().collect();
        self.installer.follow(specs).await;
        let before = self.core.directory.replace(config.clone());
        let gone = |name: &&ServerName| !config.servers.contains_key(*name);
        for name in before.servers.keys().filter(gone) {
            self.metrics.server_gone(name);
        }
        self.core.catalog.follow(config.servers.values());
        self.mcp
            .sessions
            .end_where_changed(&before.servers, &config.servers);
        let version = |name: &ServerName| config.servers.get(name).map(|spec| spec.version());
        self.core
            .engine
            .sessions
            .end_outdated(|session| version(&session.spec.name) == Some(session.version));
        self.core
            .engine
            .sessions
            .pool
            .follow(config.servers.values());
        self.core.engine.children.forks().follow(version);
        self.core
            .engine
            .shared
            .end_outdated(|name, running| version(name) == Some(running));
    }

    /// Records why the last reload changed nothing; `None` after a successful one.
    pub fn set_reload_fault(&self, fault: Option<String>) {
        *self.reload_fault.lock() = fault;
    }

    /// The error of the last reload, if it changed nothing.
    pub fn reload_fault(&self) -> Option<String> {
        self.reload_fault.lock().clone()
    }

    /// Warnings for the operator about things that work but should be checked.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = self.core.settings.warnings.clone();
        let config = self.core.directory.config();
        warnings.extend(config.warnings.iter().cloned());
        warnings.extend(self.core.identity.warning().map(str::to_owned));
        warnings.extend(self.allow_without_key(&config));
        warnings.extend(self.installer.warnings());
        warnings.extend(self.store.warnings());
        warnings.extend(self.core.engine.children.forks().warnings());
        warnings.extend(self.core.replicas.warnings());
        for name in config.servers.keys() {
            warnings.extend(self.core.catalog.warnings(name));
        }
        let cap = self.cap_warning.lock().clone();
        warnings.extend(cap);
        warnings.extend(self.core.warning_without_chat());
        warnings
    }

    /// Determines the number of processes that the system's limits allow, and lowers the configured
    /// number to that.
    pub fn fit_system(&self, open_files: Option<u64>) {
        let most = self.core.settings.stateful.max_total_processes;
        if let Some(cap) = limits::stateful_cap(most, open_files) {
            let _ = self.system_cap.set(cap);
            self.fit_memory();
        }
    }

    /// A warning if `allow` has no effect because callers can claim to be any user.
    fn allow_without_key(&self, config: &Loaded) -> Option<String> {
        let access = &self.core.settings.access;
        let by_address = access.keys.is_empty()
            && access.jwt_secret.is_none()
            && !access.trusted_proxies.is_empty();
        let mut servers = config.servers.values();
        let spec = servers.find(|spec| by_address && spec.allow.is_some())?;
        Some(format!(
            "server '{}' is restricted (allow), but without an API key every program at an \
             address in MCPO_TRUSTED_PROXIES can claim to be any user, including processes of \
             other servers: set MCPO_API_KEY or MCPO_JWT_SECRET",
            spec.name
        ))
    }

    /// Lowers the number of stateful processes to the number that fits into memory, by the largest
    /// child of the current servers, and to the number that the system's limits allow; raises it
    /// again if the children become smaller.
    pub fn fit_memory(&self) {
        let most = self.core.settings.stateful.max_total_processes;
        let largest = self.core.catalog.largest_child();
        let system = self.system_cap.get();
        if largest == 0 && system.is_none() {
            // Nothing was measured yet, so the number stays unchanged.
            return;
        }
        let memory = (largest > 0).then(|| stateful_cap(most, largest, memory_limit()));
        let caps = memory.flatten().into_iter().chain(system.cloned());
        let cap = caps.min_by_key(|cap| cap.max);
        let limit = cap.as_ref().map_or(most, |cap| cap.max);
        self.core.engine.sessions.cap(limit.get());
        let new = cap.map(|cap| cap.warning);
        let mut warning = self.cap_warning.lock();
        // A limit that was not configured needs no warning, as long as some processes fit.
        let by_system = system.is_some_and(|cap| cap.max == limit);
        let wished =
            most.get() != DEFAULT_MAX_TOTAL_PROCESSES || limit.get() < FEW_PROCESSES || by_system;
        match new.as_ref().filter(|_| new != *warning) {
            Some(text) if wished => tracing::warn!("{text}"),
            Some(text) => tracing::debug!("{text}"),
            None => {}
        }
        *warning = new.filter(|_| wished);
    }

    /// The metrics, including values that are read now.
    pub fn render_metrics(&self) -> String {
        for name in self.core.directory.config().servers.keys() {
            let state = match self.core.catalog.peek(name) {
                Some(Knowledge::Ready(_)) => ServerState::Ready,
                Some(Knowledge::Failed { .. }) => ServerState::Failed,
                Some(Knowledge::Learning) | None => ServerState::Learning,
            };
            self.metrics.server_state(name, state);
        }
        self.metrics.render()
    }
}

/// Connects parts that depend on each other and therefore cannot get each other when they are
/// created.
fn connect(
    children: &Children,
    catalog: &Arc<Catalog>,
    sessions: &Arc<Sessions>,
    installer: &Installer,
) {
    let weak = Arc::downgrade(catalog);
    installer.on_change(move |server| {
        if let Some(catalog) = weak.upgrade() {
            catalog.refresh(server);
        }
    });
    let known = Arc::downgrade(catalog);
    children.know_schemas(Arc::new(move |server, tool| {
        known.upgrade()?.tool_schema(server, tool)
    }));
    let idle = Arc::downgrade(sessions);
    children.make_room_by(Arc::new(move |tenant, why| {
        let idle = idle.upgrade();
        Box::pin(async move {
            match idle {
                Some(sessions) => sessions.relieve(None, tenant, why).await,
                None => false,
            }
        })
    }));
}

/// The client of Open WebUI, if the settings name one.
fn openwebui(settings: &Settings, metrics: &Arc<Metrics>) -> Option<Arc<OpenWebUi>> {
    let url = settings.openwebui.url.clone()?;
    let client = OpenWebUi::new(url, metrics.clone());
    let client = client.inspect_err(|error| {
        tracing::error!(%error, "the client for Open WebUI cannot be created");
    });
    client.ok().map(Arc::new)
}

/// Handles notifications of children: after a list change the catalogue reads the lists again.
fn listener(catalog: Weak<Catalog>) -> Arc<dyn Fn(&ServerName) -> Listener + Send + Sync> {
    Arc::new(move |server: &ServerName| {
        let (catalog, server) = (catalog.clone(), server.clone());
        Arc::new(move |said: &Said| {
            let lists = said.method.ends_with("/list_changed");
            if let Some(catalog) = catalog.upgrade().filter(|_| lists) {
                catalog.refresh(&server);
            }
        })
    })
}

/// Makes a path absolute: children start in their own folders, where a relative path would have
/// another meaning.
fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

fn installer_settings(settings: &Settings) -> InstallerSettings {
    InstallerSettings {
        tools_dir: absolute(&settings.tools_dir),
        preinstalled_dir: settings.preinstalled_dir.as_deref().map(absolute),
        lock_file: settings.lock_file.clone(),
        in_background: settings.install,
    }
}

fn child_settings(settings: &Settings, store: &ChatStore) -> ChildSettings {
    let limits = &settings.limits;
    ChildSettings {
        tools_dir: absolute(&settings.tools_dir),
        scratch: store.staging().to_owned(),
        start_timeout: limits.start_timeout,
        max_message: limits.max_message(),
        max_starts: limits.max_starts.get(),
        input_timeout: limits.input_timeout,
        kill_grace: limits.kill_grace,
    }
}

fn session_settings(settings: &Settings) -> SessionSettings {
    let stateful = &settings.stateful;
    SessionSettings {
        max_total: stateful.max_total_processes.get(),
        max_per_user: stateful.max_processes_per_user.map(NonZeroUsize::get),
        cleanup_interval: stateful.cleanup_interval,
        snapshot: snapshot_limits(settings),
        pool: PoolSettings {
            max: settings.pool.max,
            idle: settings.pool.idle,
            min_free_memory: settings.pool.min_free_memory_bytes,
            min_free_disk: settings.files.min_free_disk_bytes,
            starts: settings.limits.max_starts.get().div_ceil(2),
        },
    }
}
