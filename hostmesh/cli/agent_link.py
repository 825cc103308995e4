"""Turns questions into answers over the agent's Unix socket. A plain blocking client: one question, one answer,
or one after the other."""

import contextlib
import socket
from collections.abc import Iterator
from typing import TypeVar

from hostmesh.errors import HostmeshError
from hostmesh.policy.settings import Settings
from hostmesh.wire import agent_control as wire
from hostmesh.wire.codec import BadFrame, FrameReader, encode

_SECONDS = 20.0  # a reconcile may wait for a job of systemd

AnswerT = TypeVar("AnswerT", bound=wire.Status | wire.PlanInForce | wire.Diff | wire.Counts | wire.Done | wire.Tapped)


class AgentAway(HostmeshError):
    """Nobody answers on the agent's socket."""


class AgentRefused(HostmeshError):
    """The agent answered, and did not do it."""


def ask(known: Settings, request: wire.Request, answer: type[AnswerT], seconds: float = _SECONDS) -> AnswerT:
    """Ask; raises `AgentAway` when there is no answer within ``seconds``, `AgentRefused` when it is no."""
    try:
        with _connected(known, seconds) as connection:
            connection.sendall(encode(request))
            return _expected(next(_answers(connection)), answer)
    except (OSError, BadFrame) as error:
        raise _away(known, error) from error


def follow(known: Settings, request: wire.Tap) -> Iterator[wire.Tapped]:
    """Ask, and give all that is answered until whoever reads has enough. Raises as `ask` does."""
    try:
        with _connected(known, _SECONDS) as connection:
            connection.sendall(encode(request))
            answers = _answers(connection)
            yield _expected(next(answers), wire.Tapped)
            connection.settimeout(None)  # from here on it comes when it comes
            for answer in answers:
                yield _expected(answer, wire.Tapped)
    except (OSError, BadFrame) as error:
        raise _away(known, error) from error


@contextlib.contextmanager
def _connected(known: Settings, seconds: float) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(seconds)
        connection.connect(known.paths.agent_socket)
        yield connection


def _answers(connection: socket.socket) -> Iterator[wire.Answer]:
    frames: FrameReader[wire.Answer] = FrameReader(wire.Answer)
    while data := connection.recv(1 << 16):
        yield from frames.feed(data)
    raise ConnectionError("the connection was closed without an answer")


def _expected(said: wire.Answer, answer: type[AnswerT]) -> AnswerT:
    if isinstance(said, answer):
        return said
    if isinstance(said, wire.Refused):
        raise AgentRefused(said.reason)
    raise AgentAway(f"the agent answered with {type(said).__name__}", "are hostmesh and hostmeshd of one version?")


def _away(known: Settings, why: Exception) -> AgentAway:
    hint = "systemctl status hostmeshd.service; what is in force stays in force without it"
    if not known.controllers:
        hint = "this host is in no mesh: hostmesh enable UNIT, or hostmesh join TOKEN"
    return AgentAway(f"the agent does not answer on {known.paths.agent_socket}: {why}", hint)
