//! Turns a key and its chain into a sealed memory file that systemd can keep, and back (memfd_create(2), fcntl(2)).
//!
//! What the seals give: nobody, this process included, can change, shrink or grow the file, or take the seals off; so a
//! key that comes back is the key that was given away, and reading it cannot be raced. What they do not give: secrecy
//! from who may read this process or systemd (root, ptrace), or anything across a boot: it is memory, gone with the
//! kernel that held it. Nothing of it touches a disk other than by swap.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use zeroize::Zeroizing;

/// The first bytes of every file: what it is, and the version of its layout.
const MAGIC: &[u8] = b"hostmesh-svid-1\n";

/// A chain, a key and a name fit in this many times over.
const MAX_SIZE: u64 = 256 * 1024;

/// What is kept of an SVID.
pub struct Sealed {
    /// The unit's full name.
    pub unit: String,
    /// The private key, PKCS#8 (RFC 5958).
    pub key: Zeroizing<Vec<u8>>,
    /// Certificates, DER, leaf first; none while the key waits for its first.
    pub chain: Vec<Vec<u8>>,
}

fn seals() -> SealFlag {
    SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL
}

/// Writes it into a new memory file and seals that.
pub fn seal(what: &Sealed) -> io::Result<OwnedFd> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_SIZE as usize));
    bytes.extend_from_slice(MAGIC);
    for part in [what.unit.as_bytes(), &what.key]
        .into_iter()
        .chain(what.chain.iter().map(Vec::as_slice))
    {
        bytes.extend_from_slice(&u32::try_from(part.len()).map_err(io::Error::other)?.to_be_bytes());
        bytes.extend_from_slice(part);
        if bytes.len() as u64 > MAX_SIZE {
            return Err(io::Error::other("the chain is too long to be kept"));
        }
    }
    let fd = memfd_create(c"hostmesh-svid", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
    let mut file = File::from(fd);
    file.write_all(&bytes)?;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals()))?;
    Ok(file.into())
}

/// Reads what [`seal`] wrote; anything else, an unsealed file above all, is an error.
pub fn open(fd: OwnedFd) -> io::Result<Sealed> {
    let bad = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why);
    let has = SealFlag::from_bits_truncate(fcntl(&fd, FcntlArg::F_GET_SEALS)?);
    if !has.contains(seals()) {
        return Err(bad("not sealed: somebody could have changed it"));
    }
    let file = File::from(fd);
    let size = file.metadata()?.len();
    if size > MAX_SIZE {
        return Err(bad("too large"));
    }
    let mut bytes = Zeroizing::new(vec![0; size as usize]);
    file.read_exact_at(&mut bytes, 0)?;
    let mut rest = bytes
        .strip_prefix(MAGIC)
        .ok_or_else(|| bad("not an SVID of this version"))?;
    let mut parts = Vec::new();
    while let Some((length, after)) = rest.split_first_chunk::<4>() {
        let length = u32::from_be_bytes(*length) as usize;
        let (part, after) = after.split_at_checked(length).ok_or_else(|| bad("cut off"))?;
        parts.push(part);
        rest = after;
    }
    let [unit, key, chain @ ..] = &parts[..] else {
        return Err(bad("a part is missing"));
    };
    if !rest.is_empty() {
        return Err(bad("a part is missing"));
    }
    Ok(Sealed {
        unit: String::from_utf8(unit.to_vec()).map_err(|_| bad("the unit's name is not text"))?,
        key: Zeroizing::new(key.to_vec()),
        chain: chain.iter().map(|der| der.to_vec()).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Sealed {
        Sealed {
            unit: "a.service".into(),
            key: Zeroizing::new(vec![1, 2, 3]),
            chain: vec![vec![4; 900], vec![5; 700]],
        }
    }

    #[test]
    fn what_is_sealed_comes_back_and_cannot_be_changed() {
        let fd = seal(&sample()).expect("seal");
        let file = File::from(fd.try_clone().expect("dup"));
        assert!(file.write_at(b"x", 0).is_err(), "written to a sealed file");
        assert!(
            file.set_len(0).is_err() && file.set_len(9999).is_err(),
            "resized a sealed file"
        );
        let back = open(fd).expect("open");
        assert_eq!(
            (back.unit.as_str(), &back.key[..], back.chain),
            ("a.service", &[1, 2, 3][..], sample().chain)
        );
    }

    #[test]
    fn what_is_not_sealed_or_not_ours_is_refused() {
        let make = |bytes: &[u8], sealed: bool| {
            let fd = memfd_create(c"x", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING).expect("memfd");
            let mut file = File::from(fd);
            file.write_all(bytes).expect("write");
            if sealed {
                fcntl(&file, FcntlArg::F_ADD_SEALS(seals())).expect("seals");
            }
            OwnedFd::from(file)
        };
        let good = File::from(seal(&sample()).expect("seal"));
        let mut bytes = vec![0; good.metadata().expect("size").len() as usize];
        good.read_exact_at(&mut bytes, 0).expect("read");
        assert!(open(make(&bytes, true)).is_ok());
        assert!(open(make(&bytes, false)).is_err(), "an unsealed file was believed");
        for cut in [0, 5, MAGIC.len(), MAGIC.len() + 2, MAGIC.len() + 19, bytes.len() - 1] {
            assert!(open(make(&bytes[..cut], true)).is_err(), "cut at {cut}");
        }
        let null = File::open("/dev/null").expect("open");
        assert!(open(null.into()).is_err());
    }
}
