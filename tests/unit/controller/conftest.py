"""A real controller on loopback: real TLS, real gRPC, a store on disk, in a process of its own or in this one."""

import asyncio
import base64
import os
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from hostmesh.agent import host_identity
from hostmesh.agent.controller_client import ControllerClient
from hostmesh.agent.enrol import Joined, join
from hostmesh.controller import admin, ca
from hostmesh.controller.config import Config
from hostmesh.controller.store import Store
from hostmesh.identity.authority import Authority, make_intermediate
from hostmesh.identity.rotation import HOST_GRACE, HOST_LIFE
from hostmesh.identity.svid import read_request
from hostmesh.names import SpiffeId
from hostmesh.wire.controller import PublishRequest, WatchEvent, Workload
from hostmesh.wire.snapshot import Traffic

DEADLINE = 15.0


def own_address() -> str:
    """A loopback address of this test run's own: nobody else takes its ports while a controller is down."""
    pid = os.getpid()
    return f"127.{100 + (pid >> 16) % 100}.{pid >> 8 & 255}.{pid & 255 or 254}"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((own_address(), 0))
        return int(probe.getsockname()[1])


def load_key(path: Path) -> ec.EllipticCurvePrivateKey:
    key = load_pem_private_key(path.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key


class Mesh:
    """A controller's files, and the program that serves them. Hosts join into folders of their own."""

    def __init__(self, folder: Path, **settings: object) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        config = Config(
            trust_domain="mesh.test",
            state=folder / "controller",
            listen=(own_address(),),
            advertise=(own_address(),),
            port=free_port(),
            enrolment_port=free_port(),
        )
        self.config = replace(config, **settings)
        self.path = folder / "etc" / "controller.toml"
        admin.init(self.config, self.path, user=None)
        self.process: subprocess.Popen[str] | None = None

    @property
    def address(self) -> str:
        return f"{own_address()}:{self.config.port}"

    def start(self, *program: str) -> None:
        """Start the real program, or what ``program`` tells Python; returns when it says READY."""
        notify = self.folder / "notify"
        notify.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
            listener.bind(str(notify))
            listener.settimeout(0.2)
            with (self.folder / "log").open("a") as log:
                python = [sys.executable, *(program or ("-m", "hostmesh.controller.main")), "--config", str(self.path)]
                self.process = subprocess.Popen(
                    ["setpriv", "--pdeathsig", "KILL", *python],
                    env={"NOTIFY_SOCKET": str(notify), "PATH": "/usr/bin:/bin"},
                    stderr=log,
                )
            end = time.monotonic() + DEADLINE
            while time.monotonic() < end and self.process.poll() is None:
                try:
                    assert listener.recv(4096).startswith(b"READY=1")
                except TimeoutError:
                    continue
                return
        raise AssertionError(f"the controller did not start: {self.log()}")

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait(DEADLINE)

    def stop(self) -> int:
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(DEADLINE)

    def token(self, host: str, *units: str) -> str:
        return admin.make_token(host, units, config_path=self.path)

    def client(self, host: str) -> ControllerClient:
        return ControllerClient((self.address,), self.state(host))

    def age(self, host: str, by: timedelta) -> None:
        """Give a host the certificate that it would have, had it joined so long ago."""
        with closing(Store(self.config.state / "controller.db")) as store:
            authority = ca.load(self.config.state, store, self.config.trust_domain)
        slot = authority.active
        assert slot.key is not None
        early = make_intermediate(
            slot.root,
            load_key(self.config.state / "ca/1/root.key"),
            slot.key.public_key(),
            now=ca.clock() - by,
            serial=ca.new_serial(),
        )
        old = Authority(self.config.trust_domain, (replace(slot, intermediate=early),))
        folder = self.state(host) / "identity"
        key, csr = host_identity.new_request()
        chain = old.sign(
            SpiffeId.of_host(self.config.trust_domain, host),
            (host,),
            read_request(base64.b64decode(csr)),
            now=ca.clock() - by,
            life=HOST_LIFE + HOST_GRACE,
            serial=ca.new_serial(),
        )
        bundle = [base64.b64encode(root.public_bytes(Encoding.DER)).decode() for root in authority.trust_bundle]
        sent = [base64.b64encode(certificate.public_bytes(Encoding.DER)).decode() for certificate in chain]
        host_identity.save(folder, key, sent, bundle)

    def state(self, host: str) -> Path:
        return self.folder / "hosts" / host

    def join(self, host: str, *units: str) -> Joined:
        where = self.state(host)
        return join(self.token(host, *units), state=where, config=where / "hostmesh.toml")

    def log(self) -> str:
        return (self.folder / "log").read_text()


@pytest.fixture
def meshes(tmp_path: Path) -> Iterator[Callable[..., Mesh]]:
    """Makes meshes of their own, with controllers that run; each must end well."""
    made: list[Mesh] = []

    def make(**settings: object) -> Mesh:
        mesh = Mesh(tmp_path / f"mesh{len(made)}", **settings)
        made.append(mesh)
        mesh.start()
        return mesh

    yield make
    codes = [mesh.stop() for mesh in made if mesh.process and mesh.process.poll() is None]
    assert not any(codes), [mesh.log() for mesh in made]


@pytest.fixture
def mesh(meshes: Callable[..., Mesh]) -> Mesh:
    return meshes()


@asynccontextmanager
async def beside(coroutine: Coroutine[object, object, None]) -> AsyncIterator[None]:
    """A task that lives as long as the block; when it fails, the test fails."""
    task = asyncio.ensure_future(coroutine)
    try:
        yield
    finally:
        if not task.done():
            task.cancel()
        results = await asyncio.gather(task, return_exceptions=True)
    assert isinstance(results[0], asyncio.CancelledError | None), results


async def next_event(events: AsyncIterator[WatchEvent]) -> WatchEvent:
    return await asyncio.wait_for(anext(events), DEADLINE)


def word(
    *services: tuple[str, int], address: str = "198.18.0.2", timeout_ms: int = 0, ready: bool = True
) -> PublishRequest:
    """A host's word: services of units of the same name."""
    traffic = Traffic(timeout_ms=timeout_ms, retries=None, balance="least-request", rule="x.service.toml:3")
    loads = [
        Workload(unit=f"{name}.service", service=name, ports=[(port, "http")], traffic=traffic, ready=ready)
        for name, port in services
    ]
    return PublishRequest(addresses=[address], wire_port=15008, workloads=loads)
