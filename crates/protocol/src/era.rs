//! The form of the protocol, modern or legacy, that a message uses.
//!
//! MCP 2026-07-28 calls revisions "that convey version, identity, and capabilities as per-request
//! metadata" *modern*, and those "that establish a session with an `initialize` handshake"
//! *legacy*. About a server that supports both it says (basic/versioning, "Backward Compatibility
//! with Initialization-Based Versions"):
//!
//! > A dual-era **server** selects its behavior from how the client opens:
//! >
//! > - A request carrying modern per-request `_meta` is served statelessly according to this revision.
//! > - An `initialize` request selects legacy semantics, scoped to the stdio process (stdio) or the session
//! >   (HTTP), as specified by the negotiated legacy protocol version.

use crate::revision::{LEGACY, MODERN};

/// The form of the protocol that a conversation uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Era {
    /// 2024-11-05 to 2025-11-25: `initialize`, one conversation per process.
    Legacy,
    /// 2026-07-28: each request carries its own metadata, without a session.
    Modern,
}

/// The properties of an HTTP message that determine its era.
#[derive(Debug, Clone, Copy)]
pub struct Signs<'a> {
    /// The value of `MCP-Protocol-Version`. Legacy clients send it after `initialize`, with the
    /// negotiated revision (2025-06-18, basic/transports, "Protocol Version Header").
    pub version: Option<&'a str>,
    /// The message contains its revision in `_meta`.
    pub names_version: bool,
    /// The message has a session id.
    pub in_session: bool,
    /// It is an `initialize` request.
    pub initializes: bool,
}

impl Era {
    /// The era of a client's message.
    ///
    /// `_meta` decides. A modern client that omits it is recognised by its header, so that the
    /// error names the missing member; an unknown version belongs to the era of its session.
    pub fn detect(signs: &Signs<'_>) -> Self {
        if signs.names_version {
            return Self::Modern;
        }
        let by_header = signs.version.is_some_and(|version| {
            version == MODERN || !signs.in_session && !LEGACY.contains(&version)
        });
        if by_header && !signs.initializes {
            Self::Modern
        } else {
            Self::Legacy
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_way_to_open_has_its_era() {
        use Era::{Legacy, Modern};
        // The header, then the era as the first message, within a session, and as `initialize`.
        let without_meta = [
            (None, [Legacy, Legacy, Legacy]),
            (Some("2024-11-05"), [Legacy, Legacy, Legacy]),
            (Some("2025-11-25"), [Legacy, Legacy, Legacy]),
            (Some("2026-07-28"), [Modern, Modern, Legacy]),
            (Some("1900-01-01"), [Modern, Legacy, Legacy]),
            (Some("2031-01-01"), [Modern, Legacy, Legacy]),
            (Some(""), [Modern, Legacy, Legacy]),
        ];
        for (version, expected) in without_meta {
            let of = |in_session, initializes, names_version| {
                Era::detect(&Signs {
                    version,
                    names_version,
                    in_session,
                    initializes,
                })
            };
            let found = [
                of(false, false, false),
                of(true, false, false),
                of(false, true, false),
            ];
            assert_eq!(found, expected, "{version:?}");
            for (in_session, initializes) in
                [(false, false), (true, false), (false, true), (true, true)]
            {
                assert_eq!(
                    of(in_session, initializes, true),
                    Modern,
                    "{version:?} and _meta"
                );
            }
        }
    }
}
