//! Newer versions, and what they would change.

use std::sync::Arc;

use bridge_process::launch::Resolved;
use indicatif::ProgressBar;
use tokio::time::Instant;

use super::{changes::Changes, report::Outcome, start_from};
use crate::{
    catalog::{Learnt, learn},
    cli::{Local, survey::LIST_TIME},
    config::ServerSpec,
    install::{Asked, Pin, Step},
};

/// Installs the newest versions in addition to those in use, starts both, and compares.
pub async fn one(
    local: &Local,
    spec: &Arc<ServerSpec>,
    asked: &Asked,
    bar: &ProgressBar,
    step: &(dyn Fn(Step) + Sync),
) -> (Outcome, Option<Pin>) {
    let installer = &local.app.installer;
    // What is locked is no reason to choose the same again.
    let (pin, new) = match installer.install(&asked.unlocked(), true, step).await {
        Ok(found) => found,
        Err(why) => return (Outcome::failed(why), None),
    };
    let old = match &asked.pin {
        Some(old) if old.digest() == pin.digest() => {
            return (Outcome::installed(&new, &pin), Some(pin));
        }
        Some(_) => installer.install(asked, false, step).await,
        None => return (Outcome::installed(&new, &pin), Some(pin)),
    };
    let main = new.main.clone();
    bar.set_message("starting the old version");
    let old_pin = asked.pin.clone().unwrap_or_else(|| pin.clone());
    let before = match old {
        Ok((_, old)) => offered(local, spec, old).await,
        Err(why) => Err(why),
    };
    bar.set_message("starting the new version");
    match offered(local, spec, new).await {
        Ok(after) => {
            let changes = Changes::between(&old_pin, &pin, before.as_ref(), &after);
            (Outcome::upgrade(main, changes), Some(pin))
        }
        Err(why) => {
            let why = format!("the new version fails to start, so the old one is kept: {why}");
            (Outcome::failed(why), None)
        }
    }
}

async fn offered(
    local: &Local,
    spec: &Arc<ServerSpec>,
    resolved: Resolved,
) -> Result<Learnt, String> {
    start_from(local, spec, resolved);
    let app = &local.app;
    let deadline = Instant::now() + app.settings.limits.start_timeout + LIST_TIME;
    let learnt = learn(spec, &app.engine.children, &app.store, deadline).await;
    learnt.map_err(|error| error.to_string())
}
