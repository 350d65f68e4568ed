//! Why Open WebUI did not do what it was asked. No token and no address is in it.

use reqwest::StatusCode;

/// What went wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// No connection, or it broke.
    #[error("Open WebUI cannot be reached: {0}")]
    Unreachable(Box<str>),
    /// No answer in time.
    #[error("Open WebUI does not answer")]
    Silent,
    /// Any status but success.
    #[error("Open WebUI answered {0}")]
    Refused(StatusCode),
    /// Something else than its API answers.
    #[error("Open WebUI answered with something that is not its API's")]
    Unreadable,
    /// More bytes than are taken.
    #[error("larger than {0} bytes (MCPO_MAX_UPLOAD_BYTES)")]
    TooLarge(u64),
    /// Our own disk.
    #[error("{0}")]
    Disk(Box<str>),
}

impl Failure {
    /// Without the URL, which is the operator's.
    pub(super) fn sending(error: &reqwest::Error) -> Self {
        if error.is_timeout() {
            return Self::Silent;
        }
        let mut why: &dyn std::error::Error = error;
        while let Some(source) = why.source() {
            why = source;
        }
        Self::Unreachable(why.to_string().into())
    }

    /// One word for logs and metrics.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Unreachable(_) => "unreachable",
            Self::Silent => "timeout",
            Self::Refused(_) => "refused",
            Self::Unreadable => "unreadable",
            Self::TooLarge(_) => "too_large",
            Self::Disk(_) => "disk",
        }
    }

    /// Whether it says that the token is not, or no longer, good.
    pub fn is_about_token(&self) -> bool {
        matches!(
            self,
            Self::Refused(StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN)
        )
    }
}
