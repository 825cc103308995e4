//! A client's first bytes: more of them take back nothing, what is read as a request is told to be one, and the name that a
//! ClientHello asks for is the same however it is cut.
#![no_main]

use std::sync::Arc;

use bytes::Bytes;
use hostmesh_proxy::opening::server_name;
use hostmesh_proxy_core::http1::{HeadScanner, RequestHead};
use hostmesh_proxy_core::opening::{Opening, read};
use libfuzzer_sys::fuzz_target;
use rustls::server::Acceptor;

/// Prefixes are tried up to here, all of them.
const SHORT: usize = 512;

fuzz_target!(|bytes: &[u8]| {
    let told = (0..=bytes.len().min(SHORT)).map(|length| read(&bytes[..length]));
    let mut decided = told.skip_while(|told| *told == Opening::Undecided);
    if let Some(first) = decided.next() {
        assert!(decided.all(|later| later == first), "taken back");
        assert_eq!(read(bytes), first, "taken back");
    }
    if let Ok(Some(end)) = HeadScanner::default().find(bytes)
        && let Ok(head) = RequestHead::parse(Bytes::copy_from_slice(&bytes[..end]))
        && head.method().len() <= 32
    {
        assert_eq!(read(bytes), Opening::Http1, "a request that is not known to be one");
    }
    let whole = name(bytes, bytes.len().max(1));
    assert_eq!(whole, name(bytes, 7), "cuts change the name");
    if let Some(Some(name)) = whole {
        assert!(
            name.len() <= 255
                && !name
                    .bytes()
                    .any(|byte| byte.is_ascii_uppercase() || byte.is_ascii_control())
        );
    }
});

fn name(bytes: &[u8], size: usize) -> Option<Option<Arc<str>>> {
    let mut acceptor = Acceptor::default();
    bytes.chunks(size).find_map(|piece| server_name(&mut acceptor, piece))
}
