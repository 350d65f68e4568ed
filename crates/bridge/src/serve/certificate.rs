//! A renewed certificate is taken over without a restart: connections that are open stay as they are,
//! and new ones get it.

use std::{io, sync::Arc, time::Duration};

use sha2::{Digest as _, Sha256};
use tokio::sync::watch;

use super::tls::Acceptor;
use crate::{
    app::App,
    config::{Tls, read_bounded},
    replicas::origin,
};

/// How often the files are looked at. Notifications would miss bind mounts and Kubernetes' links.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Bytes of a certificate or key: more than any has.
const LARGEST_FILE: u64 = 1024 * 1024;

/// Watches until dropped. `address` is where other bridges reach this one: they know it by its
/// certificate.
pub async fn watch(
    app: Arc<App>,
    tls: Tls,
    address: Option<String>,
    current: watch::Sender<Acceptor>,
) {
    let mut taken = digest(&tls).await;
    let mut seen = taken;
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let now = digest(&tls).await;
        // Two files are not replaced at once: what is there at two looks is whole.
        let whole = now.is_some() && now == seen;
        seen = now;
        if !whole || now == taken {
            continue;
        }
        taken = now;
        let (app, tls, address) = (app.clone(), tls.clone(), address.clone());
        let take = move || take_over(&app, &tls, address.as_deref());
        if let Ok(Some(acceptor)) = tokio::task::spawn_blocking(take).await {
            current.send_replace(acceptor);
        }
    }
}

async fn digest(tls: &Tls) -> Option<[u8; 32]> {
    let Tls { certificate, key } = tls.clone();
    let read = move || {
        let parts = [certificate, key].map(|path| read_bounded(&path, LARGEST_FILE));
        let digest = parts.into_iter().try_fold(Sha256::new(), |digest, part| {
            Ok::<_, io::Error>(digest.chain_update(part?))
        });
        digest.map(|digest| digest.finalize().into()).ok()
    };
    tokio::task::spawn_blocking(read).await.ok()?
}

fn take_over(app: &App, tls: &Tls, address: Option<&str>) -> Option<Acceptor> {
    let loaded = Acceptor::load(tls);
    let loaded = loaded.inspect_err(|error| {
        tracing::error!(%error, "the certificate was not taken over, the old one is in force");
    });
    let acceptor = loaded.ok()?;
    // Others learn of it first: who does not trust it yet asks again.
    if let Some(address) = address {
        let address = origin(address, Some(acceptor.fingerprint()));
        if let Err(error) = app.store.move_to(address) {
            tracing::warn!(%error, "the others do not learn of the new certificate yet");
        }
    }
    tracing::info!("the certificate was read again");
    Some(acceptor)
}
