"""HTTP/1.1's rarer parts through two real hosts: 100-continue, chunks, trailers both ways, CONNECT."""

import json
from collections.abc import Iterator

import pytest

from tests.mesh.extra import Extra, Served, served
from tests.mesh.world import World

pytestmark = pytest.mark.lab
READ, PROXY = 8102, 8103
PLAIN = Extra("plain", READ, "http", "plain_server.py", beside=((PROXY, "tcp"),))
HEAD = r"POST /echo HTTP/1.1\r\nHost: plain\r\n"
CHUNKS = r"Transfer-Encoding: chunked\r\nTE: trailers\r\nTrailer: x-sum\r\n\r\n"
CONNECT = r"CONNECT plain:80 HTTP/1.1\r\nHost: plain:80\r\n\r\n"


@pytest.fixture(scope="module")
def plain(mesh: World) -> Iterator[Served]:
    with served(mesh, PLAIN) as made:
        yield made


def said(plain: Served, *steps: str, port: int = READ) -> tuple[str, str]:
    answer = json.loads(plain.client("plain_client.py", "plain", str(port), *steps).must().stdout)
    return answer["received"], answer["how"]


def test_a_body_waits_for_100(plain: Served) -> None:
    asked = HEAD + r"Expect: 100-continue\r\nContent-Length: 5\r\n\r\n|100 Continue"
    received, how = said(plain, asked, r"hello|x-length: 5\r\n\r\n")
    assert received.startswith("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n") and how == "open"
    refused = asked.replace("/echo", "/refused").replace("100 Continue", "417 ")
    received, _ = said(plain, refused)
    assert received.startswith("HTTP/1.1 417 "), "no 100 of the proxy's own"


def test_chunks_and_trailers_in_both_directions(plain: Served) -> None:
    sent = (
        HEAD
        + CHUNKS
        + r"5;a=b\r\nhello\r\n6\r\n world\r\n0\r\nx-sum: 11\r\nx-more: yes\r\n\r\n|x-seen-more: yes\r\n\r\n"
    )
    received, how = said(plain, sent)
    assert how == "open"
    _, _, after = received.partition("hello world")
    assert [line for line in after.split("\r\n") if ":" in line] == [
        "x-length: 11",
        "x-seen-sum: 11",
        "x-seen-more: yes",
    ]
    large = "head -c 5000000 /dev/zero | curl -sS -T - -H 'Transfer-Encoding: chunked' http://plain:8102/ | wc -c"
    assert plain.world.shop("sh", "-c", large).must().stdout.strip() == "5000000"


def test_connect_is_for_applications_that_are_proxies(plain: Served) -> None:
    """On a port whose requests are read it is refused: what follows it could not be judged. As bytes it passes."""
    received, _ = said(plain, CONNECT + r"|\r\n\r\n")
    head = received.lower()
    assert head.startswith("http/1.1 501 ") and "x-hostmesh-error: bad-request" in head
    received, how = said(plain, CONNECT + "|Connected", r"anything\x00|anything", port=PROXY)
    assert (received, how) == ("HTTP/1.1 200 Connected\r\n\r\nanything\x00", "open")
