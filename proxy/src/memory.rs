//! Tells when the address space that the process may have (`RLIMIT_AS`) is nearly used up: at its end the process ends
//! too, and begins anew.

use std::fs;

use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};
use nix::unistd::{SysconfVar, sysconf};

use crate::told::Told;

/// The trouble's name in [`Told`].
pub const ABOUT: &str = "memory";

/// Percent of the limit that are told as a trouble.
const SCARCE: u64 = 90;

const MEGABYTE: u64 = 1 << 20;

/// Tells whether there is some left.
pub fn watch(told: &Told) {
    let limit = getrlimit(Resource::RLIMIT_AS).map_or(RLIM_INFINITY, |(soft, _)| soft);
    if limit == RLIM_INFINITY {
        return;
    }
    match used(Field::Size) {
        Some(used) if used >= limit / 100 * SCARCE => told.trouble(ABOUT, shortage(limit)),
        _ => told.well(ABOUT),
    }
}

/// A field of what the kernel counts (proc_pid_statm(5)).
#[derive(Clone, Copy)]
pub enum Field {
    /// The address space.
    Size,
    /// What of it is in memory.
    Resident,
}

/// Bytes of it that this process has in use; `None` where `/proc` does not say.
pub fn used(field: Field) -> Option<u64> {
    let statm = fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split(' ').nth(field as usize)?.parse().ok()?;
    let size = sysconf(SysconfVar::PAGE_SIZE).ok()??;
    Some(pages * u64::try_from(size).ok()?)
}

fn shortage(limit: u64) -> String {
    format!(
        "{SCARCE} % and more of the memory that it may have (LimitAS={}M) are in use: at the limit it ends, open \
         connections break, and it begins anew. Raise LimitAS= of hostmesh-proxy.service",
        limit / MEGABYTE
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_memory_is_a_part_of_the_address_space() {
        let (size, resident) = (used(Field::Size), used(Field::Resident));
        assert!(resident > Some(MEGABYTE) && resident < size, "{resident:?} of {size:?}");
    }
}
