//! Answers as resolvers give them, and as somebody who wants a way out would.

use hickory_proto::rr::Record;
use hickory_proto::rr::rdata::CNAME;

use super::*;
use crate::config::{Config, tests::sample_unit};
use crate::snapshot;

const API: &str = "api.example.org";

fn rule(host: &str, network: &str, port: u16) -> snapshot::OutboundRule {
    snapshot::OutboundRule {
        rule: "orders.service.toml:12".into(),
        service: String::new(),
        host: host.into(),
        network: network.into(),
        port,
    }
}

fn unit(rules: Vec<snapshot::OutboundRule>) -> Unit {
    let mut unit = sample_unit("h1", "orders.service");
    unit.outbound = Some(rules);
    Config::unit(unit).expect("a unit")
}

fn caller() -> Unit {
    unit(vec![rule("API.Example.org.", "", 443), rule("", "198.18.0.0/24", 0)])
}

fn query(name: &str, kind: RecordType) -> Message {
    let mut query = Message::new(77, MessageType::Query, OpCode::Query);
    query.add_query(Query::query(Name::from_ascii(name).expect("a name"), kind));
    query
}

fn asked(name: &str, kind: RecordType) -> Option<Asked> {
    Asked::of(&caller(), &query(name, kind).to_vec().expect("a query"))
}

fn api() -> Asked {
    asked("api.example.org.", RecordType::A).expect("a name of a rule")
}

fn answer(records: Vec<Record>) -> Message {
    let mut answer = Message::response(77, OpCode::Query);
    answer.add_query(query("API.example.ORG.", RecordType::A).queries[0].clone());
    answer.add_answers(records);
    answer
}

fn record(name: &str, ttl: u32, data: RData) -> Record {
    Record::from_rdata(Name::from_ascii(name).expect("a name"), ttl, data)
}

fn address(name: &str, ttl: u32, last: u8) -> Record {
    record(name, ttl, RData::A(Ipv4Addr::new(198, 18, 9, last).into()))
}

fn alias(name: &str, ttl: u32, target: &str) -> Record {
    record(
        name,
        ttl,
        RData::CNAME(CNAME(Name::from_ascii(target).expect("a name"))),
    )
}

