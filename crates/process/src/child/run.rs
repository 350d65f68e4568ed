//! A program that runs to its end, for its output: below a supervisor like every child, so that it
//! ends with the bridge however that ends.

use std::{ffi::OsString, path::PathBuf};

use rustix::process::Rlimit;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _},
    time::Instant,
};

use super::{
    ChildError, ExitStatus,
    launch::{self, Launch},
    reaper::Supervisors,
};

/// What is kept of each stream, in bytes; the rest is read and dropped.
const KEPT: usize = 32 * 1024 * 1024;

/// A program to run.
pub struct Errand {
    /// A path, or a name to be found in the PATH of `env`.
    pub program: String,
    /// Its arguments.
    pub args: Vec<String>,
    /// The whole environment.
    pub env: Vec<(OsString, OsString)>,
    /// Where it runs.
    pub cwd: PathBuf,
}

/// How it went.
pub struct Done {
    /// How it ended.
    pub status: ExitStatus,
    /// What it wrote to stdout.
    pub stdout: Vec<u8>,
    /// What it wrote to stderr.
    pub stderr: Vec<u8>,
}

/// Runs it to its end, at most to `until`. Dropping the future kills all of it.
pub async fn run(
    errand: Errand,
    open_files: Rlimit,
    supervisors: &Supervisors,
    until: Instant,
) -> Result<Done, ChildError> {
    let launch = Launch {
        program: errand.program,
        args: errand.args,
        env: errand.env,
        cwd: errand.cwd,
        open_files,
    };
    let (process, pipes) = launch::start(&launch, supervisors, until).await?;
    drop(pipes.stdin);
    let all = async {
        let (stdout, stderr) = tokio::join!(read(pipes.stdout), read(pipes.stderr));
        let status = process.gone().await;
        Done {
            status,
            stdout,
            stderr,
        }
    };
    let done = tokio::time::timeout_at(until, all).await;
    done.map_err(|_| ChildError::Timeout)
}

async fn read(mut from: impl AsyncRead + Unpin) -> Vec<u8> {
    let mut kept = Vec::new();
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        let room = KEPT.saturating_sub(kept.len());
        kept.extend_from_slice(&buffer[..count.min(room)]);
    }
    kept
}
