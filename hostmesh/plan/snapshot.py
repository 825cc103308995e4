"""Turns policies, facts and services into the proxy's snapshot: names become SPIFFE IDs, silence gets its meaning."""

import hashlib
import ipaddress
from collections.abc import Sequence

import msgspec

from hostmesh.identity.revocation import standing
from hostmesh.names import SpiffeId, UnitName, dns_names_of, sni_of
from hostmesh.plan.facts import HostFacts, UnitFacts
from hostmesh.policy import model
from hostmesh.policy.settings import Settings
from hostmesh.policy.traces import collector_of
from hostmesh.policy.traffic import as_sent, hedge_as_sent
from hostmesh.wire import snapshot as wire

NO_OUTBOUND_POLICY = "builtin:no-outbound-policy"


def snapshot(  # noqa: PLR0917 the order of the flow
    settings: Settings,
    policies: Sequence[model.Policy],
    facts: HostFacts,
    services: Sequence[wire.Service],
    trust_bundle: Sequence[str],
    revoked: Sequence[wire.Revoked] = (),
) -> wire.Snapshot:
    """The snapshot of this host; every policy's unit has a number in ``facts``. Equal content, equal revision."""
    marks, ports, timeouts = settings.marks, settings.ports, settings.timeouts
    bare = wire.Snapshot(
        version=wire.SNAPSHOT_VERSION,
        revision="",
        trust_domain=settings.trust_domain,
        host=facts.host,
        addresses=list(facts.addresses),
        marks=wire.Marks(unit=marks.unit, outbound=marks.outbound, proxy=marks.proxy, inbound=marks.inbound),
        listeners=wire.Listeners(outbound=ports.outbound, plaintext=ports.plaintext, wire=ports.wire, dns=ports.dns),
        timeouts=wire.Timeouts(head_ms=timeouts.head, stall_ms=timeouts.stall, idle_ms=timeouts.idle),
        trust_bundle=list(trust_bundle),
        units=[_unit(settings, policy, facts, revoked) for policy in sorted(policies, key=lambda policy: policy.unit)],
        services=sorted(services, key=lambda service: service.name),
        revoked=list(revoked),
        zone=settings.zone,
        propagate=list(settings.traces.propagate),
        traces=_traces(settings, facts),
        metrics=wire.Metrics(max_series=settings.metrics.max_series, expire_ms=settings.metrics.expire),
        overload=wire.Overload(delay_ms=settings.overload.delay, requests=settings.overload.requests),
    )
    return msgspec.structs.replace(bare, revision=revision_of(bare))


def revision_of(snapshot: wire.Snapshot) -> str:
    """sha256, in hex, of the canonical JSON (keys sorted, no spaces) with an empty revision."""
    bare = msgspec.structs.replace(snapshot, revision="")
    return hashlib.sha256(msgspec.json.encode(bare, order="sorted")).hexdigest()


def traffic_of(policy: model.Policy) -> wire.Traffic:
    """What the policy says of callers' behaviour, as the registry and the proxy know it."""
    traffic, retries = policy.traffic, policy.traffic.retries
    balance = traffic.balance
    return wire.Traffic(
        timeout_ms=traffic.timeout_ms,
        retries=as_sent(retries),
        balance=balance.by,
        rule=policy.place.rule if retries is None else retries.place.rule,
        hash=wire.ConsistentHash(on=balance.on, bound=balance.bound) if balance.on else None,
        prefer=traffic.prefer,
        slow_start_ms=traffic.slow_start_ms,
        panic=traffic.panic,
        routes=list(traffic.routes),
        breaker=_breaker(traffic.breaker),
        connect_timeout_ms=traffic.connect_timeout_ms,
        idle_timeout_ms=traffic.idle_timeout_ms,
        lines=dict(traffic.lines),
        hedge=hedge_as_sent(traffic.hedge),
    )


def _breaker(breaker: model.Breaker | None) -> wire.Breaker | None:
    if breaker is None:
        return None
    return wire.Breaker(
        max_connections=breaker.max_connections,
        max_pending=breaker.max_pending,
        max_requests=breaker.max_requests,
        max_retries=breaker.max_retries,
        consecutive_errors=breaker.consecutive_errors,
        eject_ms=breaker.eject_ms,
        max_ejected=breaker.max_ejected,
        rule=breaker.place.rule,
    )


def caller_glob(trust_domain: str, caller: str) -> str:
    """A caller as a person writes it, as a SPIFFE ID in which ``*`` stands for any run of characters."""
    if caller.startswith("spiffe://"):
        return caller
    prefix = f"spiffe://{trust_domain}/unit/"
    if "*" not in caller:
        return str(SpiffeId.of_unit(trust_domain, UnitName.parse(caller)))
    # What stands between the stars is encoded as a whole name is; "x" keeps an end from being a special segment.
    text = caller.removesuffix(".service")
    parts = [str(SpiffeId.of_unit(trust_domain, UnitName(f"x{part}x.service"))) for part in text.split("*")]
    return prefix + "*".join(part.removeprefix(prefix)[1:-1] for part in parts)


