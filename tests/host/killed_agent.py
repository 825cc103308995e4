"""An agent that is killed after each step of its apply: run on a host in the agent's stead, prints one JSON object.

    /opt/hostmesh/bin/python -c CODE TRANSITIONS MOST

TRANSITIONS: JSON, [name, before, after] each; before and after are texts of policies by file name, or null for a host
that is to have nothing of hostmesh. Every life of the agent is a forked process with the real doors; the steps at which
it is killed (SIGKILL, from the executor's own report) are those that the executor lists, at most MOST of a kind over
all. Told of each transition: the kinds of the steps after which it was killed, and where the next life ended at another
state than an agent that was not killed.
"""

import asyncio
import collections
import json
import os
import re
import signal
import subprocess
import sys
import traceback
from pathlib import Path

import pyroute2  # noqa: F401  loaded once, not in every life

from hostmesh.agent.loop import Loop
from hostmesh.agent.main import make_parts, read_settings
from hostmesh.apply.executor import apply
from hostmesh.plan.compile import empty_plan
from hostmesh.plan.diff import diff
from hostmesh.plan.footprint import SYSCTLS
from hostmesh.policy.hostfile import PLACE

POLICIES = Path("/etc/hostmesh/policies")
LOOKS = (
    "nft list ruleset",
    "ip -4 rule; ip -6 rule; ip -4 route show table all proto 73; ip -6 route show table all proto 73",
    f"sysctl {' '.join(SYSCTLS)}",
    "systemctl list-units --plain --no-legend --state=active 'mesh*.slice' | cut -d' ' -f1",
    "find /etc/systemd /var/lib/hostmesh /etc/hostmesh -type f | sort",
    "tail -n +1 /etc/systemd/system/*.d/50-hostmesh.conf /var/lib/hostmesh/numbers.json 2>/dev/null",
    "systemctl show -P NeedDaemonReload web.service mail.service",
)
Policies = dict[str, str] | None


async def live(wanted: Policies, told: int, last: int | None) -> None:
    """One run of the agent. Kinds and names of its steps are told as they are done; it dies after the ``last``."""
    parts = make_parts(read_settings(Path(PLACE)))
    loop = Loop(parts)
    work = [asyncio.create_task(task) for task in (parts.units.run(), parts.proxy.run())]
    await asyncio.gather(parts.units.connected.wait(), parts.proxy.first.wait())
    loop.load()
    parts.policies.refresh()
    empty = empty_plan()
    there = await parts.host.observed(empty, None)
    changes = diff(empty, there) if wanted is None else await loop.preview({})
    kinds = {change.name: type(change).__name__ for change in changes}
    done = 0

    def report(name: str) -> None:
        nonlocal done
        done += 1
        os.write(told, f"{json.dumps([kinds[name], name])}\n".encode())
        if done == last:
            os.kill(os.getpid(), signal.SIGKILL)

    if wanted is None:
        await apply(changes, parts.doors, report)
    else:
        await loop.reconcile(report)
    status = await parts.proxy.status()
    os.write(told, f"{json.dumps(status.revision)}\n".encode())
    for task in work:
        task.cancel()


def life(wanted: Policies, last: int | None = None) -> tuple[list[list[str]], str]:
    """A process that lives once: the steps that it did, and the revision that the proxy has then (empty if killed)."""
    for file in POLICIES.glob("*.toml"):
        file.unlink()
    for name, text in (wanted or {}).items():
        (POLICIES / name).write_text(text)
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            asyncio.run(live(wanted, write, last))
        except BaseException:  # noqa: BLE001 (nobody above; the exit status tells)
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        told = [json.loads(line) for line in pipe]
    _, status = os.waitpid(pid, 0)
    if last is not None:
        assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL, f"not killed at step {last}: {told}"
        return told, ""
    assert status == 0, f"the agent ended with {status}: {told}"
    return told[:-1], told[-1]


def settle(wanted: Policies) -> None:
    """The state before a transition, by agents that live."""
    if wanted is None:
        life({})
    life(wanted)
    left, _ = life(wanted)
    assert not left, f"a second run still had to do {left}"


def state() -> list[str]:
    """All that an agent is answerable for, as others see it; but for what packets counted."""
    seen = [subprocess.run(["sh", "-c", look], stdout=subprocess.PIPE, check=False, text=True).stdout for look in LOOKS]
    seen[0] = re.sub(r"counter packets \d+ bytes \d+|elements = \{|[,}]$", "", seen[0], flags=re.MULTILINE)
    seen[0] = "\n".join(sorted(line.strip() for line in seen[0].splitlines()))
    return seen


def transition(before: Policies, after: Policies, most: int, kills: collections.Counter[str]) -> dict[str, object]:
    """The kinds of steps after which it was killed, and what differed after which."""
    settle(before)
    steps, revision = life(after)
    wanted = [*state(), revision]
    differ, kinds = {}, []
    for last, (kind, name) in enumerate(steps, 1):
        if kills[kind] >= most:
            continue
        kills[kind] += 1
        kinds.append(kind)
        settle(before)
        killed, _ = life(after, last)
        assert killed == steps[:last]
        _, revision = life(after)
        there = [*state(), revision]
        left, _ = life(after)
        if there != wanted or left:
            differ[name] = [left, *(pair for pair in zip(wanted, there, strict=True) if pair[0] != pair[1])]
    return {"kinds": kinds, "differ": differ}


def main() -> None:
    """All transitions."""
    most, kills = int(sys.argv[2]), collections.Counter[str]()
    transitions = json.loads(sys.argv[1])
    print(json.dumps({name: transition(before, after, most, kills) for name, before, after in transitions}))


main()
