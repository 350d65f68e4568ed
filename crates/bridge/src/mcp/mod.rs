//! The MCP endpoint: Streamable HTTP for any child.
//!
//! Messages pass byte by byte, except for ids, progress tokens, the path of the workspace, and the
//! links that are appended to a tool's result.

pub mod aggregate;
mod all;
mod endpoint;
mod error;
mod files;
mod legacy;
mod listen;
mod lists;
mod modern;
mod relay;
mod remote;
mod request;
mod session;

use std::sync::Arc;

use crate::{
    call::CallEngine, catalog::Catalog, config::Settings, directory::Directory, identity::Identity,
    replicas::Replicas,
};

pub use aggregate::Views;
pub use endpoint::{delete, post};
pub use error::RpcError;
pub use legacy::get;
pub use relay::PendingInputs;
pub use request::{McpExit, McpRequest, Scope, locate_offer};
pub use session::McpSessions;

/// The MCP endpoints: their own state, and the parts of the bridge that they use.
pub struct Endpoint {
    /// The settings from flags and environment.
    pub settings: Arc<Settings>,
    /// The configured servers, and who may see them.
    pub directory: Arc<Directory>,
    /// Authenticates callers.
    pub identity: Arc<Identity>,
    /// The offers of servers.
    pub catalog: Arc<Catalog>,
    /// Runs calls.
    pub engine: Arc<CallEngine>,
    /// The other replicas on the same jobs folder.
    pub replicas: Arc<Replicas>,
    /// The protocol's own sessions.
    pub sessions: McpSessions,
    /// Calls that wait for their client's retry.
    pub pending_inputs: PendingInputs,
    /// The offers at the endpoint of all servers.
    pub views: Views,
}
