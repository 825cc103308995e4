"""Decides who may: the specification. `proxy/core/src/authorize.rs` is held to it by `tests/vectors/authorize.json`.

Works on the compiled units of the snapshot, so that `hostmesh explain` judges by exactly what the data plane was given.
The law of inbound calls: a unit whose identity is revoked serves nobody; a port that is not declared is nobody's; a
unit may call itself; a rule of deny wins over those of allow; whoever no rule allows is refused. A condition that
cannot be judged never opens: what denies counts as met, what allows as not met. In audit mode a refusal is recorded as
such and let pass. A rule in audit decides nothing; what it would have changed is told beside the verdict. A rule about
tokens (`claims.py`) fits only a request that brings a good one; whoever lacks nothing but that is answered 401.
"""

import ipaddress
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from hostmesh.policy.claims import unlike_token
from hostmesh.policy.gatekeeper import gatekeeper_text
from hostmesh.policy.limits import limit_text
from hostmesh.policy.model import Protocol
from hostmesh.policy.paths import AmbiguousPath, normal_path, path_matches
from hostmesh.wire.snapshot import InboundRule, OutboundRule, PlaintextRule, TokenMatch, Unit

SELF = "builtin:self"
NO_OUTBOUND_POLICY = "builtin:no-outbound-policy"
REVOKED = "builtin:revoked"


class Verdict(StrEnum):
    """``audit-deny``: refused, but audit mode lets pass. ``bad-path``: answered with 400.

    ``no-token`` and ``bad-token``: answered with 401. ``asks-request``: the connection alone cannot tell.
    """

    ALLOW = "allow"
    DENY = "deny"
    AUDIT_DENY = "audit-deny"
    BAD_PATH = "bad-path"
    NO_TOKEN = "no-token"  # noqa: S105 a word of ours
    BAD_TOKEN = "bad-token"  # noqa: S105
    ASKS_REQUEST = "asks-request"

    @property
    def passes(self) -> bool:
        """Is what was asked let in?"""
        return self in (Verdict.ALLOW, Verdict.AUDIT_DENY)


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
class BadToken:
    """A token that is not believed, and the word that says why."""

    why: str


@dataclass(frozen=True, slots=True)
class Request:
    """The head of an HTTP request. path: as it came, no query; headers: names in lower case, one entry a line.

    token: the claims of one that was checked and is good; None where the request brings none.
    """

    method: str
    path: str
    headers: tuple[tuple[str, str], ...] = ()
    token: Mapping[str, object] | BadToken | None = None


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
    """The verdict, the rule that decided, and every rule that was tried, in order.

    audited: the first rule in audit that would have decided otherwise, were it in force; empty if none would.
    """

    verdict: Verdict
    rule: str
    trace: tuple[Tried, ...]
    audited: str = ""


class _Fit(StrEnum):
    YES = "fits"
    NO = "does not fit"
    ASKS_REQUEST = "depends on the request"
    BAD_PATH = "the path has no normal form"
    NEEDS_TOKEN = "all fits but that there is no token"  # noqa: S105
    BAD_TOKEN = "all fits but the token"  # noqa: S105


_REFUSALS = {
    _Fit.YES: Verdict.DENY,
    _Fit.BAD_PATH: Verdict.BAD_PATH,
    _Fit.BAD_TOKEN: Verdict.BAD_TOKEN,
    _Fit.NEEDS_TOKEN: Verdict.NO_TOKEN,
}


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
    call = _Call(unit, caller, port, not Protocol(protocols[port]).can_be_read, request)
    trace: list[Tried] = []
    audited = ""
    for rule in unit.deny:
        fit, why = _judge(rule, call, denies=True)
        trace.append(Tried(rule.rule, "deny", fit is not _Fit.NO, _told(rule, why)))
        if rule.audit and fit in (_Fit.YES, _Fit.BAD_PATH):
            audited = audited or rule.rule
        elif fit is not _Fit.NO:
            return _refuse(unit, rule.rule, fit, trace)
    return _allow(call, trace, audited)


def _told(rule: InboundRule | PlaintextRule, why: str) -> str:
    return f"{why} (audit: not in force)" if isinstance(rule, InboundRule) and rule.audit else why


