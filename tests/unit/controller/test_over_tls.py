"""Enrol, sign, publish, watch: the agent's client against the real program over real TLS."""

import asyncio
import base64
import time

from cryptography import x509

from hostmesh.agent.controller_client import ControllerClient
from hostmesh.agent.host_identity import new_request
from hostmesh.identity.authority import check_chain
from hostmesh.wire.controller import PublishRequest, WatchEvent, Workload
from hostmesh.wire.snapshot import Traffic
from tests.unit.controller.conftest import DEADLINE, Mesh

PLAIN = Traffic(timeout_ms=0, retries=None, balance="least-request", rule="")


def word(*services: tuple[str, int], address: str = "198.18.0.2") -> PublishRequest:
    loads = [
        Workload(unit=f"{name}.service", service=name, ports=[(port, "http")], traffic=PLAIN) for name, port in services
    ]
    return PublishRequest(addresses=[address], wire_port=15008, workloads=loads)


def client(mesh: Mesh, host: str) -> ControllerClient:
    return ControllerClient((mesh.address,), mesh.state(host))


async def next_event(events: object) -> WatchEvent:
    return await asyncio.wait_for(anext(events), DEADLINE)  # type: ignore[call-overload, no-any-return]


def test_enrol_sign_publish_watch(mesh: Mesh) -> None:
    joined = mesh.join("h1", "orders", "inventory")
    assert (joined.host, joined.trust_domain) == ("h1", "mesh.test")
    mesh.join("h2")

    async def scenario() -> None:
        h1, h2 = client(mesh, "h1"), client(mesh, "h2")
        key, csr = new_request()
        chain = [x509.load_der_x509_certificate(base64.b64decode(c)) for c in await h1.sign("orders.service", csr)]
        roots = x509.load_pem_x509_certificates(h1.identity.bundle)
        said = check_chain(chain, roots, chain[0].not_valid_before_utc)
        assert str(said.spiffe_id) == "spiffe://mesh.test/unit/orders"
        assert said.dns_names == ("h1",)

        events = h2.watch()
        first = await next_event(events)
        assert (first.full, first.services) == (True, [])
        began = time.monotonic()
        assert (await h1.publish(word(("inventory", 8080)))).refused == {}
        event = await next_event(events)
        took = time.monotonic() - began
        [service] = event.services
        assert (service.name, service.endpoints[0].host, event.full) == ("inventory", "h1", False)
        assert took < 0.5, f"{took * 1000:.0f} ms"
        await h1.publish(word())
        gone = await next_event(events)
        assert (gone.removed, gone.services) == (["inventory"], [])
        await events.aclose()
        await h1.close()
        await h2.close()

    asyncio.run(scenario())
