//! Which workspaces the housekeeper looks at next: those in which something has ended, and those in
//! which an idle time is over. A call costs one look at its own workspace, however many there are.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    mem,
};

use bridge_model::WorkspaceKey;
use tokio::time::Instant;

/// What is to be looked at, and when.
#[derive(Default)]
pub struct Agenda {
    now: HashSet<WorkspaceKey>,
    later: BTreeSet<(Instant, WorkspaceKey)>,
    /// When each of those in `later` is due.
    due: HashMap<WorkspaceKey, Instant>,
}

impl Agenda {
    /// As soon as possible.
    pub fn add(&mut self, key: WorkspaceKey) {
        self.now.insert(key);
    }

    /// At this time, and no longer at the one that was set before; `None`: not until something ends.
    pub fn set(&mut self, key: WorkspaceKey, at: Option<Instant>) {
        let before = match at {
            Some(at) => self.due.insert(key, at),
            None => self.due.remove(&key),
        };
        if let Some(before) = before {
            self.later.remove(&(before, key));
        }
        if let Some(at) = at {
            self.later.insert((at, key));
        }
    }

    /// When the next one is due.
    pub fn next(&self) -> Option<Instant> {
        self.later.first().map(|(at, _)| *at)
    }

    /// Those that are due.
    pub fn take(&mut self, now: Instant) -> HashSet<WorkspaceKey> {
        let mut due = mem::take(&mut self.now);
        while let Some((at, key)) = self.later.first().copied()
            && at <= now
        {
            self.set(key, None);
            due.insert(key);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use bridge_model::Principal;

    #[test]
    fn a_call_costs_one_look_at_its_own_workspace() {
        let key = |chat: &str| WorkspaceKey::chat(&Principal::Anonymous, chat, None);
        let began = Instant::now();
        let after = |seconds| began + Duration::from_secs(seconds);
        let mut agenda = Agenda::default();
        for chat in 0..1000 {
            agenda.set(key(&chat.to_string()), Some(after(100 + chat)));
        }
        agenda.add(key("500"));
        assert_eq!(agenda.take(after(1)), [key("500")].into());
        agenda.set(key("500"), Some(after(2000)));
        assert_eq!(agenda.take(after(1)), [].into());
        assert_eq!(agenda.next(), Some(after(100)));
        assert_eq!(agenda.take(after(101)), [key("0"), key("1")].into());
        assert_eq!(agenda.take(after(1500)).len(), 997, "each of the rest once");
        assert_eq!(agenda.next(), Some(after(2000)));
        agenda.set(key("500"), None);
        assert_eq!(agenda.next(), None);
        assert!(agenda.due.is_empty());
    }
}
