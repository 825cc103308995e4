"""make vm-smoke: two virtual machines with Debian 12's own kernel, one HTTP call meshed between them, step by step.

The Makefile runs this in network, mount and pid namespaces of its own and under a time limit: with its first process
everything is gone, also when that is killed: machines, bridge, and what they wrote, which is in memory.
"""

import json
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

from guest import BRIDGE, Guest, make_key
from image import Image, image

from tests.lab import namespaces as ns
from tests.lab.capture import Capture, capturing
from tests.lab.install import command, sources
from tests.lab.waiting import wait_until

FOLDER = Path(__file__).resolve().parents[1] / "build" / "vm-smoke"
BOOT_SECONDS, MESH_SECONDS = 300.0, 120.0
KERNEL = "6.1."
WIRE = 15008
COULD_NOT_CONNECT, TIMED_OUT = 7, 28  # curl(1)
TLS_RECORDS = (b"\x16\x03", b"\x17\x03", b"\x14\x03")
PAGE = "a page of the other machine"
POLICY = """[service]
name = "web"
[service.ports]
80 = "http"
[[inbound.allow]]
from = ["shop"]
"""


class Steps:
    """Says each thing that was seen, with its number and the time since the start."""

    def __init__(self) -> None:
        self._number, self._began = 0, time.monotonic()

    def seen(self, what: str) -> None:
        """One step is done."""
        self._number += 1
        print(f"{self._number:2}. [{time.monotonic() - self._began:3.0f} s] {what}", flush=True)


def main() -> int:
    """Build the world, smoke it; any failure is told with its place, and ends all of it."""
    steps = Steps()
    disk = image()
    steps.seen("the machines' disk is there: Debian 12 with its own kernel")
    FOLDER.mkdir(parents=True, exist_ok=True)
    ns.mount("", "/", flags=ns.MS_REC | ns.MS_PRIVATE)
    ns.mount("vm-smoke", FOLDER, "tmpfs", data="mode=700")
    for line in (f"link add {BRIDGE} type bridge", "address add 198.18.0.254/24 dev br0", f"link set {BRIDGE} up"):
        subprocess.run(["ip", *line.split()], check=True)
    caller, server = booted(steps, disk, Guest("caller", 1, FOLDER), Guest("server", 2, FOLDER))
    install(steps, caller, server)
    plain_call(steps, caller, server)
    mesh(steps, caller, server)
    meshed_call(steps, caller, server)
    closed(steps, caller, server)
    examined(steps, caller, server)
    return 0


def booted(steps: Steps, disk: Image, *guests: Guest) -> tuple[Guest, ...]:
    """All machines, up."""
    make_key(FOLDER)
    brought, second = FOLDER / "brought", FOLDER / "second.ext4"
    for name, folder in sources().items():
        shutil.copytree(folder, brought / name)
    shutil.copy(FOLDER / "key.pub", brought)
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-E", "root_owner=0:0", "-d", brought, second, "256M"], check=True)
    processes = [guest.boot(disk, second) for guest in guests]
    for guest, process in zip(guests, processes, strict=True):
        guest.wait_booted(process, BOOT_SECONDS)
    kernels = {guest.must("uname -r").strip() for guest in guests}
    assert all(kernel.startswith(KERNEL) for kernel in kernels), kernels
    steps.seen(f"{len(guests)} machines are up, Linux {', '.join(kernels)}, {version(guests[0])}")
    return guests


def version(guest: Guest) -> str:
    """The versions of what hostmesh stands on."""
    systemd, nft = guest.must("systemctl --version | head -n 1; nft --version").splitlines()
    return f"{systemd.partition('(')[0].strip()}, {nft.partition('(')[0].strip()}"


def install(steps: Steps, *guests: Guest) -> None:
    """From the wheels, by the script that a user runs."""
    line = f"{' '.join(command('/mnt'))} && hostmesh --version"
    with ThreadPoolExecutor(len(guests)) as threads:
        versions = set(threads.map(lambda guest: guest.must(line).strip(), guests))
    steps.seen(f"hostmesh {', '.join(versions)} is installed on each")


def plain_call(steps: Steps, caller: Guest, server: Guest) -> None:
    """Without the mesh the page can be read on the link: the capture sees what there is."""
    server.must("cat > /var/www/html/index.html && systemctl enable --now nginx", input=PAGE)
    with capturing("/proc/self/ns/net", BRIDGE, "tcp port 80") as link:
        assert caller.must(f"curl -sS --max-time 20 http://{server.ipv4}/") == PAGE
    assert link.contains(PAGE.encode())
    steps.seen("without the mesh: the page is called, and readable on the link")


