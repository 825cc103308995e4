"""Turns the guard's instructions into programs pinned on bpffs (bpf(2)).

Standard library only: it starts first at boot.
"""

import ctypes
import errno
import os
import platform
import struct
from pathlib import Path

from hostmesh.errors import HostmeshError

_SYSCALL = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "ppc64le": 361, "s390x": 351}
_PROG_LOAD, _OBJ_PIN, _OBJ_GET = 5, 6, 7
_CGROUP_SKB = 8
_INGRESS, _EGRESS = 0, 1  # enum bpf_attach_type
_BPFFS_MAGIC = 0xCAFE4A11
_LICENSE = b"Apache-2.0\0"


class BpfError(HostmeshError):
    """The kernel refused a program or its pin."""


class Bpf:
    """The door to pinned programs. folder: on bpffs, which is mounted on its parent if it is not there yet."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._libc = ctypes.CDLL(None, use_errno=True)

    def pin_guard(self, program: bytes) -> tuple[str, ...]:
        """Pin ``egress`` and ``ingress``, each swapped in whole; their paths. Slices hold what they attached."""
        self._mount()
        self._folder.mkdir(mode=0o700, exist_ok=True)
        return tuple(self._pin(name, program, kind) for name, kind in (("egress", _EGRESS), ("ingress", _INGRESS)))

    def _pin(self, name: str, program: bytes, attach: int) -> str:
        path, new = self._folder / name, self._folder / f"{name}_new"  # bpffs takes no dots in names
        descriptor = self._load(name, program, attach)
        try:
            new.unlink(missing_ok=True)
            pin = struct.pack("=QII", self._address(os.fsencode(new) + b"\0"), descriptor, 0)
            self._bpf(_OBJ_PIN, pin, f"pin {new}")
            new.rename(path)
        finally:
            os.close(descriptor)
        return str(path)

    def _load(self, name: str, program: bytes, attach: int) -> int:
        log = ctypes.create_string_buffer(1 << 16)
        attributes = struct.pack(
            "=IIQQIIQII16sII",
            _CGROUP_SKB, len(program) // 8, self._address(program), self._address(_LICENSE),
            1, len(log), ctypes.addressof(log), 0, 0, f"mesh_{name}".encode(), 0, attach,
        )  # fmt: skip
        return self._bpf(_PROG_LOAD, attributes, f"load the guard: {log.value.decode(errors='replace').strip()}")

    def _address(self, data: bytes) -> int:
        buffer = ctypes.create_string_buffer(data, len(data))
        self._kept = [*getattr(self, "_kept", []), buffer]  # the kernel reads it during the call
        return ctypes.addressof(buffer)

    def _bpf(self, command: int, attributes: bytes, what: str) -> int:
        number = _SYSCALL.get(platform.machine())
        if number is None:
            raise BpfError(f"bpf(2) has no known number on {platform.machine()}")
        buffer = ctypes.create_string_buffer(attributes, len(attributes))
        result: int = self._libc.syscall(number, command, buffer, len(attributes))
        if result < 0:
            code = ctypes.get_errno()
            hint = "this needs root (CAP_BPF)" if code in (errno.EPERM, errno.EACCES) else ""
            raise BpfError(f"{what}: {os.strerror(code)}", hint)
        return result

    def _mount(self) -> None:
        parent = self._folder.parent
        parent.mkdir(parents=True, exist_ok=True)
        if self._is_bpffs(parent):
            return
        flags = 2 | 4 | 8  # MS_NOSUID | MS_NODEV | MS_NOEXEC
        if self._libc.mount(b"bpf", os.fsencode(parent), b"bpf", flags, b"mode=0700") < 0:
            raise BpfError(f"mount bpffs on {parent}: {os.strerror(ctypes.get_errno())}")

    def _is_bpffs(self, path: Path) -> bool:
        buffer = ctypes.create_string_buffer(256)
        if self._libc.statfs(os.fsencode(path), buffer) < 0:
            raise BpfError(f"statfs {path}: {os.strerror(ctypes.get_errno())}")
        (kind,) = struct.unpack_from("=q", buffer.raw)
        return bool(kind == _BPFFS_MAGIC)
