//! Queries as they come off the wire, and what is said to each.

use super::*;
use crate::config::tests::{sample, without_endpoints};

fn ask(name: &str, kind: RecordType) -> Message {
    let mut query = Message::new(77, MessageType::Query, OpCode::Query);
    query.metadata.recursion_desired = true;
    query.add_query(Query::query(Name::from_ascii(name).expect("a name"), kind));
    query
}

fn reply_to(query: &Message) -> Option<Message> {
    match answer(&sample("h1"), &query.to_vec().expect("a query")) {
        Answer::Reply(bytes) => Some(Message::from_vec(&bytes).expect("a reply")),
        Answer::Forward => None,
    }
}

fn addresses(reply: &Message) -> Vec<String> {
    reply.answers.iter().map(|record| record.data.to_string()).collect()
}

#[test]
fn names_of_services() {
    for name in ["inventory.", "inventory.mesh.", "Inventory.MESH."] {
        let reply = reply_to(&ask(name, RecordType::A)).expect("a reply");
        assert_eq!(addresses(&reply), ["240.240.0.11"], "{name}");
        assert_eq!(reply.answers[0].ttl, TTL);
        assert_eq!((reply.metadata.id, reply.metadata.recursion_desired), (77, true));
        assert_eq!(
            reply.queries[0].name().to_string(),
            name,
            "letters as they were asked (DNS 0x20)"
        );
        let reply = reply_to(&ask(name, RecordType::AAAA)).expect("a reply");
        assert_eq!(addresses(&reply), ["fd00:240::b"]);
    }
}

#[test]
fn a_service_that_nobody_serves_keeps_its_name() {
    let config = without_endpoints("h1");
    for (kind, vip) in [(RecordType::A, "240.240.0.11"), (RecordType::AAAA, "fd00:240::b")] {
        let query = ask("inventory.", kind).to_vec().expect("a query");
        let Answer::Reply(bytes) = answer(&config, &query) else {
            panic!("{kind} passed on")
        };
        assert_eq!(addresses(&Message::from_vec(&bytes).expect("a reply")), [vip]);
    }
}

#[test]
fn other_types_and_names() {
    for (name, kind, code) in [
        ("inventory.mesh.", RecordType::MX, ResponseCode::NoError),
        ("inventory.", RecordType::HTTPS, ResponseCode::NoError),
        ("mesh.", RecordType::A, ResponseCode::NoError),
        ("nobody.mesh.", RecordType::A, ResponseCode::NXDomain),
        ("a.inventory.mesh.", RecordType::A, ResponseCode::NXDomain),
    ] {
        let reply = reply_to(&ask(name, kind)).expect("a reply");
        assert_eq!(
            (reply.metadata.response_code, reply.answers.len()),
            (code, 0),
            "{name} {kind}"
        );
    }
    for name in ["nobody.", "inventory.example.org.", "mesh.example.org.", "."] {
        assert_eq!(reply_to(&ask(name, RecordType::A)), None, "{name}");
    }
}

#[test]
fn what_is_not_one_question_is_passed_on() {
    let config = sample("h1");
    assert_eq!(answer(&config, b""), Answer::Forward);
    assert_eq!(answer(&config, b"no DNS at all, surely"), Answer::Forward);
    let mut two = ask("inventory.", RecordType::A);
    two.add_query(Query::query("nginx.".parse().expect("a name"), RecordType::A));
    assert_eq!(reply_to(&two), None);
    let mut other = ask("inventory.", RecordType::A);
    other.queries[0].set_query_class(DNSClass::CH);
    assert_eq!(reply_to(&other), None);
    let mut response = ask("inventory.", RecordType::A);
    response.metadata.message_type = MessageType::Response;
    assert_eq!(reply_to(&response), None);
}

#[test]
fn edns_is_answered_in_kind() {
    let mut query = ask("nginx.mesh.", RecordType::A);
    query.set_edns(Edns::new());
    assert_eq!(reply_to(&query).expect("a reply").max_payload(), PAYLOAD);
    assert!(
        reply_to(&ask("nginx.mesh.", RecordType::A))
            .expect("a reply")
            .edns
            .is_none()
    );
}
