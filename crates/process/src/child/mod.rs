//! Child processes: starting, communicating with and ending them.

mod connection;
mod control;
mod error;
pub mod fork;
mod hello;
mod launch;
mod log;
mod process;
mod short_tmp;
mod subscription;
mod supervisor;

pub use connection::{
    BACKLOG, Cancellation, Connection, LONG_LIVED, Listener, MessageSink, Outcome, Responder,
    ServerMessage, WeakNotifier, is_news, without_folder,
};
pub use control::{Duty, End, ExitStatus};
pub use error::ChildError;
pub use hello::{Hello, HelloParts, envelop, unfold};
pub use launch::{Done, Launch, Pipes, environment, environment_for_installing, run, start};
pub use log::ServerLog;
pub use process::{Body, Child, ChildParts, Process, Supervisors};
pub use short_tmp::{ShortName, ShortTmp};
pub use supervisor::{processor_time, signal_descendants, supervise};
