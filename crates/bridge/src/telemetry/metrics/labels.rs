//! The labels of metrics, and the words that may stand in them.

use std::{
    fmt::{self, Write as _},
    sync::Arc,
};

use bridge_model::ServerName;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};

/// How a child serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ChildMode {
    /// One session's own, living on between calls.
    Stateful,
    /// One for all sessions.
    Shared,
    /// For one call.
    Stateless,
}

impl EncodeLabelValue for ChildMode {
    fn encode(&self, to: &mut LabelValueEncoder) -> fmt::Result {
        to.write_str(match self {
            Self::Stateful => "stateful",
            Self::Shared => "shared",
            Self::Stateless => "stateless",
        })
    }
}

/// What the catalogue knows of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ServerState {
    /// Nothing yet.
    Learning,
    /// Everything.
    Ready,
    /// It does not start.
    Failed,
}

impl ServerState {
    pub(super) const ALL: [Self; 3] = [Self::Learning, Self::Ready, Self::Failed];
}

impl EncodeLabelValue for ServerState {
    fn encode(&self, to: &mut LabelValueEncoder) -> fmt::Result {
        to.write_str(match self {
            Self::Learning => "learning",
            Self::Ready => "ready",
            Self::Failed => "failed",
        })
    }
}

/// A server's name as a label.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Server(ServerName);

impl EncodeLabelValue for Server {
    fn encode(&self, to: &mut LabelValueEncoder) -> fmt::Result {
        to.write_str(self.0.as_str())
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ByServer {
    server: Server,
}

impl ByServer {
    pub(super) fn new(server: &ServerName) -> Self {
        Self {
            server: Server(server.clone()),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ByTool {
    server: Server,
    tool: String,
}

impl ByTool {
    pub(super) fn new(server: &ServerName, tool: &str) -> Self {
        Self {
            server: Server(server.clone()),
            tool: tool.to_owned(),
        }
    }

    pub(super) fn ended(self, outcome: &'static str) -> ByCall {
        ByCall {
            server: self.server,
            tool: self.tool,
            outcome,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ByCall {
    server: Server,
    tool: String,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ByKind {
    pub(super) kind: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ByWhat {
    pub(super) what: &'static str,
    pub(super) outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ByOutcome {
    pub(super) outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ByMode {
    pub(super) mode: ChildMode,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ByStart {
    server: Server,
    outcome: &'static str,
}

impl ByStart {
    pub(super) fn new(server: &ServerName, outcome: &'static str) -> Self {
        Self {
            server: Server(server.clone()),
            outcome,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ByServerState {
    server: Server,
    state: ServerState,
}

impl ByServerState {
    pub(super) fn new(server: &ServerName, state: ServerState) -> Self {
        Self {
            server: Server(server.clone()),
            state,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ByRequest {
    pub(super) route: Arc<str>,
    pub(super) method: &'static str,
    pub(super) status: &'static str,
}