def mesh(steps: Steps, caller: Guest, server: Guest) -> None:
    """A controller beside the server, both joined, nginx meshed, and a unit that may call it."""
    vips = "--vip-range 198.19.0.0/16"
    server.must(f"hostmesh controller init --trust-domain mesh.test --address {server.ipv4} {vips}")
    server.must("systemctl enable --now hostmesh-controller")
    for guest, unit in ((server, "nginx.service"), (caller, "shop.service")):
        token = server.must(f"hostmesh controller token {guest.name} --unit {unit}").strip()
        guest.must(f"hostmesh join {token}")
    steps.seen("both have joined the controller")
    server.must("hostmesh enable nginx.service")
    server.must("cat > /etc/hostmesh/policies/nginx.service.toml", input=POLICY)
    server.must("systemctl restart nginx")
    caller.must("cat > /etc/hostmesh/policies/shop.service.toml", input='[outbound]\nallow = ["web"]\n')
    wait_until(lambda: by_shop(caller, "http://web/") == PAGE, "the meshed call answers", MESH_SECONDS, 1.0)
    steps.seen("nginx.service is meshed, and answers shop.service of the other machine")


def by_shop(caller: Guest, url: str) -> str:
    """What the meshed unit gets from there; empty where it gets nothing."""
    return caller.exec(f"hostmesh run --unit shop -- curl -sS --max-time 10 {url}").stdout


def meshed_call(steps: Steps, caller: Guest, server: Guest) -> None:
    """One HTTP call: the answer is right, the link shows TLS of both certificates and nothing of the page."""
    with link_of(caller, server) as link:
        assert by_shop(caller, "http://web/") == PAGE
        assert by_shop(caller, f"http://{server.ipv4}/") == PAGE
    assert not link.contains(PAGE.encode())
    streams = {way: data for way, data in link.streams().items() if WIRE in (way[1], way[3])}
    assert streams and all(data[:2] in TLS_RECORDS for data in streams.values()), streams.keys()
    others = {port for _, a, _, b in link.streams() for port in (a, b)} & {80}
    assert not others, "plain HTTP passed beside the wire"
    svids = [guest.must("hostmesh certs") for guest in (caller, server)]
    assert "shop.service" in svids[0] and "nginx.service" in svids[1], svids
    metric = "hostmesh_requests_total{"
    counted = [line for line in server.must("curl -sS http://127.0.0.1:15020/metrics").splitlines() if metric in line]
    assert any("mesh.test/unit/shop" in line for line in counted), counted
    refused = caller.exec(f"curl -sS --max-time 10 http://{server.ipv4}/")
    assert refused.returncode == COULD_NOT_CONNECT, refused
    steps.seen(
        f"meshed: {sum(map(len, streams.values()))} bytes on port {WIRE}, all TLS records, the page found 0 times;"
    )
    steps.seen("nginx knew its caller as shop.service, and an unmeshed caller was refused at once")


def link_of(caller: Guest, server: Guest) -> AbstractContextManager[Capture]:
    """What passes between the two, without what this script says to them."""
    return capturing("/proc/self/ns/net", BRIDGE, f"tcp and host {caller.ipv4} and host {server.ipv4}")


def closed(steps: Steps, caller: Guest, server: Guest) -> None:
    """The ruleset flushed and no agent to repair it: the guard lets no packet of the unit out; all heals after it."""
    caller.must("systemctl stop hostmeshd && nft flush ruleset")
    with link_of(caller, server) as link:
        in_slice = "systemd-run --quiet --wait --pipe --slice=mesh-shop.slice"
        tried = caller.exec(f"{in_slice} curl -sS --max-time 5 http://{server.ipv4}/")
    assert tried.returncode == TIMED_OUT, f"not the guard's silence: {tried}"
    assert not [packet for packet in link.packets() if packet.dport == 80 or packet.sport == 80]
    caller.must("systemctl start hostmeshd")
    wait_until(lambda: by_shop(caller, "http://web/") == PAGE, "the call is back", MESH_SECONDS, 1.0)
    steps.seen("ruleset flushed, agent stopped: nothing left in plain text; the agent started: the call is back")


def examined(steps: Steps, *guests: Guest) -> None:
    """Nothing of Debian's own set-up is in the way; a machine in which nothing keeps the clock is told so."""
    for guest in guests:
        told = json.loads(guest.must("hostmesh doctor --json"))["findings"]
        assert [one["where"] for one in told if one["code"] != "unit"] == ["clock"], told
    steps.seen("hostmesh doctor finds nothing in the way, but that nothing keeps these machines' clocks")


if __name__ == "__main__":
    sys.exit(main())
