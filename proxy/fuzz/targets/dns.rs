//! A unit's query and a resolver's answer (two bytes of length, the query, then the answer).
#![no_main]

use std::net::{IpAddr, Ipv4Addr};
use std::sync::LazyLock;
use std::time::Duration;

use hickory_proto::op::{Message, MessageType};
use hostmesh_proxy_core::config::Config;
use hostmesh_proxy_core::dns::{self, Answer};
use hostmesh_proxy_core::names::{self, Asked, LONGEST, MAX_ADDRESSES, Names};
use hostmesh_proxy_core::snapshot::{OutboundRule, Snapshot};
use libfuzzer_sys::fuzz_target;

/// Host h1 of the shared vectors, whose first unit may call a name.
static CONFIG: LazyLock<Config> = LazyLock::new(|| {
    let mut snapshot: Snapshot =
        serde_json::from_str(include_str!("../../../tests/vectors/snapshot/h1.json")).expect("the vector");
    snapshot.units[0].outbound = Some(vec![OutboundRule {
        rule: "a.toml:1".to_owned(),
        service: String::new(),
        host: "api.example.org".to_owned(),
        network: String::new(),
        port: 443,
    }]);
    Config::build(snapshot).expect("a config")
});

/// No UDP datagram is longer.
const DATAGRAM: usize = 65_507;

fuzz_target!(|input: &[u8]| {
    let Some((length, rest)) = input.split_first_chunk::<2>() else {
        return;
    };
    let (query, answer) = rest.split_at(usize::from(u16::from_be_bytes(*length)).min(rest.len()));
    if let Answer::Reply(reply) = dns::answer(&CONFIG, query) {
        let (asked, told) = (read(query), read(&reply));
        assert_eq!(told.metadata.id, asked.metadata.id);
        assert_eq!(told.metadata.message_type, MessageType::Response);
        assert_eq!(told.queries, asked.queries);
        assert!(
            reply.len() <= query.len().max(12) + 128,
            "an answer that amplifies: {}",
            reply.len()
        );
    }
    let unit = &CONFIG.units[0];
    let stranger = IpAddr::V4(Ipv4Addr::new(198, 18, 0, 77));
    assert!(!names::passes_on(unit, query, stranger, "nameserver 127.0.0.53\n"));
    let Some(asked) = Asked::of(unit, query) else { return };
    let found = asked.addresses(&answer[..answer.len().min(DATAGRAM)]);
    assert!(found.iter().all(|(_, life)| *life <= LONGEST));
    let mut known = Names::default();
    known.learn(&asked.name, &found, Duration::ZERO);
    let last = found.len().saturating_sub(MAX_ADDRESSES);
    for (address, _) in &found[last..] {
        assert_eq!(known.of(*address, Duration::ZERO), [asked.name.clone()]);
    }
});

fn read(bytes: &[u8]) -> Message {
    Message::from_vec(bytes).expect("a DNS message")
}
