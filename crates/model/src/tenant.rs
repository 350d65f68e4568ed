//! Whose share of the machine something counts against.

use std::{
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
};

use super::{Caller, Principal};

/// Who has a share of what all callers use together. Cheap to clone.
///
/// That is a user, in all of his chats. Where no user is known, all who call with one key are one,
/// and of those without a key all who come from one address, or from one IPv6 network of 64 bits:
/// each of these may be many people, and gets more of what only orders side by side ([`Self::is_user`]).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Tenant(Arc<Who>);

#[derive(Debug, PartialEq, Eq, Hash)]
enum Who {
    User(Box<str>),
    Key(Box<str>),
    Address(IpAddr),
    Bridge,
}

impl Tenant {
    /// Of one request's sender.
    pub fn of(caller: &Caller) -> Self {
        Self(Arc::new(match &caller.principal {
            Principal::User(id) => Who::User(id.clone()),
            Principal::Key(name) => Who::Key(name.clone()),
            Principal::Anonymous => Who::Address(network(caller.address)),
        }))
    }

    /// What the bridge does for nobody in particular.
    pub fn bridge() -> Self {
        Self(Arc::new(Who::Bridge))
    }

    /// Whether it is one person.
    pub fn is_user(&self) -> bool {
        matches!(*self.0, Who::User(_))
    }
}

/// One host often has all addresses of a network of 64 bits.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let prefix = address.to_bits() & !u128::from(u64::MAX);
            IpAddr::V6(Ipv6Addr::from_bits(prefix))
        }
        address @ IpAddr::V4(_) => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn anonymous(address: &str) -> Tenant {
        Tenant::of(&Caller::nobody(address.parse().unwrap()))
    }

    fn known(principal: Principal, chat: &str) -> Tenant {
        Tenant::of(&Caller {
            principal,
            chat: Some(chat.into()),
            ..Caller::nobody([127, 0, 0, 1].into())
        })
    }

    #[test]
    fn a_user_is_one_in_all_chats_and_not_the_key_of_that_name() {
        let alice = known(Principal::User("alice".into()), "c1");
        assert_eq!(alice, known(Principal::User("alice".into()), "c2"));
        assert_ne!(alice, known(Principal::User("bob".into()), "c1"));
        assert_ne!(alice, known(Principal::Key("alice".into()), "c1"));
        assert!(alice.is_user());
    }

    #[test]
    fn callers_without_a_name_are_told_apart_by_their_network() {
        assert_eq!(anonymous("192.0.2.1"), anonymous("::ffff:192.0.2.1"));
        assert_ne!(anonymous("192.0.2.1"), anonymous("192.0.2.2"));
        assert_eq!(anonymous("2001:db8::1"), anonymous("2001:db8::f:2"));
        assert_ne!(anonymous("2001:db8::1"), anonymous("2001:db8:0:1::1"));
        assert!(!anonymous("192.0.2.1").is_user());
    }
}
