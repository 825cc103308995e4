"""Turns policies and unit numbers into `table inet hostmesh`: whose packets go to the proxy, and who may reach a unit.

The chains are the same on every host; what policy says stands in sets and maps, one element a unit or a source. Packet
marks attest: docs/architecture.md has the bits. "First packet" means SYN without ACK.

While a table goes or is made anew, a packet may meet rules of before and sets of after, and find nothing in any set. So
no rule lets a packet past the guard because a set does not have it.
"""

from collections.abc import Sequence

from hostmesh.plan.facts import HostFacts
from hostmesh.plan.redirect_sets import CGROUP, address_sets, mark, unit_sets
from hostmesh.plan.ruleset import Chain, Rule, Table
from hostmesh.policy.model import Policy
from hostmesh.policy.settings import Settings

FAMILY, TABLE = "inet", "hostmesh"
FIRST, NOT_FIRST = "tcp flags syn / syn,ack", "tcp flags != syn / syn,ack"
LOG_LIMIT = "limit rate 20/second burst 100 packets"
PREFIX_LISTENER, PREFIX_PLAINTEXT, PREFIX_OUTBOUND, PREFIX_VIP, PREFIX_SOURCE = (
    "hostmesh listener",
    "hostmesh plaintext",
    "hostmesh outbound",
    "hostmesh vip",
    "hostmesh source",
)
"""nflog prefixes, the reason of a refusal; the packet's mark is the unit's number then (0: no unit)."""

_ICMP = "{ echo-reply, destination-unreachable, time-exceeded, parameter-problem }"
_ICMP6 = "{ destination-unreachable, packet-too-big, time-exceeded, parameter-problem, echo-reply }"


def ruleset(settings: Settings, policies: Sequence[Policy], facts: HostFacts, vip_ranges: Sequence[str]) -> Table:
    """The table of a host. Every policy's unit has a number in ``facts``; slices must be there when it is loaded."""
    chains = (
        _output(settings),
        _marked(settings, facts.proxy_uid),
        _answer(),
        _from_others(),
        _from_unit(settings),
        _by_outbound(),
        _passed(settings),
        _prerouting(settings),
        _to_proxy(settings),
        _plaintext_in(settings),
        _source_routed(),
        _input(settings),
        _first_in(settings),
        _delivered(settings, facts.proxy_uid),
        *_refusals(settings),
    )
    return Table(FAMILY, TABLE, (*unit_sets(settings, policies, facts), *address_sets(policies, vip_ranges)), chains)


def _has(bit: int) -> str:
    return f"meta mark & {bit:#010x} == {bit:#010x}"


def _is(settings: Settings, *one_of: int) -> str:
    """Of all our bits exactly these."""
    bits = [f"{bits:#010x}" for bits in one_of]
    return f"meta mark & {_bits(settings):#010x} == {bits[0] if len(bits) == 1 else '{ ' + ', '.join(bits) + ' }'}"


def _bears_our_bits(settings: Settings) -> str:
    return f"meta mark & {_bits(settings):#010x} != 0x00000000"


# --- outgoing ---------------------------------------------------------------------------------------------------------


def _output(settings: Settings) -> Chain:
    """Every packet that the host sends meets this one: what nobody marked, and no unit sent, is through it soon."""
    return Chain(
        "output",
        (
            Rule(f"{_bears_our_bits(settings)} goto marked", "the proxy's, or marked by its sender"),
            Rule(f"{CGROUP} @meshed goto from_unit", "packets of meshed units"),
            Rule("goto from_others", "packets of all others"),
        ),
        "type route hook output priority mangle; policy accept;",
    )


