"""Turns the agent's answer into what a person wants to know: who is meshed, what is enforced, what is wrong."""

import argparse

from hostmesh.cli import drafts, host, show
from hostmesh.cli.agent_link import ask
from hostmesh.names import UnitName
from hostmesh.wire.agent_control import Finding, GetPlan, GetStatus, PlanInForce, Status, UnitStatus


def configure(parser: argparse.ArgumentParser) -> None:
    """`hostmesh status [UNIT] [--suggest]`."""
    parser.add_argument("unit", nargs="?", metavar="UNIT", help="only this one, with all that is known of it")
    parser.add_argument(
        "--suggest", action="store_true", help="print rules for the callers seen in audit mode, as TOML"
    )
    show.add_json(parser)
    parser.set_defaults(do=status)


def status(arguments: argparse.Namespace) -> int:
    """Exit code 1 when no agent answers."""
    answer = ask(host.settings(), GetStatus(1), Status)
    if arguments.json:
        show.print_json(answer)
        return 0
    name = UnitName.parse(arguments.unit).full if arguments.unit else ""
    units = [unit for unit in answer.units if not name or unit.unit == name]
    if name and not units:
        print(f"{name} has no policy in force: hostmesh enable {name}")
        return 1
    if arguments.suggest:
        own = ask(host.settings(), GetPlan(2), PlanInForce).snapshot.addresses
        rules = [(unit.file, drafts.suggested_rules(unit.suggestions, own)) for unit in units if unit.suggestions]
        print("\n".join(f"# {file}\n\n{text}" for file, text in rules))
        return 0
    print(_head(answer))
    print(_trouble(answer))
    if units:
        head = ("UNIT", "STATE", "MODE", "SERVICE", "PORTS", "MESHED", "IDENTITY UNTIL")
        print(show.table(head, [_row(unit) for unit in units]))
    else:
        print("no unit is meshed: hostmesh enable UNIT")
    for unit in units:
        if unit.refused:
            print(f"\n{unit.unit} is not served by the mesh: {unit.refused}")
        if unit.suggestions:
            print(_seen(unit))
    return 0


def _head(answer: Status) -> str:
    controller, proxy = answer.controller, answer.proxy
    said = "connected" if controller.connected else f"not connected: {controller.error or 'not joined'}"
    lines = [
        f"host        {answer.host}, trust domain {answer.trust_domain}, hostmesh {answer.version}",
        f"plan        {answer.revision[:12] or 'none'}, in force since {show.moment(answer.applied)}",
        f"proxy       {_proxy(answer)}",
        f"controller  {said}" + (f" ({', '.join(controller.controllers)})" if controller.controllers else ""),
    ]
    lines += [
        f"            {old.connections} more in process {old.pid} from before a reload, of {show.moment(old.started)}, "
        f"version {old.version}, {old.memory_bytes >> 20} MB"
        for old in proxy.retired
    ]
    if proxy.connected and proxy.revision != answer.revision:
        lines.append(f"            the proxy still has plan {proxy.revision[:12] or 'none'}")
    return "\n".join(lines)


def _proxy(answer: Status) -> str:
    proxy = answer.proxy
    return f"connected, {proxy.connections} connections" if proxy.connected else f"not connected: {proxy.error}"


def _trouble(answer: Status) -> str:
    lines = [f"POLICY ERRORS: what was in force stays.\n{_finding(found)}" for found in answer.findings]
    lines += [f"NOT APPLIED: {failure}" for failure in answer.failures]
    lines += [f"note: {note}" for note in answer.notes]
    return "\n".join(["", *lines, ""]) if lines else ""


def _finding(found: Finding) -> str:
    hint = f"\n    {found.hint}" if found.hint else ""
    return f"{found.file}:{found.line}:{found.column}: {found.message} [{found.code}]{hint}"


def _row(unit: UnitStatus) -> tuple[str, ...]:
    ports = " ".join(f"{p.port}/{p.protocol}{'' if p.listening else '(nobody listens)'}" for p in unit.ports)
    mode = "AUDIT: nothing is enforced yet" if unit.mode == "audit" else unit.mode
    mode = f"{mode}, NOT IN FORCE" if unit.outside else mode
    until = show.moment(unit.svid.not_after) if unit.svid else "none yet"
    return (unit.unit, unit.state or "not there", mode, unit.service, ports or "-", _meshed(unit), until)


def _meshed(unit: UnitStatus) -> str:
    if unit.in_slice:
        return "yes"
    return "NOT MESHED" if unit.outside else "when it runs"


def _seen(unit: UnitStatus) -> str:
    rows = [
        (one.caller, one.client or "-", str(one.port), " ".join(one.methods) or "-", str(one.count))
        for one in unit.suggestions
    ]
    head = ("  CALLER", "LAST FROM", "PORT", "METHODS", "TIMES")
    body = show.table(head, [(f"  {row[0]}", *row[1:]) for row in rows])
    title = f"\n{unit.unit} let these pass, which no rule allows (hostmesh status --suggest {unit.unit}: as rules):"
    return f"{title}\n{body}"
