//! The data plane of hostmesh: carries what `hostmesh-proxy-core` decides.
//!
//! `control` takes the agent's words, `identity` holds keys, `dns` answers names; the listeners and relays carry bytes.

pub mod control;
pub mod dns;
pub mod events;
pub mod fdstore;
pub mod identity;
pub mod persist;
pub mod stats;
