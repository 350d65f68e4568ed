//! Why a request is turned away before anything else is looked at.

/// The request's own fault; the text may be sent to the caller.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// 401 with `WWW-Authenticate: Bearer`.
    #[error("Not authenticated: send the API key as 'Authorization: Bearer KEY' or 'X-MCPO-Key'")]
    MissingKey,
    /// 403.
    #[error("Invalid API key")]
    InvalidKey,
    /// 401. Deliberately without the reason: it would help a forger.
    #[error("Invalid user token in {header}")]
    InvalidToken {
        /// The header that carried it.
        header: String,
    },
    /// 400: two values, and no way to tell which one a proxy in front looked at.
    #[error("The header {header} was sent more than once")]
    DuplicateHeader {
        /// Its name.
        header: String,
    },
    /// 400: too long, or with characters that have no place in it.
    #[error("The value of {header} cannot be used: {why}")]
    BadHeader {
        /// Its name.
        header: String,
        /// What is wrong with the value, without the value.
        why: &'static str,
    },
}

/// What a caller is told who has a key or a trusted address, but names no user.
pub fn user_needed(server: &str) -> String {
    format!(
        "the server '{server}' is only there for certain users, and this request names none that \
         can be believed: set ENABLE_FORWARD_USER_INFO_HEADERS=true in Open WebUI, or list the \
         key's name under allow.keys of the server"
    )
}

impl Refusal {
    /// One word for logs and metrics.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::MissingKey => "missing_key",
            Self::InvalidKey => "invalid_key",
            Self::InvalidToken { .. } => "invalid_token",
            Self::DuplicateHeader { .. } => "duplicate_header",
            Self::BadHeader { .. } => "bad_header",
        }
    }

    /// The HTTP status.
    pub fn status(&self) -> u16 {
        match self {
            Self::MissingKey | Self::InvalidToken { .. } => 401,
            Self::InvalidKey => 403,
            Self::DuplicateHeader { .. } | Self::BadHeader { .. } => 400,
        }
    }

    /// The value of `WWW-Authenticate`, where the answer must have one.
    pub fn challenge(&self) -> Option<&'static str> {
        (self.status() == 401).then_some("Bearer")
    }
}
