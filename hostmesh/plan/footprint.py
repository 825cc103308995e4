"""Holds everything that hostmesh takes on a host: sysctls, marks, ports, tables; docs/architecture.md repeats it.

Names, marks and ports are those of the settings, so the plan, `hostmesh doctor` and the page cannot differ.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from hostmesh.plan.redirect import FAMILY, TABLE
from hostmesh.plan.routing import PROTOCOL, policy_rules
from hostmesh.policy.settings import Settings

SYSCTLS = {
    "net.ipv4.tcp_fwmark_accept": "1",
    "net.ipv4.fwmark_reflect": "1",
    "net.ipv6.fwmark_reflect": "1",
}
"""What an accepted socket's mark, and the way back of a reset, need (kernel: Documentation/networking/ip-sysctl)."""


@dataclass(frozen=True, slots=True)
class Port:
    """A port that one of our processes binds. purpose: what for; name: its key in ``[ports]``."""

    number: int
    protocol: str
    process: str
    name: str
    purpose: str


@dataclass(frozen=True, slots=True)
class Flag:
    """A bit of the packet mark, or the bits of the unit's number. name: its key in ``[marks]``."""

    bits: int
    name: str
    purpose: str


def ports(settings: Settings) -> tuple[Port, ...]:
    """All ports of a host that has a controller too."""
    taken, proxy, controller = settings.ports, "hostmesh-proxy", "hostmesh-controller"
    return (
        Port(taken.outbound, "tcp", proxy, "outbound", "meshed units' connections"),
        Port(taken.plaintext, "tcp", proxy, "plaintext", "plain text in, from callers that policy names"),
        Port(taken.wire, "tcp", proxy, "wire", "mTLS between hosts (HBONE)"),
        Port(taken.dns, "udp", proxy, "dns", "meshed units' DNS queries"),
        Port(taken.metrics, "tcp", "hostmeshd", "metrics", f"`/metrics`, on {settings.metrics_address}"),
        Port(taken.controller, "tcp", controller, "controller", "agents, by mTLS"),
        Port(taken.enrolment, "tcp", controller, "enrolment", "hosts that join"),
    )


def flags(settings: Settings) -> tuple[Flag, ...]:
    """All bits of the packet mark that are ours."""
    marks = settings.marks
    return (
        Flag(marks.unit, "unit", f"which unit; 1..{marks.unit}, none used twice within a boot"),
        Flag(marks.outbound, "outbound", "a meshed unit's packet on its way to the proxy"),
        Flag(marks.proxy, "proxy", "the proxy's own sockets to the network: never intercepted"),
        Flag(marks.inbound, "inbound", "the proxy's sockets to an application, and the answers"),
        Flag(marks.allowed, "allowed", "what the ruleset lets past the guard besides TCP"),
        Flag(marks.delivered, "delivered", "with the inbound bit: an application's answers, told from what it is sent"),
    )


def footprint(settings: Settings, vip_ranges: Sequence[str]) -> str:
    """The table of the page, as Markdown. vip_ranges: of the controller."""
    rules = " and ".join(
        f"{rule.preference} `fwmark {rule.mark:#010x}/{rule.mark:#010x}`"
        for rule in policy_rules(settings)
        if rule.version == 4
    )
    table = settings.route_table
    rows = [
        ("nftables", f"`table {FAMILY} {TABLE}`", "the only table touched"),
        *((f"mark, {flag.name}", f"`{flag.bits:#010x}`", flag.purpose) for flag in flags(settings)),
        ("`ip rule`", f"preference {rules}, to table {table}, v4 and v6", "to the proxy and back without conntrack"),
        ("route table", f"{table}: `local default dev lo`", "what those rules name"),
        ("routing protocol", str(PROTOCOL), "our mark of origin on rules and routes: nobody else's are touched"),
        (
            "routes",
            "`dev lo src HOST`, one a VIP range, in the main table",
            "a VIP needs a route before the hook sees it",
        ),
        *((f"sysctl `{key}`", value, _SYSCTL_REASONS[key]) for key, value in SYSCTLS.items()),
        (
            "nflog group",
            str(settings.nflog_group),
            "kernel refusals to the agent; the prefix says why, the mark which unit",
        ),
        *(
            (f"port, {port.name}", f"{port.number}/{port.protocol}", f"`{port.process}`: {port.purpose}")
            for port in ports(settings)
        ),
        ("VIPs", ", ".join(f"`{network}`" for network in vip_ranges), "set at the controller"),
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in (("what", "value", "why"), ("---",) * 3, *rows))


_SYSCTL_REASONS = {
    "net.ipv4.tcp_fwmark_accept": "the attested mark is read on accept, IPv6 too",
    "net.ipv4.fwmark_reflect": "resets find their way back",
    "net.ipv6.fwmark_reflect": "the same",
}
