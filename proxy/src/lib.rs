//! The data plane of hostmesh: carries what `hostmesh-proxy-core` decides.
//!
//! `control` takes the agent's words, `identity` holds keys, `dns` answers names; the listeners and relays carry bytes;
//! `generations` changes the binary under them.

pub mod arriving;
pub mod breaker;
pub mod circuits;
pub mod connect;
pub mod control;
pub mod deliver;
pub mod descriptors;
pub mod dns;
pub mod dns_socket;
pub mod drain;
pub mod events;
pub mod fdstore;
pub mod frames;
pub mod generations;
mod grpc;
pub mod helper;
pub mod http;
pub mod identity;
pub mod in_flight;
pub mod inbound;
pub mod listener;
pub mod lookups;
pub mod memory;
pub mod opening;
pub mod outbound;
pub mod overload;
pub mod peer;
pub mod persist;
pub mod plaintext;
pub mod rejudge;
pub mod sealed;
pub mod shared;
pub mod sockopt;
pub mod stats;
pub mod stream;
pub mod tap;
pub mod tcp;
pub mod tls;
pub mod told;
pub mod traces;
pub mod unix_socket;
pub mod wire;
pub mod words;
pub mod worker;

#[cfg(test)]
mod fixture;
