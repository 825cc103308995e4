"""Decides who may: the specification. `proxy/core/src/authorize.rs` is held to it by `tests/vectors/authorize.json`.

Works on the compiled units of the snapshot, so that `hostmesh explain` judges by exactly what the data plane was given.
The law of inbound calls: a unit whose identity is revoked serves nobody; a port that is not declared is nobody's; a
unit may call itself; a rule of deny wins over those of allow; whoever no rule allows is refused. A condition that
cannot be judged never opens: what denies counts as met, what allows as not met. In audit mode a refusal is recorded as
such and let pass.
"""

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from hostmesh.policy.model import Protocol
from hostmesh.policy.paths import AmbiguousPath, normal_path, path_matches
from hostmesh.wire.snapshot import InboundRule, OutboundRule, PlaintextRule, Unit

SELF = "builtin:self"
NO_OUTBOUND_POLICY = "builtin:no-outbound-policy"
REVOKED = "builtin:revoked"


class Verdict(StrEnum):
    """``audit-deny``: refused, but audit mode lets pass. ``bad-path``: answered with 400.

    ``asks-request``: the connection alone cannot tell.
    """

    ALLOW = "allow"
    DENY = "deny"
    AUDIT_DENY = "audit-deny"
    BAD_PATH = "bad-path"
    ASKS_REQUEST = "asks-request"


@dataclass(frozen=True, slots=True)
class Peer:
    """A caller whose SVID was checked, or whose unit the kernel attests."""

    spiffe_id: str


@dataclass(frozen=True, slots=True)
class Plaintext:
    """A caller without identity: its address, and whether it is a process of this host."""

    address: str
    local: bool = False


@dataclass(frozen=True, slots=True)
class Request:
    """The head of an HTTP request. path: as it came, no query; headers: names in lower case, one entry a line."""

    method: str
    path: str
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Destination:
    """What a meshed unit calls: a service of the mesh, or else an address and, where it is known, its name."""

    port: int
    service: str = ""
    host: str = ""
    address: str = ""


@dataclass(frozen=True, slots=True)
class Tried:
    """One rule that was looked at: did it decide, and why or why not."""

    rule: str
    kind: str
    fits: bool
    why: str


@dataclass(frozen=True, slots=True)
class Decision:
    """The verdict, the rule that decided, and every rule that was tried, in order."""

    verdict: Verdict
    rule: str
    trace: tuple[Tried, ...]


class _Fit(StrEnum):
    YES = "fits"
    NO = "does not fit"
    ASKS_REQUEST = "depends on the request"
    BAD_PATH = "the path has no normal form"


@dataclass(frozen=True, slots=True)
class _Call:
    """One call to judge. ``opaque``: the port speaks nothing that can be read."""

    unit: Unit
    caller: Peer | Plaintext
    port: int
    opaque: bool
    request: Request | None


def inbound(unit: Unit, caller: Peer | Plaintext, port: int, request: Request | None = None) -> Decision:
    """May ``caller`` call ``port`` of ``unit``? ``request``: what is asked of an HTTP port; None: not read yet."""
    if unit.revoked:  # whatever the mode
        return Decision(Verdict.DENY, REVOKED, (Tried(REVOKED, "deny", True, "the unit's identity is revoked"),))
    protocols = {declared.port: declared.protocol for declared in unit.ports}
    if port not in protocols:
        undeclared = Tried(unit.rule_default, "port", True, f"port {port} is not declared")
        return Decision(Verdict.DENY, unit.rule_default, (undeclared,))
    if isinstance(caller, Peer) and caller.spiffe_id == unit.spiffe_id:
        return Decision(Verdict.ALLOW, SELF, (Tried(SELF, "allow", True, "a unit may call itself"),))
    call = _Call(unit, caller, port, not Protocol(protocols[port]).is_read, request)
    trace: list[Tried] = []
    for rule in unit.deny:
        fit, why = _judge(rule, call, denies=True)
        trace.append(Tried(rule.rule, "deny", fit is not _Fit.NO, why))
        if fit is not _Fit.NO:
            return _refuse(unit, rule.rule, fit, trace)
    return _allow(call, trace)


def _allow(call: _Call, trace: list[Tried]) -> Decision:
    """The order of allowing rules does not matter for the verdict: a bad path is refused only if no rule fits."""
    rules: Sequence[InboundRule | PlaintextRule] = call.unit.allow
    kind, default = "allow", call.unit.rule_default
    if isinstance(call.caller, Plaintext):
        rules, kind = call.unit.plaintext, "plaintext"
        default = call.unit.rule_default.rpartition(":")[0] + ":no-plaintext"
    bad_path = ""
    for rule in rules:
        fit, why = _judge(rule, call, denies=False)
        trace.append(Tried(rule.rule, kind, fit in (_Fit.YES, _Fit.ASKS_REQUEST), why))
        if fit is _Fit.YES:
            return Decision(Verdict.ALLOW, rule.rule, tuple(trace))
        if fit is _Fit.ASKS_REQUEST:
            return Decision(Verdict.ASKS_REQUEST, rule.rule, tuple(trace))
        if fit is _Fit.BAD_PATH:
            bad_path = bad_path or rule.rule
    return _refuse(call.unit, bad_path or default, _Fit.BAD_PATH if bad_path else _Fit.YES, trace)


