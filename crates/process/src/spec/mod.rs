//! What a server is: a command line or an address, and what of a user goes into it.

mod command;
mod remote;
mod user_values;

pub use command::{CommandSpec, ResolvedCommand};
pub use remote::{RemoteKind, RemoteSpec};
pub use user_values::{USER_PLACEHOLDERS, UserValues, asks_for_user};
