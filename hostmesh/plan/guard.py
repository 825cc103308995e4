"""Turns mark bits into the guard's program: BPF instructions that keep a meshed unit on loopback, by way of the proxy.

The program is a cgroup_skb filter (bpf(2)), for both directions. Beyond loopback a packet passes if its mark says that
the ruleset allowed it; over loopback if it is the proxy's or on its way there, or is no TCP. All others are dropped.
With the ruleset gone, nothing sets these marks: closed.
"""

import struct

LOOPBACK = 1  # ifindex of lo in every network namespace
_MARK, _PROTOCOL, _IFINDEX = 8, 16, 40  # offsets in struct __sk_buff (linux/bpf.h)
_LOAD32, _LOAD8, _JEQ_IMM, _JNE_IMM, _JSET_IMM = 0x61, 0x71, 0x15, 0x55, 0x45
_MOV_IMM, _MOV, _ADD_IMM, _JUMP, _CALL, _EXIT = 0xB7, 0xBF, 0x07, 0x05, 0x85, 0x95
_LOAD_BYTES = 26  # bpf_skb_load_bytes(skb, offset, to, length): 0 when they are there
(_IPV4,) = struct.unpack("=H", b"\x08\x00")  # as the field has it, in network order (linux/if_ether.h)
_IPV4_PROTOCOL, _IPV6_NEXT_HEADER = 9, 6  # offsets (RFC 791, RFC 8200)
_TCP, _ROUTING = 6, 43  # the second: a header that needs no privilege, and could stand before TCP's


def _instruction(code: int, destination: int = 0, source: int = 0, offset: int = 0, value: int = 0) -> bytes:
    return struct.pack("=BBhi", code, source << 4 | destination, offset, value)


def guard_program(allowed: int, proxied: int) -> bytes:
    """The program's instructions; the bits are below 31.

    allowed: the mark that the ruleset sets. proxied: marks of what is on its way to the proxy, or comes from there.
    """
    return b"".join(
        (
            _instruction(_MOV, 6, 1),  # r6 = skb
            _instruction(_LOAD32, 7, 6, _MARK),  # r7 = skb->mark
            _instruction(_LOAD32, 2, 6, _IFINDEX),
            _instruction(_JEQ_IMM, 2, 0, 2, LOOPBACK),
            _instruction(_JSET_IMM, 7, 0, 16, allowed),  # pass
            _instruction(_JUMP, offset=13),  # drop
            _instruction(_JSET_IMM, 7, 0, 14, proxied),  # pass
            _instruction(_LOAD32, 3, 6, _PROTOCOL),
            _instruction(_MOV_IMM, 2, 0, 0, _IPV4_PROTOCOL),
            _instruction(_JEQ_IMM, 3, 0, 1, _IPV4),
            _instruction(_MOV_IMM, 2, 0, 0, _IPV6_NEXT_HEADER),
            _instruction(_MOV, 1, 6),
            _instruction(_MOV, 3, 10),
            _instruction(_ADD_IMM, 3, 0, 0, -8),  # r3: a byte of the stack
            _instruction(_MOV_IMM, 4, 0, 0, 1),
            _instruction(_CALL, value=_LOAD_BYTES),  # the byte = the protocol
            _instruction(_LOAD8, 2, 10, -8),
            _instruction(_JEQ_IMM, 2, 0, 1, _TCP),  # drop
            _instruction(_JNE_IMM, 2, 0, 2, _ROUTING),  # pass
            _instruction(_MOV_IMM, 0, 0, 0, 0),  # drop
            _instruction(_EXIT),
            _instruction(_MOV_IMM, 0, 0, 0, 1),  # pass
            _instruction(_EXIT),
        )
    )
