"""Turns the agent's state into answers on its socket, and into metrics. Looks only; changes are asked of the loop."""

import asyncio
import time
from importlib.metadata import version

from hostmesh.agent.loop import Loop
from hostmesh.agent.reports import rule_of
from hostmesh.agent.taps import Looker
from hostmesh.errors import Diagnostic, HostmeshError, PolicyError
from hostmesh.observe.metrics import Observed
from hostmesh.observe.totals import open_breakers, unit_counts
from hostmesh.observe.units import UnitState
from hostmesh.plan import redirect
from hostmesh.plan.diff import Change, ChangeRuleset, SendSnapshot, WriteFile
from hostmesh.plan.redirect_sets import COUNTERS
from hostmesh.policy.model import Mode, Policy
from hostmesh.wire import agent_control as wire
from hostmesh.wire.snapshot import Snapshot

_PROXY_SECONDS = 1.0
VERSION = version("hostmesh")
_PREFIXES = (  # in order of COUNTERS
    redirect.PREFIX_LISTENER,
    redirect.PREFIX_PLAINTEXT,
    redirect.PREFIX_OUTBOUND,
    redirect.PREFIX_SOURCE,
)


class Answers:
    """The answers of `agent/control.py`'s questions."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._started = int(time.time())

    async def status(self, number: int) -> wire.Status:
        """What is in force on this host, and what is wrong with it."""
        loop = self._loop
        silent = await self._ask_proxy()
        return wire.Status(
            id=number,
            version=VERSION,
            host=loop.facts.host if loop.facts else loop.parts.settings.host,
            trust_domain=loop.parts.settings.trust_domain,
            started=self._started,
            revision=loop.revision,
            applied=loop.applied,
            findings=[_finding(found) for found in loop.parts.policies.findings],
            failures=list(loop.failures),
            notes=self._notes() + silent,
            controller=self._controller(),
            proxy=self._proxy(),
            units=[self._unit(policy) for policy in loop.parts.policies.policies],
        )

    def plan(self, number: int) -> wire.PlanInForce | wire.Refused:
        """The compiled plan in force."""
        plan = self._loop.plan
        if plan is None or plan.snapshot is None or plan.table is None:
            return wire.Refused(number, "no plan is in force yet: hostmesh status tells why")
        return wire.PlanInForce(number, plan.snapshot, plan.table.render())

    async def diff(self, number: int, policies: dict[str, str]) -> wire.Diff:
        """What would change if these policies were on disk too; with none: what the next run would do."""
        try:
            changes = await self._loop.preview(policies)
        except PolicyError as error:
            return wire.Diff(number, [_finding(found) for found in error.diagnostics], [])
        in_force = self._loop.plan.snapshot if self._loop.plan else None
        return wire.Diff(number, [], [(change.name, _text(change, in_force)) for change in changes])

    async def reconcile(self, number: int) -> wire.Done | wire.Refused:
        """Run the loop now, and try again for identities that could not be had."""
        began = time.monotonic()
        self._loop.parts.identities.look()
        done = await self._loop.run_now("asked")
        if self._loop.parts.policies.findings:
            return wire.Refused(number, "\n".join(map(str, self._loop.parts.policies.findings)))
        if self._loop.failures:
            return wire.Refused(number, "\n".join(self._loop.failures))
        return wire.Done(number, done, int((time.monotonic() - began) * 1e6))

    async def counts(self, number: int) -> wire.Counts:
        """What was counted until now, by unit."""
        parts = self._loop.parts
        stats = await parts.proxy.stats()
        units = {policy.unit.full: 0 for policy in parts.policies.policies}
        units |= {unit: svid.not_after for unit, svid in parts.identities.svids.items()}
        return wire.Counts(
            id=number,
            at=time.monotonic(),
            connections=stats.gauges.get("connections", 0),
            breakers=open_breakers(stats),
            bounds_us=stats.bounds_us,
            units=unit_counts(stats, units),
        )

    async def tap(self, request: wire.Tap) -> Looker:
        """Somebody looks at units from now on."""
        known = {policy.unit.full for policy in self._loop.parts.policies.policies}
        for unit in request.units:
            if unit not in known:
                raise HostmeshError(f"{unit} has no policy on this host", "hostmesh status lists the units that have")
        return await self._loop.parts.taps.open(request)

    async def metrics(self) -> Observed:
        """Everything that `/metrics` shows."""
        parts = self._loop.parts
        stats = await parts.proxy.stats() if parts.proxy.connected else None
        return Observed(
            version=VERSION,
            stats=stats,
            kernel=self._kernel(),
            key_sets=parts.token_keys.ages(),
            svids={unit: svid.not_after for unit, svid in parts.identities.svids.items()},
            agent={
                "policy_errors": len(parts.policies.findings),
                "apply_failures": len(self._loop.failures),
                "units": len(parts.policies.policies),
                "units_outside": len(self._loop.outside()),
                "controller_connected": int(parts.mesh.connected),
                "proxy_connected": int(parts.proxy.connected),
                "plan_applied_seconds": self._loop.applied,
                "catalog_revision": parts.mesh.catalog.revision,
                "reconcile_seconds": self._loop.last_seconds,
                "host_svid_expiry_seconds": parts.mesh.identity_ends,
                "taps": parts.taps.lookers,
            },
            counters={
                "reconciles": self._loop.runs,
                "journal_lost": parts.reports.lost,
                "journal_suppressed": parts.reports.limit.total_suppressed,
                "nflog_lost": self._loop.nflog_lost(),
                "events_dropped": parts.reports.dropped,
                "tap_records": parts.taps.records,
            },
        )

    def _kernel(self) -> dict[tuple[str, str], int]:
        units, refused = self._loop.units_by_number(), {}
        counters = self._loop.parts.firewall.counters(COUNTERS)
        for counter, prefix in zip(COUNTERS, _PREFIXES, strict=True):
            for number, packets in counters.get(counter, {}).items():
                unit, file = units.get(number, ("", ""))
                refused[unit, rule_of(prefix, file)] = packets
        return refused

    async def _ask_proxy(self) -> list[str]:
        """Have the proxy's last word be of now. A note when it is silent: the word of before stands then."""
        proxy = self._loop.parts.proxy
        if not proxy.connected:
            return []
        try:
            await asyncio.wait_for(proxy.status(), _PROXY_SECONDS)
        except TimeoutError:
            return ["the proxy does not answer: hung or stopped; its watchdog restarts it within half a minute"]
        except HostmeshError as error:
            return [f"the proxy does not answer: {error}"]
        return []

    def _notes(self) -> list[str]:
        parts = self._loop.parts
        notes = [f"NOT MESHED: {unit} runs without its policy: {why}" for unit, why in self._loop.outside().items()]
        if not parts.mesh.joined:
            notes.append("this host has not joined a mesh: only traffic within this host works (hostmesh join TOKEN)")
        audited = [policy.unit.full for policy in parts.policies.policies if policy.mode is Mode.AUDIT]
        if audited:
            notes.append(f"nothing is enforced yet for {', '.join(audited)} (audit): hostmesh enforce UNIT")
        notes += parts.token_keys.notes()
        notes += [f"proxy: {trouble}" for trouble in (parts.proxy.last.troubles if parts.proxy.last else [])]
        notes += [f"controller: {parts.mesh.trouble}"] if parts.mesh.connected and parts.mesh.trouble else []
        for service, files in parts.mesh.catalog.conflicts.items():
            notes.append(f"[traffic] of {service}: {files[0]} is in force, {', '.join(files[1:])} say otherwise")
        notes += [f"NOT IN FORCE: the routes of {unit}: {why}" for unit, why in parts.mesh.unrouted.items()]
        return notes

    def _controller(self) -> wire.ControllerLink:
        mesh = self._loop.parts.mesh
        return wire.ControllerLink(
            joined=mesh.joined,
            connected=mesh.connected,
            controllers=list(self._loop.parts.settings.controllers),
            catalog_revision=mesh.catalog.revision,
            host_svid_not_after=mesh.identity_ends,
            error="" if mesh.connected else mesh.why_not,
        )

    def _proxy(self) -> wire.ProxyLink:
        proxy = self._loop.parts.proxy
        last = proxy.last
        return wire.ProxyLink(
            connected=proxy.connected,
            version=last.version if last else "",
            revision=proxy.revision or "",
            connections=last.connections if last else 0,
            error="" if proxy.connected else proxy.error,
            retired=last.retired if last else [],
        )

    def _unit(self, policy: Policy) -> wire.UnitStatus:
        parts, facts = self._loop.parts, self._loop.facts
        unit, name = policy.unit, policy.unit.full
        state = parts.units.states.get(unit, UnitState())
        known = facts.units.get(unit) if facts else None
        seen = {port for _, port in known.listens} if known else set()
        return wire.UnitStatus(
            unit=name,
            file=policy.place.file,
            state=state.active_state,
            mode=policy.mode.value,
            door="cgroup",
            service=policy.service,
            number=facts.numbers.get(unit, 0) if facts else 0,
            ports=[wire.UnitPort(p.number, p.protocol.value, p.number in seen) for p in policy.ports],
            in_slice=state.is_in_slice(unit),
            published=name in parts.mesh.published,
            refused=parts.mesh.refused.get(name) or parts.identities.reason(name),
            svid=parts.identities.svids.get(name),
            suggestions=parts.reports.callers.of(name) if policy.mode is Mode.AUDIT else [],
            outside=state.outside(unit),
        )


