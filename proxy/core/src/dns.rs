//! Answers the names of the mesh (RFC 1035); everything else is somebody else's to answer.
//!
//! `NAME` and `NAME.mesh` of a service stand for its VIPs, in any case of letters. Other types of such names have no
//! data, other names under `.mesh` do not exist, so that neither is asked outside. What is not one plain question in
//! class IN, garbage too, is passed on, where the policy lets it: the resolver that it was meant for knows better what to say.

use std::net::IpAddr;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};

use crate::config::{Config, Service};

/// Seconds for which an answer may be kept: VIPs do not change, but a service's name can go.
pub const TTL: u32 = 5;

/// The top-level domain of the mesh.
const DOMAIN: &[u8] = b"mesh";

/// The largest UDP answer that nobody fragments (DNS flag day 2020).
const PAYLOAD: u16 = 1232;

/// What is done with a query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Send this back.
    Reply(Vec<u8>),
    /// Send the query on, unchanged, to where it was going.
    Forward,
}

/// Judges one query as it came off the wire.
pub fn answer(config: &Config, query: &[u8]) -> Answer {
    let Ok(message) = Message::from_vec(query) else {
        return Answer::Forward;
    };
    let [question] = &message.queries[..] else {
        return Answer::Forward;
    };
    let is_query = message.metadata.message_type == MessageType::Query && message.metadata.op_code == OpCode::Query;
    if !is_query || question.query_class() != DNSClass::IN {
        return Answer::Forward;
    }
    let labels: Vec<Vec<u8>> = question.name().iter().map(<[u8]>::to_ascii_lowercase).collect();
    let labels: Vec<&[u8]> = labels.iter().map(Vec::as_slice).collect();
    let found = match labels[..] {
        [name] if name == DOMAIN => Ok(None),
        [name] => match service(config, name) {
            Some(service) => Ok(Some(service)),
            None => return Answer::Forward,
        },
        [name, domain] if domain == DOMAIN => service(config, name).map(Some).ok_or(ResponseCode::NXDomain),
        [.., domain] if domain == DOMAIN => Err(ResponseCode::NXDomain),
        _ => return Answer::Forward,
    };
    let reply = reply(&message, question, found);
    reply.to_vec().map_or(Answer::Forward, Answer::Reply)
}

fn service<'a>(config: &'a Config, name: &[u8]) -> Option<&'a Service> {
    Some(config.service_by_name(std::str::from_utf8(name).ok()?)?)
}

fn reply(query: &Message, question: &Query, found: Result<Option<&Service>, ResponseCode>) -> Message {
    let mut reply = Message::response(query.metadata.id, OpCode::Query);
    reply.metadata.recursion_desired = query.metadata.recursion_desired;
    reply.metadata.checking_disabled = query.metadata.checking_disabled;
    reply.metadata.recursion_available = true;
    reply.metadata.authoritative = true;
    reply.add_query(question.clone());
    if query.edns.is_some() {
        let mut edns = Edns::new();
        edns.set_max_payload(PAYLOAD);
        reply.set_edns(edns);
    }
    match found {
        Err(code) => reply.metadata.response_code = code,
        Ok(None) => {}
        Ok(Some(service)) => {
            let data = service.vips.iter().filter_map(|vip| data(*vip, question.query_type()));
            reply.add_answers(data.map(|data| record(question.name(), data)));
        }
    }
    reply
}

fn data(vip: IpAddr, wanted: RecordType) -> Option<RData> {
    match (vip, wanted) {
        (IpAddr::V4(vip), RecordType::A) => Some(RData::A(vip.into())),
        (IpAddr::V6(vip), RecordType::AAAA) => Some(RData::AAAA(vip.into())),
        _ => None,
    }
}

fn record(name: &Name, data: RData) -> Record {
    Record::from_rdata(name.clone(), TTL, data)
}

#[cfg(test)]
#[path = "dns_tests.rs"]
mod tests;
