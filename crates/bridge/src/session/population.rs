//! How many stateful children may live, and how many of one tenant.

use bridge_model::Tenant;

use super::end::Whose;
use crate::{
    admission::{Place, Places, Share, three_quarters},
    config::{ServerSpec, Transport},
};

/// With fewer places than this each is worth too much to be kept for others.
const FEW: usize = 4;

/// Places for live children.
pub struct Population {
    /// Processes of this machine.
    local: Places,
    /// Sessions with servers elsewhere use nothing that processes need: neither makes room for the
    /// other.
    elsewhere: Places,
    most: usize,
    /// Of one tenant, where the settings say so.
    per_user: Option<usize>,
}

impl Population {
    /// `most` places, at least one; of one tenant `per_user`, or else three of four.
    pub fn new(most: usize, per_user: Option<usize>) -> Self {
        let most = most.max(1);
        let share = share(most, per_user);
        Self {
            local: Places::new(most, share),
            elsewhere: Places::new(most, share),
            most,
            per_user,
        }
    }

    /// Where children of this server have their places.
    pub fn of(&self, spec: &ServerSpec) -> &Places {
        self.kind(matches!(spec.transport, Transport::Remote(_)))
    }

    /// How many children a tenant has.
    pub fn held_by(&self, tenant: &Tenant, remote: bool) -> usize {
        self.kind(remote).held_by(tenant)
    }

    /// Whether a tenant has as many as one may.
    pub fn at_share(&self, whose: &Whose) -> bool {
        self.kind(whose.remote).is_at_share(&whose.tenant)
    }

    fn kind(&self, remote: bool) -> &Places {
        if remote { &self.elsewhere } else { &self.local }
    }

    /// Whether more processes live than there should be.
    pub fn is_over(&self) -> bool {
        self.local.is_over()
    }

    /// Lowers or raises the number of processes, from one to as many as there were at first.
    pub fn set_limit(&self, limit: usize) {
        let limit = limit.clamp(1, self.most);
        self.local.set_limit(limit, share(limit, self.per_user));
    }

    /// A place for a process that is nobody's yet: one is always left to others.
    pub fn try_spare_place(&self) -> Option<Place> {
        self.local.try_enter_spare(&Tenant::bridge())
    }
}

fn share(limit: usize, per_user: Option<usize>) -> Share {
    let usual = if limit < FEW {
        limit
    } else {
        three_quarters(limit)
    };
    Share::each(per_user.unwrap_or(usual))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn free(population: &Population) -> usize {
        let taken = std::iter::from_fn(|| population.local.try_enter(&Tenant::bridge()));
        taken.collect::<Vec<_>>().len()
    }

    #[test]
    fn one_tenant_leaves_a_quarter_to_others_where_there_is_one() {
        for (places, own) in [(1, 1), (3, 3), (4, 3), (8, 6), (100, 75)] {
            assert_eq!(free(&Population::new(places, None)), own, "of {places}");
        }
        assert_eq!(free(&Population::new(8, Some(8))), 8);
        assert_eq!(free(&Population::new(8, Some(2))), 2);
    }

    #[test]
    fn a_limit_is_lowered_and_raised_as_far_as_it_was() {
        let population = Population::new(10, Some(10));
        for (limit, places) in [(7, 7), (7, 7), (3, 3), (6, 6), (100, 10), (0, 1), (10, 10)] {
            population.set_limit(limit);
            assert_eq!(free(&population), places);
        }
    }
}
