//! Which session a call belongs to.

use std::sync::Arc;

use bridge_model::{Caller, Principal, ServerName, SessionId, Tenant, WorkspaceKey};
use bridge_process::Profile;

use super::Class;
use crate::config::{Mode, ServerSpec, WorkspaceScope};

/// Where a stateful call works.
#[derive(Debug, Clone)]
pub struct Place {
    /// The workspace.
    pub key: WorkspaceKey,
    /// How long a session there is kept, and in which order it is given up.
    pub class: Class,
    /// The id to return in `X-MCPO-Session`, for a caller without a chat.
    pub session: Option<SessionId>,
    /// What its key says of the caller's right to it.
    pub claim: Claim,
}

/// A child as a call needs it.
#[derive(Debug, Clone)]
pub struct Wants {
    /// Of which server.
    pub spec: Arc<ServerSpec>,
    /// How it is spoken to.
    pub profile: Profile,
    /// Against whose share it counts.
    pub tenant: Tenant,
}

impl Wants {
    /// None of a server whose children work in no chat's folder.
    pub fn of(spec: &Arc<ServerSpec>, profile: &Profile, caller: &Caller) -> Option<Arc<Self>> {
        (spec.mode == Mode::Stateful).then(|| {
            Arc::new(Self {
                spec: spec.clone(),
                profile: profile.clone(),
                tenant: Tenant::of(caller),
            })
        })
    }
}

/// Whether a workspace may be made for a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claim {
    /// By anybody who has the key: it comes from who he is and what he named himself.
    Free,
    /// We mint the id now. The key is the session's, without a server of its own.
    Minted(WorkspaceKey),
    /// He says that we minted the id: the session's key or the place's must have a folder.
    Proven(WorkspaceKey),
}

impl Place {
    /// A protocol session's own place, for clients that send no chat.
    pub fn of_protocol(principal: &Principal, id: &SessionId, own: Option<&ServerName>) -> Self {
        let key = WorkspaceKey::session(principal, &format!("mcp:{}", id.as_str()), own);
        Self {
            key,
            class: Class::Lasting,
            session: None,
            claim: Claim::Free,
        }
    }

    /// User and chat; else `X-MCPO-Session` within its principal; else a session of its own.
    ///
    /// An anonymous caller may use only ids that we minted: `None` means his id is not one.
    pub fn of(caller: &Caller, spec: &ServerSpec) -> Option<Self> {
        if spec.mode != Mode::Stateful {
            return Self::nowhere(caller);
        }
        let own = (spec.workspace == WorkspaceScope::Own).then_some(&spec.name);
        Self::within(caller, own)
    }

    /// Of a call that works in no folder that is kept, so that no session of the caller's is short-lived
    /// there.
    fn nowhere(caller: &Caller) -> Option<Self> {
        let named = caller.session.as_deref();
        let ours = |id: &str| id.parse::<SessionId>().is_ok();
        if caller.principal == Principal::Anonymous && !named.is_none_or(ours) {
            return None;
        }
        Some(Self {
            key: WorkspaceKey::nowhere(),
            class: Class::Lasting,
            session: None,
            claim: Claim::Free,
        })
    }

    /// The same for the folder that the chat's servers share, or for one of a server's own.
    pub fn within(caller: &Caller, own: Option<&ServerName>) -> Option<Self> {
        let principal = &caller.principal;
        let anonymous = *principal == Principal::Anonymous;
        if let Some(chat) = caller.chat.as_deref().filter(|_| !anonymous) {
            let key = WorkspaceKey::chat(principal, chat, own);
            return Some(Self {
                key,
                class: Class::Lasting,
                session: None,
                claim: Claim::Free,
            });
        }
        if let Some(named) = caller.session.as_deref() {
            let minted = named.parse::<SessionId>().ok();
            if anonymous && minted.is_none() {
                return None;
            }
            // What looks like one of ours is one of ours, or nobody's: no hint whose it is.
            let claim = match minted {
                Some(_) => Claim::Proven(WorkspaceKey::session(principal, named, None)),
                None => Claim::Free,
            };
            return Some(Self {
                key: WorkspaceKey::session(principal, named, own),
                class: Class::Lasting,
                session: minted,
                claim,
            });
        }
        let minted = SessionId::random();
        let session = WorkspaceKey::session(principal, minted.as_str(), None);
        let of_server = |server| WorkspaceKey::session(principal, minted.as_str(), Some(server));
        Some(Self {
            key: own.map_or(session, of_server),
            class: Class::OneCall,
            claim: Claim::Minted(session),
            session: Some(minted),
        })
    }
}
