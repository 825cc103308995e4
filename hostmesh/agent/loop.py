"""Turns causes into effects, always by the same way: observe, compile, diff, apply, report.

Law: every change of this host, whatever caused it, goes through `Loop.reconcile`; `Loop.mend` puts back what somebody
undid in the kernel. Policies that don't pass, and doors that don't open, leave what is in force in force; stopping the
agent touches nothing.
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from hostmesh.agent.collector import CollectorWatch
from hostmesh.agent.identities import Identities
from hostmesh.agent.mesh import Mesh
from hostmesh.agent.numbers import Numbers
from hostmesh.agent.policies import PolicyFolder
from hostmesh.agent.proxy_link import ProxyLink
from hostmesh.agent.reports import Reports
from hostmesh.agent.services import effective, still_ready, workloads
from hostmesh.agent.taps import Taps
from hostmesh.agent.token_keys import TokenKeys
from hostmesh.agent.wakeups import Wakeups
from hostmesh.apply.executor import Doors, Report, StepFailed, apply
from hostmesh.apply.nft import Nft
from hostmesh.apply.systemd import Systemd
from hostmesh.errors import HostmeshError
from hostmesh.names import UnitName
from hostmesh.observe.host import HostObserver, as_planned
from hostmesh.observe.journal import Journal
from hostmesh.observe.units import UnitFollower
from hostmesh.plan.compile import Plan, compile_plan, units_of
from hostmesh.plan.diff import Change, diff
from hostmesh.plan.facts import HostFacts
from hostmesh.policy.model import Mode, Policy
from hostmesh.policy.settings import Settings
from hostmesh.wire.controller import Workload

EVERY = 30.0
_RETRY_FIRST, _RETRY_MOST = 0.5, 15.0
_LISTENERS_FIRST, _LISTENERS_MOST = 0.05, 5.0


@dataclass(frozen=True, slots=True)
class Parts:
    """What the loop works with: made once, in `agent/main.py`."""

    settings: Settings
    policies: PolicyFolder
    numbers: Numbers
    units: UnitFollower
    host: HostObserver
    doors: Doors
    firewall: Nft
    systemd: Systemd
    journal: Journal
    proxy: ProxyLink
    mesh: Mesh
    identities: Identities
    token_keys: TokenKeys
    reports: Reports
    taps: Taps
    collector: CollectorWatch
    wakeups: Wakeups
    touched: Wakeups
    """Somebody changed something in the kernel, perhaps of ours."""


class Loop:
    """The loop of a host. What it publishes (plan, facts, failures) is of the last run."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.plan: Plan | None = None
        self.facts: HostFacts | None = None
        self.failures: tuple[str, ...] = ()
        self.applied = 0
        self.runs = 0
        self.last_seconds = 0.0
        self.busy_since: float | None = None
        self.nflog_lost: Callable[[], int] = int
        self.ran: Callable[[], None] = lambda: None
        self._callers_file = f"{parts.settings.paths.state}/callers.json"
        self._said: list[Workload] = []
        self._one_at_a_time = asyncio.Lock()
        self._steps = asyncio.Lock()  # who looks at the kernel, and changes it by what he saw
        self._retry, self._rescan = _RETRY_FIRST, _LISTENERS_FIRST

    async def run(self) -> None:
        """Reconcile whenever something asks for it, until cancelled."""
        while True:
            self.parts.wakeups.request("timer", EVERY)
            reasons = await self.parts.wakeups.wait()
            if reasons - {"listeners", "timer", "retry"}:
                self._rescan = _LISTENERS_FIRST
            said = ", ".join(sorted(reasons - {"timer"} or reasons))
            await self.run_now(said)

    async def mend(self) -> None:
        """Put back what is in force whenever somebody touched the kernel, beside a run under way. Until cancelled.

        Packets wait for it, so neither systemd nor anybody else is asked. A run follows where that may not be all.
        """
        while True:
            reasons = await self.parts.touched.wait()
            is_whole = await self._put_back(", ".join(sorted(reasons)))
            if "network" in reasons or not is_whole:
                for reason in reasons:
                    self.parts.wakeups.request(reason, 0.0)

    async def run_now(self, reason: str) -> list[str]:
        """One run; the names of the steps that had an effect. A failure is kept in `failures`, and tried again."""
        async with self._one_at_a_time:
            began = self.busy_since = time.monotonic()
            done: list[str] = []
            try:
                await self.reconcile(done.append)
                self.failures, self._retry = (), _RETRY_FIRST
            except (HostmeshError, OSError) as error:
                self.failures = (str(error),)
                self.parts.wakeups.request("retry", self._retry)
                self._retry = min(self._retry * 2, _RETRY_MOST)
            finally:
                self.busy_since = None
            self.runs += 1
            self.last_seconds = time.monotonic() - began
            self._tell(reason, done)
            self.ran()
            return done

    async def reconcile(self, report: Report) -> None:
        """The table of contents."""
        self.parts.policies.refresh()
        policies = self.parts.policies.policies
        facts = await self._observe(policies, self.parts.numbers.of(units_of(policies)))
        plan = self._compile(policies, facts)
        beside = await self.parts.host.beside_kernel(plan, self.parts.proxy.revision)
        async with self._steps:
            changes = diff(plan, await self.parts.host.in_kernel(beside))
            try:
                await apply(changes, self.parts.doors, report)
            except StepFailed:
                self._withdraw(facts)
                raise
            self._publish(plan, facts)
        await self.parts.units.look(frozenset(self._outside()))  # a drop-in may just have changed what is said of them
        self.parts.reports.outside(self.outside())

    async def _put_back(self, reason: str) -> bool:
        """Is what is in force whole in the kernel? It is made so where it can be."""
        async with self._steps:
            if self.plan is None or self.failures:
                return False
            began, done = time.monotonic(), list[str]()
            try:
                changes = diff(self.plan, await self.parts.host.in_kernel(as_planned(self.plan)))
                await apply(changes, self.parts.doors, done.append)
            except (HostmeshError, OSError) as error:  # a slice is gone too: the run mends it, or tells
                self.parts.reports.info(f"not put back at once ({reason}): {error}")
                return False
            self._tell_done(reason, time.monotonic() - began, done)
            return not changes

    async def preview(self, policies: Mapping[str, str]) -> tuple[Change, ...]:
        """What the loop would do if these files (name to text, empty: removed) were there too. Raises PolicyError."""
        wanted = self.parts.policies.with_changes(policies)
        async with self._one_at_a_time:
            facts = await self._observe(wanted, self.parts.numbers.preview(units_of(wanted)))
            plan = self._compile(wanted, facts)
            return diff(plan, await self.parts.host.observed(plan, self.parts.proxy.revision))

    async def _observe(self, policies: Sequence[Policy], numbers: Mapping[UnitName, int]) -> HostFacts:
        in_force = self.parts.policies.policies
        await self.parts.units.watch(frozenset(units_of(in_force)))
        self.parts.token_keys.want(in_force)
        facts = await self.parts.host.facts(policies, dict(numbers))
        return replace(facts, token_keys=self.parts.token_keys.keys, collector=self.parts.collector.known)

    def _compile(self, policies: Sequence[Policy], facts: HostFacts) -> Plan:
        parts, catalog = self.parts, self.parts.mesh.catalog
        services = effective(parts.settings, catalog, workloads(policies, facts), parts.mesh.refused, facts)
        known = (catalog.trust_bundle, catalog.vip_ranges, catalog.revoked)
        return compile_plan(parts.settings, policies, facts, services, *known)

    def _publish(self, plan: Plan, facts: HostFacts) -> None:
        if plan != self.plan:
            self.applied = int(time.time())
        self.plan, self.facts = plan, facts
        policies = self.parts.policies.policies
        self._said = workloads(policies, facts)
        self.parts.mesh.say(facts.addresses, self._said)
        self.parts.identities.want(plan.snapshot if self.parts.proxy.connected else None)
        enforced = {policy.unit.full for policy in policies if policy.mode is not Mode.AUDIT}
        self.parts.reports.callers.forget(enforced)
        self._save_callers()
        if _waits_for_listeners(policies, facts):
            self.parts.wakeups.request("listeners", self._rescan)
            self._rescan = min(self._rescan * 2, _LISTENERS_MOST)

    def _withdraw(self, facts: HostFacts) -> None:
        """A step failed: what is new waits until it is in force, but what is no longer ready is said at once."""
        if self.facts is not None:
            still = still_ready(self._said, workloads(self.parts.policies.policies, facts))
            self.parts.mesh.say(self.facts.addresses, still)

    def load(self) -> None:
        """Take up what was known before the restart: the controller's last word, callers seen in audit mode.

        Call it before anything runs: it takes the place of what was heard since.
        """
        self.parts.mesh.load()
        text = self.parts.doors.files.read(self._callers_file)
        if text is not None:
            try:
                self.parts.reports.callers.load(text)
            except HostmeshError as error:
                self.parts.reports.warning(str(error))

    def _save_callers(self) -> None:
        callers, reports = self.parts.reports.callers, self.parts.reports
        if not callers.changed:
            return
        try:
            self.parts.doors.files.write(self._callers_file, callers.dump())
        except (HostmeshError, OSError) as error:  # the plan is in force all the same; the next run tries again
            reports.state("callers seen in audit mode are not kept on disk", str(error))
        else:
            callers.changed = False
            reports.state("callers seen in audit mode are not kept on disk", "")

    def _tell(self, reason: str, done: list[str]) -> None:
        reports, findings = self.parts.reports, self.parts.policies.findings
        self._tell_done(reason, self.last_seconds, done)
        reports.state("policies refused, the plan of before stays", "\n".join(map(str, findings)))
        reports.state("apply", "\n".join(self.failures))
        proxy, mesh = self.parts.proxy, self.parts.mesh
        reports.state("proxy", "" if proxy.connected else f"{proxy.error} (systemctl status hostmesh-proxy.service)")
        away = mesh.why_not if mesh.joined and not mesh.connected else ""
        reports.state("controller", away and f"{away}; traffic goes on, renewals and news wait for it")

    def _tell_done(self, reason: str, seconds: float, done: list[str]) -> None:
        if done:
            self.parts.reports.info(f"in force after {seconds * 1000:.0f} ms ({reason}): {'; '.join(done)}")

    def outside(self) -> dict[str, str]:
        """Units with a policy in force that run outside their mesh slice, and why."""
        return {unit.full: why for unit, why in self._outside().items()}

    def _outside(self) -> dict[UnitName, str]:
        states, units = self.parts.units.states, sorted(units_of(self.parts.policies.policies))
        return {unit: why for unit in units if unit in states and (why := states[unit].outside(unit))}

    def units_by_number(self) -> dict[int, tuple[str, str]]:
        """Unit and policy file (empty: it has none any more) by the number that packets carry."""
        files = {policy.unit: policy.place.file for policy in self.parts.policies.policies}
        return {number: (unit.full, files.get(unit, "")) for unit, number in self.parts.numbers.known().items()}

    @property
    def revision(self) -> str:
        """Of the plan in force: the snapshot's."""
        return self.plan.snapshot.revision if self.plan and self.plan.snapshot else ""


def _waits_for_listeners(policies: Sequence[Policy], facts: HostFacts) -> bool:
    """Is there a unit that is ready, and doesn't listen on every port that its policy declares?"""
    for policy in policies:
        known = facts.units.get(policy.unit)
        if known and known.active and {port.number for port in policy.ports} - {port for _, port in known.listens}:
            return True
    return False