def _marked(settings: Settings, proxy_uid: int) -> Chain:
    """Who is not known by more than a mark passes with exactly one that the guard lets nowhere but over loopback."""
    marks = settings.marks
    clear = f"meta mark set meta mark & {0xFFFFFFFF ^ _bits(settings) ^ marks.unit:#010x}"
    return Chain(
        "marked",
        (
            Rule(
                f"{_is(settings, marks.inbound | marks.delivered)} {NOT_FIRST} goto answer", "from a unit to the proxy"
            ),
            Rule(
                f"{_is(settings, marks.proxy, marks.inbound)} {NOT_FIRST} return",
                "running connections of the proxy, and answers to it",
            ),
            Rule(
                f"{_is(settings, marks.outbound)} {NOT_FIRST} meta skuid {proxy_uid} return", "from the proxy to a unit"
            ),
            Rule(
                f"{_is(settings, marks.inbound)} udp sport {settings.ports.dns} meta skuid {proxy_uid} "
                "udp sport set 53 return",
                "the resolver's answers come from the port that was asked",
            ),
            Rule(f"{CGROUP} @meshed goto from_unit", "packets of meshed units"),
            Rule(f"{_has(marks.inbound)} {FIRST} meta skuid {proxy_uid} return", "the proxy delivers"),
            Rule(f"{_has(marks.inbound)} {FIRST} {clear}", "the proxy's mark, and not the proxy: not attested"),
            Rule(f"{_has(marks.outbound)} {FIRST} {clear}", "a unit's mark that nobody gave: not attested"),
            Rule(f"{_has(marks.outbound)} meta l4proto != tcp {clear}", "a unit's mark that nobody gave: not attested"),
            Rule(f"{_has(marks.proxy)} return", "the proxy's own packets"),
            Rule("goto from_others", "packets of all others"),
        ),
    )


def _answer() -> Chain:
    """A reset may be the kernel's, where nobody listens: it passes."""
    said = f"tcp flags & rst != rst {CGROUP}"
    return Chain(
        "answer",
        (
            Rule(f"{CGROUP} . meta mark @listeners return", "the unit itself answers: attested"),
            Rule(f"{said} @meshed goto refuse_listener", "builtin:listener: another unit answers"),
            Rule(f"{said} != @meshed goto refuse_listener", "builtin:listener: another answers"),
        ),
    )


def _from_others() -> Chain:
    return Chain(
        "from_others",
        (
            Rule("ip daddr @vips4 goto refuse_vip", "services' addresses are for meshed units"),
            Rule("ip6 daddr @vips6 goto refuse_vip", "services' addresses are for meshed units"),
        ),
    )


def _from_unit(settings: Settings) -> Chain:
    return Chain(
        "from_unit",
        (
            Rule(f"meta mark set {CGROUP} map @units", "the unit's number; a mark that it gave itself is gone"),
            Rule("meta l4proto tcp return", "to the proxy"),
            Rule("udp dport 53 return", "to the proxy's resolver"),
            Rule("ip daddr @vips4 goto refuse_outbound", "a service speaks TCP"),
            Rule("ip6 daddr @vips6 goto refuse_outbound", "a service speaks TCP"),
            Rule("meta mark @unrestricted goto passed", "no [outbound]: all but TCP passes as it did"),
            Rule("goto by_outbound", "[outbound] allow is given"),
        ),
    )


def _by_outbound() -> Chain:
    return Chain(
        "by_outbound",
        (
            Rule("meta mark . ip daddr @egress_any4 goto passed", "networks of [outbound] allow"),
            Rule("meta mark . ip6 daddr @egress_any6 goto passed", "networks of [outbound] allow"),
            Rule("meta mark . ip daddr . th dport @egress4 goto passed", "networks of [outbound] allow"),
            Rule("meta mark . ip6 daddr . th dport @egress6 goto passed", "networks of [outbound] allow"),
            Rule(
                "icmpv6 type { nd-router-solicit, nd-neighbor-solicit, nd-neighbor-advert } goto passed",
                "neighbours (RFC 4861)",
            ),
            Rule("goto refuse_outbound", "nothing of [outbound] allow fits"),
        ),
    )


def _passed(settings: Settings) -> Chain:
    return Chain(
        "passed",
        (
            Rule(f"meta mark set {settings.marks.allowed:#010x}", "past the guard"),
            Rule("update @replies4 { ip daddr . udp dport . udp sport }", "whose replies may come in"),
            Rule("update @replies6 { ip6 daddr . udp dport . udp sport }", "whose replies may come in"),
        ),
    )


