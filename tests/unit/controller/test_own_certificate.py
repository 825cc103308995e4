"""The controller's own certificate: made anew at half its life, in use from the next handshake on, no restart."""

import asyncio
import socket
import ssl
import time
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509

from hostmesh.controller import admin, ca
from hostmesh.controller.config import Config, load
from hostmesh.controller.feed import Feed
from hostmesh.controller.server import Ports
from hostmesh.controller.service import Controller
from hostmesh.controller.store import Store
from hostmesh.identity import svid

HERE, ALSO_HERE = "127.0.0.1", "127.0.0.2"


def shown(port: int, address: str = HERE) -> svid.Svid:
    """What the enrolment port shows to whoever comes."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    with socket.create_connection((address, port), 5) as plain, context.wrap_socket(plain) as wrapped:
        der = wrapped.getpeercert(binary_form=True)
    assert der is not None
    return svid.read(x509.load_der_x509_certificate(der))


def test_it_is_renewed_at_half_its_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = Config(trust_domain="mesh.test", name="c1", state=tmp_path / "s", listen=(HERE, ALSO_HERE), port=0)
    config = load(_written(config, tmp_path / "c.toml"))
    real = ca.clock

    async def scenario() -> None:
        with closing(Store(config.state / "controller.db")) as store:
            authority = ca.load(config.state, store, config.trust_domain)
            feed = Feed(config, store, authority, time.monotonic)
            ports = Ports(config, authority, Controller(config, store, authority, feed))
            _, enrolment = await ports.start()
            first = await asyncio.to_thread(shown, enrolment)
            assert str(first.spiffe_id) == "spiffe://mesh.test/controller/c1"
            assert first.dns_names == ("controller.mesh.test",)
            assert (await asyncio.to_thread(shown, enrolment)).serial == first.serial
            monkeypatch.setattr(ca, "clock", lambda: real() + timedelta(hours=12, minutes=1))
            second = await asyncio.to_thread(shown, enrolment)
            assert second.serial != first.serial
            assert second.not_after > first.not_after + timedelta(hours=11)
            assert (await asyncio.to_thread(shown, enrolment, ALSO_HERE)).serial == second.serial
            await ports.stop(0)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("hours", "boot_hours", "due"),
    [
        (0, 0, False),
        (11, 11, False),
        (12, 12, True),
        (13, 0, True),  # suspended, or the clock was mended
        (-24, 13, True),  # set back: by the clock that does not jump it is old
        (-0.05, 1, False),  # stepped back by a little: within what a certificate is dated back
        (-24, 1, True),  # made while the clock was ahead: nobody takes it before tomorrow
    ],
)
def test_when_it_is_due(hours: float, boot_hours: float, due: bool) -> None:
    made = ca.clock()
    identity = ca.ServerIdentity(b"", b"", (made, 1000.0))
    assert identity.is_due(made + timedelta(hours=hours), 1000.0 + boot_hours * 3600) == due


def _written(config: Config, path: Path) -> Path:
    admin.init(config, path, user=None)
    path.write_text(path.read_text().replace("enrolment_port = 15011", "enrolment_port = 0"))
    return path
