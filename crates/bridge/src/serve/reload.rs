//! The server file is read again on SIGHUP and when it changes. A broken one changes nothing.

use std::{sync::Arc, time::Duration};

use sha2::{Digest as _, Sha256};
use tokio::{sync::Notify, task::JoinHandle, time::timeout};

use crate::{
    app::App,
    config::{self, LARGEST_FILE, read_bounded},
};

/// How often the file is looked at. Notifications would miss bind mounts and Kubernetes' links.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// A file that is just being replaced may be missing for a moment: it is gone if it was missing at so
/// many looks.
const MISSING_LOOKS: u32 = 2;
/// A disk that does not answer for longer is told of.
const PATIENCE: Duration = Duration::from_secs(30);

type Seen = Option<[u8; 32]>;

/// Watches until dropped.
pub async fn watch(app: Arc<App>, hangups: Arc<Notify>) {
    let settings = &app.settings;
    let from_file = settings.command_line.server.is_none();
    let looks = settings.hot_reload && from_file;
    let mut seen = if from_file { look(&app).await } else { None };
    let mut missing = 0;
    loop {
        let hangup = hangups.notified();
        let asked = if looks {
            timeout(LOOK_EVERY, hangup).await.is_ok()
        } else {
            hangup.await;
            true
        };
        let now = if from_file { look(&app).await } else { None };
        missing = if now.is_none() { missing + 1 } else { 0 };
        let changed = now.is_some() && now != seen;
        if asked || changed || missing == MISSING_LOOKS {
            // One that cannot be read is read, too: that tells why.
            seen = now;
            reload(&app).await;
        }
    }
}

/// Of the server file and the lock file, which need not be there; `None` where the first cannot be
/// read.
async fn look(app: &App) -> Seen {
    let settings = app.settings.clone();
    let read = move || {
        let text = read_bounded(&settings.config_file, LARGEST_FILE).ok()?;
        let lock = read_bounded(&settings.lock_file, LARGEST_FILE);
        let digest = Sha256::new()
            .chain_update(text)
            .chain_update(lock.unwrap_or_default());
        Some(digest.finalize().into())
    };
    patiently(app, tokio::task::spawn_blocking(read)).await?
}

/// Waits for the disk however long it takes, and says so. A panic, which would be a fault of ours, must
/// not end the watching.
async fn patiently<T>(app: &App, mut work: JoinHandle<T>) -> Option<T> {
    let done = if let Ok(done) = timeout(PATIENCE, &mut work).await {
        done
    } else {
        let (before, waited) = (app.reload_fault(), PATIENCE.as_secs());
        refuse(
            app,
            &format!("the disk did not answer within {waited} s; it is waited for"),
        );
        let done = work.await;
        app.set_reload_fault(before);
        done
    };
    let done = done.inspect_err(|error| refuse(app, &error.to_string()));
    done.ok()
}

fn refuse(app: &App, why: &str) {
    let fault = format!("the server file was not taken over, the old one is in force: {why}");
    tracing::error!("{fault}");
    app.set_reload_fault(Some(fault));
}

async fn reload(app: &Arc<App>) {
    let settings = app.settings.clone();
    let load = move || config::servers(&settings);
    match patiently(app, tokio::task::spawn_blocking(load)).await {
        Some(Ok(loaded)) => {
            for warning in &loaded.warnings {
                tracing::warn!("{warning}");
            }
            tracing::info!(
                servers = loaded.servers.len(),
                "the server file was read again"
            );
            app.set_reload_fault(None);
            app.apply(Arc::new(loaded)).await;
        }
        Some(Err(error)) => refuse(app, &error.to_string()),
        None => {}
    }
}
