//! A look at the folder after a call.

use std::sync::Arc;

use bridge_model::{Job, JobFolderPaths, Principal};
use bridge_protocol::RawJson;
use bridge_state::Lease;

use super::{CallError, Notice, Published};
use crate::{
    artifacts::{self, Snapshot},
    config::{ServerSpec, Settings},
};

/// Which call left the files.
#[derive(Clone)]
pub struct Maker {
    /// Whose call it was.
    pub principal: Principal,
    /// The server.
    pub spec: Arc<ServerSpec>,
    /// The tool.
    pub tool: Box<str>,
}

/// What is looked for after a call, and where.
pub struct Look {
    /// The folder.
    pub job: Job,
    /// The right to write there.
    pub lease: Lease,
    /// How its children spell it.
    pub paths: JobFolderPaths,
    /// What lay there before the call.
    pub before: Snapshot,
    /// Whose files they are.
    pub maker: Maker,
    /// What the call was given.
    pub arguments: Option<RawJson>,
    /// What it answered, the folder's path taken out.
    pub result: RawJson,
}

/// Links and what is to be said of them, or why the call fails.
pub type Looked = Result<(Published, Vec<Notice>), CallError>;

/// What a look through a workspace may find.
pub fn snapshot_limits(settings: &Settings) -> artifacts::Limits {
    let entries = settings.files.max_workspace_files as u64;
    artifacts::Limits {
        entries,
        ..artifacts::Limits::default()
    }
}
