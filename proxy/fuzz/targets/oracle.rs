//! A connection's bytes as requests: what the relay accepts is the same for hyper, as it came and as it is passed on.
#![no_main]

#[path = "../../tests/oracle/mod.rs"]
mod oracle;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    oracle::compare(bytes);
});
