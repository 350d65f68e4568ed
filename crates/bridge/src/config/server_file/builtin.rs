//! The server that every bridge has, unless it is turned off or the file has one of its name.

use std::{sync::Arc, time::Duration};

use bridge_model::ServerName;
use bridge_process::CommandSpec;
use indexmap::IndexMap;

use super::Loaded;
use crate::config::{
    FILES_SERVER, Launch, Mode, OWN_PROGRAM, Remembered, ServerSpec, Settings, Transport,
    WorkspaceScope,
};

/// Its name.
pub(super) const FILES: &str = "files";

/// The field of its answers that names a file to link.
pub const LINK_FIELD: &str = "file";
/// It holds nothing, and starts in milliseconds.
const IDLE: Duration = Duration::from_secs(60);

/// Adds it behind the file's servers. `named`: the file has an entry of its name, be it disabled.
pub(super) fn add(loaded: &mut Loaded, settings: &Settings, named: bool) {
    let on = settings.files.server && settings.stateful.enabled;
    let Some(name) = FILES.parse::<ServerName>().ok().filter(|_| on && !named) else {
        return;
    };
    let spec = Arc::new(files(name, settings));
    loaded.servers.insert(spec.name.clone(), spec);
}

fn files(name: ServerName, settings: &Settings) -> ServerSpec {
    ServerSpec {
        name,
        transport: Transport::Stdio(CommandSpec {
            program: OWN_PROGRAM.into(),
            args: vec![FILES_SERVER.into()],
            env: IndexMap::new(),
            cwd: None,
        }),
        mode: Mode::Stateful,
        workspace: WorkspaceScope::Chat,
        idle_timeout: IDLE.min(settings.stateful.default_idle_timeout),
        timeout: settings.limits.timeout,
        max_processes_per_chat: 1,
        concurrency: None,
        enabled_tools: None,
        disabled_tools: Vec::new(),
        session_lists: false,
        usage_guide: None,
        post_instruction: None,
        embed: Vec::new(),
        file_path_fields: vec![LINK_FIELD.into()],
        resolve_path_fields: Vec::new(),
        resolve_uri_fields: Vec::new(),
        before_end: None,
        forwarding: None,
        allow: None,
        remembered: Remembered::default(),
        install: false,
        launch: Launch::Exec,
        // It is ready in no time.
        pool: Some(0),
    }
}
