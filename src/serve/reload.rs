//! The server file is read again on SIGHUP and when it changes. A broken one changes nothing.

use std::{sync::Arc, time::Duration};

use sha2::{Digest as _, Sha256};
use tokio::sync::Notify;

use crate::{app::App, config};

/// How often the file is looked at. Notifications would miss bind mounts and Kubernetes' links.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Watches until dropped.
pub async fn watch(app: Arc<App>, hangups: Arc<Notify>) {
    let settings = &app.settings;
    let looks = settings.hot_reload && settings.command_line.server.is_none();
    let mut seen = digest(&app).await;
    loop {
        let hangup = hangups.notified();
        let asked = if looks {
            tokio::time::timeout(LOOK_EVERY, hangup).await.is_ok()
        } else {
            hangup.await;
            true
        };
        let now = digest(&app).await;
        // A file that is just being replaced may be missing for a moment.
        if asked || (now != seen && now.is_some()) {
            seen = now;
            reload(&app).await;
        }
    }
}

/// Of the server file and the lock file, which need not be there.
async fn digest(app: &App) -> Option<[u8; 32]> {
    let text = tokio::fs::read(&app.settings.config_file).await.ok()?;
    let lock = tokio::fs::read(&app.settings.lock_file).await;
    let digest = Sha256::new().chain_update(text);
    Some(
        digest
            .chain_update(lock.unwrap_or_default())
            .finalize()
            .into(),
    )
}

async fn reload(app: &Arc<App>) {
    let settings = app.settings.clone();
    let load = move || config::servers(&settings);
    let Ok(loaded) = tokio::task::spawn_blocking(load).await else {
        return;
    };
    match loaded {
        Ok(loaded) => {
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
        Err(error) => {
            let fault =
                format!("the server file was not taken over, the old one is in force: {error}");
            tracing::error!("{fault}");
            app.set_reload_fault(Some(fault));
        }
    }
}
