"""Turns policies and unit numbers into `table inet hostmesh`: whose packets go to the proxy, and who may reach a unit.

The chains are the same on every host; what policy says stands in sets and maps, one element a unit or a source. Packet
marks attest: docs/architecture.md has the bits. "First packet" means SYN without ACK.

While a table goes or is made anew, a packet may meet rules of before and sets of after, and find nothing in any set. So
no rule lets a packet past the guard because a set does not have it.
"""

import ipaddress
from collections.abc import Iterable, Sequence

from hostmesh.plan.facts import HostFacts
from hostmesh.plan.ruleset import Chain, Element, Rule, Set, Table
from hostmesh.policy.model import Mode, Policy
from hostmesh.policy.settings import Settings

FAMILY, TABLE = "inet", "hostmesh"
FIRST = "tcp flags syn / syn,ack"
LOG_LIMIT = "limit rate 20/second burst 100 packets"
PREFIX_LISTENER, PREFIX_PLAINTEXT, PREFIX_OUTBOUND, PREFIX_VIP, PREFIX_SOURCE = (
    "hostmesh listener",
    "hostmesh plaintext",
    "hostmesh outbound",
    "hostmesh vip",
    "hostmesh source",
)
"""nflog prefixes, the reason of a refusal; the packet's mark is the unit's number then (0: no unit)."""

COUNTERS = ("refused_listener", "refused_plaintext", "refused_outbound", "refused_source")
"""Sets that count refusals exactly, by unit number: each element is a mark and its counter."""

REPLIES = "replies"
"""Begins the names of sets that packets fill with whose replies may come in."""

_ICMP = "{ echo-reply, destination-unreachable, time-exceeded, parameter-problem }"
_ICMP6 = "{ destination-unreachable, packet-too-big, time-exceeded, parameter-problem, echo-reply }"
_CGROUP = "socket cgroupv2 level 2"


