//! A new place gets the folder in which its first child is ready.

use std::sync::Arc;

use bridge_model::{BootTime, Principal};
use bridge_state::{NewChat, PrincipalHash, StoreError};

use super::{Claim, Place, Session, SessionError, Sessions, Wants, Workspace, pool::Spare};
use crate::{artifacts::Snapshot, config::Mode};

/// A workspace, and who was there first.
struct Adopted {
    workspace: Arc<Workspace>,
    session: Arc<Session>,
}

impl Sessions {
    /// The place's workspace around a child of the pool's, bound there and idle. `None` where the
    /// place has a folder, or no such child is ready: then everything goes its usual way.
    pub(super) async fn adopted(
        self: &Arc<Self>,
        place: &Place,
        principal: &Principal,
        wants: Option<Arc<Wants>>,
    ) -> Option<Arc<Workspace>> {
        let wants = wants?;
        let stateful = wants.spec.mode == Mode::Stateful;
        if !stateful || !self.is_new(place).await {
            return None;
        }
        // Who holds as many as he may gets one when one of his own has ended.
        if self.population.of(&wants.spec).is_at_share(&wants.tenant) {
            return None;
        }
        let spare = self.pool.take(&wants.spec, &wants.profile).await?;
        let (sessions, place, principal) = (self.clone(), place.clone(), principal.clone());
        let adopt = move || sessions.adopt(spare, &place, &wants, &principal);
        let adopted = tokio::task::spawn_blocking(adopt).await;
        let adopted = adopted.expect("opening a folder does not panic");
        let adopted = adopted.inspect_err(|error| {
            tracing::debug!(%error, "a process that was ready could not be used");
        });
        let Adopted { workspace, session } = adopted.ok()??;
        self.watch(&workspace, &session);
        self.note_started(&workspace, &session).await;
        tracing::debug!(job = ?workspace.job.id(), "workspace opened, its process is ready");
        Some(workspace)
    }

    /// Whether a folder would be made for the place.
    async fn is_new(self: &Arc<Self>, place: &Place) -> bool {
        let (store, key, claim) = (self.store.clone(), place.key, place.claim);
        let look = move || {
            let proven = match claim {
                Claim::Proven(session) => store.exists(&session)?,
                Claim::Minted(_) | Claim::Free => true,
            };
            Ok::<_, StoreError>(proven && !store.exists(&key)?)
        };
        matches!(tokio::task::spawn_blocking(look).await, Ok(Ok(true)))
    }

    /// Blocks on the disk. What is not adopted ends by its drop.
    fn adopt(
        &self,
        spare: Spare,
        place: &Place,
        wants: &Wants,
        principal: &Principal,
    ) -> Result<Option<Adopted>, SessionError> {
        let new = NewChat {
            principal: PrincipalHash::from(principal),
            servers: Vec::new(),
        };
        self.prove(place, &new)?;
        let held_at = BootTime::now();
        if !self.store.claim(spare.lease(), Some(&place.key), &new)? {
            return Ok(None);
        }
        let parts = spare.into_parts();
        let mut seat = parts.place.expect("it counts as a stateful process");
        seat.pass_to(&wants.tenant);
        // As in a folder whose child is started by its first call: what it wrote since its birth is
        // new to that call.
        let lease = (parts.held.lease, held_at);
        let workspace = Workspace::new(place.key, parts.held.job, lease, Snapshot::default(), []);
        let session = Arc::new(Session::new(
            parts.child,
            wants.spec.clone(),
            seat,
            self.metrics.session_live(),
            place.class,
        ));
        drop(workspace.slot(&wants.spec).bind(&session, place.class));
        let workspace = Arc::new(workspace);
        Ok(Some(Adopted { workspace, session }))
    }
}