def _finding(found: Diagnostic) -> wire.Finding:
    place = found.place
    return wire.Finding(found.code, place.file, place.line, place.column, found.message, found.hint)


def _text(change: Change, before: Snapshot | None) -> str:
    match change:
        case WriteFile(_, text) | ChangeRuleset(_, text):
            return text
        case SendSnapshot(snapshot):
            return "\n".join(snapshot_changes(before, snapshot))
        case _:
            return ""


def snapshot_changes(before: Snapshot | None, after: Snapshot) -> list[str]:
    """What is new (+), gone (-) or other (~) in a snapshot: units, services, the trust bundle, what is revoked."""
    lines = []
    old_units = {unit.unit: unit for unit in before.units} if before else {}
    old_services = {service.name: service for service in before.services} if before else {}
    new_units = {unit.unit: unit for unit in after.units}
    new_services = {service.name: service for service in after.services}
    for kind, old, new in (("unit", old_units, new_units), ("service", old_services, new_services)):
        for name in sorted(old.keys() | new.keys()):
            if old.get(name) != new.get(name):
                sign = "+" if name not in old else "-" if name not in new else "~"
                lines.append(f"{sign} {kind} {name}")
    if before and before.trust_bundle != after.trust_bundle:
        lines.append("~ trust bundle")
    if before and before.revoked != after.revoked:
        lines.append("~ revoked")
    if before and (before.traces, before.propagate) != (after.traces, after.propagate):
        lines.append("~ traces")
    return lines
