//! The words of the product as types. Parsed once at the edge, never re-checked inside.

mod encoding;
mod ids;
mod markup;
mod principal;
mod raw_json;
mod server_name;
mod tenant;
mod tool;

pub use encoding::{utf8, without_mark};
pub use ids::{JobId, LinkToken, SessionId, WorkspaceKey, hex};
pub use markup::{link_text, plain_text};
pub use principal::{Caller, Guest, Hop, Principal, UserInfo, UserToken};
pub use raw_json::{Member, RawJson, last_members, present};
pub use server_name::ServerName;
pub use tenant::Tenant;
pub use tool::Tool;
