//! Published artifacts on disk: `meta.json` and the immutable `data` under a random token.

use std::fs::File;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{PrincipalHash, Store, StoreError};
use crate::model::{JobId, LinkToken};

/// One version of one file, behind its own link.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Artifact {
    /// The capability.
    pub token: LinkToken,
    /// The file's own name, for people: UTF-8, no control characters, no separators.
    pub name: String,
    /// Where it lay under `work/`, for people; `/` between the parts.
    pub path: String,
    /// `[A-Za-z0-9._-]` only, extension kept: the last part of the URL.
    pub ascii_name: String,
    /// Bytes.
    pub size: u64,
    /// From the name's extension.
    pub mime_type: String,
    /// Of the bytes; lower-case hex.
    pub sha256: String,
    /// When the link was handed out.
    pub created_at: Timestamp,
    /// When it ends.
    pub expires_at: Timestamp,
    /// When the bytes went; the record is then a tombstone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gone_at: Option<Timestamp>,
    /// Why they went.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gone: Option<GoneReason>,
    /// The workspace that it came from.
    pub job: JobId,
    /// The server whose call made it.
    pub server: String,
    /// The tool that made it.
    pub tool: String,
    /// Whose it is.
    pub principal: PrincipalHash,
    /// Fields that this version does not know.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

impl Artifact {
    /// `{base}/files/{token}/{ascii-name}`; `base` is `MCPO_BASE_URL`, `/` or empty for links
    /// relative to the origin.
    pub fn url(&self, base: &str) -> String {
        let base = base.trim_end_matches('/');
        format!("{base}/files/{}/{}", self.token.as_str(), self.ascii_name)
    }
}

/// Why a link's bytes are gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GoneReason {
    /// `MCPO_FILE_EXPIRY` passed.
    Expired,
    /// Somebody took the link back.
    Revoked,
}

/// What a token leads to.
#[derive(Debug)]
pub enum Link {
    /// The bytes, open for reading; they stay readable if the link ends meanwhile.
    Live(Box<Artifact>, File),
    /// It existed: 410.
    Gone(Box<Artifact>, GoneReason),
    /// It never existed, or its tombstone is over: 404.
    Unknown,
}

impl Store {
    /// Follows a token. Expiry counts from the clock alone, not from when GC comes by.
    pub fn link(&self, token: &LinkToken, now: Timestamp) -> Result<Link, StoreError> {
        todo!("{token:?} {now}")
    }

    /// Takes a link back: its bytes go at once and it answers 410. `false` if there is none live.
    pub fn revoke(&self, token: &LinkToken, now: Timestamp) -> Result<bool, StoreError> {
        todo!("{token:?} {now}")
    }

    /// The links made from a workspace, tombstones included, oldest first. Reads every record.
    pub fn artifacts_of(&self, job: JobId) -> Result<Vec<Artifact>, StoreError> {
        todo!("{job:?}")
    }
}
