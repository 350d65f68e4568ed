//! Processes that are forked instead of started.

use std::{sync::Arc, time::Duration};

use bridge_process::{
    CommandSpec, Launch, Pipes, Process, Profile, ResolvedCommand, UserValues,
    fork::{Plan, Scratch},
    launch::Resolved,
};
use tokio::time::Instant;

use super::Children;
use crate::{
    child::{
        ChildRequest, Forking,
        fork::{ForkServers, ParentRef, Wanted},
    },
    config::{ServerSpec, Transport},
};

/// A fork takes milliseconds: one that takes longer has a parent that does not run.
const LONGEST_FORK: Duration = Duration::from_secs(10);

/// What a process is forked from, and its own arguments.
pub struct Fork {
    parent: ParentRef,
    argv: Vec<String>,
}

impl Children {
    /// How processes of this server come to be; a fork parent is made where there may be one.
    pub async fn forking(&self, spec: &Arc<ServerSpec>, until: Instant) -> Forking {
        let Transport::Stdio(command) = &spec.transport else {
            return Forking::NotYet;
        };
        let found = self.launches.ready(spec, until).await.ok().flatten();
        if let Some(why) = ForkServers::refuses(spec, found.as_deref()) {
            return Forking::Starts(why.into());
        }
        // Where it would work makes no difference to what can be forked.
        let plan = self.scratch().map_err(|error| error.to_string());
        let plan = plan.and_then(|job| {
            let command = command.resolve(&job.job.work(), &job.job.id(), &UserValues::default());
            Plan::of(&command, found.as_deref())
        });
        match (plan, &found) {
            (Ok(plan), Some(found)) => {
                let want = || self.parent_for(spec, command, found);
                let _ = self.forks.parent(spec, found, &plan, true, want);
                self.forks.settled(spec, until).await
            }
            (Err(why), _) => Forking::Starts(why.into()),
            (Ok(_), None) => Forking::NotYet,
        }
    }

    /// Makes what processes of this server are forked from, where there may be one, and waits for it.
    pub async fn prepare(&self, spec: &Arc<ServerSpec>, until: Instant) {
        if self.forks.is_undecided(spec) {
            self.forking(spec, until).await;
        }
    }

    /// What to fork the process from, and its own arguments; `None`: it is started by itself.
    pub(super) fn fork_from(
        &self,
        request: &ChildRequest,
        command: &CommandSpec,
        resolved: &ResolvedCommand,
        found: Option<&Arc<Resolved>>,
    ) -> Option<Fork> {
        let spec = &request.spec;
        if ForkServers::refuses(spec, found.map(|found| &**found)).is_some() {
            return None;
        }
        let plan = match Plan::of(resolved, found.map(|found| &**found)) {
            Ok(plan) => plan,
            Err(why) => {
                self.forks.cannot(spec, &why);
                return None;
            }
        };
        let found = found?;
        let want = || self.parent_for(spec, command, found);
        let parent = self.forks.parent(spec, found, &plan, false, want)?;
        if !parent.holds() {
            self.forks.forget(spec);
            return None;
        }
        Some(Fork {
            parent,
            argv: plan.argv,
        })
    }

    /// One that cannot be forked is started by itself, as are those after it for a while.
    pub(super) async fn forked(
        &self,
        spec: &ServerSpec,
        fork: &Fork,
        launch: &Launch,
        until: Instant,
    ) -> Option<(Process, Pipes)> {
        // One that is stopped must leave time to start the process by itself.
        let now = Instant::now();
        let patience = (until.saturating_duration_since(now) / 4).min(LONGEST_FORK);
        let parent = fork.parent.parent();
        let forked = parent.fork(launch, &fork.argv, now + patience).await;
        forked
            .inspect_err(|error| {
                // That is no fault of the parent's.
                if !error.is_lack_of_room() {
                    self.forks.give_up(spec, &fork.parent, &error.brief());
                }
            })
            .ok()
    }

    fn parent_for(
        &self,
        spec: &Arc<ServerSpec>,
        command: &CommandSpec,
        found: &Arc<Resolved>,
    ) -> std::io::Result<Wanted> {
        let job = self.scratch()?;
        let command = command.resolve(&job.job.work(), &job.job.id(), &UserValues::default());
        let plan = Plan::of(&command, Some(found)).map_err(std::io::Error::other)?;
        // By its own path: it holds the word by which modules are found that keep it.
        let tmp = job.job.tmp();
        let launch = self.launch(command, Some(found), &job.job, &tmp);
        Ok(Wanted {
            spec: spec.clone(),
            found: found.clone(),
            profile: self.spoken(spec, Profile::silent()),
            plan,
            launch,
            job,
        })
    }

    fn scratch(&self) -> std::io::Result<Scratch> {
        Scratch::within(&self.settings.scratch)
    }
}
