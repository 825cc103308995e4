"""Turns settings into a running agent: makes the parts, starts their tasks, tells systemd. `hostmeshd`.

Stopping, restarting or killing it touches nothing of what is in force.
"""

import argparse
import asyncio
import logging
import signal
import sys
import time
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path

from hostmesh.agent.answers import Answers
from hostmesh.agent.collector import CollectorWatch
from hostmesh.agent.control import ControlSocket
from hostmesh.agent.identities import Identities
from hostmesh.agent.loop import Loop, Parts
from hostmesh.agent.mesh import Mesh
from hostmesh.agent.numbers import Numbers
from hostmesh.agent.policies import PolicyFolder
from hostmesh.agent.proxy_link import ProxyLink
from hostmesh.agent.reports import Reports
from hostmesh.agent.taps import Taps
from hostmesh.agent.token_keys import TokenKeys
from hostmesh.agent.wakeups import Wakeups
from hostmesh.agent.watches import Watches
from hostmesh.apply import limits
from hostmesh.apply.cgroups import Cgroups
from hostmesh.apply.executor import Doors
from hostmesh.apply.files import Files
from hostmesh.apply.netlink import Netlink
from hostmesh.apply.nft import Nft
from hostmesh.apply.notify import Notifier
from hostmesh.apply.stderr import StderrHandler
from hostmesh.apply.sysctl import Sysctls
from hostmesh.apply.systemd import Systemd
from hostmesh.errors import HostmeshError, PolicyError
from hostmesh.observe import metrics, written
from hostmesh.observe.host import HostObserver
from hostmesh.observe.journal import Journal
from hostmesh.observe.units import UnitFollower
from hostmesh.policy.hostfile import PLACE
from hostmesh.policy.settings import Settings
from hostmesh.wire.proxy_control import Events, Tapped, Unasked

log = logging.getLogger(__name__)

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
EX_CONFIG = 78
_SCRAPE_SECONDS = 8.0
_START_SECONDS = 1.0
_WATCHDOG_SECONDS = 10.0
_STUCK_SECONDS = 120.0  # longer than a job of systemd may take (`apply/systemd.py`)


def main() -> int:
    """The agent's command line. EX_CONFIG (sysexits.h) tells systemd that starting again won't help."""
    parser = argparse.ArgumentParser(prog="hostmeshd", description="The agent of a host.")
    parser.add_argument("--settings", type=Path, default=Path(PLACE), metavar="PATH", help="default: %(default)s")
    file: Path = parser.parse_args().settings
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[StderrHandler()])
    notifier = Notifier()
    try:
        limits.check("hostmeshd.service")
        settings = read_settings(file)
        while following := asyncio.run(Agent(settings, file, notifier).run()):
            settings = following
    except PolicyError as error:
        print(f"<3>hostmeshd: {error}\n    mend it, then: systemctl restart hostmeshd", file=sys.stderr)
        return EX_CONFIG
    except limits.TooLittle as error:
        log.error("hostmeshd: %s", error)
        return EX_CONFIG
    except (HostmeshError, OSError) as error:
        print(f"<3>hostmeshd: {error}", file=sys.stderr)
        return 1
    return 0


def read_settings(file: Path) -> Settings:
    """The settings in the file, and this host's name where they give none. Raises PolicyError with all findings."""
    settings = written.settings(file)
    return replace(settings, host=written.host_name(settings))