def _allow(call: _Call, trace: list[Tried], denied_by: str) -> Decision:
    """The order of allowing rules does not matter for the verdict: a bad path is refused only if no rule fits.

    denied_by: the rule in audit that would refuse.
    """
    rules: Sequence[InboundRule | PlaintextRule] = call.unit.allow
    kind, default = "allow", call.unit.rule_default
    if isinstance(call.caller, Plaintext):
        rules, kind = call.unit.plaintext, "plaintext"
        default = call.unit.rule_default.rpartition(":")[0] + ":no-plaintext"
    seen: dict[_Fit, str] = {}  # the first rule of each kind
    allowed_by = ""
    for rule in rules:
        fit, why = _judge(rule, call, denies=False)
        trace.append(Tried(rule.rule, kind, fit in (_Fit.YES, _Fit.ASKS_REQUEST), _told(rule, why)))
        if fit is _Fit.ASKS_REQUEST:
            return Decision(Verdict.ASKS_REQUEST, rule.rule, tuple(trace))
        if isinstance(rule, InboundRule) and rule.audit:
            allowed_by = allowed_by or (rule.rule if fit is _Fit.YES else "")
        elif fit is _Fit.YES:
            return Decision(Verdict.ALLOW, rule.rule, tuple(trace), denied_by)
        else:
            seen.setdefault(fit, rule.rule)
    for fit in (_Fit.BAD_PATH, _Fit.BAD_TOKEN, _Fit.NEEDS_TOKEN):
        if fit in seen:
            return _refuse(call.unit, seen[fit], fit, trace, allowed_by)
    return _refuse(call.unit, default, _Fit.YES, trace, allowed_by)


def _refuse(unit: Unit, rule: str, fit: _Fit, trace: list[Tried], audited: str = "") -> Decision:
    if fit is _Fit.ASKS_REQUEST:
        return Decision(Verdict.ASKS_REQUEST, rule, tuple(trace))
    return Decision(Verdict.AUDIT_DENY if unit.mode == "audit" else _REFUSALS[fit], rule, tuple(trace), audited)


def _judge(rule: InboundRule | PlaintextRule, call: _Call, *, denies: bool) -> tuple[_Fit, str]:
    """Whether the rule fits, and the reason as a person reads it. The path is judged last: only where all else fits."""
    stranger = _stranger(rule, call.caller)
    if stranger:
        return _Fit.NO, stranger
    if rule.ports and call.port not in rule.ports:
        return _Fit.NO, f"not for port {call.port}"
    headers, jwt = (rule.headers, rule.jwt) if isinstance(rule, InboundRule) else ([], None)
    if not (rule.methods or rule.paths or headers or jwt):
        return _Fit.YES, _Fit.YES.value
    if call.opaque:
        # opaque bytes may be just what a rule refuses, and nobody can show that they are what it allows
        return (_Fit.YES if denies else _Fit.NO), "asks about the request, and the port is opaque"
    if call.request is None:
        return _Fit.ASKS_REQUEST, _Fit.ASKS_REQUEST.value
    return _judge_request(rule, call.request, denies=denies)


def _judge_request(rule: InboundRule | PlaintextRule, request: Request, *, denies: bool) -> tuple[_Fit, str]:
    headers, jwt = (rule.headers, rule.jwt) if isinstance(rule, InboundRule) else ([], None)
    asked = _asked(rule.methods, headers, request, denies=denies)
    if asked:
        return _Fit.NO, asked
    by_token, why = _judge_token(jwt, request, denies=denies)
    if by_token is _Fit.NO:
        return _Fit.NO, why
    by_path, of_path = _judge_path(rule.paths, request.path)
    return (by_token, why) if by_path is _Fit.YES else (by_path, of_path)


def _judge_token(jwt: TokenMatch | None, request: Request, *, denies: bool) -> tuple[_Fit, str]:
    """How far the token fits. What denies says nothing of who brings none that is good."""
    if jwt is None:
        return _Fit.YES, _Fit.YES.value
    token = request.token
    if token is None or isinstance(token, BadToken):
        why = f"the token is not believed: {token.why}" if token else "there is no token"
        return _Fit.NO if denies else _Fit.BAD_TOKEN if token else _Fit.NEEDS_TOKEN, why
    unlike = unlike_token(jwt, token)
    return (_Fit.NO, unlike) if unlike else (_Fit.YES, _Fit.YES.value)


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


def limits(unit: Unit, caller: Peer | Plaintext, port: int, request: Request | None) -> tuple[Tried, ...]:
    """The limits of ``unit`` for a call that is let in, and what they say: all that fit hold.

    One fits as a rule that denies does, but for bytes that are carried unread: those are no requests.
    """
    protocols = {declared.port: declared.protocol for declared in unit.ports}
    can_be_read = Protocol(protocols[port]).can_be_read
    call = _Call(unit, caller, port, opaque=False, request=request if can_be_read else None)
    tried = []
    for limit in unit.limits:
        fit, why = _judge(limit.of, call, denies=True)
        fits = fit in (_Fit.YES, _Fit.BAD_PATH)
        tried.append(Tried(limit.of.rule, "limit", fits, limit_text(limit) if fits else why))
    return tuple(tried)


def gatekeeper(unit: Unit, port: int) -> tuple[Tried, ...]:
    """Whom ``unit`` asks about requests to ``port`` that its rules and limits let pass, if anybody."""
    asked = unit.authorize
    is_read = any(Protocol(declared.protocol).is_read for declared in unit.ports if declared.port == port)
    return (Tried(asked.rule, "authorize", True, gatekeeper_text(asked)),) if asked and is_read else ()


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
