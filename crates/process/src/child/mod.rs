//! Child processes: how one is started, spoken to and ended.

mod body;
mod cancellation;
mod connection;
mod control;
mod envelope;
mod environment;
mod error;
pub mod fork;
mod handle;
mod hello;
mod launch;
mod lines;
mod log;
mod outgoing;
mod process;
mod profile;
mod reaper;
mod run;
mod short_tmp;
mod subscription;
mod supervisor;
mod tree;

pub use body::Body;
pub use cancellation::Cancellation;
pub use connection::{
    BACKLOG, Connection, Ear, Heard, Hearing, Listener, Outcome, Replier, STANDING, is_news,
    without_folder,
};
pub use control::{Duty, End, ExitStatus};
pub use envelope::{envelop, unfold};
pub use environment::{environment, environment_for_installing};
pub use error::ChildError;
pub use handle::{Child, ChildParts};
pub use hello::{Hello, HelloParts, can_answer, needed};
pub use launch::{Launch, Pipes, start};
pub use log::ServerLog;
pub use process::Process;
pub use profile::Profile;
pub use reaper::Supervisors;
pub use run::{Done, Errand, run};
pub use short_tmp::{ShortName, ShortTmp};
pub use supervisor::supervise;
pub use tree::{processor_time, signal_descendants};
