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

use crate::core::Core;

pub use aggregate::Views;
pub use endpoint::{delete, post};
pub use error::RpcError;
pub use legacy::get;
pub use relay::PendingInputs;
pub use request::{McpExit, McpRequest, Scope, locate_offer};
pub use session::McpSessions;

/// The MCP endpoints: their own state, and the parts that they share with others.
pub struct Endpoint {
    /// The parts that all endpoints share.
    pub core: Arc<Core>,
    /// The protocol's own sessions.
    pub sessions: McpSessions,
    /// Calls that wait for their client's retry.
    pub pending_inputs: PendingInputs,
    /// The offers at the endpoint of all servers.
    pub views: Views,
}
