//! Connects to a unit's application, from the client's address where the unit wants to see it.
//!
//! Law: the address kept is one that the network showed; loopback, link-local and this host's own addresses are nobody's
//! to bring along.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use hostmesh_proxy_core::config::{ClientAddress, Config, Port, Unit};
use tokio::net::TcpStream;

use crate::sockopt;

/// One address of the application gets this long.
const CONNECT: Duration = Duration::from_secs(3);

/// Connects to a declared port of a unit of this host for a client at `client`, by the first of the unit's addresses that
/// answers. The mark shows the ruleset that this is a delivery to this unit; who listens there is checked by the kernel.
pub async fn connect(config: &Config, unit: &Unit, port: &Port, client: IpAddr) -> io::Result<TcpStream> {
    let mark = config.marks.inbound | unit.number;
    let client = client.to_canonical();
    let candidates = candidates(config, unit, client).into_iter().map(|candidate| {
        let from = source(config, port.client_address, candidate, client);
        (SocketAddr::new(candidate, port.port), from)
    });
    let (stream, _) = sockopt::connect_any(&unit.unit, candidates.collect(), mark, CONNECT).await?;
    sockopt::relayed(&stream)?;
    Ok(stream)
}

/// The unit's addresses in their order, those of the client's family first: only they can keep its address.
fn candidates(config: &Config, unit: &Unit, client: IpAddr) -> Vec<IpAddr> {
    let mut all: Vec<IpAddr> = unit.deliver.iter().map(|address| listening(config, *address)).collect();
    all.sort_by_key(|address| address.is_ipv4() != client.is_ipv4());
    all.dedup();
    all
}

/// Who listens on the wildcard is found at the host's own address, or at loopback.
fn listening(config: &Config, address: IpAddr) -> IpAddr {
    if !address.is_unspecified() {
        return address;
    }
    let own = config.addresses.iter().find(|own| own.is_ipv4() == address.is_ipv4());
    own.copied().unwrap_or_else(|| loopback(address))
}

fn loopback(like: IpAddr) -> IpAddr {
    if like.is_ipv4() {
        Ipv4Addr::LOCALHOST.into()
    } else {
        Ipv6Addr::LOCALHOST.into()
    }
}

/// The address to connect from; `None`: whatever the route says.
fn source(config: &Config, policy: ClientAddress, candidate: IpAddr, client: IpAddr) -> Option<IpAddr> {
    let keep = match policy {
        ClientAddress::Keep => true,
        ClientAddress::Local => false,
        ClientAddress::Auto => !candidate.is_loopback(),
    };
    if keep && client.is_ipv4() == candidate.is_ipv4() && can_be_kept(config, client) {
        return Some(client);
    }
    let is_local = policy == ClientAddress::Local && !candidate.is_loopback();
    is_local.then(|| loopback(candidate))
}

fn can_be_kept(config: &Config, client: IpAddr) -> bool {
    let is_link_local = match client {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    !(is_link_local || client.is_unspecified() || client.is_multicast() || config.is_own_address(client))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{Authority, snapshot};

    fn config() -> Config {
        let mut snapshot = snapshot(&Authority::new());
        snapshot.addresses = vec!["198.18.0.1".into(), "2001:2::1".into()];
        Config::build(snapshot).expect("a config")
    }

    fn from(policy: ClientAddress, candidate: &str, client: &str) -> Option<String> {
        let parse = |text: &str| text.parse::<IpAddr>().expect("an address");
        source(&config(), policy, parse(candidate), parse(client)).map(|address| address.to_string())
    }

    #[test]
    fn the_clients_address_is_kept_beyond_loopback_or_where_policy_says_so() {
        use ClientAddress::{Auto, Keep, Local};
        let client = Some("198.18.0.7".to_owned());
        assert_eq!(from(Auto, "198.18.0.1", "198.18.0.7"), client);
        assert_eq!(from(Auto, "127.0.0.1", "198.18.0.7"), None);
        assert_eq!(from(Keep, "127.0.0.1", "198.18.0.7"), client);
        assert_eq!(from(Local, "127.0.0.1", "198.18.0.7"), None);
        assert_eq!(from(Local, "198.18.0.1", "198.18.0.7"), Some("127.0.0.1".into()));
        assert_eq!(from(Local, "2001:2::1", "2001:2::7"), Some("::1".into()));
    }

    #[test]
    fn nobody_brings_along_an_address_that_is_not_his() {
        for client in [
            "127.0.0.1",
            "127.9.9.9",
            "198.18.0.1",
            "169.254.1.1",
            "0.0.0.0",
            "224.0.0.1",
            "255.255.255.255",
        ] {
            assert_eq!(from(ClientAddress::Keep, "198.18.0.1", client), None, "{client}");
        }
        for client in ["::1", "2001:2::1", "fe80::1", "::", "ff02::1"] {
            assert_eq!(from(ClientAddress::Keep, "2001:2::1", client), None, "{client}");
        }
        assert_eq!(
            from(ClientAddress::Keep, "2001:2::1", "198.18.0.7"),
            None,
            "another family"
        );
    }

    #[test]
    fn addresses_of_the_clients_family_come_first_and_wildcards_are_found() {
        let config = config();
        let mut snapshot = snapshot(&Authority::new());
        snapshot.units[0].deliver = vec!["0.0.0.0".into(), "127.0.0.1".into(), "::".into()];
        let unit = Config::build(snapshot).expect("a config").units[0].clone();
        let order = |client: &str| {
            let all = candidates(&config, &unit, client.parse().expect("an address"));
            all.iter().map(IpAddr::to_string).collect::<Vec<_>>()
        };
        assert_eq!(order("198.18.0.7"), ["198.18.0.1", "127.0.0.1", "2001:2::1"]);
        assert_eq!(order("2001:2::7"), ["2001:2::1", "198.18.0.1", "127.0.0.1"]);
    }
}
