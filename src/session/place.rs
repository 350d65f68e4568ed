//! Which session a call belongs to.

use crate::{
    config::{ServerSpec, WorkspaceScope},
    model::{Caller, Principal, SessionId, WorkspaceKey},
};

/// Where a stateful call works.
#[derive(Debug, Clone)]
pub struct Place {
    /// The workspace.
    pub key: WorkspaceKey,
    /// How long a session there is kept, and in which order it is given up.
    pub class: Class,
    /// The id to return in `X-MCPO-Session`, for a caller without a chat.
    pub session: Option<SessionId>,
    /// The workspace must exist: the id is one that we minted.
    pub must_exist: bool,
}

/// What kind of session: in the order in which they are given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// A caller without a chat, who may or may not come back.
    OneCall,
    /// A chat, or a session that the caller named.
    Lasting,
}

impl Place {
    /// User and chat; else `X-MCPO-Session` within its principal; else a session of its own.
    ///
    /// An anonymous caller may use only ids that we minted: `None` means his id is not one.
    pub fn of(caller: &Caller, spec: &ServerSpec) -> Option<Self> {
        let principal = &caller.principal;
        let own = (spec.workspace == WorkspaceScope::Own).then_some(&spec.name);
        let anonymous = *principal == Principal::Anonymous;
        if let Some(chat) = caller.chat.as_deref().filter(|_| !anonymous) {
            let key = WorkspaceKey::chat(principal, chat, own);
            return Some(Self {
                key,
                class: Class::Lasting,
                session: None,
                must_exist: false,
            });
        }
        if let Some(named) = caller.session.as_deref() {
            let minted = named.parse::<SessionId>().ok();
            if anonymous && minted.is_none() {
                return None;
            }
            // What looks like one of ours is one of ours, or nobody's: no hint whose it is.
            let must_exist = minted.is_some();
            let key = WorkspaceKey::session(principal, named, None);
            return Some(Self {
                key,
                class: Class::Lasting,
                session: minted,
                must_exist,
            });
        }
        let minted = SessionId::random();
        let key = WorkspaceKey::session(principal, minted.as_str(), None);
        Some(Self {
            key,
            class: Class::OneCall,
            session: Some(minted),
            must_exist: false,
        })
    }
}
