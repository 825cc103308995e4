//! Turns DNS answers that were passed on to a unit into the names of the addresses that it then calls.
//!
//! `[outbound] allow = ["api.example.org:443"]` grants a name, a connection shows an address: what joins them is the look-up
//! that the unit made before, and nothing else. An address that the unit was not given by DNS (written in its
//! configuration, taken from `/etc/hosts` or from an HTTPS record's hint) has no name. Names are those that were asked; a
//! CNAME on the way grants nothing by itself. Only names that a rule of the unit has are kept, so that other look-ups push
//! nothing out.
//!
//! Whoever makes the answer decides which address the name lets the unit reach. Hence only whom the unit can't choose is
//! believed: the host's own resolvers, and those that `[outbound]` itself lets the unit call ([`is_believed`]); a unit
//! that was taken over may ask nobody else ([`passes_on`]). What is left to it is what those
//! resolvers let it do: to send the right name to a wrong address it must deceive them, not the proxy. An answer counts
//! only for the question that was asked of that resolver, on the socket that asked (RFC 5452, sections 4 and 9).

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RData, RecordType};

use crate::config::{OutboundTarget, Unit};

/// Addresses of one unit that have a name, at most: the one learned longest ago goes first.
pub const MAX_ADDRESSES: usize = 4096;

/// A connection may come this much after the record's time is over: programs hold on to what they looked up.
pub const LAG: Duration = Duration::from_secs(60);

/// No answer counts longer.
pub const LONGEST: Duration = Duration::from_secs(86_400);

/// CNAMEs that are followed: more than resolvers do.
const MAX_ALIASES: usize = 16;

/// The port of resolvers.
const DNS: u16 = 53;

/// May a query that the mesh doesn't answer go on to this resolver? With `[outbound]` port 53 is no way out: only queries
/// go on, and only to whom is believed.
pub fn passes_on(unit: &Unit, query: &[u8], resolver: IpAddr, resolv_conf: &str) -> bool {
    unit.outbound.is_none() || is_query(query) && is_believed(unit, resolver, resolv_conf)
}

fn is_query(bytes: &[u8]) -> bool {
    Message::from_vec(bytes).is_ok_and(|message| message.metadata.message_type == MessageType::Query)
}

/// Has this unit rules that take a name?
pub fn has_rules(unit: &Unit) -> bool {
    hosts(unit).next().is_some()
}

fn hosts(unit: &Unit) -> impl Iterator<Item = &str> {
    let rules = unit.outbound.iter().flatten();
    rules.filter_map(|rule| match &rule.target {
        OutboundTarget::Host(name) => Some(&**name),
        _ => None,
    })
}

/// May this resolver tell what a name of the unit's rules stands for? `resolv_conf`: the host's, resolv.conf(5).
pub fn is_believed(unit: &Unit, resolver: IpAddr, resolv_conf: &str) -> bool {
    let resolver = resolver.to_canonical();
    let mut listed = nameservers(resolv_conf).peekable();
    let of_host = match listed.peek() {
        None => resolver == IpAddr::V4(Ipv4Addr::LOCALHOST),
        Some(_) => listed.any(|listed| listed == resolver),
    };
    of_host
        || unit.outbound.iter().flatten().any(|rule| {
            matches!(&rule.target, OutboundTarget::Network(network) if network.contains(&resolver))
                && (rule.port == 0 || rule.port == DNS)
        })
}

fn nameservers(resolv_conf: &str) -> impl Iterator<Item = IpAddr> {
    resolv_conf.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        let address = words.next().filter(|word| *word == "nameserver").and(words.next())?;
        let address = address.split_once('%').map_or(address, |(address, _link)| address);
        Some(address.parse::<IpAddr>().ok()?.to_canonical())
    })
}

/// A question for the addresses of a name that a rule has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// The query's id.
    pub id: u16,
    /// The name, as the rule has it: lower case, no trailing dot.
    pub name: Arc<str>,
    question: Query,
}

impl Asked {
    /// `None`: this query's answer can grant the unit nothing.
    pub fn of(unit: &Unit, query: &[u8]) -> Option<Self> {
        if !has_rules(unit) {
            return None;
        }
        let message = Message::from_vec(query).ok()?;
        let [question] = &message.queries[..] else {
            return None;
        };
        let is_query = message.metadata.message_type == MessageType::Query && message.metadata.op_code == OpCode::Query;
        let wanted = matches!(question.query_type(), RecordType::A | RecordType::AAAA);
        if !is_query || !wanted || question.query_class() != DNSClass::IN {
            return None;
        }
        let text = question.name().to_ascii().to_ascii_lowercase();
        let name = hosts(unit).find(|host| *host == text.trim_end_matches('.'))?.into();
        Some(Self {
            id: message.metadata.id,
            name,
            question: question.clone(),
        })
    }

