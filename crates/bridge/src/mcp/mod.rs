//! The MCP door: Streamable HTTP in front of any child.
//!
//! Messages pass byte by byte; what changes is ids, progress tokens, our folder's path, and the
//! links that are appended to a tool's result.

mod abroad;
pub mod all;
mod asking;
mod error;
mod files;
mod headers;
mod legacy;
mod listen;
mod lists;
mod message;
mod modern;
mod outbox;
mod park;
mod relay;
mod session;
mod stream;

pub use asking::{Asking, offer};
pub use error::RpcError;
pub use legacy::{delete, get};
pub use message::{ClientMessage, Kind};
pub use park::Parks;
pub use session::McpSessions;

use modern::is_modern;

/// One message of a client's, of whichever era.
pub async fn post(
    asking: Asking<'_>,
    message: ClientMessage,
) -> Result<axum::response::Response, RpcError> {
    if is_modern(asking.headers, &message) {
        modern::post(asking, message).await
    } else {
        legacy::post(asking, message).await
    }
}
