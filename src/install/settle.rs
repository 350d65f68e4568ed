//! From a look at a server's command line and the disk to how it is started: at once, or once its
//! environment was made.

use std::{path::PathBuf, sync::Arc, time::Duration};

use tokio_util::task::AbortOnDropHandle;

use super::{
    Asked, Installer, Launching, Pin, Resolved,
    installer::{Lock, Running, lock},
    launcher::{Target, What},
    resolved::Kind,
};
use crate::config::{CommandSpec, ServerSpec};

/// Until what is locked is tried again; it doubles up to [`LONGEST_PAUSE`].
const PAUSE_LOCKED: Duration = Duration::from_secs(10);
/// Until the rest is: it runs as written meanwhile.
const PAUSE: Duration = Duration::from_secs(300);
const LONGEST_PAUSE: Duration = Duration::from_secs(3600);

/// An installation holds its place among those side by side no longer than this.
const INSTALL_PLACE: Duration = Duration::from_secs(30);

/// What a look at a server's command line and at the disk tells.
pub enum Look {
    /// There is nothing to install, or not here; and why.
    AsWritten(Option<String>),
    /// It is there.
    Installed(Box<Resolved>),
    /// It can be installed.
    Missing(Box<Asked>),
    /// It is locked, and cannot be had.
    Refused(String),
}

impl Installer {
    /// Blocks on files.
    pub(super) fn look(&self, spec: &ServerSpec, locks: &Lock) -> (Look, Option<String>) {
        let file = locks.as_ref().ok().and_then(Option::as_ref);
        let asked = match (self.asked(spec, file), locks) {
            (Err(why), _) => return (Look::AsWritten(why), None),
            (Ok(asked), Err(why)) if asked.lockable => return (Look::Refused(why.clone()), None),
            (Ok(asked), _) => asked,
        };
        if let What::Interpreter(target) = &asked.wanted.what {
            let found = as_it_is(&asked.command, target);
            return (Look::Installed(Box::new(found)), None);
        }
        let warning = asked.warning.clone();
        if let Err(why) = self.folder.is_ours() {
            let look = if asked.locked {
                Look::Refused(why)
            } else {
                Look::AsWritten(Some(why))
            };
            return (look, warning);
        }
        let command = asked.chosen_for();
        let mut pins = lock(&self.pins);
        if !pins.contains(&command) {
            pins.push(command);
        }
        drop(pins);
        let there = asked
            .pin
            .as_ref()
            .and_then(|pin| self.folder.environment(pin));
        let look = match there.map(|(_, record)| self.resolve(&asked, &record)) {
            Some(Ok(resolved)) => Look::Installed(Box::new(resolved)),
            Some(Err(why)) if asked.locked => Look::Refused(why),
            Some(Err(why)) => Look::AsWritten(Some(why)),
            None => Look::Missing(Box::new(asked)),
        };
        (look, warning)
    }

    /// Says how the server is started from now on.
    pub(super) fn settle(self: &Arc<Self>, spec: &Arc<ServerSpec>, look: Look) {
        let before = self.launches().of(spec);
        let state = match look {
            Look::AsWritten(why) => Launching::AsWritten(why.map(Into::into)),
            Look::Refused(why) => {
                tracing::error!(server = %spec.name, error = %why, "it cannot be started as locked");
                Launching::Refused(why.into())
            }
            Look::Installed(resolved) => {
                self.installed(spec, *resolved);
                return;
            }
            Look::Missing(asked) if asked.locked || self.settings.in_background => {
                self.behind(spec, *asked, &before);
                return;
            }
            Look::Missing(_) => {
                let why = "it is not installed yet: `mcpo-bridge install` does it";
                Launching::AsWritten(Some(why.into()))
            }
        };
        lock(&self.running).remove(&spec.name);
        self.launches().set(spec, state);
    }

    fn installed(&self, spec: &ServerSpec, resolved: Resolved) {
        let before = self.launches().of(spec);
        let same = matches!(&before, Launching::Installed(before)
            if before.identity == resolved.identity && before.locked == resolved.locked);
        if same {
            return;
        }
        if resolved.folder.is_some() {
            tracing::info!(server = %spec.name, locked = resolved.locked, "it starts from its environment");
        }
        self.launches()
            .set(spec, Launching::Installed(Arc::new(resolved)));
        if let Some(changed) = self.changed.get() {
            changed(&spec.name);
        }
    }

    /// Installs beside the calls, unless that is under way already.
    fn behind(self: &Arc<Self>, spec: &Arc<ServerSpec>, asked: Asked, before: &Launching) {
        let pin = asked.pin.as_ref().map(Pin::digest).unwrap_or_default();
        let of = format!("{:?} {} {pin}", spec.version(), asked.digest);
        let mut running = lock(&self.running);
        let under_way = running.get(&spec.name).is_some_and(|task| task.of == of);
        if under_way && !matches!(before, Launching::Installed(_)) {
            return;
        }
        let locked = asked.locked;
        self.launches().set(spec, Launching::Installing { locked });
        let task = self.clone().until_installed(spec.clone(), asked);
        let task = self.stop.clone().run_until_cancelled_owned(task);
        let task = AbortOnDropHandle::new(self.tasks.spawn(task));
        running.insert(spec.name.clone(), Running { of, _task: task });
    }

    async fn until_installed(self: Arc<Self>, spec: Arc<ServerSpec>, asked: Asked) {
        let mut pause = if asked.locked { PAUSE_LOCKED } else { PAUSE };
        loop {
            let done = {
                let place = self.places.clone().acquire_owned().await;
                // A package index that does not answer must not hold up what comes from others.
                let _place = AbortOnDropHandle::new(tokio::spawn(async move {
                    tokio::time::sleep(INSTALL_PLACE).await;
                    drop(place);
                }));
                self.install(&asked, false, &|_| {}).await
            };
            let why = match done {
                Ok((pin, resolved)) => {
                    if !asked.locked {
                        self.remember(&asked, &pin);
                    }
                    self.installed(&spec, resolved);
                    return;
                }
                Err(why) => why,
            };
            // In the words of a package manager, from which passwords were taken out.
            let error = why.lines().next().unwrap_or_default();
            if asked.locked {
                tracing::error!(server = %spec.name, error, retry_in = ?pause, "its locked packages cannot be installed");
                let why = format!("its locked packages cannot be installed: {why}");
                self.launches().set(&spec, Launching::Refused(why.into()));
            } else {
                tracing::warn!(server = %spec.name, error, retry_in = ?pause, "it cannot be installed and runs as written");
                self.launches()
                    .set(&spec, Launching::AsWritten(Some(why.into())));
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}

/// An interpreter as it is written: nothing is installed for it.
pub fn as_it_is(command: &CommandSpec, target: &Target) -> Resolved {
    Resolved {
        program: command.program.clone(),
        args: Vec::new(),
        rest: 0,
        env: Vec::new(),
        path: None,
        kind: Kind::Python {
            interpreter: PathBuf::from(&command.program),
            target: Some(target.clone()),
        },
        identity: None,
        main: None,
        locked: false,
        folder: None,
        sources: Vec::new(),
        proven: false.into(),
    }
}
