//! Why a server was not learnt.

use bridge_process::ChildError;
use bridge_state::StoreError;

/// Why a server could not be learnt.
#[derive(Debug, thiserror::Error)]
pub enum LearnError {
    /// The process failed.
    #[error(transparent)]
    Child(#[from] ChildError),
    /// The folder failed.
    #[error("no folder for it: {0}")]
    Store(#[from] StoreError),
    /// It answered `tools/list` with an error.
    #[error("it answered tools/list with the error {0}")]
    Refused(String),
    /// It answered `tools/list` with something else.
    #[error("its answer to tools/list is no ListToolsResult")]
    BadList,
}

impl LearnError {
    /// Without the server's own words, which may hold what not everybody should read.
    pub fn brief(&self) -> String {
        match self {
            Self::Child(error) => error.brief(),
            Self::Refused(_) => "it answered tools/list with an error".to_owned(),
            Self::BadList | Self::Store(_) => self.to_string(),
        }
    }
}
