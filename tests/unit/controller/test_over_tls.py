"""Enrol, sign, publish, watch: the agent's client against the real program over real TLS; and who is turned away."""

import asyncio
import base64
import socket
import ssl
import statistics
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import grpc
import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from hostmesh.agent.controller_client import ControllerAway, ControllerClient, ControllerError
from hostmesh.agent.enrol import JoinError, join
from hostmesh.agent.host_identity import new_request
from hostmesh.controller import admin
from hostmesh.identity.authority import check_chain
from hostmesh.wire.controller import SERVICE, PublishRequest, SignRequest, Workload, read_token, write_token
from hostmesh.wire.snapshot import Traffic
from tests.lab.waiting import until
from tests.unit.controller.conftest import Mesh, beside, next_event, own_address, word


def test_enrol_sign_publish_watch(mesh: Mesh) -> None:
    joined = mesh.join("h1", "orders", "inventory")
    assert (joined.host, joined.trust_domain, joined.controllers) == ("h1", "mesh.test", (mesh.address,))
    mesh.join("h2")

    async def scenario() -> None:
        h1, h2 = mesh.client("h1"), mesh.client("h2")
        _, csr = new_request()
        chain = [x509.load_der_x509_certificate(base64.b64decode(c)) for c in await h1.sign("orders.service", csr)]
        roots = x509.load_pem_x509_certificates(h1.identity.bundle)
        said = check_chain(chain, roots, chain[0].not_valid_before_utc)
        assert str(said.spiffe_id) == "spiffe://mesh.test/unit/orders"
        assert said.dns_names == ("h1",)

        events = h2.watch()
        first = await next_event(events)
        assert (first.full, first.services) == (True, [])
        assert (await h1.publish(word(("inventory", 8080)))).refused == {}
        event = await next_event(events)
        [service] = event.services
        assert (service.name, service.endpoints[0].host, event.full) == ("inventory", "h1", False)
        await h1.publish(word())
        gone = await next_event(events)
        assert (gone.removed, gone.services) == (["inventory"], [])
        await h1.close()
        await h2.close()

    asyncio.run(scenario())


def test_a_change_reaches_a_watcher_at_once(mesh: Mesh) -> None:
    mesh.join("h1", "*")
    mesh.join("h2")

    async def scenario() -> None:
        h1, h2 = mesh.client("h1"), mesh.client("h2")
        events, times = h2.watch(), []
        await next_event(events)
        for port in range(8000, 8030):
            began = time.monotonic()
            said = asyncio.ensure_future(h1.publish(word(("web", port))))
            event = await next_event(events)
            times.append(time.monotonic() - began)
            assert event.services[0].ports[-1].port == port
            await said
        await h1.close()
        await h2.close()
        assert statistics.median(times) < 0.1, times

    asyncio.run(scenario())


def test_a_catalog_of_many_megabytes_reaches_a_watcher(mesh: Mesh) -> None:
    """What a host may publish adds up to more than gRPC takes in one message, unless it is told otherwise."""
    mesh.join("h1", "*")
    mesh.join("h2")
    ports = [(number, "tcp") for number in range(10_001, 10_257)]
    traffic = Traffic(timeout_ms=0, retries=None, balance="least-request", rule="")
    loads = [Workload(f"s{number}.service", f"s{number}", ports, traffic, True) for number in range(400)]

    async def scenario() -> None:
        h1, h2 = mesh.client("h1"), mesh.client("h2")
        assert (await h1.publish(PublishRequest(["198.18.0.1"], 15008, loads))).refused == {}
        event = await next_event(h2.watch())
        assert len(event.services) == len(loads)
        assert len(msgspec.json.encode(event)) > 4 * 1024 * 1024
        await h1.close()
        await h2.close()

    asyncio.run(scenario())


def test_the_same_word_again_is_no_change(mesh: Mesh) -> None:
    mesh.join("h1", "*")

    async def scenario() -> None:
        h1 = mesh.client("h1")
        events = h1.watch()
        await next_event(events)
        await h1.publish(word(("a", 80)))
        first = await next_event(events)
        await h1.publish(word(("a", 80)))
        await h1.publish(word(("a", 81)))
        assert (await next_event(events)).revision == first.revision + 1
        await h1.close()

    asyncio.run(scenario())


def test_tokens_open_once_in_time_for_their_host(mesh: Mesh, tmp_path: Path) -> None:
    def attempt(text: str) -> None:
        join(text, state=tmp_path / "x", config=tmp_path / "x.toml")

    used = mesh.token("h1")
    attempt(used)
    with pytest.raises(JoinError, match="used before"):
        attempt(used)
    token = read_token(mesh.token("h2"))
    with pytest.raises(JoinError, match="is for host h2, not for h3"):
        attempt(write_token(msgspec.structs.replace(token, host="h3")))
    attempt(write_token(token))  # the wrong try did not use it up
    with pytest.raises(JoinError, match="not known here"):
        attempt(write_token(msgspec.structs.replace(token, secret="guessed")))
    brief = admin.make_token("h4", (), ttl=timedelta(seconds=1), config_path=mesh.path)
    asyncio.run(asyncio.sleep(1.1))  # the clock itself is what is awaited
    with pytest.raises(JoinError, match="has expired"):
        attempt(brief)
    with pytest.raises(JoinError, match=r"begins with hostmesh1\."):
        attempt("nonsense")