fn ip(last: u8) -> IpAddr {
    Ipv4Addr::new(198, 18, 9, last).into()
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn learned(message: &Message) -> Vec<(IpAddr, Duration)> {
    api().addresses(&message.to_vec().expect("an answer"))
}

#[test]
fn only_questions_for_addresses_of_a_rules_name_are_of_interest() {
    for name in ["api.example.org.", "API.EXAMPLE.org.", "api.example.org"] {
        for kind in [RecordType::A, RecordType::AAAA] {
            assert_eq!(&*asked(name, kind).expect(name).name, API);
        }
    }
    for name in [
        "example.org.",
        "x.api.example.org.",
        "api.example.org.evil.example.",
        ".",
    ] {
        assert_eq!(asked(name, RecordType::A), None, "{name}");
    }
    assert_eq!(asked("api.example.org.", RecordType::MX), None);
    assert_eq!(Asked::of(&caller(), b"no DNS at all, surely"), None);
    let bytes = query("api.example.org.", RecordType::A).to_vec().expect("a query");
    assert_eq!(Asked::of(&unit(vec![rule("", "198.18.0.0/24", 0)]), &bytes), None);
    assert_eq!(Asked::of(&unit(Vec::new()), &bytes), None);
    let mut two = query("api.example.org.", RecordType::A);
    two.add_query(query("other.example.", RecordType::A).queries[0].clone());
    assert_eq!(Asked::of(&caller(), &two.to_vec().expect("a query")), None);
}

#[test]
fn an_answer_counts_for_its_time_and_a_while() {
    let answer = answer(vec![
        address("api.example.org.", 0, 1),
        address("Api.Example.Org.", 300, 2),
        address("api.example.org.", u32::MAX >> 1, 3),
    ]);
    assert_eq!(
        learned(&answer),
        [(ip(1), LAG), (ip(2), seconds(300) + LAG), (ip(3), LONGEST)]
    );
}

#[test]
fn both_families_by_their_own_question() {
    let asked = asked("api.example.org.", RecordType::AAAA).expect("a name of a rule");
    let mut reply = answer(vec![
        record("api.example.org.", 5, RData::AAAA("2001:2::5".parse().expect("v6"))),
        address("api.example.org.", 5, 1),
    ]);
    assert_eq!(
        asked.addresses(&reply.to_vec().expect("an answer")),
        [],
        "another question's"
    );
    reply.queries = query("api.example.org.", RecordType::AAAA).queries;
    let found = asked.addresses(&reply.to_vec().expect("an answer"));
    assert_eq!(found, [("2001:2::5".parse().expect("v6"), seconds(65))]);
}

#[test]
fn cnames_are_followed_and_the_shortest_time_counts() {
    let chain = |ttl| {
        answer(vec![
            address("edge.cdn.example.", 900, 7),
            alias("lb.example.org.", ttl, "EDGE.cdn.example."),
            alias("api.example.org.", 600, "lb.example.org."),
            address("other.example.", 900, 8),
        ])
    };
    assert_eq!(learned(&chain(30)), [(ip(7), seconds(90))]);
    assert_eq!(learned(&chain(6000)), [(ip(7), seconds(660))]);
    let looping = answer(vec![
        alias("api.example.org.", 5, "b.example."),
        alias("b.example.", 5, "api.example.org."),
        address("other.example.", 5, 8),
    ]);
    assert_eq!(learned(&looping), []);
}

#[test]
fn what_answers_another_question_or_none_is_not_taken() {
    let good = answer(vec![address("api.example.org.", 5, 1)]);
    assert_eq!(learned(&good).len(), 1);
    let mut other = good.clone();
    other.metadata.id = 78;
    assert_eq!(learned(&other), [], "another id");
    let mut other = good.clone();
    other.metadata.message_type = MessageType::Query;
    assert_eq!(learned(&other), [], "a query");
    let mut other = good.clone();
    other.metadata.response_code = ResponseCode::NXDomain;
    assert_eq!(learned(&other), [], "no such name");
    let mut other = good.clone();
    other.queries = query("other.example.", RecordType::A).queries;
    assert_eq!(learned(&other), [], "another name");
    let mut other = good.clone();
    other.queries.clear();
    assert_eq!(learned(&other), [], "no question");
    let mut other = answer(Vec::new());
    other.add_additionals([address("api.example.org.", 5, 1)]);
    assert_eq!(learned(&other), [], "glue is no answer");
    assert_eq!(api().addresses(b"\x00\x4dgarbage"), []);
}

#[test]
fn only_resolvers_that_the_unit_cannot_choose_are_believed() {
    let believed = |text: &str, conf: &str| is_believed(&caller(), text.parse().expect("an address"), conf);
    let conf = "# x\nsearch example.org\nnameserver 127.0.0.53\n nameserver fe80::1%eth0\nnameserver bad\n";
    assert!(believed("127.0.0.53", conf) && believed("fe80::1", conf) && believed("::ffff:127.0.0.53", conf));
    assert!(!believed("127.0.0.1", conf) && !believed("198.18.66.6", conf));
    assert!(believed("198.18.0.9", conf), "a network of [outbound], any port");
    assert!(
        believed("127.0.0.1", "") && !believed("127.0.0.53", "options edns0\n"),
        "resolv.conf(5): none is this host"
    );
    let of_port = |port| {
        is_believed(
            &unit(vec![rule("", "198.18.66.6", port)]),
            "198.18.66.6".parse().expect("v4"),
            conf,
        )
    };
    assert!(of_port(53) && !of_port(443));
}

#[test]
fn an_address_has_all_its_names_for_their_time() {
    let (one, two): (Arc<str>, Arc<str>) = ("one.example".into(), "two.example".into());
    let mut names = Names::default();
    names.learn(&one, &[(ip(1), seconds(100)), (ip(2), seconds(100))], seconds(10));
    names.learn(&two, &[(ip(1), seconds(500))], seconds(20));
    assert_eq!(names.of(ip(1), seconds(20)), [one.clone(), two.clone()]);
    assert_eq!(names.of(ip(2), seconds(109)).as_slice(), std::slice::from_ref(&one));
    assert!(names.of(ip(2), seconds(110)).is_empty() && names.of(ip(3), seconds(20)).is_empty());
    assert_eq!(names.of(ip(1), seconds(110)), [two]);
    names.learn(&one, &[(ip(2), seconds(60))], seconds(105));
    names.learn(&one, &[(ip(2), seconds(5))], seconds(106));
    assert_eq!(
        names.of(ip(2), seconds(164)),
        [one],
        "a shorter answer takes nothing away"
    );
    assert!(names.of(ip(2), seconds(165)).is_empty());
    let mapped = "::ffff:198.18.9.1".parse().expect("a mapped address");
    assert_eq!(names.of(mapped, seconds(110)).len(), 1);
}

#[test]
fn the_table_is_bounded_and_what_was_learned_longest_ago_goes() {
    let name: Arc<str> = API.into();
    let numbered = |number: u32| IpAddr::V4(Ipv4Addr::from(0xc612_0000 + number));
    let mut names = Names::default();
    let bound = u32::try_from(MAX_ADDRESSES).expect("small");
    for number in 0..bound {
        names.learn(&name, &[(numbered(number), LAG)], seconds(1));
    }
    names.learn(&name, &[(numbered(0), LAG)], seconds(1)); // again: the next oldest is 1
    names.learn(&name, &[(numbered(bound), LAG)], seconds(1));
    assert_eq!(
        (names.by_address.len(), names.by_turn.len()),
        (MAX_ADDRESSES, MAX_ADDRESSES)
    );
    for (number, known) in [(0, 1), (1, 0), (2, 1), (bound, 1)] {
        assert_eq!(names.of(numbered(number), seconds(2)).len(), known, "{number}");
    }
}
