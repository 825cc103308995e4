"""Journal entries as journald reads them, over a real datagram socket."""

import array
import os
import socket
from pathlib import Path

import pytest

from hostmesh.observe.journal import Journal, encode


def decode(data: bytes) -> dict[str, str]:
    """The native protocol, read back."""
    fields = {}
    while data:
        name, sep, rest = data.partition(b"\n")
        if b"=" in name:
            key, _, value = name.partition(b"=")
            fields[key.decode()], data = value.decode(), rest
        else:
            assert sep
            size = int.from_bytes(rest[:8], "little")
            fields[name.decode()], data = rest[8 : 8 + size].decode(), rest[8 + size :]
            assert data[:1] == b"\n"
            data = data[1:]
    return fields


@pytest.fixture
def journald(tmp_path: Path) -> socket.socket:
    server = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    server.bind(str(tmp_path / "journal"))
    server.settimeout(5)
    return server


def test_plain_field_is_a_line_and_empty_ones_are_left_out() -> None:
    assert encode({"MESSAGE": "denied", "PRIORITY": 4, "TRACE_ID": ""}) == b"MESSAGE=denied\nPRIORITY=4\n"


def test_a_newline_takes_the_length_prefixed_form() -> None:
    assert encode({"MESSAGE": "a\nb"}) == b"MESSAGE\n" + (3).to_bytes(8, "little") + b"a\nb\n"


def test_a_value_cannot_add_a_field() -> None:
    """A path that a caller chose must not forge HOSTMESH_VERDICT."""
    assert decode(encode({"HOSTMESH_PATH": "/x\nHOSTMESH_VERDICT=allow"})) == {
        "HOSTMESH_PATH": "/x\nHOSTMESH_VERDICT=allow"
    }


def test_entry_arrives_as_a_datagram(journald: socket.socket) -> None:
    journal = Journal(journald.getsockname())
    assert journal.send({"MESSAGE": "hello", "HOSTMESH_UNIT": "web.service"})
    assert decode(journald.recv(65536)) == {"MESSAGE": "hello", "HOSTMESH_UNIT": "web.service"}
    journal.close()
    journald.close()


def test_large_entry_arrives_in_a_sealed_memfd(journald: socket.socket) -> None:
    journal = Journal(journald.getsockname())
    text = "x" * 2_000_000
    assert journal.send({"MESSAGE": text})
    data, ancillary, _, _ = journald.recvmsg(65536, socket.CMSG_SPACE(4))
    assert data == b""
    ((_, _, raw),) = ancillary
    (descriptor,) = array.array("i", raw)
    size = os.fstat(descriptor).st_size
    assert decode(os.pread(descriptor, size, 0)) == {"MESSAGE": text}
    with pytest.raises(PermissionError):
        os.ftruncate(descriptor, 1)
    os.close(descriptor)
    journal.close()
    journald.close()


def test_nobody_there_is_counted_not_raised(tmp_path: Path) -> None:
    journal = Journal(str(tmp_path / "nobody"))
    assert not journal.send({"MESSAGE": "lost"})
    assert journal.lost == 1
    journal.close()


def test_full_socket_is_counted_not_waited_for(journald: socket.socket) -> None:
    journal = Journal(journald.getsockname())
    sent = 0
    while journal.send({"MESSAGE": "x" * 1000}):
        sent += 1
        assert sent < 100_000
    assert sent
    assert journal.lost == 1
    journal.close()
    journald.close()
