//! What the process is told from outside.

use std::{io, sync::Arc};

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::Notify,
};

/// Signals of this process, caught from the moment this is made.
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Arc<Notify>,
}

impl Signals {
    /// SIGTERM and SIGINT stop; SIGHUP reloads.
    pub fn new() -> io::Result<Self> {
        let hangup = Arc::new(Notify::new());
        let (mut hangups, notify) = (signal(SignalKind::hangup())?, hangup.clone());
        tokio::spawn(async move {
            while hangups.recv().await.is_some() {
                notify.notify_one();
            }
        });
        let terminate = signal(SignalKind::terminate())?;
        let interrupt = signal(SignalKind::interrupt())?;
        Ok(Self {
            terminate,
            interrupt,
            hangup,
        })
    }

    /// Waits until somebody wants the process to stop.
    pub async fn stop(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }

    /// Notified at each SIGHUP.
    pub fn hangups(&self) -> Arc<Notify> {
        self.hangup.clone()
    }
}
