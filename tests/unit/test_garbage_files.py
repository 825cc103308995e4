"""Every file that hostmesh reads, full of what does not belong there: each time one error that names the file."""

import base64
import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat

from hostmesh.agent import host_identity
from hostmesh.agent.mesh import load_catalog
from hostmesh.agent.numbers import Numbers
from hostmesh.agent.policies import PolicyFolder
from hostmesh.agent.reports import Callers
from hostmesh.apply import guard
from hostmesh.apply.files import Files
from hostmesh.apply.sysctl import Sysctls
from hostmesh.controller import admin, ca, config
from hostmesh.controller.store import Store
from hostmesh.errors import HostmeshError, PolicyError
from hostmesh.identity.svid import read_request
from hostmesh.names import SpiffeId, dns_names_of
from hostmesh.observe import written

DOMAIN = "mesh.test"


def other_pem() -> bytes:
    """A key where a certificate belongs, or one of a kind that nobody here uses; it has a password besides."""
    key = ec.generate_private_key(ec.SECP384R1())
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))


GARBAGE = {
    "noise": random.Random(7).randbytes(4096),
    "zeros": bytes(4096),
    "half a character": b"a = '\xc3",
    "another shape": b'{"marks": [1], "numbers": 3}',
    "a list": b"[]",
    "a number": b"1" * 5000,
    "nesting": b"[" * 100_000,
    "nested tables": b"a = " + b"{b = " * 50_000,
    "tables that are none": b'marks = 3\nports = "x"\nservice = 1\nlisten = 7\n',
    "another PEM": other_pem(),
    "half a PEM": b"-----BEGIN CERTIFICATE-----\nMIIB\n",
    "a PEM of nothing": b"-----BEGIN CERTIFICATE-----\nMAMCAQE=\n-----END CERTIFICATE-----\n",
}


@dataclass(frozen=True)
class Read:
    """A file below a host's root, and who reads it."""

    file: str
    by: Callable[[Path], object]


def policies(file: Path) -> None:
    folder = PolicyFolder(file.parent)
    folder.refresh()
    if folder.findings:
        raise PolicyError(folder.findings)


def authority(file: Path) -> None:
    state = file.parents[2]
    with closing(Store(state / "controller.db")) as store:
        ca.load(state, store, DOMAIN)


def pin(file: Path) -> None:
    """What the guard's own program makes an error and an exit code of."""
    try:
        guard._settings(file)
    except ValueError as error:
        raise HostmeshError(str(error)) from error


def sysctls(file: Path) -> None:
    Sysctls(lambda: Files().read(str(file)), lambda _: None).before()


def callers(file: Path) -> None:
    Callers().load(Files().read(str(file)) or "")


READS = (
    Read("etc/hostmesh.toml", written.settings),
    Read("etc/hostmesh.toml", pin),
    Read("etc/controller.toml", config.load),
    Read("policies/web.service.toml", policies),
    Read("agent/identity/host.key", lambda file: host_identity.load(file.parent)),
    Read("agent/identity/host.crt", lambda file: host_identity.load(file.parent)),
    Read("agent/identity/bundle.pem", lambda file: host_identity.load(file.parent)),
    Read("agent/identity/join.key", lambda file: host_identity.pending_request(file.parent)),
    Read("agent/catalog.json", load_catalog),
    Read("agent/numbers.json", lambda file: Numbers(file, "this boot")),
    Read("agent/sysctls.json", sysctls),
    Read("agent/callers.json", callers),
    Read("controller/ca/1/root.crt", authority),
    Read("controller/ca/1/intermediate.crt", authority),
    Read("controller/ca/1/intermediate.key", authority),
    Read("controller/controller.db", Store),
)


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A host's files, sound."""
    root = tmp_path_factory.mktemp("host")
    (root / "agent").mkdir()
    (root / "policies").mkdir()
    made = config.Config(trust_domain=DOMAIN, state=root / "controller", advertise=("127.0.0.1",))
    admin.init(made, root / "etc/controller.toml", user=None)
    with closing(Store(root / "controller/controller.db")) as store:
        signer = ca.load(root / "controller", store, DOMAIN)
    key, request = host_identity.new_request()
    asked = read_request(base64.b64decode(request))
    life = timedelta(hours=1)
    chain = signer.sign(
        SpiffeId(DOMAIN, "host/h1"), dns_names_of("h1"), asked, now=datetime.now(UTC), life=life, serial=7
    )
    host_identity.save(root / "agent/identity", key, base64_of(chain), base64_of(signer.trust_bundle))
    return root


def base64_of(certificates: Iterable[x509.Certificate]) -> list[str]:
    return [base64.b64encode(certificate.public_bytes(Encoding.DER)).decode() for certificate in certificates]


@contextmanager
def holding(file: Path, garbage: bytes) -> Iterator[None]:
    """The file with this in it, for the length of a ``with``."""
    before = file.read_bytes() if file.exists() else None
    file.write_bytes(garbage)
    try:
        yield
    finally:
        if before is None:
            file.unlink()
        else:
            file.write_bytes(before)


@pytest.mark.parametrize("garbage", GARBAGE)
@pytest.mark.parametrize("read", READS, ids=lambda read: f"{read.file} {getattr(read.by, '__name__', '')}")
def test_what_does_not_belong_there_is_told(host: Path, read: Read, garbage: str) -> None:
    file = host / read.file
    with holding(file, GARBAGE[garbage]), pytest.raises(HostmeshError) as told:
        read.by(file)
    said = str(told.value)
    assert file.name in said or str(file.parent) in said, said
    assert len(said) < 4000, "it is told, not shown"


SOUND = {
    "hostmesh.toml": b"",
    "web.service.toml": b"# calls others only\n",
    "sysctls.json": b"{}",
    "callers.json": b"{}",
}
"""Where it is not made as the product makes it. The rest may be missing."""


@pytest.mark.parametrize("read", READS, ids=lambda read: read.file)
def test_what_belongs_there_is_read(host: Path, read: Read) -> None:
    file = host / read.file
    if file.name not in SOUND:
        read.by(file)
    else:
        with holding(file, SOUND[file.name]):
            read.by(file)
