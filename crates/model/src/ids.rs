//! Identifiers, and the workspace folder that one of them names. Those that grant access are random,
//! and logs contain only a short digest of them. Those that are computed are hashes over several
//! fields.

use std::{
    borrow::Borrow,
    fmt::{self, Write as _},
    fs::{File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
};

use rustix::fs::OFlags;
use serde::{Deserialize, Deserializer, Serialize};
use sha2::{Digest, Sha256};
use uuid::Uuid;

// A workspace: the name of its folder, and the paths in it.

/// The name of a workspace folder: a random UUID, so that other users cannot guess it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct JobId(Uuid);

impl JobId {
    /// A new id from the system's random source.
    pub fn random() -> Self {
        Self(Uuid::new_v4())
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

impl FromStr for JobId {
    type Err = uuid::Error;
    /// Accepts only the hyphenated form, which is the folder's name.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let id = Uuid::parse_str(text)?;
        if id.hyphenated().to_string() == text {
            Ok(Self(id))
        } else {
            // Other spellings of a UUID are not valid here.
            Uuid::parse_str("").map(Self)
        }
    }
}

/// Logs contain only a digest of job ids.
impl fmt::Debug for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", short_digest(&self.to_string()))
    }
}

/// A workspace folder that existed when this value was created. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Job {
    id: JobId,
    folder: PathBuf,
    configured: PathBuf,
}

impl Job {
    /// The workspace with this id below `root`, which the configuration spells `configured`.
    pub fn below(root: &Path, configured: &Path, id: JobId) -> Self {
        let name = id.to_string();
        Self {
            id,
            folder: root.join(&name),
            configured: configured.join(&name),
        }
    }

    /// The id, which is the folder's name.
    pub fn id(&self) -> JobId {
        self.id
    }
    /// The folder itself; children use only `work`, `home` and `tmp` in it.
    pub fn folder(&self) -> &Path {
        &self.folder
    }
    /// The children's working directory, where artifacts are found.
    pub fn work(&self) -> PathBuf {
        self.folder.join("work")
    }
    /// The children's `HOME`.
    pub fn home(&self) -> PathBuf {
        self.folder.join("home")
    }
    /// The children's `TMPDIR`.
    pub fn tmp(&self) -> PathBuf {
        self.folder.join("tmp")
    }
    /// The log of the children's stderr (0600, created on first use, limited by the writer).
    pub fn server_log(&self) -> PathBuf {
        self.folder.join("server.log")
    }
    /// The folder's spellings, which are removed from the output of children.
    pub fn paths(&self) -> JobFolderPaths {
        JobFolderPaths {
            canonical: self.folder.clone(),
            configured: self.configured.clone(),
            short_tmp: None,
        }
    }
}

/// The absolute paths under which a child may print its workspace folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobFolderPaths {
    /// With symbolic links in the jobs folder's path resolved, as `getcwd` returns it.
    pub canonical: PathBuf,
    /// With the jobs folder as written in the configuration.
    pub configured: PathBuf,
    /// A symbolic link to its `tmp/`, which is the `TMPDIR` of its children.
    pub short_tmp: Option<PathBuf>,
}

// Opening files in folders that children can write.

fn open(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    // A child may have replaced the bridge's file by a symbolic link or a FIFO.
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let file = options.custom_flags(flags).open(path)?;
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        let kind = io::ErrorKind::InvalidData;
        Err(io::Error::new(kind, "not a regular file"))
    }
}

/// Opens an existing regular file for reading; the last path component must not be a symbolic link.
pub fn open_read(path: &Path) -> io::Result<File> {
    open(path, OpenOptions::new().read(true))
}

/// Opens a regular file for appending (created with 0600); the last path component must not be a
/// symbolic link.
pub fn open_append(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    open(path, options.append(true).create(true).mode(0o600))
}

// Random tokens.

/// Base58: without `0OIl` and without characters that URLs or markdown escape, so that models copy
/// it correctly.
const ALPHABET: &[u8; 58] = b"123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz";

/// 22 × log2(58) = 128.9 bits.
const TOKEN_LENGTH: usize = 22;

fn random_token() -> Box<str> {
    let mut token = String::with_capacity(TOKEN_LENGTH);
    let mut bytes = [0_u8; 64];
    while token.len() < TOKEN_LENGTH {
        getrandom::fill(&mut bytes).expect("the operating system provides random numbers");
        // Rejection sampling keeps every character equally likely: 232 is the last multiple of 58
        // in a byte.
        let letters = bytes.iter().filter(|byte| **byte < 232);
        let room = TOKEN_LENGTH - token.len();
        token.extend(
            letters
                .take(room)
                .map(|byte| char::from(ALPHABET[usize::from(*byte) % 58])),
        );
    }
    token.into_boxed_str()
}