def test_a_false_controller_learns_nothing(mesh: Mesh, tmp_path: Path) -> None:
    """A host verifies the controller by the root in its token: with another root the secret is not even sent."""
    other = Mesh(tmp_path / "other")
    token = read_token(mesh.token("h1"))
    false = write_token(msgspec.structs.replace(token, root=read_token(other.token("h1")).root))
    with pytest.raises(JoinError, match="no controller could be reached"):
        join(false, state=tmp_path / "x", config=tmp_path / "x.toml", timeout=3)
    join(write_token(token), state=tmp_path / "x", config=tmp_path / "x.toml")


def test_units_that_were_not_granted(mesh: Mesh) -> None:
    mesh.join("h1", "orders")

    async def scenario() -> None:
        h1 = mesh.client("h1")
        _, csr = new_request()
        with pytest.raises(ControllerError, match=r"host h1 may not run payroll.service"):
            await h1.sign("payroll.service", csr)
        reply = await h1.publish(word(("payroll", 80), ("orders", 80)))
        assert list(reply.refused) == ["payroll.service"]
        assert "may not run" in reply.refused["payroll.service"]
        event = await next_event(h1.watch())
        assert [service.name for service in event.services] == ["orders"]
        admin.grant("h1", ("pay*",), config_path=mesh.path)
        assert await h1.sign("payroll.service", csr)
        with pytest.raises(ControllerError, match="cannot be read"):
            await h1.sign("orders.service", base64.b64encode(b"nonsense").decode())
        await h1.close()

    asyncio.run(scenario())


def test_a_stolen_host_does_not_take_a_service(mesh: Mesh) -> None:
    mesh.join("h1", "db")
    mesh.join("h2", "evil")

    async def scenario() -> None:
        h1, h2 = mesh.client("h1"), mesh.client("h2")
        await h1.publish(word(("db", 5432)))
        false = word(("evil", 5432))
        load = msgspec.structs.replace(false.workloads[0], service="db")
        reply = await h2.publish(msgspec.structs.replace(false, workloads=[load]))
        assert "belongs to db" in reply.refused["evil.service"]
        event = await next_event(h2.watch())
        assert [e.host for e in event.services[0].endpoints] == ["h1"]
        await h1.close()
        await h2.close()

    asyncio.run(scenario())


def test_a_removed_host_is_out_within_a_second(mesh: Mesh) -> None:
    mesh.join("h1", "web")
    mesh.join("h2")

    async def scenario() -> None:
        h1, h2 = mesh.client("h1"), mesh.client("h2")
        await h1.publish(word(("web", 80)))
        events = h2.watch()
        assert (await next_event(events)).services[0].name == "web"
        own = h1.watch()
        await next_event(own)
        began = time.monotonic()
        listening = asyncio.ensure_future(anext(own))
        admin.remove("h1", config_path=mesh.path)
        assert (await next_event(events)).removed == ["web"]
        assert time.monotonic() - began < 1.0
        await until(lambda: "PERMISSION_DENIED: host h1 is not enrolled" in mesh.log(), "its own watch ended")
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)
        _, csr = new_request()
        with pytest.raises(ControllerError, match="not enrolled, or was removed"):
            await h1.sign("web.service", csr)
        with pytest.raises(ControllerError, match="not enrolled, or was removed"):
            await h1.publish(word(("web", 80)))
        await h1.close()
        await h2.close()

    asyncio.run(scenario())


def call_sign(mesh: Mesh, credentials: grpc.ChannelCredentials) -> grpc.RpcError:
    """Call the mutual-TLS port as a stranger; the refusal."""
    options = [("grpc.ssl_target_name_override", "controller.mesh.test")]
    _, csr = new_request()
    body = msgspec.json.encode(SignRequest(unit="web.service", csr=csr))
    with grpc.secure_channel(mesh.address, credentials, options) as channel, pytest.raises(grpc.RpcError) as refused:
        channel.unary_unary(f"/{SERVICE}/Sign")(body, timeout=3)
    return refused.value


