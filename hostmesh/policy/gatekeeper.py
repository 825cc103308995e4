"""Reads `[inbound.authorize]`, who else is asked about requests, and says it again."""

from collections.abc import Sequence

from hostmesh.names import BadName, check_service_name
from hostmesh.policy import schema
from hostmesh.policy.findings import Code
from hostmesh.policy.model import Authorize, OutboundRule
from hostmesh.policy.read import Reader
from hostmesh.policy.source import Node
from hostmesh.wire import snapshot as wire

ON_ERROR = ("deny", "allow")


def gatekeeper(read: Reader, node: Node | None, own: str, outbound: Sequence[OutboundRule] | None) -> Authorize | None:
    """Whom the unit asks. ``own``: its own service; ``outbound``: what it may call, None for everything."""
    if node is None:
        return None
    table = read.table(node, schema.AUTHORIZE)
    said = table.get("service")
    if said is None:
        message = f"[{schema.AUTHORIZE.name}] lacks 'service'"
        read.findings.add(Code.MISSING, node.place, message, 'for example: service = "gatekeeper"')
    service = read.string(said, "")
    if said is not None and service:
        _check(read, said, service, own, outbound)
    return Authorize(
        node.place,
        service,
        read.duration_ms(table.get("timeout"), 200),
        read.choice(table.get("on_error"), "deny", ON_ERROR),
    )


def _check(read: Reader, said: Node, service: str, own: str, outbound: Sequence[OutboundRule] | None) -> None:
    try:
        check_service_name(service)
    except BadName as error:
        read.findings.add(Code.BAD_VALUE, said.place, error.message, error.hint)
        return
    if service == own:
        read.bad(said, "a service is no gatekeeper of its own", "each question would be one more request")
    elif outbound is not None and all(rule.service != service for rule in outbound):
        read.bad(said, f"[outbound] does not allow {service!r}", f'the unit calls it: allow = [..., "{service}"]')


def gatekeeper_text(asked: wire.Authorize) -> str:
    """As a person reads it."""
    silent = "goes on" if asked.on_error == "allow" else "503"
    return f"then {asked.service} is asked; without its verdict within {asked.timeout_ms} ms: {silent}"