def ruleset(settings: Settings, policies: Sequence[Policy], facts: HostFacts, vip_ranges: Sequence[str]) -> Table:
    """The table of a host. Every policy's unit has a number in ``facts``; slices must be there when it is loaded."""
    chains = (
        _output(settings, facts.proxy_uid),
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
    return Table(FAMILY, TABLE, (*_unit_sets(settings, policies, facts), *_address_sets(policies, vip_ranges)), chains)


def mark(bit: int, number: int) -> str:
    """A mark as nft lists it: flag bits and unit number."""
    return f"{bit | number:#010x}"


def _has(bit: int) -> str:
    return f"meta mark & {bit:#010x} == {bit:#010x}"


# --- sets -------------------------------------------------------------------------------------------------------------


def _unit_sets(settings: Settings, policies: Sequence[Policy], facts: HostFacts) -> tuple[Set, ...]:
    units, meshed, listeners, unrestricted = [], [], [], []
    nets: dict[str, list[tuple[str, str, str]]] = {"egress4": [], "egress6": [], "egress_any4": [], "egress_any6": []}
    for policy in policies:
        cgroup, number = f'"{policy.unit.cgroup}"', facts.numbers[policy.unit]
        outbound = mark(settings.marks.outbound, number)
        place = policy.place.rule
        units.append(Element(cgroup, outbound, place))
        meshed.append(Element(cgroup, comment=place))
        inbound = settings.marks.inbound
        for bits in (inbound, inbound | settings.marks.delivered):
            listeners.append(Element(f"{cgroup} . {mark(bits, number)}", comment=place))
        if policy.outbound is None:
            unrestricted.append(Element(outbound, comment=place))
        for rule in policy.outbound or ():
            if rule.network:
                version = ipaddress.ip_network(rule.network).version
                port = f" . {rule.port}" if rule.port else ""
                name = f"egress{version}" if rule.port else f"egress_any{version}"
                nets[name].append((f"{outbound} . ", rule.network, port + "\0" + rule.place.rule))
    interval = ("flags interval",)
    sized = ("size 4096", "flags dynamic", "counter")
    return (
        Set("units", _CGROUP, tuple(units), data="meta mark"),
        Set("meshed", _CGROUP, tuple(meshed)),
        Set("listeners", f"{_CGROUP} . meta mark", tuple(listeners)),
        Set("unrestricted", "meta mark", tuple(unrestricted)),
        Set("egress4", "meta mark . ip daddr . th dport", _networks(nets["egress4"]), options=interval),
        Set("egress6", "meta mark . ip6 daddr . th dport", _networks(nets["egress6"]), options=interval),
        Set("egress_any4", "meta mark . ip daddr", _networks(nets["egress_any4"]), options=interval),
        Set("egress_any6", "meta mark . ip6 daddr", _networks(nets["egress_any6"]), options=interval),
        *(Set(name, "meta mark", options=sized, dynamic=True) for name in COUNTERS),
    )


def _address_sets(policies: Sequence[Policy], vip_ranges: Sequence[str]) -> tuple[Set, ...]:
    sources: dict[int, list[tuple[str, str, str]]] = {4: [], 6: []}
    local: dict[int, str] = {}
    for policy in policies:
        for source, ports, place in _plaintext_sources(policy):
            for port in ports:
                if source == "local":
                    local.setdefault(port, place)
                else:
                    network = ipaddress.ip_network(source)
                    sources[network.version].append(("", str(network), f" . {port}\0{place}"))
    vips = {4: [], 6: []} if not vip_ranges else {
        version: [
            Element(text, comment="addresses of services")
            for text in sorted(set(vip_ranges))
            if ipaddress.ip_network(text).version == version
        ]
        for version in (4, 6)
    }  # fmt: skip
    replies = ("size 65536", "flags dynamic,timeout", "timeout 1m")
    return (
        Set("plaintext4", "ip saddr . tcp dport", _networks(sources[4]), options=("flags interval",)),
        Set("plaintext6", "ip6 saddr . tcp dport", _networks(sources[6]), options=("flags interval",)),
        Set("plaintext_local", "tcp dport", tuple(Element(str(p), comment=r) for p, r in sorted(local.items()))),
        Set("vips4", "ip daddr", tuple(vips[4]), options=("flags interval",)),
        Set("vips6", "ip6 daddr", tuple(vips[6]), options=("flags interval",)),
        Set("replies4", "ip saddr . udp sport . udp dport", options=replies, dynamic=True),
        Set("replies6", "ip6 saddr . udp sport . udp dport", options=replies, dynamic=True),
    )


def _plaintext_sources(policy: Policy) -> Iterable[tuple[str, tuple[int, ...], str]]:
    """(source, ports, place) of all callers without identity that go to the proxy: under audit that is everybody."""
    declared = tuple(port.number for port in policy.ports)
    for rule in policy.plaintext:
        for source in rule.sources:
            yield source, rule.ports or declared, rule.place.rule
    if policy.mode is Mode.AUDIT:
        for source in ("0.0.0.0/0", "::/0", "local"):
            yield source, declared, policy.inbound_place.rule


def _networks(entries: Sequence[tuple[str, str, str]]) -> tuple[Element, ...]:
    """Elements (before, network, after NUL comment) without those that another of the same kind contains.

    CIDR networks nest or are apart, and the kernel refuses elements that overlap.
    """
    kept: dict[tuple[str, str], dict[ipaddress.IPv4Network | ipaddress.IPv6Network, str]] = {}
    for before, text, rest in entries:
        after, _, place = rest.partition("\0")
        kept.setdefault((before, after), {}).setdefault(ipaddress.ip_network(text), place)
    found = []
    for (before, after), networks in kept.items():
        for network, place in networks.items():
            if not any(network != other and _inside(network, other) for other in networks):
                found.append(Element(f"{before}{_plain(network)}{after}", comment=place))
    return tuple(sorted(found))


def _inside(
    network: ipaddress.IPv4Network | ipaddress.IPv6Network, other: ipaddress.IPv4Network | ipaddress.IPv6Network
) -> bool:
    return other.prefixlen <= network.prefixlen and network.network_address in other


def _plain(network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> str:
    """As nft lists it: a network of one address without its length."""
    return str(network.network_address) if network.prefixlen == network.max_prefixlen else str(network)


# --- outgoing ---------------------------------------------------------------------------------------------------------


def _output(settings: Settings, proxy_uid: int) -> Chain:
    marks, flags = settings.marks, _flags(settings)
    ours = f"== {{ {marks.proxy:#010x}, {marks.inbound:#010x} }}"
    not_first = "tcp flags != syn / syn,ack"
    clear = f"meta mark set meta mark & {0xFFFFFFFF ^ flags ^ marks.delivered ^ marks.unit:#010x}"
    answer, said = _has(marks.inbound | marks.delivered), "tcp flags & rst != rst"  # a reset is the kernel's
    return Chain(
        "output",
        (
            Rule(f"{answer} {_CGROUP} . meta mark @listeners return", "the unit itself answers: attested"),
            Rule(f"{answer} {said} {_CGROUP} @meshed goto refuse_listener", "builtin:listener: another unit answers"),
            Rule(f"{answer} {said} {_CGROUP} != @meshed goto refuse_listener", "builtin:listener: another answers"),
            Rule(
                f"meta mark & {flags:#010x} {ours} {not_first} return",
                "running connections of the proxy, and answers to it",
            ),
            Rule(
                f"{_has(marks.inbound)} udp sport {settings.ports.dns} udp sport set 53 return",
                "the resolver's answers come from the port that was asked",
            ),
            Rule(f"{_CGROUP} @meshed goto from_unit", "packets of meshed units"),
            Rule(f"{_has(marks.inbound)} {FIRST} meta skuid {proxy_uid} return", "the proxy delivers"),
            Rule(f"{_has(marks.inbound)} {FIRST} {clear}", "the proxy's mark, and not the proxy: not attested"),
            Rule(f"{_has(marks.outbound)} {FIRST} {clear}", "a unit's mark that nobody gave: not attested"),
            Rule(f"{_has(marks.outbound)} meta l4proto != tcp {clear}", "a unit's mark that nobody gave: not attested"),
            Rule(f"{_has(marks.proxy)} return", "the proxy's own packets"),
            Rule("ip daddr @vips4 goto refuse_vip", "services' addresses are for meshed units"),
            Rule("ip6 daddr @vips6 goto refuse_vip", "services' addresses are for meshed units"),
        ),
        "type route hook output priority mangle; policy accept;",
    )


def _from_unit(settings: Settings) -> Chain:
    return Chain(
        "from_unit",
        (
            Rule(f"meta mark set {_CGROUP} map @units", "the unit's number; a mark that it gave itself is gone"),
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
    flags, to_us = _flags(settings) | settings.marks.delivered, "fib daddr type local goto plaintext_in"
    to_unit = f"{_CGROUP} @meshed"
    return Chain(
        "prerouting",
        (
            Rule(f'iifname "lo" {_has(settings.marks.outbound)} goto to_proxy', "meshed units' packets"),
            Rule(
                f'iifname != "lo" meta mark & {flags:#010x} != 0x00000000 '
                f"meta mark set meta mark & {0xFFFFFFFF ^ flags:#010x}",
                "no mark of ours comes from a network",
            ),
            Rule(f"meta mark & {flags:#010x} != 0x00000000 return", "marked by us: on its way"),
            Rule(f'iifname != "lo" ip hdrlength != 5 {to_unit} jump source_routed', "options (RFC 791, section 3.1)"),
            Rule(f'iifname != "lo" exthdr rt exists {to_unit} goto refuse_source', "builtin:source (RFC 5095)"),
            Rule(
                f'iifname != "lo" {FIRST} fib saddr type local {to_unit} goto refuse_source',
                "builtin:source: an address of this host",
            ),
            Rule(f"ip saddr . tcp dport @plaintext4 {to_us}", "callers that a policy names"),
            Rule(f"ip6 saddr . tcp dport @plaintext6 {to_us}", "callers that a policy names"),
            Rule(f'iifname "lo" tcp dport @plaintext_local {to_us}', "this host's, if a policy says so"),
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
            Rule('iifname != "lo" fib saddr type local goto refuse_source', "builtin:source: an address of this host"),
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
    to_unit = f"meta l4proto tcp meta mark & {marks.inbound | marks.delivered:#010x} == {marks.inbound:#010x}"
    return Chain(
        "input",
        (
            Rule(f"{to_unit} goto delivered", "from the proxy to a unit, every packet of it"),
            Rule(f"{FIRST} goto first_in", "who may begin a connection with a unit"),
            Rule('iifname "lo" return', "the guard lets loopback in"),
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
            Rule(f"{_CGROUP} @meshed goto refuse_plaintext", "plain text to a meshed unit"),
        ),
    )


def _delivered(settings: Settings, proxy_uid: int) -> Chain:
    """The bit that is set here stays with the accepted socket: by it the answers are known from what is delivered."""
    let_in = f"meta mark set meta mark | {settings.marks.delivered:#010x}"
    return Chain(
        "delivered",
        (
            Rule(f"{_CGROUP} . meta mark @listeners {let_in} return", "the unit itself listens: attested"),
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
                Rule(f"meta mark set {_CGROUP} map @units", "whose port it is"),
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
                Rule(f"meta mark set {_CGROUP} map @units", "whose port it is"),
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


def _flags(settings: Settings) -> int:
    marks = settings.marks
    return marks.outbound | marks.proxy | marks.inbound | marks.allowed
