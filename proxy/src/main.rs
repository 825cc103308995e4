//! The data plane of hostmesh.
fn main() {}