def _unit(settings: Settings, policy: model.Policy, facts: HostFacts, revoked: Sequence[wire.Revoked]) -> wire.Unit:
    identity = SpiffeId.of_unit(settings.trust_domain, policy.unit)
    known = facts.units.get(policy.unit) or UnitFacts(policy.unit, active=False)
    outbound = policy.outbound
    return wire.Unit(
        unit=policy.unit.full,
        number=facts.numbers[policy.unit],
        spiffe_id=str(identity),
        sni=sni_of(identity),
        service=policy.service,
        ports=[
            wire.Port(port=port.number, protocol=port.protocol.value, client_address=_client_address(port, known))
            for port in policy.ports
        ],
        deliver=_deliver(policy, known, facts),
        mode=policy.mode.value,
        allow=[_inbound_rule(settings, rule) for rule in policy.allow],
        deny=[_inbound_rule(settings, rule) for rule in policy.deny],
        plaintext=[_plaintext_rule(policy, rule) for rule in policy.plaintext],
        rule_default=f"{policy.place.file}:no-allow",
        outbound=None if outbound is None else [_outbound_rule(rule) for rule in outbound],
        rule_outbound_default=NO_OUTBOUND_POLICY if outbound is None else f"{policy.place.file}:no-outbound",
        access_log=policy.observe.access_log.value,
        trace=policy.observe.trace.share,
        trace_errors=policy.observe.trace.errors,
        jwt=[_token_issuer(issuer, facts) for issuer in policy.jwt],
        limits=[_limit(settings, limit) for limit in policy.limits],
        authorize=_authorize(policy.authorize),
        revoked=standing(revoked, identity, dns_names_of(facts.host)) is not None,
    )


def _traces(settings: Settings, facts: HostFacts) -> wire.Traces | None:
    traces, collector = settings.traces, collector_of(settings.traces)
    if collector is None:
        return None
    return wire.Traces(
        endpoint=traces.endpoint,
        protocol=traces.protocol,
        tls=collector.tls,
        host=collector.host,
        port=collector.port,
        path=collector.path,
        addresses=list(facts.collector.addresses),
        headers=list(traces.headers),
        ca=list(facts.collector.ca),
        queue=traces.queue,
    )


def _client_address(port: model.Port, known: UnitFacts) -> str:
    """``auto`` becomes ``keep`` where the unit listens beyond loopback, else ``local``; unknown, it stays."""
    seen = [address for address, number in known.listens if number == port.number]
    if port.client_address is not model.ClientAddress.AUTO or not seen:
        return port.client_address.value
    beyond = any(not ipaddress.ip_address(address).is_loopback for address in seen)
    return (model.ClientAddress.KEEP if beyond else model.ClientAddress.LOCAL).value


def _deliver(policy: model.Policy, known: UnitFacts, facts: HostFacts) -> list[str]:
    declared = {port.number for port in policy.ports}
    seen = {ipaddress.ip_address(address) for address, number in known.listens if number in declared}
    everywhere = [*facts.addresses, "127.0.0.1", "::1"]
    if not seen:
        return everywhere
    found = {str(address) for address in seen if not address.is_unspecified}
    for address in seen:
        if address.is_unspecified:
            # A wildcard of IPv6 takes IPv4 too, unless the application says otherwise: that try is refused at once.
            versions = (4,) if address.version == 4 else (4, 6)
            found.update(text for text in everywhere if ipaddress.ip_address(text).version in versions)
    order = {text: index for index, text in enumerate(everywhere)}
    return sorted(found, key=lambda text: (order.get(text, -1), text))


def _inbound_rule(settings: Settings, rule: model.InboundRule) -> wire.InboundRule:
    return wire.InboundRule(
        rule=rule.place.rule,
        callers=[caller_glob(settings.trust_domain, caller) for caller in rule.callers],
        ports=list(rule.ports),
        methods=list(rule.methods),
        paths=list(rule.paths),
        headers=[(name.lower(), value) for name, value in rule.headers],
        jwt=None
        if rule.jwt is None
        else wire.TokenMatch(
            issuer=rule.jwt.issuer,
            audience=list(rule.jwt.audience),
            claims=[(name, list(values)) for name, values in rule.jwt.claims],
        ),
        audit=rule.audit,
    )


def _limit(settings: Settings, limit: model.Limit) -> wire.Limit:
    return wire.Limit(
        of=_inbound_rule(settings, limit.rule),
        requests=limit.requests,
        window_ms=limit.window_ms,
        burst=limit.burst,
        concurrent=limit.concurrent,
        per=limit.per,
    )


def _authorize(said: model.Authorize | None) -> wire.Authorize | None:
    if said is None:
        return None
    return wire.Authorize(
        rule=said.place.rule, service=said.service, timeout_ms=said.timeout_ms, on_error=said.on_error
    )


def _token_issuer(issuer: model.TokenIssuer, facts: HostFacts) -> wire.TokenIssuer:
    """With the keys that are known; those that do not say what they are for get it here."""
    return wire.TokenIssuer(
        rule=issuer.place.rule,
        issuer=issuer.issuer,
        audience=list(issuer.audience),
        keys=[
            wire.TokenKey(kid=key.kid, algorithms=list(key.algorithms(issuer.algorithms)), key=key.spki)
            for key in facts.token_keys.get(issuer.jwks, ())
        ],
        token=issuer.token,
        forward=issuer.forward,
        leeway_ms=issuer.leeway_ms,
        headers=list(issuer.headers),
    )


def _plaintext_rule(policy: model.Policy, rule: model.PlaintextRule) -> wire.PlaintextRule:
    return wire.PlaintextRule(
        rule=rule.place.rule,
        sources=list(rule.sources),
        ports=list(rule.ports or (port.number for port in policy.ports)),
        methods=list(rule.methods),
        paths=list(rule.paths),
    )


def _outbound_rule(rule: model.OutboundRule) -> wire.OutboundRule:
    return wire.OutboundRule(
        rule=rule.place.rule, service=rule.service, host=rule.host, network=rule.network, port=rule.port
    )