# --- incoming ---------------------------------------------------------------------------------------------------------


def _prerouting(settings: Settings) -> Chain:
    marks, to_us = settings.marks, "fib daddr type local goto plaintext_in"
    marked, to_unit = _bears_our_bits(settings), f"{CGROUP} @meshed"
    cleared = f"meta mark set meta mark & {0xFFFFFFFF ^ _bits(settings):#010x}"
    return Chain(
        "prerouting",
        (
            Rule(f'{_has(marks.outbound)} iif "lo" goto to_proxy', "meshed units' packets"),
            Rule(f'{marked} iif "lo" return', "marked by us: on its way"),
            Rule(f"{marked} {cleared}", "no mark of ours comes from a network"),
            Rule(f'iif != "lo" ip hdrlength != 5 {to_unit} jump source_routed', "options (RFC 791, section 3.1)"),
            Rule(f'iif != "lo" exthdr rt exists {to_unit} goto refuse_source', "builtin:source (RFC 5095)"),
            Rule(
                f'iif != "lo" {FIRST} fib saddr type local {to_unit} goto refuse_source',
                "builtin:source: an address of this host",
            ),
            Rule(f"ip saddr . tcp dport @plaintext4 {to_us}", "callers that a policy names"),
            Rule(f"ip6 saddr . tcp dport @plaintext6 {to_us}", "callers that a policy names"),
            Rule(f'iif "lo" tcp dport @plaintext_local {to_us}', "this host's, if a policy says so"),
        ),
        "type filter hook prerouting priority mangle; policy accept;",
    )


def _tproxy(port: int, match: str, comment: str) -> tuple[Rule, Rule]:
    return (
        Rule(f"meta nfproto ipv4 {match} tproxy ip to 127.0.0.1:{port} accept", comment),
        Rule(f"meta nfproto ipv6 {match} tproxy ip6 to [::1]:{port} accept", comment),
    )


def _to_proxy(settings: Settings) -> Chain:
    return Chain(
        "to_proxy",
        (
            *_tproxy(settings.ports.outbound, "meta l4proto tcp", "connections"),
            *_tproxy(settings.ports.dns, "udp dport 53", "names"),
            Rule(f"{FIRST} drop", "no proxy: closed, until it is back"),
            Rule("meta l4proto udp drop", "no resolver: closed, until it is back"),
        ),
    )


def _plaintext_in(settings: Settings) -> Chain:
    return Chain(
        "plaintext_in",
        (
            Rule("ip hdrlength != 5 jump source_routed", "options (RFC 791, section 3.1)"),
            Rule("exthdr rt exists goto refuse_source", "builtin:source (RFC 5095)"),
            Rule('iif != "lo" fib saddr type local goto refuse_source', "builtin:source: an address of this host"),
            *_tproxy(settings.ports.plaintext, "meta l4proto tcp", "as callers without identity"),
            Rule(f"{FIRST} drop", "no proxy: closed, until it is back"),
        ),
    )


def _source_routed() -> Chain:
    """An address that answers by way of whom the sender names is no address to know anybody by (RFC 7126)."""
    return Chain(
        "source_routed",
        (
            Rule("ip option lsrr exists goto refuse_source", "builtin:source: loose source route"),
            Rule("ip option ssrr exists goto refuse_source", "builtin:source: strict source route"),
        ),
    )


def _input(settings: Settings) -> Chain:
    marks = settings.marks
    let_in = f"meta mark set meta mark | {marks.allowed:#010x}"
    to_unit = f"meta mark & {marks.inbound | marks.delivered:#010x} == {marks.inbound:#010x} meta l4proto tcp"
    return Chain(
        "input",
        (
            Rule(f"{to_unit} goto delivered", "from the proxy to a unit, every packet of it"),
            Rule(f"{FIRST} goto first_in", "who may begin a connection with a unit"),
            Rule('iif "lo" return', "the guard lets loopback in"),
            Rule(f"ip saddr . udp sport . udp dport @replies4 {let_in}", "replies to what a unit sent"),
            Rule(f"ip6 saddr . udp sport . udp dport @replies6 {let_in}", "replies to what a unit sent"),
            Rule(f"icmp type {_ICMP} {let_in}", "errors and echo replies (RFC 792)"),
            Rule(f"icmpv6 type {_ICMP6} {let_in}", "errors and echo replies (RFC 4443)"),
        ),
        "type filter hook input priority filter; policy accept;",
    )


