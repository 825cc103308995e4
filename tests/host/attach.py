"""Turns pinned guard programs into attached ones, as systemd does for `IPEgressFilterPath=` (bpf(2))."""

import ctypes
import os
import struct
from pathlib import Path

_SYSCALL_BPF = {"x86_64": 321, "aarch64": 280}
_PROG_ATTACH, _OBJ_GET, _ALLOW_MULTI = 8, 7, 2
_libc = ctypes.CDLL(None, use_errno=True)


def _bpf(command: int, data: bytes) -> int:
    buffer = ctypes.create_string_buffer(data, len(data))
    result = _libc.syscall(_SYSCALL_BPF[os.uname().machine], command, buffer, len(data))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return int(result)


def attach_guard(cgroup: Path, folder: Path) -> None:
    """Attach ``folder``'s egress and ingress to the cgroup."""
    target = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY)
    for name, kind in (("ingress", 0), ("egress", 1)):
        path = ctypes.create_string_buffer(os.fsencode(folder / name) + b"\0")
        program = _bpf(_OBJ_GET, struct.pack("=QII", ctypes.addressof(path), 0, 0))
        _bpf(_PROG_ATTACH, struct.pack("=IIII", target, program, kind, _ALLOW_MULTI))
        os.close(program)
    os.close(target)
