"""WebSockets through two real hosts: the `websockets` library on both sides, on a port of HTTP/1.1."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.lab.waiting import wait_until
from tests.mesh.extra import HERE, Extra, Served, served
from tests.mesh.world import POLICIES, TRUST_DOMAIN, World

pytestmark = pytest.mark.lab
# Shorter than the connections below live: times of requests end with the answer's head, which 101 is.
TIMES = '[traffic]\ntimeout = "1s"\nretries = { attempts = 3, per_try_timeout = "500ms", on = ["5xx", "reset"] }\n'
CHAT = Extra("chat", 8101, "http", "chat_server.py", policy=TIMES)
WHERE = "chat:8101"


@pytest.fixture(scope="module")
def chat(mesh: World) -> Iterator[Served]:
    with served(mesh, CHAT) as made:
        yield made


def by_way(chat: Served, *arguments: str) -> dict[str, Any]:
    said: dict[str, Any] = json.loads(chat.client("chat_client.py", WHERE, *arguments).must().stdout)
    assert said.pop("peer") == f"spiffe://{TRUST_DOMAIN}/unit/shop"
    return said


def test_every_kind_of_message(chat: Served) -> None:
    said = by_way(chat, "talk")
    assert said.pop("ping") < 1
    assert said == {"text": True, "data": True, "large": True, "empty": True, "code": 1000}


def test_the_server_closes(chat: Served) -> None:
    assert by_way(chat, "closed") == {"code": 4001, "reason": "as asked"}


def test_the_times_of_requests_cut_no_websocket(chat: Served) -> None:
    assert by_way(chat, "quiet", "2.5") == {"said": "still there"}


def test_who_asks_for_no_websocket_is_answered_as_ever(chat: Served) -> None:
    curl = ("curl", "-sS", "-w", "%{http_code}", f"http://{WHERE}/plain", f"http://{WHERE}/plain")
    assert chat.world.shop(*curl).must().stdout == "plain\n200plain\n200"


def test_nothing_moves_for_too_long(chat: Served) -> None:
    """The time in which nothing may move counts for a WebSocket as for any tunnel."""
    w = chat.world
    with w.changed_policy(w.h2, CHAT.unit, CHAT.written('idle_timeout = "1s"\n')):
        wait_until(lambda: w.services(w.h1)["chat"]["traffic"]["idle_timeout_ms"], "h1 knows the time", 10.0, 0.05)
        opened, said = chat.client("chat_client.py", WHERE, "held").must().stdout.splitlines()
        ended = json.loads(said)
        assert opened == "open" and ended["code"] == 1006, "broken off, not closed"
        assert 1.0 <= ended["seconds"] < 1.5


def test_a_policy_that_turns_against_it_ends_it(chat: Served) -> None:
    w = chat.world
    command = ["/usr/bin/python3", "-c", (HERE / "chat_client.py").read_text(), WHERE, "held"]
    with w.h1.popen(["hostmesh", "run", "--unit", "shop", "--", *command]) as client:
        assert client.stdout is not None and client.stdout.readline() == "open\n"
        cursor = w.h2.journal_cursor()
        closed = CHAT.written().replace('from = ["shop"]', 'from = ["orders"]')
        with w.changed_policy(w.h2, CHAT.unit, closed):
            said, error = client.communicate(timeout=20)
        assert json.loads(said)["code"] == 1006, error
    line = w.denials(w.h2, after=cursor, HOSTMESH_UNIT=CHAT.unit, HOSTMESH_VERDICT="deny")[0]
    assert line["HOSTMESH_RULE"] == f"{POLICIES}/chat.service.toml:no-allow"
