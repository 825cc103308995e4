"""Turns mark bits into the guard's program: BPF instructions that keep a meshed unit on loopback.

The program is a cgroup_skb filter (bpf(2)): a packet passes if its interface is loopback, or if its mark says that the
ruleset allowed it; all others are dropped. With the ruleset gone, nothing sets that mark: closed.
"""

import struct

LOOPBACK = 1  # ifindex of lo in every network namespace
_MARK, _IFINDEX = 8, 40  # offsets in struct __sk_buff (linux/bpf.h)
_LOAD32, _JEQ_IMM, _JSET_IMM, _MOV_IMM, _EXIT = 0x61, 0x15, 0x45, 0xB7, 0x95


def _instruction(code: int, destination: int = 0, source: int = 0, offset: int = 0, value: int = 0) -> bytes:
    return struct.pack("=BBhi", code, source << 4 | destination, offset, value)


def guard_program(allowed: int) -> bytes:
    """The program's instructions; ``allowed`` is the mark bit that the ruleset sets, below bit 31."""
    return b"".join(
        (
            _instruction(_LOAD32, 2, 1, _IFINDEX),  # r2 = skb->ifindex
            _instruction(_JEQ_IMM, 2, 0, 4, LOOPBACK),  # loopback: pass
            _instruction(_LOAD32, 2, 1, _MARK),  # r2 = skb->mark
            _instruction(_JSET_IMM, 2, 0, 2, allowed),  # allowed: pass
            _instruction(_MOV_IMM, 0, 0, 0, 0),  # drop
            _instruction(_EXIT),
            _instruction(_MOV_IMM, 0, 0, 0, 1),  # pass
            _instruction(_EXIT),
        )
    )