/// The text is not a valid token.
#[derive(Debug, thiserror::Error)]
#[error("not a token: expected {TOKEN_LENGTH} base58 characters")]
pub struct InvalidToken;

fn parse_token(text: &str) -> Result<Box<str>, InvalidToken> {
    let good = text.len() == TOKEN_LENGTH && text.bytes().all(|byte| ALPHABET.contains(&byte));
    if good {
        Ok(text.into())
    } else {
        Err(InvalidToken)
    }
}

fn short_digest(text: &str) -> String {
    let digest = Sha256::digest(text.as_bytes());
    hex(&digest[..4])
}

macro_rules! token {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, Serialize)]
        #[serde(transparent)]
        pub struct $name(Box<str>);

        impl $name {
            /// A new token of 128.9 random bits.
            pub fn random() -> Self {
                Self(random_token())
            }
            /// The secret text: for URLs and file names, never for logs.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidToken;
            fn from_str(text: &str) -> Result<Self, InvalidToken> {
                parse_token(text).map(Self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(from)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }

        /// Logs get a digest, which cannot be used as the token.
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "#{}", short_digest(&self.0))
            }
        }
    };
}

token! {
    /// The capability in a download link: it grants access to one version of one file only.
    LinkToken
}

token! {
    /// A session id that the bridge created for a caller who sent no chat (`X-MCPO-Session`).
    SessionId
}

// The name of a server: a key of `mcpServers`.

/// 1–255 characters, excluding `\ ? # %` and control characters. A slash separates parts that are
/// valid in URLs, as in `@scope/name` and `github.com/owner/name`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct ServerName(Arc<str>);

/// Why a name was rejected, with the remedy.
#[derive(Debug, thiserror::Error)]
#[error(
    "invalid server name: use 1 to 255 characters without \\ ? # % and control characters, and no \
     path segment that is empty, '.' or '..'"
)]
pub struct InvalidServerName;

impl ServerName {
    /// The name as written in the configuration.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ServerName {
    type Err = InvalidServerName;
    fn from_str(text: &str) -> Result<Self, InvalidServerName> {
        let length = text.chars().count();
        let odd = |c: char| c.is_control() || "\\?#%".contains(c);
        let lost = |part: &str| matches!(part, "" | "." | "..");
        if length > 255 || text.contains(odd) || text.split('/').any(lost) {
            return Err(InvalidServerName);
        }
        Ok(Self(text.into()))
    }
}

impl fmt::Display for ServerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ServerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

impl<'de> Deserialize<'de> for ServerName {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl Borrow<str> for ServerName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

// Hashes over several fields, and their text form.

/// Lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    let text = String::with_capacity(bytes.len() * 2);
    bytes.iter().fold(text, |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// SHA-256 over fields with their lengths, so that ("ab","c") and ("a","bc") have different hashes.
#[derive(Debug)]
pub struct FieldHasher(Sha256);

impl FieldHasher {
    /// `kind` separates hashes of different purposes.
    pub fn new(kind: &str) -> Self {
        let mut fields = Self(Sha256::new());
        fields.text(kind);
        fields
    }

    /// Adds a field.
    pub fn bytes(&mut self, field: &[u8]) {
        self.0.update((field.len() as u64).to_be_bytes());
        self.0.update(field);
    }

    /// Adds a field.
    pub fn text(&mut self, field: &str) {
        self.bytes(field.as_bytes());
    }

    /// Adds the number of items and then a field for each.
    pub fn list<T: AsRef<str>>(&mut self, items: &[T]) {
        self.text(&items.len().to_string());
        for item in items {
            self.text(item.as_ref());
        }
    }

    /// The hash of all fields.
    pub fn finish(self) -> [u8; 32] {
        self.0.finalize().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_long_distinct_and_survive_parsing() {
        let (one, two) = (LinkToken::random(), LinkToken::random());
        assert_ne!(one.as_str(), two.as_str());
        assert_eq!(one.as_str().parse::<LinkToken>().unwrap(), one);
        for bad in [
            "",
            "../../etc/passwd",
            "0OIl0OIl0OIl0OIl0OIl00",
            &"a".repeat(23),
        ] {
            assert!(bad.parse::<LinkToken>().is_err(), "{bad}");
        }
    }

    #[test]
    fn debug_output_hides_the_token() {
        let token = LinkToken::random();
        assert!(!format!("{token:?}").contains(token.as_str()));
    }

    #[test]
    fn a_job_id_has_one_spelling() {
        let id = JobId::random();
        assert_eq!(id.to_string().parse::<JobId>().unwrap(), id);
        assert!(id.to_string().to_uppercase().parse::<JobId>().is_err());
        assert!(id.to_string().replace('-', "").parse::<JobId>().is_err());
    }
}
