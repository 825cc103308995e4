"""Turns questions into answers over the agent's Unix socket. A plain blocking client: one question, one answer."""

import socket
from typing import TypeVar

from hostmesh.errors import HostmeshError
from hostmesh.policy.settings import Settings
from hostmesh.wire import agent_control as wire
from hostmesh.wire.codec import BadFrame, FrameReader, encode

_SECONDS = 20.0  # a reconcile may wait for a job of systemd

AnswerT = TypeVar("AnswerT", bound=wire.Status | wire.PlanInForce | wire.Diff | wire.Done)


class AgentAway(HostmeshError):
    """Nobody answers on the agent's socket."""


class AgentRefused(HostmeshError):
    """The agent answered, and did not do it."""


def ask(known: Settings, request: wire.Request, answer: type[AnswerT], seconds: float = _SECONDS) -> AnswerT:
    """Ask; raises `AgentAway` when there is no answer within ``seconds``, `AgentRefused` when it is no."""
    path = known.paths.agent_socket
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(seconds)
            connection.connect(path)
            connection.sendall(encode(request))
            said = _read(connection)
    except (OSError, BadFrame) as error:
        hint = "systemctl status hostmeshd.service; what is in force stays in force without it"
        if not known.controllers:
            hint = "this host is in no mesh: hostmesh enable UNIT, or hostmesh join TOKEN"
        raise AgentAway(f"the agent does not answer on {path}: {error}", hint) from error
    if isinstance(said, answer):
        return said
    if isinstance(said, wire.Refused):
        raise AgentRefused(said.reason)
    raise AgentAway(f"the agent answered with {type(said).__name__}", "are hostmesh and hostmeshd of one version?")


def _read(connection: socket.socket) -> wire.Answer:
    frames: FrameReader[wire.Answer] = FrameReader(wire.Answer)
    while data := connection.recv(1 << 16):
        for message in frames.feed(data):
            return message
    raise ConnectionError("the connection was closed without an answer")