    /// The addresses that the answer gives for the name, through its CNAMEs, each with how long they count from now.
    pub fn addresses(&self, answer: &[u8]) -> Vec<(IpAddr, Duration)> {
        let Ok(message) = Message::from_vec(answer) else {
            return Vec::new();
        };
        let head = &message.metadata;
        let is_ours = head.id == self.id
            && head.message_type == MessageType::Response
            && head.response_code == ResponseCode::NoError
            && self.is_echoed(&message.queries);
        if !is_ours {
            return Vec::new();
        }
        let (name, limit) = follow(&message, self.question.name());
        let records = message.answers.iter().filter(|record| {
            record.name == *name
                && record.dns_class == DNSClass::IN
                && record.record_type() == self.question.query_type()
        });
        let found = records.filter_map(|record| {
            let address: IpAddr = match &record.data {
                RData::A(v4) => v4.0.into(),
                RData::AAAA(v6) => v6.0.into(),
                _ => return None,
            };
            let seconds = Duration::from_secs(record.ttl.min(limit).into());
            Some((address.to_canonical(), (seconds + LAG).min(LONGEST)))
        });
        found.collect()
    }

    fn is_echoed(&self, queries: &[Query]) -> bool {
        // Names compare without regard to case (RFC 4343).
        matches!(queries, [echo] if echo.name() == self.question.name()
            && echo.query_type() == self.question.query_type()
            && echo.query_class() == DNSClass::IN)
    }
}

/// Where the chain of CNAMEs ends, and the shortest life of its links.
fn follow<'a>(message: &'a Message, asked: &'a Name) -> (&'a Name, u32) {
    let (mut name, mut limit) = (asked, u32::MAX);
    for _ in 0..MAX_ALIASES {
        let alias = message.answers.iter().find_map(|record| match &record.data {
            RData::CNAME(target) if record.name == *name && record.dns_class == DNSClass::IN => {
                Some((target, record.ttl))
            }
            _ => None,
        });
        let Some((target, ttl)) = alias else { break };
        (name, limit) = (&target.0, limit.min(ttl));
    }
    (name, limit)
}

/// What one unit has looked up. Times are counted from any fixed point, forward.
#[derive(Debug, Default)]
pub struct Names {
    by_address: HashMap<IpAddr, Known>,
    /// When learned, in turns.
    by_turn: BTreeMap<u64, IpAddr>,
    turn: u64,
}

#[derive(Debug)]
struct Known {
    turn: u64,
    names: Vec<(Arc<str>, Duration)>,
}

impl Names {
    /// Takes up an answer's addresses. What was known for longer stays known for longer.
    pub fn learn(&mut self, name: &Arc<str>, addresses: &[(IpAddr, Duration)], now: Duration) {
        for (address, life) in addresses {
            self.turn += 1;
            let known = self.by_address.entry(*address).or_insert_with(|| Known {
                turn: 0,
                names: Vec::new(),
            });
            self.by_turn.remove(&known.turn);
            self.by_turn.insert(self.turn, *address);
            known.turn = self.turn;
            known.names.retain(|(_, until)| *until > now);
            let until = now + *life;
            match known.names.iter_mut().find(|(same, _)| same == name) {
                Some((_, old)) => *old = until.max(*old),
                None => known.names.push((name.clone(), until)),
            }
            if self.by_address.len() > MAX_ADDRESSES
                && let Some((_, oldest)) = self.by_turn.pop_first()
            {
                self.by_address.remove(&oldest);
            }
        }
    }

    /// All that it knows now, in the order in which it was learned, each with how long it still counts.
    pub fn all(&self, now: Duration) -> Vec<(Arc<str>, IpAddr, Duration)> {
        let in_turn = self.by_turn.values();
        let known = in_turn.filter_map(|address| Some((address, self.by_address.get(address)?)));
        let names = known.flat_map(|(address, known)| known.names.iter().map(|(name, until)| (name, *address, until)));
        names
            .filter(|(_, _, until)| **until > now)
            .map(|(name, address, until)| (name.clone(), address, *until - now))
            .collect()
    }

    /// The names by which the unit knows the address, now.
    pub fn of(&self, address: IpAddr, now: Duration) -> Vec<Arc<str>> {
        let known = self.by_address.get(&address.to_canonical()).into_iter();
        let names = known.flat_map(|known| &known.names);
        names
            .filter(|(_, until)| *until > now)
            .map(|(name, _)| name.clone())
            .collect()
    }
}

#[cfg(test)]
#[path = "names_tests.rs"]
mod tests;
