"""Judges requests that the journal has by policies that are not in force yet: what would be otherwise?"""

import argparse
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, timedelta
from pathlib import Path

from hostmesh.cli import host, show
from hostmesh.cli.replay_report import Report
from hostmesh.errors import HostmeshError
from hostmesh.names import UnitName
from hostmesh.observe.journal_reading import Entry, entries
from hostmesh.observe.recorded import recorded
from hostmesh.plan.facts import HostFacts
from hostmesh.plan.snapshot import snapshot, traffic_of
from hostmesh.policy.hindsight import NewPolicies, judge
from hostmesh.policy.model import AccessLog, Policy
from hostmesh.policy.settings import Settings
from hostmesh.policy.validate import load

_AGENT = ("_SYSTEMD_UNIT", "hostmeshd.service")
_AGO = re.compile(r"([0-9]+)(m|h|d)")
_MINUTES = {"m": 1, "h": 60, "d": 24 * 60}
_PROGRESS = 10_000


def configure(parser: argparse.ArgumentParser) -> None:
    """`hostmesh replay --policy NEW [--since WHEN] [--unit UNIT]`."""
    parser.add_argument(
        "--policy", action="append", required=True, type=Path, metavar="NEW", help="a policy file, or a folder of them"
    )
    when = "yesterday (default), today, 90m, 12h, 7d, 2026-11-25, '2026-11-25 08:00'"
    parser.add_argument("--since", default="yesterday", metavar="WHEN", help=when)
    parser.add_argument(
        "--unit", action="append", default=[], metavar="UNIT", help="only its requests; may be repeated"
    )
    show.add_json(parser)
    parser.set_defaults(do=replay)


def replay(arguments: argparse.Namespace) -> int:
    """Exit code 1 when something would be otherwise, as `diff` has it for what would be refused."""
    known = host.settings()
    new = load(host.policy_texts(arguments.policy))
    in_force = load(host.policy_texts([Path(known.paths.policies)]))
    since = moment(arguments.since, datetime.now().astimezone())
    units = {UnitName.parse(unit).full for unit in arguments.unit}
    is_all = {policy.unit.full: policy.observe.access_log is AccessLog.ALL for policy in in_force}
    by = _judged_by(known, new, in_force)
    report, seen = Report(since), False
    matches = [_AGENT, *(("HOSTMESH_UNIT", unit) for unit in sorted(units))]
    for entry in _with_progress(entries(matches, int(since.timestamp() * 1e6))):
        seen, unit = True, entry.get("HOSTMESH_UNIT", "")
        report.suppressed(unit, int(entry.get("HOSTMESH_SUPPRESSED", "0")))
        request = recorded(entry, is_all=is_all.get(unit, False))
        outcome = judge(request, by) if request else None
        if request and outcome:
            report.add(request, outcome)
    if not seen and os.geteuid() != 0:
        told = "no line of hostmeshd is there for this user, who may not read the journal"
        raise HostmeshError(told, "as root, or in the group systemd-journal")
    report.silent = {unit: told for unit, told in _silent(new, in_force).items() if not units or unit in units}
    if arguments.json:
        show.print_json(report.as_json())
    else:
        print(report.text())
    return 1 if report.is_changed else 0


def _judged_by(known: Settings, new: tuple[Policy, ...], in_force: tuple[Policy, ...]) -> NewPolicies:
    numbers = {policy.unit: index for index, policy in enumerate(new, 1)}
    compiled = snapshot(known, new, HostFacts(host.host_name(known), (), {}, numbers), [], [])
    known_routes: dict[str, frozenset[str]] = {}
    for policy in (*in_force, *new):
        for route in policy.traffic.routes:
            known_routes[route.name] = known_routes.get(route.name, frozenset()) | {policy.service}
    return NewPolicies(
        units={unit.unit: unit for unit in compiled.units},
        routes={policy.service: traffic_of(policy).routes for policy in new if policy.ports},
        known_routes=known_routes,
    )


def _silent(new: Iterable[Policy], in_force: Iterable[Policy]) -> Mapping[str, str]:
    """Units of which not every request has a line, and what it has."""
    logs = {policy.unit.full: policy.observe.access_log for policy in in_force}
    told = {AccessLog.ERRORS: "only denials and failures", AccessLog.NONE: "only denials"}
    return {
        policy.unit.full: f'access_log = "{logs[policy.unit.full].value}": {told[logs[policy.unit.full]]} are recorded'
        if policy.unit.full in logs
        else "no policy of it is in force on this host: nothing of it is recorded"
        for policy in new
        if logs.get(policy.unit.full) is not AccessLog.ALL
    }


def moment(text: str, now: datetime) -> datetime:
    """When that was."""
    today = now.replace(hour=0, minute=0, second=0, microsecond=0)
    if text in ("today", "yesterday"):
        return today - timedelta(days=text == "yesterday")
    if ago := _AGO.fullmatch(text):
        return now - timedelta(minutes=int(ago[1]) * _MINUTES[ago[2]])
    try:
        return datetime.fromisoformat(text).astimezone()
    except ValueError as error:
        raise HostmeshError(f"{text!r} is no time", "yesterday, today, 12h, 2026-11-25, '2026-11-25 08:00'") from error


def _with_progress(found: Iterator[Entry]) -> Iterator[Entry]:
    """Told to a person who waits: how many lines were read."""
    count = 0
    for count, entry in enumerate(found, 1):
        if count % _PROGRESS == 0 and sys.stderr.isatty():
            print(f"\r{count:,} lines read", end="", file=sys.stderr, flush=True)
        yield entry
    if count >= _PROGRESS and sys.stderr.isatty():
        print("\r", end="", file=sys.stderr)
