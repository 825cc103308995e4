"""Turns the kernel calls that Python 3.11 lacks into functions that raise OSError.

Only the standard library: the keeper of a host runs this without site-packages. Flags are those of mount(2),
unshare(2), prctl(2) (linux/mount.h, linux/sched.h, linux/prctl.h).
"""

import ctypes
import os
from pathlib import Path

CLONE_NEWNS = 0x0002_0000
CLONE_NEWCGROUP = 0x0200_0000
CLONE_NEWUTS = 0x0400_0000
CLONE_NEWIPC = 0x0800_0000
CLONE_NEWPID = 0x2000_0000
CLONE_NEWNET = 0x4000_0000

MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_REMOUNT = 0x20
MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 0x4_0000
MS_SHARED = 0x10_0000
MNT_DETACH = 0x2

_PR_SET_PDEATHSIG = 1
_SYS_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        errno = ctypes.get_errno()
        raise OSError(errno, f"{what}: {os.strerror(errno)}")


def unshare(flags: int) -> None:
    """Give this process (for NEWPID: its next child) new namespaces, unshare(2)."""
    _check(_libc.unshare(flags), f"unshare({flags:#x})")


def set_netns(path: str) -> None:
    """Move the calling *thread* into the network namespace at ``path``, setns(2)."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _check(_libc.setns(descriptor, CLONE_NEWNET), f"setns({path})")
    finally:
        os.close(descriptor)


def mount(source: str, target: str | Path, fstype: str = "", flags: int = 0, data: str = "") -> None:
    """mount(2); ``data`` as in ``mount -o``."""
    _check(
        _libc.mount(source.encode(), os.fsencode(target), fstype.encode(), ctypes.c_ulong(flags), data.encode()),
        f"mount {fstype or source} on {target}",
    )


def bind(source: str | Path, target: str | Path, read_only: bool = False) -> None:
    """Show ``source`` at ``target``; read-only takes a second call, mount(2) "Remounting"."""
    mount(str(source), target, flags=MS_BIND | MS_REC)
    if read_only:
        mount("", target, flags=MS_BIND | MS_REMOUNT | MS_RDONLY)


def unmount(target: str | Path) -> None:
    """Detach the mount at ``target``, umount2(2)."""
    _check(_libc.umount2(os.fsencode(target), MNT_DETACH), f"umount {target}")


def pivot_into(root: str | Path) -> None:
    """Make the mount at ``root`` this mount namespace's root and drop the old one, pivot_root(2) Notes."""
    os.chdir(root)
    number = _SYS_PIVOT_ROOT[os.uname().machine]
    _check(_libc.syscall(ctypes.c_long(number), b".", b"."), f"pivot_root({root})")
    unmount(".")
    os.chdir("/")


def die_with_parent(parent: int, signal: int) -> None:
    """Get ``signal`` when the parent's creating thread ends; ``parent``: in case that was before this call.

    ``parent`` is 0 for the first process of a pid namespace, which cannot see its parent.
    """
    _check(_libc.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal)), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:
        os.kill(os.getpid(), signal)