def _refuse(unit: Unit, rule: str, fit: _Fit, trace: list[Tried]) -> Decision:
    if fit is _Fit.ASKS_REQUEST:
        return Decision(Verdict.ASKS_REQUEST, rule, tuple(trace))
    if unit.mode == "audit":
        return Decision(Verdict.AUDIT_DENY, rule, tuple(trace))
    return Decision(Verdict.BAD_PATH if fit is _Fit.BAD_PATH else Verdict.DENY, rule, tuple(trace))


def _judge(rule: InboundRule | PlaintextRule, call: _Call, *, denies: bool) -> tuple[_Fit, str]:
    """Whether the rule fits, and the reason as a person reads it. The path is judged last: only where all else fits."""
    stranger = _stranger(rule, call.caller)
    if stranger:
        return _Fit.NO, stranger
    if rule.ports and call.port not in rule.ports:
        return _Fit.NO, f"not for port {call.port}"
    headers = rule.headers if isinstance(rule, InboundRule) else []
    if not (rule.methods or rule.paths or headers):
        return _Fit.YES, _Fit.YES.value
    if call.opaque:
        # opaque bytes may be just what a rule refuses, and nobody can show that they are what it allows
        return (_Fit.YES if denies else _Fit.NO), "asks about the request, and the port is opaque"
    if call.request is None:
        return _Fit.ASKS_REQUEST, _Fit.ASKS_REQUEST.value
    asked = _asked(rule.methods, headers, call.request, denies=denies)
    return (_Fit.NO, asked) if asked else _judge_path(rule.paths, call.request.path)


def _asked(methods: list[str], headers: list[tuple[str, str]], request: Request, *, denies: bool) -> str:
    """What of method and headers does not fit; empty if all does. What denies fits sooner, what allows later.

    Some applications take methods without regard to case, though RFC 9110, section 9.1, says they should not; and which
    of two header lines one takes is not known.
    """
    method = request.method.upper() if denies else request.method
    if methods and method not in ([m.upper() for m in methods] if denies else methods):
        return f"not for method {request.method}"
    for name, wanted in headers:
        values = [value for key, value in request.headers if key == name]
        if (wanted not in values) if denies else (values != [wanted]):
            return f"header {name} is not {wanted!r}"
    return ""


def _judge_path(patterns: list[str], path: str) -> tuple[_Fit, str]:
    if not patterns:
        return _Fit.YES, _Fit.YES.value
    try:
        normal = normal_path(path)
    except AmbiguousPath as error:
        return _Fit.BAD_PATH, f"the path cannot be judged: {error}"
    if any(path_matches(pattern, normal) for pattern in patterns):
        return _Fit.YES, _Fit.YES.value
    return _Fit.NO, f"not for path {normal}"


def _stranger(rule: InboundRule | PlaintextRule, caller: Peer | Plaintext) -> str:
    """Why the rule is not about this caller; empty if it is.

    A plain-text process of this host is named by ``local`` only, whatever its address; all others by networks only.
    """
    if isinstance(rule, InboundRule):
        callers = rule.callers
        if not callers or (isinstance(caller, Peer) and any(glob_matches(c, caller.spiffe_id) for c in callers)):
            return ""
        return f"{caller.spiffe_id if isinstance(caller, Peer) else 'a caller without identity'} is not in from"
    if isinstance(caller, Peer):
        return "for callers without identity"
    if caller.local:
        return "" if "local" in rule.sources else "from does not say local"
    address = _canonical(caller.address)
    networks = [ipaddress.ip_network(source) for source in rule.sources if source != "local"]
    return "" if any(address in network for network in networks) else f"{address} is not in from"


def outbound(unit: Unit, destination: Destination) -> Decision:
    """May ``unit`` call ``destination``? Not softened by audit mode, which is about who calls the unit.

    A service of the mesh is named by its name only; hosts and networks are for what lies outside.
    """
    if destination.service and unit.revoked:
        return Decision(Verdict.DENY, REVOKED, (Tried(REVOKED, "outbound", True, "the unit's identity is revoked"),))
    if destination.service and destination.service == unit.service:
        return Decision(Verdict.ALLOW, SELF, (Tried(SELF, "outbound", True, "a unit may call itself"),))
    if unit.outbound is None:
        silent = Tried(NO_OUTBOUND_POLICY, "outbound", True, "no [outbound]: the unit may call everything")
        return Decision(Verdict.ALLOW, NO_OUTBOUND_POLICY, (silent,))
    trace: list[Tried] = []
    for rule in unit.outbound:
        fits = rule.port in (0, destination.port) and _names(rule, destination)
        named = (rule.service or rule.host or rule.network) + (f", port {rule.port}" if rule.port else "")
        trace.append(Tried(rule.rule, "outbound", fits, f"{'fits' if fits else 'only'}: {named}"))
        if fits:
            return Decision(Verdict.ALLOW, rule.rule, tuple(trace))
    return Decision(Verdict.DENY, unit.rule_outbound_default, tuple(trace))


def _names(rule: OutboundRule, destination: Destination) -> bool:
    if destination.service or rule.service:
        return rule.service == destination.service
    if rule.host:
        return rule.host == destination.host
    return bool(destination.address) and _canonical(destination.address) in ipaddress.ip_network(rule.network)


def _canonical(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """An IPv4-mapped IPv6 address is its IPv4 address (RFC 4291, section 2.5.5.2)."""
    parsed = ipaddress.ip_address(address)
    return parsed.ipv4_mapped or parsed if isinstance(parsed, ipaddress.IPv6Address) else parsed


def glob_matches(pattern: str, text: str) -> bool:
    """``*`` stands for any run of characters, none too; nothing else is special."""
    return re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), text, re.DOTALL) is not None
