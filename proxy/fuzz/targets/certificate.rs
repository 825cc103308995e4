//! A certificate, as a peer's leaf, as a root of the bundle, and as part of what systemd keeps.
#![no_main]

use std::fs::File;
use std::io::Write;
use std::sync::Arc;

use hostmesh_proxy::peer::{Claim, read_leaf};
use hostmesh_proxy::sealed;
use hostmesh_proxy::tls::Trust;
use hostmesh_proxy_core::revoked::Revoked;
use libfuzzer_sys::fuzz_target;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

fuzz_target!(|bytes: &[u8]| {
    let claim = Claim::of(bytes);
    assert!(claim.spiffe_id.is_ascii() && claim.spiffe_id.len() <= 200);
    if let Ok(peer) = read_leaf(bytes) {
        assert!(!peer.spiffe_id.is_empty() || peer.hosts.len() < bytes.len());
        assert!(!peer.serial.starts_with('0'));
    }
    let revoked = Arc::<Revoked>::default();
    if let Ok(trust) = Trust::new("mesh.example", &[bytes.to_vec()], revoked.clone()) {
        assert!(trust.is_of("mesh.example", &[bytes.to_vec()], &revoked));
    }
    let Ok(kept) = sealed::open(file(bytes).into()) else {
        return;
    };
    let again = sealed::seal(&kept).and_then(sealed::open).expect("sealed again");
    assert_eq!((again.unit, again.key, again.chain), (kept.unit, kept.key, kept.chain));
});

/// A memory file with these bytes and all seals.
fn file(bytes: &[u8]) -> File {
    let mut file = File::from(memfd_create(c"fuzz", MFdFlags::MFD_ALLOW_SEALING).expect("a memory file"));
    file.write_all(bytes).expect("written");
    let seals = SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals)).expect("sealed");
    file
}
