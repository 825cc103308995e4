"""HTTP/2 through two real hosts: nghttp2's server and load, and h2spec at the inbound listener."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.programs import program
from tests.mesh.extra import Extra, Served, served
from tests.mesh.world import SCRAPER, World

pytestmark = pytest.mark.lab

PLAIN = f'[[inbound.plaintext]]\nfrom = ["{SCRAPER}/32"]\nports = [8099]\n'
PAGE = Extra("page", 8099, "http2", command="/usr/sbin/nghttpd --no-tls -d /etc 8099", policy=PLAIN)
REQUESTS = 20_000
# Who begins with anything but the preface speaks HTTP/1.1 here, and is answered in it.
BY_DESIGN = "2: Sends invalid connection preface"


@pytest.fixture(scope="module")
def page(mesh: World) -> Iterator[Served]:
    with served(mesh, PAGE) as made:
        yield made


def test_either_version_of_either_client(page: Served) -> None:
    w, url = page.world, "http://page:8099/services"
    wanted = w.h2.exec(["sha256sum", "/etc/services"]).must().stdout.split()[0]
    for version in ("--http1.1", "--http2-prior-knowledge"):
        curl = f"curl -sS --max-time 10 {version} -w '%{{stderr}}%{{http_version}}' {url} | sha256sum"
        said = w.shop("sh", "-c", curl).must()
        assert said.stdout.split()[0] == wanted, said
        assert said.stderr.strip() in {"1.1", "2"}
    # An application of HTTP/1.1, for a client of HTTP/2.
    said = w.shop(
        "curl",
        "-sS",
        "--http2-prior-knowledge",
        "-o",
        "/dev/null",
        "-w",
        "%{http_code} %{http_version}",
        "http://page/no",
    )
    assert said.must().stdout == "404 2"


def test_load(page: Served) -> None:
    load = ["h2load", "-n", str(REQUESTS), "-c", "4", "-m", "50", "http://page:8099/services"]
    said = page.world.shop(*load, timeout=60).must().stdout
    print(re.findall(r"finished in .*", said))
    assert f"{REQUESTS} succeeded, 0 failed, 0 errored, 0 timeout" in said, said
    assert f"{REQUESTS} 2xx" in said, said


def test_h2spec(page: Served) -> None:
    w = page.world
    h2spec = program(Path(__file__).parents[1] / "h2spec", "github.com/summerwind/h2spec/cmd/h2spec")
    shutil.copy(h2spec, w.outsider.root / "usr/local/bin/h2spec")
    said = w.outsider.exec(
        ["h2spec", "-h", w.h2.ipv4, "-p", "8099", "-o", "2", "--path", "/services"], timeout=120
    ).stdout
    counts = re.search(r"(\d+) tests, (\d+) passed, (\d+) skipped, (\d+) failed", said)
    assert counts, said
    print(counts[0])
    failed = set(re.findall(r"^\s*× (.*)$", said, re.MULTILINE))  # told twice, at its place and at the end
    assert int(counts[1]) >= 140 and counts[4] == "1" and failed == {BY_DESIGN}, said[-4000:]
