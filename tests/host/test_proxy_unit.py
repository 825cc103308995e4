"""The proxy under the unit that is shipped, on a real systemd: one capability, and a crash that costs nothing."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import pytest

from hostmesh.apply.proxy import ProxyClient, ProxyGone
from hostmesh.wire.proxy_control import Status
from tests.host.proxy_process import binary
from tests.host.test_proxy import NAME, authority, made, sign
from tests.lab.host import Host
from tests.lab.lab import Lab
from tests.lab.waiting import wait_until

pytestmark = pytest.mark.lab
UNIT = "hostmesh-proxy.service"
UNITS = Path(__file__).parents[2] / "units"
CAP_NET_RAW = 1 << 13
T = TypeVar("T")


def talk(host: Host, say: Callable[[ProxyClient], Awaitable[T]]) -> T:
    async def go() -> T:
        client = ProxyClient(f"{host.root}/run/hostmesh-proxy/control.sock", lambda _: None)
        await client.connect()
        try:
            return await say(client)
        finally:
            await client.close()

    return asyncio.run(go())


def started(host: Host) -> None:
    """Unit, user and program are put where the package puts them."""
    for name, folder in ((UNIT, "systemd/system"), ("sysusers.conf", "sysusers.d")):
        host.write(f"/usr/local/lib/{folder}/{name}", (UNITS / name).read_text())
    host.write("/usr/local/bin/hostmesh-proxy", "", mode=0o755)
    (host.root / "usr/local/bin/hostmesh-proxy").write_bytes(binary().read_bytes())
    host.exec(["systemd-sysusers", "/usr/local/lib/sysusers.d/sysusers.conf"]).must()
    host.systemctl("daemon-reload")
    host.systemctl("start", UNIT)


def shown(host: Host, name: str) -> str:
    return host.exec(["systemctl", "show", "--value", f"--property={name}", UNIT]).must().stdout.strip()


def status_or_none(host: Host) -> Status | None:
    try:
        return talk(host, ProxyClient.status)
    except ProxyGone:
        return None


def test_its_sandbox_and_its_way_back_from_kill_9(fresh_lab: Lab) -> None:
    host, ca = fresh_lab["h1"], authority()
    started(host)
    _, snapshot = made(ca)

    async def enrol(agent: ProxyClient) -> Status:
        await agent.set_snapshot(snapshot)
        await agent.set_svid(NAME, sign(ca, await agent.csr(NAME)))
        return await agent.status()

    before = talk(host, enrol)
    assert [svid.unit for svid in before.svids] == [NAME]
    lines = (line.split(":", 1) for line in host.read(f"/proc/{host.main_pid(UNIT)}/status").splitlines())
    process = {key: value.strip() for key, value in lines}
    assert {int(process[kind], 16) for kind in ("CapEff", "CapPrm", "CapBnd", "CapAmb")} == {CAP_NET_RAW}
    assert (process["NoNewPrivs"], process["Seccomp"]) == ("1", "2")
    assert process["Uid"].split()[0] == host.exec(["id", "-u", "hostmesh-proxy"]).must().stdout.strip() != "0"

    began = time.monotonic()
    host.systemctl("kill", "--signal=SIGKILL", UNIT)
    after = wait_until(lambda: (now := status_or_none(host)) and now.svids and now, "the same identities", timeout=5)
    assert time.monotonic() - began < 2
    assert (after.svids, after.revision) == (before.svids, before.revision)
    assert (shown(host, "NRestarts"), shown(host, "Result")) == ("1", "success")

    host.systemctl("stop", UNIT)
    assert shown(host, "Result") == "success"
    assert host.failed_units() == []
