"""Frames: however bytes are cut, the same messages come out, and what is no message is said to be none."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostmesh.wire.agent_control import Answer, Diff, Done, GetDiff, GetStatus, Reconcile, Refused, Request
from hostmesh.wire.codec import BadFrame, FrameReader, encode

REQUESTS = (GetStatus(1), GetDiff(2, {"web.service.toml": "[service]\n"}), Reconcile(3))


@given(st.lists(st.integers(1, 60), max_size=50))
def test_messages_survive_any_cutting(cuts: list[int]) -> None:
    data, reader, found = b"".join(map(encode, REQUESTS)), FrameReader[Request](Request), []
    for size in cuts:
        found += list(reader.feed(data[:size]))
        data = data[size:]
    found += list(reader.feed(data))
    assert tuple(found) == REQUESTS


def test_answers_keep_their_type() -> None:
    answers = (Done(1, ["ruleset: load"], 900), Refused(2, "no"), Diff(3, [], [("write x", "text")]))
    assert tuple(FrameReader[Answer](Answer).feed(b"".join(map(encode, answers)))) == answers


@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        b"[1]",
        b'{"type":"unknown","id":1}',
        b'{"type":"get_status"}',
        b'{"type":"get_status","id":1,"more":2}',
        b"\xff",
        b'{"type":"get_st\x9ftus","id":1}',
        b'{"id":1,"x":' + b"[" * 3000,
    ],
)
def test_no_message_is_an_error(body: bytes) -> None:
    with pytest.raises(BadFrame):
        list(FrameReader[Request](Request).feed(len(body).to_bytes(4, "big") + body))


def test_a_frame_over_the_limit_is_refused_by_its_header_alone() -> None:
    reader = FrameReader[Request](Request, limit=100)
    assert list(reader.feed(encode(GetStatus(1)))) == [GetStatus(1)]
    with pytest.raises(BadFrame, match="101 bytes"):
        list(reader.feed((101).to_bytes(4, "big")))