class Agent:
    """One life of the agent, from settings to stop or to other settings."""

    def __init__(self, settings: Settings, file: Path, notifier: Notifier) -> None:
        self._settings, self._file, self._notifier = settings, file, notifier
        self._following: Settings | None = None
        self._ended = asyncio.Event()
        self._parts = make_parts(settings)
        self._loop = Loop(self._parts)

    async def run(self) -> Settings | None:
        """Run until told to stop (None) or until there are other settings (those)."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._ended.set)
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        self._loop.load()  # before anybody listens: what is heard is newer
        answers = Answers(self._loop)
        close_metrics = self._serve_metrics(answers, loop)
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(work) for work in self._work(answers)]
                await self._ended.wait()
                if not self._following:
                    self._notifier.stopping()
                for task in tasks:
                    task.cancel()
        finally:
            await asyncio.to_thread(close_metrics)
            await self._parts.systemd.close()
            self._parts.journal.close()
        return self._following

    def _work(self, answers: Answers) -> list[Coroutine[None, None, None]]:
        parts = self._parts
        watches = Watches(
            self._settings,
            settings_file=self._file,
            wakeups=parts.wakeups,
            touched=parts.touched,
            reports=parts.reports,
            units=self._loop.units_by_number,
            settings_changed=self._reload,
        )
        self._loop.nflog_lost = lambda: watches.nflog_lost
        self._loop.ran = lambda: self._notifier.status(_one_line(self._loop))
        return [
            parts.units.run(),
            parts.proxy.run(),
            parts.mesh.run(),
            parts.identities.run(),
            parts.token_keys.run(),
            parts.taps.run(),
            parts.collector.run(),
            watches.run(),
            ControlSocket(self._settings.paths.agent_socket, answers).run(),
            self._reconcile(),
            self._loop.mend(),
            self._watchdog(),
        ]

    async def _reconcile(self) -> None:
        """READY says: what was asked for when we started is in force, or it is told why not."""
        parts = self._parts
        started = (parts.units.connected.wait(), parts.proxy.first.wait(), parts.collector.first.wait())
        waiting = [asyncio.ensure_future(event) for event in started]
        await asyncio.wait(waiting, timeout=_START_SECONDS)
        for task in waiting:
            task.cancel()
        await self._loop.run_now("started")
        self._notifier.ready()
        await self._loop.run()

    async def _watchdog(self) -> None:
        every = self._notifier.watchdog_seconds / 3
        while True:
            busy = self._loop.busy_since
            if busy is None or time.monotonic() - busy < _STUCK_SECONDS:
                self._notifier.watchdog()
            await asyncio.sleep(every or _WATCHDOG_SECONDS)

    def _reload(self) -> None:
        self._notifier.reloading()
        try:
            settings = read_settings(self._file)
        except (HostmeshError, OSError) as error:
            self._parts.reports.warning(f"settings refused, those of before stay: {error}")
        else:
            if settings != self._settings:
                self._following = settings
                self._ended.set()
                return
        self._parts.wakeups.request("reload", 0.0)
        self._notifier.ready()

    def _serve_metrics(self, answers: Answers, loop: asyncio.AbstractEventLoop) -> Callable[[], None]:
        def source() -> metrics.Observed:
            return asyncio.run_coroutine_threadsafe(answers.metrics(), loop).result(_SCRAPE_SECONDS)

        try:
            return metrics.serve(source, self._settings.metrics_address, self._settings.ports.metrics)
        except OSError as error:
            where = f"{self._settings.metrics_address}:{self._settings.ports.metrics}"
            self._parts.reports.state(f"metrics on {where}", str(error))
            return lambda: None


def make_parts(settings: Settings) -> Parts:
    """The parts of an agent, wired; nothing runs yet."""
    wakeups, journal, state = Wakeups(), Journal(), Path(settings.paths.state)
    reports = Reports(journal)
    firewall, systemd, files = Nft(), Systemd(), Files()
    sysctls_file = str(state / "sysctls.json")
    sysctls = Sysctls(lambda: files.read(sysctls_file), lambda text: files.write(sysctls_file, text))
    netlink = Netlink()

    def about_proxy() -> None:
        wakeups.request("proxy", 0.0)
        identities.look()
        taps.renew()

    def about_mesh(what: str) -> None:
        wakeups.request(what, 0.0)  # while a run is under way, the next words of the controller gather by themselves
        identities.look()

    def unasked(batch: Unasked) -> None:
        match batch:
            case Events():
                token_keys.events(batch)
                reports.events(batch)
            case Tapped():
                taps.tapped(batch)

    proxy = ProxyLink(settings.paths.proxy_socket, about_proxy, unasked)
    taps = Taps(proxy, reports)
    mesh = Mesh(settings, reports, about_mesh)
    token_keys = TokenKeys(state / "jwks", files, reports, lambda: wakeups.request("token keys", 0.0))
    identities = Identities(proxy, mesh, reports, lambda: wakeups.request("identities"))
    return Parts(
        settings=settings,
        policies=PolicyFolder(Path(settings.paths.policies)),
        numbers=Numbers(state / "numbers.json", _BOOT_ID.read_text().strip()),
        units=UnitFollower(lambda unit: wakeups.request(unit.full, 0.0)),
        host=HostObserver(
            settings,
            nft=firewall,
            netlink=netlink,
            sysctls=sysctls,
            systemd=systemd,
            files=files,
            cgroups=Cgroups(),
        ),
        doors=Doors(firewall, netlink, sysctls, systemd, files, proxy),
        firewall=firewall,
        systemd=systemd,
        journal=journal,
        proxy=proxy,
        mesh=mesh,
        identities=identities,
        token_keys=token_keys,
        reports=reports,
        taps=taps,
        collector=CollectorWatch(settings.traces, reports, lambda: wakeups.request("collector", 0.0)),
        wakeups=wakeups,
        touched=Wakeups(),
    )


def _one_line(loop: Loop) -> str:
    parts = loop.parts
    said = [f"{len(parts.policies.policies)} units", f"plan {loop.revision[:12] or 'none'}"]
    said.append("proxy connected" if parts.proxy.connected else "proxy away")
    said.append("controller connected" if parts.mesh.connected else "controller away")
    if parts.policies.findings:
        said.append(f"{len(parts.policies.findings)} policy errors: the plan of before is in force")
    said += [f"failed: {failure}" for failure in loop.failures]
    return "; ".join(said)


if __name__ == "__main__":
    sys.exit(main())
