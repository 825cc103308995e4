"""Asks a lab host's agent over its control socket, from outside of the host."""

import socket
from typing import TypeVar

from hostmesh.wire import agent_control as wire
from hostmesh.wire.codec import FrameReader, encode
from tests.lab.host import Host
from tests.lab.waiting import wait_until

AnswerT = TypeVar("AnswerT")
SOCKET = "run/hostmesh/agent.sock"


def ask(host: Host, request: wire.Request, kind: type[AnswerT]) -> AnswerT:
    """The answer, as root; another kind of answer is a failure. An agent that restarts is waited for."""
    answer = wait_until(lambda: _try(host, request), f"{host.name}: the agent answers", 10.0)
    assert isinstance(answer, kind), answer
    return answer


def _try(host: Host, request: wire.Request) -> wire.Answer | None:
    frames: FrameReader[wire.Answer] = FrameReader(wire.Answer)
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(20)
        try:
            connection.connect(str(host.root / SOCKET))
            connection.sendall(encode(request))
            while data := connection.recv(1 << 16):
                for answer in frames.feed(data):
                    return answer
        except (ConnectionError, FileNotFoundError):
            return None  # it is being started
    return None


def status(host: Host) -> wire.Status:
    """What the agent says of itself."""
    return ask(host, wire.GetStatus(1), wire.Status)


def unit_status(host: Host, unit: str) -> wire.UnitStatus | None:
    """The same of one unit; None when it has no policy there."""
    return next((found for found in status(host).units if found.unit == unit), None)


def wait_active(host: Host) -> None:
    """Wait until the agent answers, and has a plan in force."""
    wait_until(lambda: status(host).revision, f"{host.name}: a plan is in force", 20.0, 0.02)
