//! What a fork parent is made of.

use std::sync::Arc;

use bridge_process::{
    Launch, Profile,
    fork::{Plan, Scratch},
    launch::Resolved,
};

use crate::config::ServerSpec;

/// What is needed to make a parent.
pub struct Wanted {
    pub spec: Arc<ServerSpec>,
    pub found: Arc<Resolved>,
    pub profile: Profile,
    pub plan: Plan,
    pub launch: Launch,
    pub job: Scratch,
}
