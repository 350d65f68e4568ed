//! The product's basic types: caller, chat, server, workspace folder. They are parsed once at the
//! boundary (a request, a file or a command line) and need no later checks.
//!
//! This crate must not know MCP, HTTP, processes or the content of the jobs folder: every other
//! crate imports it, and it imports no other crate of the workspace. It contains the paths of one
//! workspace ([`Job`]), and opens files in folders that children can write.
//!
//! ```
//! use bridge_model::{Principal, WorkspaceKey};
//!
//! let ann = Principal::User("ann".into());
//! let bob = Principal::User("bob".into());
//! // The key of a workspace is a hash of its user and chat: no two users share one.
//! assert_eq!(WorkspaceKey::chat(&ann, "7f3a", None), WorkspaceKey::chat(&ann, "7f3a", None));
//! assert_ne!(WorkspaceKey::chat(&ann, "7f3a", None), WorkspaceKey::chat(&bob, "7f3a", None));
//! ```

mod boot_time;
mod ids;
mod markup;
mod principal;

pub use boot_time::BootTime;
pub use ids::{
    FieldHasher, Job, JobFolderPaths, JobId, LinkToken, ServerName, SessionId, hex, open_append,
    open_read,
};
pub use markup::{link_text, plain_text};
pub use principal::{
    Caller, ForwardReason, Principal, RemoteSession, Tenant, UserInfo, UserToken, WorkspaceKey,
};
