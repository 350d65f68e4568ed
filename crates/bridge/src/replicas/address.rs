//! Where the other replicas reach this one, where nobody said so.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs as _, UdpSocket};

use crate::config::PeerAddress;

/// What Kubernetes' downward API is asked to set.
const POD_IP: &str = "POD_IP";

/// `HOST:PORT`: as said, else `POD_IP`, else the address that is listened on, else the host's own:
/// what its name means (Docker and Kubernetes write that down for each container), or the address
/// that its packets leave from. `None` where there is nothing but loopback.
pub fn reachable_at(given: Option<&PeerAddress>, listening: SocketAddr) -> Option<String> {
    let port = given
        .and_then(|given| given.port)
        .unwrap_or(listening.port());
    if let Some(given) = given {
        return Some(joined(&given.host, port));
    }
    let pod = std::env::var(POD_IP).ok();
    let pod = pod.and_then(|address| address.trim().parse::<IpAddr>().ok());
    let listened = Some(listening.ip()).filter(|address| !address.is_unspecified());
    let own = listened
        .filter(IpAddr::is_loopback)
        .or(pod)
        .or(listened)
        .or_else(by_name)
        .or_else(by_route);
    own.map(|address| joined(&address.to_string(), port))
}

fn joined(host: &str, port: u16) -> String {
    if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

fn by_name() -> Option<IpAddr> {
    let name = rustix::system::uname();
    let name = name.nodename().to_str().ok()?.to_owned();
    let mut found = (name, 0).to_socket_addrs().ok()?.map(|found| found.ip());
    found.find(is_useful)
}

/// Nothing is sent: connecting a datagram socket only chooses a route.
fn by_route() -> Option<IpAddr> {
    // Addresses for documentation (RFC 5737, RFC 3849), which are behind the default route.
    let v4 = (
        Ipv4Addr::UNSPECIFIED.into(),
        Ipv4Addr::new(192, 0, 2, 1).into(),
    );
    let far = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
    let v6 = (Ipv6Addr::UNSPECIFIED.into(), far.into());
    [v4, v6]
        .into_iter()
        .find_map(|(any, far): (IpAddr, IpAddr)| {
            let socket = UdpSocket::bind((any, 0)).ok()?;
            socket.connect((far, 9)).ok()?;
            let own = socket.local_addr().ok()?.ip();
            is_useful(&own).then_some(own)
        })
}

fn is_useful(address: &IpAddr) -> bool {
    !address.is_loopback() && !address.is_unspecified()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_said_counts_and_the_port_that_is_listened_on() {
        let listening: SocketAddr = "0.0.0.0:8081".parse().unwrap();
        let given = |host: &str, port| PeerAddress {
            host: host.into(),
            port,
        };
        let at = |given: PeerAddress| reachable_at(Some(&given), listening).unwrap();
        assert_eq!(at(given("bridge-1", None)), "bridge-1:8081");
        assert_eq!(at(given("fd00::7", Some(9000))), "[fd00::7]:9000");
    }

    #[test]
    fn an_address_that_is_listened_on_is_one_to_reach() {
        let at = |listening: &str| reachable_at(None, listening.parse().unwrap());
        assert_eq!(at("127.0.0.1:8080").as_deref(), Some("127.0.0.1:8080"));
        assert_eq!(at("192.0.2.7:8080").as_deref(), Some("192.0.2.7:8080"));
        let everywhere = at("0.0.0.0:8080");
        assert!(everywhere.is_none_or(|own| !own.starts_with("0.") && !own.starts_with("127.")));
    }
}