def test_strangers_do_not_get_through_the_handshake(mesh: Mesh, meshes: Callable[..., Mesh]) -> None:
    mesh.join("h1", "web")
    bundle = (mesh.state("h1") / "identity/bundle.pem").read_bytes()
    no_certificate = call_sign(mesh, grpc.ssl_channel_credentials(bundle))
    assert no_certificate.code() is grpc.StatusCode.UNAVAILABLE
    for trust_domain in ("mesh.test", "other.test"):
        other = meshes(trust_domain=trust_domain)
        other.join("h1", "web")
        folder = other.state("h1") / "identity"
        key, chain = (folder / "host.key").read_bytes(), (folder / "host.crt").read_bytes()
        refused = call_sign(mesh, grpc.ssl_channel_credentials(bundle, key, chain))
        assert refused.code() is grpc.StatusCode.UNAVAILABLE, refused
    mine = mesh.state("h1") / "identity"
    good = grpc.ssl_channel_credentials(bundle, (mine / "host.key").read_bytes(), (mine / "host.crt").read_bytes())
    options = [("grpc.ssl_target_name_override", "controller.mesh.test")]
    with grpc.secure_channel(mesh.address, good, options) as channel:
        _, csr = new_request()
        assert channel.unary_unary(f"/{SERVICE}/Sign")(
            msgspec.json.encode(SignRequest(unit="web.service", csr=csr)), timeout=5
        )


def test_a_client_does_not_talk_to_another_ca(mesh: Mesh, meshes: Callable[..., Mesh]) -> None:
    mesh.join("h1")
    other = meshes()
    other.join("h1")

    async def scenario() -> None:
        client = ControllerClient((other.address,), mesh.state("h1"))
        with pytest.raises(ControllerAway, match="no controller can do it now"):
            await client.publish(word())
        await client.close()

    asyncio.run(scenario())


def test_a_unit_is_no_host(mesh: Mesh) -> None:
    mesh.join("h1", "web")

    async def unit_svid() -> tuple[bytes, bytes]:
        h1 = mesh.client("h1")
        key, csr = new_request()
        chain = [x509.load_der_x509_certificate(base64.b64decode(c)) for c in await h1.sign("web.service", csr)]
        await h1.close()
        return key, b"".join(c.public_bytes(Encoding.PEM) for c in chain)

    key, chain = asyncio.run(unit_svid())
    bundle = (mesh.state("h1") / "identity/bundle.pem").read_bytes()
    refused = call_sign(mesh, grpc.ssl_channel_credentials(bundle, key, chain))
    assert refused.code() is grpc.StatusCode.PERMISSION_DENIED
    assert "spiffe://mesh.test/unit/web is not a host" in refused.details()


@pytest.mark.parametrize("port", ["port", "enrolment_port"])
def test_tls_1_3_and_nothing_below(mesh: Mesh, port: str) -> None:
    def version(highest: ssl.TLSVersion) -> str | None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.maximum_version = highest
        context.set_alpn_protocols(["h2"])
        where = (own_address(), getattr(mesh.config, port))
        with socket.create_connection(where, 5) as plain, context.wrap_socket(plain) as wrapped:
            return wrapped.version()

    assert version(ssl.TLSVersion.TLSv1_3) == "TLSv1.3"
    with pytest.raises((ssl.SSLError, ConnectionResetError)):
        version(ssl.TLSVersion.TLSv1_2)


def test_a_host_in_grace_renews_and_is_back(mesh: Mesh) -> None:
    mesh.join("h1", "web")
    mesh.age("h1", timedelta(days=8))

    async def scenario() -> None:
        h1 = mesh.client("h1")
        old = h1.identity.said.serial
        _, csr = new_request()
        with pytest.raises(ControllerError, match="it can renew, and do nothing else"):
            await h1.sign("web.service", csr)
        async with beside(h1.run()):
            await until(lambda: h1.identity.said.serial != old, "the certificate renewed")
        assert await h1.sign("web.service", csr)
        await h1.close()
        assert mesh.client("h1").identity.said.serial == h1.identity.said.serial

    asyncio.run(scenario())


def test_a_watch_survives_the_renewal(mesh: Mesh) -> None:
    mesh.join("h1", "web")
    mesh.age("h1", timedelta(days=5))

    async def scenario() -> None:
        h1 = mesh.client("h1")
        old, events = h1.identity.said.serial, h1.watch()
        first = await next_event(events)
        async with beside(h1.run()):
            await until(lambda: h1.identity.said.serial != old, "the certificate renewed")
            await h1.publish(word(("web", 80)))
            event = await next_event(events)
            while not event.services:
                event = await next_event(events)
        assert (event.full, event.revision) == (False, first.revision + 1)
        await h1.close()

    asyncio.run(scenario())


def test_a_client_is_closed_at_once_whatever_it_waits_for(mesh: Mesh) -> None:
    """A controller that takes connections and says nothing: who is asked to stop does not wait for it."""
    mesh.join("h1", "web")

    async def scenario(silent: str) -> None:
        client = ControllerClient((silent,), mesh.state("h1"))
        waiting = asyncio.create_task(client.publish(word(("web", 80))))
        done, _ = await asyncio.wait({waiting}, timeout=0.2)
        assert not done
        began = time.monotonic()
        await client.close()
        assert time.monotonic() - began < 1.0
        assert isinstance((await asyncio.gather(waiting, return_exceptions=True))[0], asyncio.CancelledError)

    with socket.create_server((own_address(), 0)) as silent:
        asyncio.run(scenario(f"{own_address()}:{silent.getsockname()[1]}"))
