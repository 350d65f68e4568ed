//! What can be installed for a server of the file, and which versions are known for it.

use bridge_process::{
    CommandSpec,
    launch::{self, Wanted, What},
};

use super::{
    LockFile, Pin,
    folder::Folder,
    pin::{Parts, wanted_node, wanted_python},
};
use crate::config::{ServerSpec, Transport};

/// Variables that say where packages come from, or which are chosen.
const CHOOSING: [&str; 9] = [
    "UV_INDEX",
    "UV_DEFAULT_INDEX",
    "UV_INDEX_URL",
    "UV_EXTRA_INDEX_URL",
    "UV_FIND_LINKS",
    "UV_PYTHON",
    "UV_PRERELEASE",
    "npm_config_registry",
    "NPM_CONFIG_REGISTRY",
];

/// What can be installed for a server.
#[derive(Debug, Clone)]
pub struct Asked {
    pub(super) wanted: Wanted,
    pub(super) command: CommandSpec,
    /// Names the command line's packages, in a lock file.
    pub digest: String,
    /// The versions that are known for it: locked ones, or those chosen before.
    pub pin: Option<Pin>,
    /// The lock file says so, or that of what was installed ahead.
    pub locked: bool,
    /// Folders have no versions: they can be installed but not locked.
    pub lockable: bool,
    /// What is wrong with the lock file's entry.
    pub warning: Option<String>,
}

impl Asked {
    /// What can be installed for this server; the error says why it runs as written, `None` if
    /// there is nothing to install. Blocks on files.
    pub(super) fn read(
        spec: &ServerSpec,
        lock: Option<&LockFile>,
        folder: &Folder,
    ) -> Result<Self, Option<String>> {
        let Transport::Stdio(command) = &spec.transport else {
            return Err(None);
        };
        if !launch::is_launcher(&command.program) {
            return Err(None);
        }
        if !spec.install {
            return Err(Some("\"install\" is false in the server file".to_owned()));
        }
        let wanted = launch::read(command, &|name| is_on_path(command, name)).map_err(Some)?;
        let (digest, lockable) = match &wanted.what {
            What::Python(set) => {
                let lockable = set.sources.iter().all(|source| source.is_file());
                (wanted_python(set), lockable)
            }
            What::Node(set) => (wanted_node(set), true),
            What::Interpreter(_) => (String::new(), false),
        };
        let entry = lock.and_then(|lock| lock.entry(&spec.name, &digest));
        let ahead = folder.pinned_ahead(&digest);
        let (locked, mut warning) = match (entry, ahead) {
            (Some(Ok(pin)), _) | (_, Some(pin)) => (Some(pin), None),
            (Some(Err(why)), None) => (None, Some(why)),
            (None, None) => (None, None),
        };
        if lock.is_some() && lockable && locked.is_none() && warning.is_none() {
            let why = "it is not in the lock file: run `mcpo-bridge install`";
            warning = Some(why.to_owned());
        }
        let is_locked = locked.is_some();
        let chosen = || {
            let pin = folder.pin(&chosen_for(command, &digest));
            pin.map_err(|error| Some(format!("what was chosen for it cannot be read: {error}")))
        };
        let pin = match locked {
            Some(pin) => Some(pin),
            None => chosen()?,
        };
        Ok(Self {
            pin,
            wanted,
            command: command.clone(),
            digest,
            locked: is_locked,
            lockable,
            warning,
        })
    }

    /// The same as if nothing were locked.
    #[must_use]
    pub fn unlocked(&self) -> Self {
        Self {
            locked: false,
            ..self.clone()
        }
    }

    /// Names the command, for what was chosen for it where nothing is locked.
    pub(super) fn chosen_for(&self) -> String {
        chosen_for(&self.command, &self.digest)
    }

    /// Whether there is anything to install.
    pub fn is_installable(&self) -> bool {
        !matches!(self.wanted.what, What::Interpreter(_))
    }
}

/// Where packages come from counts too.
fn chosen_for(command: &CommandSpec, digest: &str) -> String {
    let mut hash = Parts::new("mcpo-bridge command v1");
    hash.text(digest);
    for name in CHOOSING {
        let own = command.env.get(name).cloned();
        let value = own.or_else(|| std::env::var(name).ok());
        hash.text(&value.unwrap_or_default());
    }
    hash.finish()
}

fn is_on_path(command: &CommandSpec, name: &str) -> bool {
    let own = command.env.get("PATH").map(Into::into);
    let path = own.or_else(|| std::env::var_os("PATH"));
    let path = path.unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(name).is_file())
}
