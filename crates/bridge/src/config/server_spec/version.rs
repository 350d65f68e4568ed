//! The fingerprint of everything that shapes a child.

use std::{fmt, sync::OnceLock};

use bridge_process::RemoteKind;
use sha2::{Digest, Sha256};

use super::{Launch, Mode, ServerSpec, Transport, WorkspaceScope};

/// SHA-256 over a server's transport, mode and workspace. Equal versions make equal children.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpecVersion([u8; 32]);

impl SpecVersion {
    pub(super) fn of(spec: &ServerSpec) -> Self {
        let mut hash = Parts::new("mcpo-bridge server v1");
        hash.text(spec.name.as_str());
        hash.text(match spec.mode {
            Mode::Stateful => "stateful",
            Mode::Stateless => "stateless",
            Mode::Shared => "shared",
        });
        hash.text(match spec.workspace {
            WorkspaceScope::Chat => "chat",
            WorkspaceScope::Own => "own",
        });
        match &spec.transport {
            Transport::Stdio(command) => {
                hash.text("stdio");
                hash.text(&command.program);
                hash.list(command.args.iter().map(String::as_str));
                hash.pairs(&command.env);
                hash.list(command.cwd.iter().map(|cwd| cwd.to_str().unwrap_or("")));
                hash.text(if spec.install {
                    "install"
                } else {
                    "as written"
                });
                hash.text(match spec.launch {
                    Launch::Auto => "auto",
                    Launch::Exec => "exec",
                    Launch::Fork => "fork",
                });
            }
            Transport::Remote(remote) => {
                hash.text(match remote.kind {
                    RemoteKind::StreamableHttp => "streamable-http",
                    RemoteKind::Sse => "sse",
                });
                hash.text(remote.url.as_str());
                hash.pairs(&remote.headers);
            }
        }
        hash.finish()
    }

    /// Lower-case hex, 64 letters.
    pub fn to_hex(self) -> String {
        self.0
            .iter()
            .fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"))
    }
}

/// The version of a spec that does not change any more, found when it is first asked for: each call
/// of a shared server asks. A copy forgets it, as a copy is made to be changed.
#[derive(Debug, Default)]
pub struct Remembered(OnceLock<SpecVersion>);

impl Remembered {
    pub(super) fn get(&self, find: impl FnOnce() -> SpecVersion) -> SpecVersion {
        *self.0.get_or_init(find)
    }
}

impl Clone for Remembered {
    fn clone(&self) -> Self {
        Self::default()
    }
}

/// It says nothing that the other fields do not say.
impl PartialEq for Remembered {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Remembered {}

impl fmt::Debug for SpecVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_hex()[..12])
    }
}

/// Hashes parts with their lengths, which keep ("ab","c") and ("a","bc") apart.
struct Parts(Sha256);

impl Parts {
    fn new(kind: &str) -> Self {
        let mut parts = Self(Sha256::new());
        parts.text(kind);
        parts
    }

    fn bytes(&mut self, part: &[u8]) {
        self.0.update((part.len() as u64).to_be_bytes());
        self.0.update(part);
    }

    fn text(&mut self, part: &str) {
        self.bytes(part.as_bytes());
    }

    fn list<'a>(&mut self, items: impl Iterator<Item = &'a str>) {
        let items: Vec<_> = items.collect();
        self.text(&items.len().to_string());
        for item in items {
            self.text(item);
        }
    }

    /// In order of the names: moving a line in the file changes no child.
    fn pairs(&mut self, pairs: &indexmap::IndexMap<String, String>) {
        let mut sorted: Vec<_> = pairs.iter().collect();
        sorted.sort();
        self.list(
            sorted
                .into_iter()
                .flat_map(|(k, v)| [k.as_str(), v.as_str()]),
        );
    }

    fn finish(self) -> SpecVersion {
        SpecVersion(self.0.finalize().into())
    }
}
