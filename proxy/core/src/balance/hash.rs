//! Consistent hashing: the same key, the same endpoint, as long as that is there.
//!
//! By rendezvous (Thaler and Ravishankar 1998): every endpoint has a weight for a key, the heaviest is taken. When one
//! leaves only its own keys move, one n-th of all. With bounded loads (Mirrokni, Thorup, Zadimoghaddam 2018) the heaviest
//! that has room.

use std::net::IpAddr;

use crate::authorize::Headers;
use crate::config::HashOn;

/// FNV-1a, 64 bit (Fowler, Noll, Vo): stable over processes and versions, which the standard hasher is not.
pub fn digest<const N: usize>(parts: [&[u8]; N]) -> u64 {
    let bytes = parts.iter().flat_map(|part| part.iter().copied().chain([0xff]));
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// The digest of the value that a request is told apart by; `None`: it has none.
pub fn key(on: &HashOn, headers: &dyn Headers, source: IpAddr) -> Option<u64> {
    let mut found = None;
    match on {
        HashOn::Header(name) => headers.each(name, &mut |value| found = found.or(Some(digest([value])))),
        HashOn::Cookie(name) => headers.each("cookie", &mut |value| {
            found = found.or_else(|| cookie(value, name).map(|value| digest([value])));
        }),
        HashOn::Source => return Some(source_key(source)),
    }
    found
}

/// The digest of a caller's address.
pub fn source_key(source: IpAddr) -> u64 {
    match source.to_canonical() {
        IpAddr::V4(address) => digest([&address.octets()]),
        IpAddr::V6(address) => digest([&address.octets()]),
    }
}

/// The value of a cookie (RFC 6265, section 4.2.1).
fn cookie<'a>(header: &'a [u8], name: &str) -> Option<&'a [u8]> {
    header.split(|byte| *byte == b';').find_map(|pair| {
        let pair = pair.trim_ascii();
        pair.strip_prefix(name.as_bytes())?.strip_prefix(b"=")
    })
}

/// Every bit of the number decides on every bit of the result (splitmix64, Steele, Lea, Flood 2014).
pub fn mix(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

/// Which of the endpoints (id, requests in flight) gets the key: an index. `bound`: none has more than so many times the
/// mean. `None`: there is no endpoint.
pub fn pick(key: u64, endpoints: &[(u64, u32)], bound: Option<f64>) -> Option<usize> {
    let room = bound.map(|bound| {
        let all: u32 = endpoints.iter().map(|(_, in_flight)| in_flight).sum();
        (bound * f64::from(all + 1) / endpoints.len() as f64).ceil()
    });
    let has_room = |in_flight: u32| room.is_none_or(|room| f64::from(in_flight) < room);
    let weight = |(_, (id, _)): &(usize, &(u64, u32))| mix(key ^ mix(*id));
    let with_room = endpoints.iter().enumerate().filter(|(_, (_, busy))| has_room(*busy));
    with_room.max_by_key(weight).map(|(index, _)| index)
}

#[cfg(test)]
#[path = "hash_tests.rs"]
mod tests;
