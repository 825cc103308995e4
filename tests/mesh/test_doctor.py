"""`hostmesh doctor` on real hosts: silent on a clean one, and each fault really made is found with its remedy."""

import datetime
import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.lab.host import Host
from tests.lab.lab import Lab
from tests.mesh.world import World

pytestmark = pytest.mark.lab
STATE, PINS = "/var/lib/hostmesh", "/sys/fs/bpf/hostmesh"
METADATA = "/opt/hostmesh/lib/python3*/site-packages/hostmesh_proxy-*.dist-info/METADATA"
CLOSED = "table inet f {\nchain i {\ntype filter hook input priority 0; policy drop\niifname lo accept\n}\n}\n"
MARKS = "table inet f {\nchain o {\ntype route hook output priority -200\nmeta mark set 7\n}\n}\n"
SQUID = "table ip f {\nchain o {\ntype nat hook output priority -100\nmeta l4proto tcp redirect to :3128\n}\n}\n"


def doctor(host: Host) -> list[dict[str, str]]:
    """What is found, and the exit code that goes with it."""
    done = host.exec(["hostmesh", "doctor", "--json"])
    told = json.loads(done.stdout)
    findings: list[dict[str, str]] = told["findings"]
    problems = any(finding["level"] == "problem" for finding in findings)
    assert (done.exit, told["ok"]) == ((1, False) if problems else (0, True)), done
    return findings


@contextmanager
def between(host: Host, before: str, after: str) -> Iterator[None]:
    """Two lines of shell round a ``with``."""
    host.exec(["sh", "-ec", before]).must()
    try:
        yield
    finally:
        host.exec(["sh", "-ec", after]).must()


@contextmanager
def table(host: Host, text: str) -> Iterator[None]:
    """Somebody else's table."""
    host.exec(["nft", "-f", "-"], input=text).must()
    try:
        yield
    finally:
        host.exec(["nft", "flush", "ruleset"]).must()


@contextmanager
def expired(host: Host) -> Iterator[None]:
    """A certificate of this host that ended yesterday: for the clock it is no different from a clock that is ahead."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "h1")])
    today, day = datetime.datetime.now(datetime.UTC), datetime.timedelta(days=1)
    made = x509.CertificateBuilder(name, name, key.public_key(), 7, today - 2 * day, today - day)
    certificate = made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    host.write(f"{STATE}/identity/host.crt", certificate.decode())
    with between(host, "true", f"rm {STATE}/identity/host.crt"):
        yield


def small_disk(host: Host, options: str) -> AbstractContextManager[None]:
    return between(host, f"mkdir -p {STATE}; mount -t tmpfs -o {options} x {STATE}", f"umount {STATE}")


FAULTS = {
    "foreign-drop": lambda host: table(host, CLOSED),
    "foreign-mark": lambda host: table(host, MARKS),
    "foreign-nat": lambda host: table(host, SQUID),
    "flush": lambda host: between(host, "systemctl enable nftables", "systemctl disable nftables"),
    "port": lambda host: between(
        host,
        "systemd-run --unit=thief nc -lk 15008; until ss -Hlnt | grep -q :15008; do :; done",
        "systemctl stop thief",
    ),
    "port-range": lambda host: between(
        host,
        "sysctl -w net.ipv4.ip_local_port_range='10000 60999'",
        "sysctl -w net.ipv4.ip_local_port_range='32768 60999'",
    ),
    "rule": lambda host: between(
        host,
        "ip rule add pref 100 fwmark 0x01000000/0x01000000 lookup 99; ip route add default dev lo table 99",
        "ip rule del pref 100; ip route flush table 99",
    ),
    "dns": lambda host: between(
        host,
        "sed -i.kept 's/^hosts:.*/hosts: files/' /etc/nsswitch.conf",
        "mv /etc/nsswitch.conf.kept /etc/nsswitch.conf",
    ),
    "clock": expired,
    "disk": lambda host: small_disk(host, "size=1m"),
    "disk, read-only": lambda host: small_disk(host, "ro"),
    "version": lambda host: between(
        host, f"sed -i.kept 's/^Version: .*/Version: 0.0.1/' {METADATA}", f"mv {METADATA}.kept $(echo {METADATA})"
    ),
}


@pytest.fixture(scope="module")
def clean(hostmesh_wheels: Path) -> Iterator[Host]:
    """A host with hostmesh installed and nothing set up; at the end it is as clean as it was."""
    with Lab(("h1",), layers=[hostmesh_wheels]) as lab:
        yield lab["h1"]
        assert doctor(lab["h1"]) == []


def test_nothing_is_found_on_a_clean_host(clean: Host) -> None:
    said = clean.exec(["hostmesh", "doctor"])
    assert (said.exit, said.stdout, said.stderr) == (0, "0 problems, 0 risks\n", "")


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_found_and_nothing_else(clean: Host, fault: str) -> None:
    with FAULTS[fault](clean):
        found = doctor(clean)
    assert {finding["code"] for finding in found} == {fault.partition(",")[0]}, found
    assert all(finding["remedy"] for finding in found)
    print("; ".join(f"{f['level']}: {f['where']} {f['what']}" for f in found))


def test_a_meshed_host_has_no_problems_and_is_told_of_units_that_could_step_round(mesh: World) -> None:
    for host in (mesh.h1, mesh.h2):
        found = doctor(host)
        assert {(finding["level"], finding["code"]) for finding in found} <= {("risk", "unit")}, found
    nginx = [finding["what"] for finding in doctor(mesh.h2) if finding["where"] == "nginx.service"]
    assert any("CAP_NET_ADMIN, CAP_NET_RAW" in what for what in nginx), nginx


@pytest.mark.parametrize(
    ("code", "before", "after"),
    [
        ("guard", "mv {0}/egress {0}/gone", "mv {0}/gone {0}/egress"),
        (  # without the agent, which would put it back meanwhile
            "sysctl",
            "systemctl stop hostmeshd && sysctl -w net.ipv6.fwmark_reflect=0",
            "sysctl -w net.ipv6.fwmark_reflect=1 && systemctl start hostmeshd",
        ),
    ],
)
def test_what_is_missing_from_a_meshed_host(mesh: World, code: str, before: str, after: str) -> None:
    with between(mesh.h1, before.format(PINS), after.format(PINS)):
        problems = [finding["code"] for finding in doctor(mesh.h1) if finding["level"] == "problem"]
    assert problems == [code]


def test_it_needs_root(clean: Host) -> None:
    asked = clean.run_unit(["hostmesh", "doctor"], user="nobody")
    assert (asked.exit, "sudo hostmesh doctor" in asked.stderr) == (1, True)