def _first_in(settings: Settings) -> Chain:
    return Chain(
        "first_in",
        (
            Rule(f"{_has(settings.marks.outbound)} return", "to the proxy"),
            Rule(f"{CGROUP} @meshed goto refuse_plaintext", "plain text to a meshed unit"),
        ),
    )


def _delivered(settings: Settings, proxy_uid: int) -> Chain:
    """The bit that is set here stays with the accepted socket: by it the answers are known from what is delivered."""
    let_in = f"meta mark set meta mark | {settings.marks.delivered:#010x}"
    return Chain(
        "delivered",
        (
            Rule(f"{CGROUP} . meta mark @listeners {let_in} return", "the unit itself listens: attested"),
            Rule(f"meta skuid {proxy_uid} return", "answers of a connection that began while the table was gone"),
            Rule("socket wildcard { 0, 1 } goto refuse_listener", "builtin:listener: another listens"),
            Rule(let_in, "nobody listens, or not yet: the kernel says so to the proxy"),
        ),
    )


# --- refusals ---------------------------------------------------------------------------------------------------------


def _refusals(settings: Settings) -> tuple[Chain, ...]:
    group, number = settings.nflog_group, f"meta mark set meta mark & {settings.marks.unit:#010x}"
    reset, unreachable = "reject with tcp reset", "reject with icmpx admin-prohibited"
    back = mark(settings.marks.inbound | settings.marks.delivered, 0)

    def log(prefix: str) -> Rule:
        return Rule(f'{LOG_LIMIT} log prefix "{prefix}" group {group}', "to the agent; the mark is the unit's number")

    return (
        Chain(
            "refuse_listener",
            (
                Rule(number, "log and count by unit"),
                Rule("update @refused_listener { meta mark }", "exact"),
                log(PREFIX_LISTENER),
                Rule(f"meta l4proto tcp meta mark set {back} {reset}", "back to the proxy at once"),
            ),
        ),
        Chain(
            "refuse_plaintext",
            (
                Rule(f"meta mark set {CGROUP} map @units", "whose port it is"),
                Rule(number, "log and count by unit"),
                Rule("update @refused_plaintext { meta mark }", "exact"),
                log(PREFIX_PLAINTEXT),
                Rule(f"meta l4proto tcp meta mark set 0x00000000 {reset}", "at once, not by time-out"),
            ),
        ),
        Chain(
            "refuse_outbound",
            (
                Rule(number, "log and count by unit"),
                Rule("update @refused_outbound { meta mark }", "exact"),
                log(PREFIX_OUTBOUND),
                Rule(f"meta mark set 0x00000000 {unreachable}", "at once"),
            ),
        ),
        Chain(
            "refuse_source",
            (
                Rule("meta mark set 0x00000000", "where nobody listens it is no unit's"),
                Rule(f"meta mark set {CGROUP} map @units", "whose port it is"),
                Rule(number, "log and count by unit"),
                Rule("update @refused_source { meta mark }", "exact"),
                log(PREFIX_SOURCE),
                Rule("drop", "an answer would go to somebody else"),
            ),
        ),
        Chain(
            "refuse_vip",
            (
                log(PREFIX_VIP),
                Rule(f"meta l4proto tcp {reset}", "not a meshed unit: the service is not there for it"),
                Rule(unreachable, "not a meshed unit: the service is not there for it"),
            ),
        ),
    )


def _bits(settings: Settings) -> int:
    marks = settings.marks
    return marks.outbound | marks.proxy | marks.inbound | marks.allowed | marks.delivered
