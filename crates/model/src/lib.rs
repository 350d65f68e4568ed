//! The words of the product as types: who calls, which chat, which server, which folder. They are
//! parsed once where a request, a file or a command line comes in, and never checked again inside.
//!
//! This crate must not know MCP, HTTP, processes or what lies in the jobs folder: every other crate imports
//! it, and it imports none of ours. The paths of one workspace are here ([`Job`]), and how a file is opened
//! in a folder that children can reach.
//!
//! ```
//! use bridge_model::{Principal, WorkspaceKey};
//!
//! let ann = Principal::User("ann".into());
//! let bob = Principal::User("bob".into());
//! // The key of a workspace is a hash of its user and chat: two users never share one.
//! assert_eq!(WorkspaceKey::chat(&ann, "7f3a", None), WorkspaceKey::chat(&ann, "7f3a", None));
//! assert_ne!(WorkspaceKey::chat(&ann, "7f3a", None), WorkspaceKey::chat(&bob, "7f3a", None));
//! ```

mod boot_time;
mod hash;
mod ids;
mod job;
mod markup;
mod principal;

pub use boot_time::BootTime;
pub use hash::{FieldHasher, hex};
pub use ids::{JobId, LinkToken, ServerName, SessionId};
pub use job::{Job, JobFolderPaths, open_append, open_read};
pub use markup::{link_text, plain_text};
pub use principal::{
    Caller, ForwardReason, Principal, RemoteSession, Tenant, UserInfo, UserToken, WorkspaceKey,
};
