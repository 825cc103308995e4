"""Tokens decide: through two real hosts, with an issuer whose keys are served by https, by http and in a file."""

import datetime
import ipaddress
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from tests.lab.host import Host
from tests.lab.waiting import MayYetError, wait_until
from tests.mesh import told
from tests.mesh.issuer import AUDIENCE, ISSUER, Issuer, Key, another, claims, key_set, token
from tests.mesh.world import POLICIES, World

pytestmark = pytest.mark.lab

HERE = Path(__file__).parent
ASKER, SERVER = (HERE / "token_asker.py").read_text(), (HERE / "key_server.py").read_text()
UNIT, KEYS, CERTIFICATE = "inventory.service", "/srv/issuer/keys.json", "/srv/issuer/server.pem"
HTTPS, HTTP = 8443, 8480
AUTHORITY = "/usr/local/share/ca-certificates/issuer.crt"
ECHO = """
import http.server, json
class Echo(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        data = json.dumps({k.lower(): v for k, v in self.headers.items()}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
    def log_message(self, *_):
        pass
http.server.ThreadingHTTPServer(("0.0.0.0", 8080), Echo).serve_forever()
"""
POLICY = """
[service]
name = "inventory"
[service.ports]
8080 = "http"
[[inbound.jwt]]
issuer = "{issuer}"
audience = ["{audience}"]
jwks = "{jwks}"
{more}
headers = {{ x-user = "sub", x-roles = "realm.roles" }}
[[inbound.allow]]
from = ["shop", "nginx"]
paths = ["/buy/*"]
jwt = {{ claims = {{ role = ["buyer", "admin"], realm.level = 3 }} }}
[[inbound.allow]]
from = ["shop", "nginx"]
paths = ["/any"]
jwt = {{ issuer = "{issuer}", audience = "{audience}" }}
[[inbound.deny]]
from = ["shop"]
paths = ["/open"]
audit = true
[[inbound.allow]]
from = ["shop"]
paths = ["/open"]
[[inbound.allow]]
from = ["shop"]
paths = ["/soon"]
audit = true
[[inbound.deny]]
from = ["shop"]
jwt = {{ claims = {{ sub = "mallory" }} }}
"""


@dataclass
class Shop:
    """The world, the issuer, and where its keys are."""

    world: World
    issuer: Issuer

    @property
    def base(self) -> str:
        """The host of the keys."""
        return self.world.outsider.ipv4

    def policy(self, jwks: str = "", more: str = "") -> str:
        """Of the service."""
        jwks = jwks or f"https://{self.base}:{HTTPS}/keys"
        return POLICY.format(issuer=ISSUER, audience=AUDIENCE, jwks=jwks, more=more)

    def ask(self, *requests: tuple[str, list[tuple[str, str]]], by: str = "shop") -> list[dict[str, Any]]:
        """What came of each request: (path, headers)."""
        said = json.dumps([{"path": path, "headers": headers} for path, headers in requests])
        host = self.world.h2 if by == "nginx" else self.world.h1
        done = self.world.as_unit(by, ["python3", "-c", ASKER, "inventory", "80", said], host=host).must()
        answers: list[dict[str, Any]] = json.loads(done.stdout)
        return answers

    def statuses(self, *tokens: str, path: str = "/any", by: str = "shop") -> list[int]:
        """Of a request with each token."""
        return [answer["status"] for answer in self.ask(*((path, bearer(token)) for token in tokens), by=by)]

    def until_good(self, key: Key) -> None:
        """Wait until a token by the key is believed."""
        wait_until(lambda: self.statuses(token(key)) == [200], f"tokens by {key.kid} are believed", 15.0, 0.2)

    def publish(self, *keys: Key) -> None:
        """The set of the issuer from now on."""
        self.world.outsider.write(KEYS, key_set(keys))


def bearer(token: str) -> list[tuple[str, str]]:
    """The header in which it is brought."""
    return [("Authorization", f"Bearer {token}")]


def serving(host: Host) -> Any:  # noqa: ANN401 a context
    """The issuer's server, for the length of a ``with``."""
    return host.unit(
        ["/usr/bin/python3", "-c", SERVER, KEYS, CERTIFICATE, str(HTTPS), str(HTTP)], unit="issuer.service"
    )


@pytest.fixture(scope="module")
def shop(mesh: World) -> Iterator[Shop]:
    """The policy in force and the keys known; as it was at the end."""
    one, h2 = Shop(mesh, Issuer()), mesh.h2
    authority, server = certificates(one.base)
    mesh.outsider.write(CERTIFICATE, server)
    h2.write(AUTHORITY, authority)
    h2.exec(["update-ca-certificates"]).must()
    app = h2.read("/opt/demo/inventory.py")
    h2.write("/opt/demo/inventory.py", ECHO, mode=0o755)
    h2.systemctl("restart", UNIT)
    one.publish(*one.issuer.keys)
    try:
        with serving(mesh.outsider), mesh.changed_policy(h2, UNIT, one.policy()):
            mesh.outsider.wait_port(HTTPS)
            one.until_good(one.issuer.rs)
            yield one
    finally:
        h2.write("/opt/demo/inventory.py", app, mode=0o755)
        h2.systemctl("restart", UNIT)
        h2.exec(["rm", AUTHORITY]).must()
        h2.exec(["update-ca-certificates", "--fresh"]).must()
        scraped = ["curl", "-sf", f"http://{h2.ipv4}:8080/metrics"]
        wait_until(lambda: mesh.outsider.exec(scraped).ok, "the demo's own inventory is back", 15.0, 0.1)


def certificates(address: str) -> tuple[str, str]:
    """An authority's certificate, and the server's with its key, both as PEM."""
    now = datetime.datetime.now(datetime.UTC)
    root, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "an authority")])

    def certificate(subject: x509.Name, public: ec.EllipticCurvePublicKey, *, is_root: bool) -> str:
        built = (
            x509.CertificateBuilder(issuer, subject, public, x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(hours=1))
            .add_extension(x509.BasicConstraints(is_root, None), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))]), critical=False)
        )
        return built.sign(root, hashes.SHA256()).public_bytes(Encoding.PEM).decode()

    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, address)])
    server = certificate(subject, key.public_key(), is_root=False)
    return certificate(issuer, root.public_key(), is_root=True), server + private


def test_every_algorithm_over_the_wire_and_on_one_host(shop: Shop) -> None:
    tokens = [token(key) for key in shop.issuer.keys]
    assert shop.statuses(*tokens, *tokens) == [200] * 10
    assert shop.statuses(*tokens, by="nginx") == [200] * 5
    assert shop.statuses(token(shop.issuer.rs), by="guest") == [403], "no token helps whom no rule names"


def test_what_is_forged_is_told_by_its_word_and_opens_nothing(shop: Shop) -> None:
    forged = shop.issuer.forged()
    cursor = shop.world.h2.journal_cursor()
    answers = shop.ask(*(("/any", bearer(token)) for _, token, _ in forged))
    seen = {
        what: (answer["status"], answer["error"], answer["challenge"])
        for (what, *_), answer in zip(forged, answers, strict=True)
    }
    assert seen == {
        what: (401, "bad-token", f'Bearer error="invalid_token", error_description="{why}"') for what, _, why in forged
    }
    told.in_journal(shop.world.h2, cursor, "the token is not believed: expired")
    nothing, basic = shop.ask(("/any", []), ("/any", [("Authorization", "Basic eDp5")]))
    assert [(one["status"], one["error"], one["challenge"]) for one in (nothing, basic)] == [
        (401, "no-token", "Bearer")
    ] * 2
    twice = shop.ask(("/any", [*bearer(token(shop.issuer.rs)), *bearer(token(shop.issuer.rs))]))
    assert twice[0]["challenge"].endswith('"malformed"'), "which of two the application would take is not known"
    local = shop.ask(*(("/any", bearer(token)) for _, token, why in forged if why == "algorithm"), by="nginx")
    assert {one["status"] for one in local} == {401}


def test_claims_in_rules_and_in_headers(shop: Shop) -> None:
    rs, realm = shop.issuer.rs, {"roles": ["a", "b"], "level": 3}
    spoofed = [("X-User", "root"), ("x_user", "root"), ("X-Roles", "root")]
    buyer, clerk, low, bad = (
        [*spoofed, *bearer(token(rs, claims(**changed)))]
        for changed in (
            {"realm": realm},
            {"realm": realm, "role": "clerk"},
            {"realm": {**realm, "level": "3"}},
            {"realm": realm, "sub": "a\r\nx-admin: 1"},
        )
    )
    for by in ("shop", "nginx"):
        said = shop.ask(("/buy/7", buyer), ("/buy/7", clerk), ("/buy/7", low), ("/buy/7", bad), ("/any", buyer), by=by)
        assert [one["status"] for one in said] == [200, 403, 403, 200, 200], said
        echo = said[0]["echo"]
        assert (echo["x-user"], echo["x-roles"], "x_user" in echo) == ("ann", "a,b", False)
        assert echo["authorization"] == dict(buyer)["Authorization"], "it goes on"
        assert "x-user" not in said[3]["echo"] and "x-admin" not in said[3]["echo"]
    [without] = shop.ask(("/open", spoofed))
    assert not {"x-user", "x_user", "x-roles"} & without["echo"].keys()
    sent = [flag for name, value in [*spoofed, *bearer(token(rs))] for flag in ("-H", f"{name}: {value}")]
    curl = ["curl", "-sS", "--http2-prior-knowledge", "-w", " %{http_version}", *sent, "http://inventory/any"]
    echo, _, version = shop.world.shop(*curl).must().stdout.rpartition(" ")
    assert (version, json.loads(echo)["x-user"], "x_user" in echo) == ("2", "ann", False)
    curl = ["curl", "-sS", "--http2-prior-knowledge", "-D-", "http://inventory/any"]
    assert "\nwww-authenticate: Bearer\n" in shop.world.shop(*curl).must().stdout
    mallory = token(rs, claims(sub="mallory"))
    assert shop.statuses(mallory) == [403] and shop.statuses(mallory, path="/open") == [403]


def test_audit_of_a_rule_is_told_and_counted_and_changes_nothing(shop: Shop) -> None:
    h2, lines = shop.world.h2, shop.policy().splitlines()
    would_deny, would_allow = (
        f"{POLICIES}/{UNIT}.toml:{lines.index(path) - 1}" for path in ('paths = ["/open"]', 'paths = ["/soon"]')
    )
    before = [told.total(h2, "hostmesh_denied_total", rule=rule) for rule in (would_deny, would_allow)]
    cursor = h2.journal_cursor()
    assert [one["status"] for one in shop.ask(("/open", []), ("/soon", []))] == [200, 403]
    for verdict, rule in (("audit-deny", would_deny), ("audit-allow", would_allow)):
        [line] = shop.world.denials(h2, after=cursor, HOSTMESH_UNIT=UNIT, HOSTMESH_VERDICT=verdict)
        assert line["HOSTMESH_RULE"] == rule, line
    counted = [told.total(h2, "hostmesh_denied_total", rule=rule) for rule in (would_deny, would_allow)]
    assert counted == [before[0] + 1, before[1] + 1]
    asked = ["hostmesh", "explain", "shop", "inventory", "GET", "/any", "--json"]
    assert not h2.exec(asked).ok
    assert h2.exec([*asked, "--claim", "sub=ann"]).ok
    h2.write("/run/token", token(shop.issuer.rs, claims(sub="mallory")))
    mallory = lines.index('jwt = { claims = { sub = "mallory" } }') - 1
    said = h2.exec([*asked[:-1], "--token", "/run/token"]).stdout
    assert f"REFUSED, by {POLICIES}/{UNIT}.toml:{mallory}" in said, said


def test_a_key_rotated_in_flight_costs_no_request(shop: Shop, rounds: Callable[[int, int], int]) -> None:
    h1, new = shop.world.h1, shop.issuer.rs
    files, stop = ("/run/now", "/run/next"), "/run/stop-load"
    h1.exec(["rm", "-f", stop]).must()
    h1.write(files[0], token(shop.issuer.rs), mode=0o644)
    argv = ["python3", "-c", ASKER, "inventory", "80", "load", "/any", files[0], "16", stop]
    counted = lambda: told.total(shop.world.h2, "hostmesh_requests_total", destination=UNIT, code="2xx")  # noqa: E731
    with ThreadPoolExecutor() as threads:
        before = counted()
        load = threads.submit(shop.world.shop, *argv, timeout=60.0)
        try:
            wait_until(lambda: counted() > before + 200, "the load is there", 20.0, 0.1)
            for number in range(rounds(2, 30)):
                new = another(f"new-{number}", "ES256")
                h1.write(files[1], token(new), mode=0o644)
                shop.publish(new, *shop.issuer.keys)  # an hour before the agent would look by itself
                h1.exec(["mv", files[1], files[0]]).must()
                rotated = counted()
                wait_until(lambda: counted() > rotated + 500, "it goes on by the new key", 20.0, 0.1)  # noqa: B023
        finally:
            h1.exec(["touch", stop]).must()
        said = json.loads(load.result().must().stdout)
    assert said["failed"] == {} and said["asked"] > 700, said
    assert shop.statuses(token(new)) == [200]
    print(f"{said['asked']} requests, none failed")


def test_keys_that_are_gone_stay_in_force_over_a_restart(shop: Shop) -> None:
    h2, outsider = shop.world.h2, shop.world.outsider
    outsider.systemctl("stop", "issuer.service")
    try:
        assert shop.statuses(token(shop.issuer.es)) == [200]
        assert shop.statuses(token(another("gone"))) == [401], "asks for the keys"
        told.in_status(shop.world, h2, "token keys of https://", "ago stay in force")
        h2.systemctl("restart", "hostmeshd.service")
        told.in_status(shop.world, h2, "token keys of https://", "ago stay in force")
        assert shop.statuses(token(shop.issuer.es), token(shop.issuer.ed)) == [200, 200]
        [age] = told.samples(h2, "hostmesh_jwks_age_seconds")
        assert age.value > 0 and age.labels["jwks"].startswith("https://")
    finally:
        again = [*["systemd-run", "--collect", "--quiet", "--unit", "issuer.service", "python3", "-c"], SERVER]
        outsider.exec([*again, KEYS, CERTIFICATE, str(HTTPS), str(HTTP)]).must()
    told.not_in_status(shop.world, h2, "token keys of", timeout=90.0)


def test_one_bad_key_is_told_and_the_others_count(shop: Shop) -> None:
    h2, good = shop.world.h2, another("late", "ES256")
    bad = ({"kty": "RSA", "kid": "rs", "n": "AQAB", "e": "AQAB"}, {"kty": "oct", "k": "c2VjcmV0"}, {"kty": 7})
    shop.world.outsider.write(KEYS, key_set([good], *bad))
    shop.until_good(good)
    told.in_status(shop.world, h2, "key 1 ('rs') is left out", "bits", "key 2 is left out: it is a shared secret")
    assert shop.statuses(token(shop.issuer.rs)) == [401], "its key is not in the set any more"
    shop.world.outsider.write(KEYS, "<html>")
    assert shop.statuses(token(another("x"))) == [401]
    told.in_status(shop.world, h2, "no JSON", "stay in force")
    assert shop.statuses(token(good)) == [200]


@pytest.mark.parametrize("more", ["", "insecure_http = true"], ids=["file", "http"])
def test_keys_in_a_file_and_by_http(shop: Shop, more: str) -> None:
    h2, key, next_key = shop.world.h2, another("one", "ES256"), another("two", "ES256")
    host, place = (shop.world.outsider, KEYS) if more else (h2, "/etc/hostmesh/keys.json")
    host.write(place, key_set([key]))
    jwks = f"http://{shop.base}:{HTTP}/keys" if more else place
    with shop.world.changed_policy(h2, UNIT, shop.policy(jwks, more)):
        shop.until_good(key)
        host.write(place, key_set([next_key]))
        shop.until_good(next_key)

        def gone() -> bool:
            if shop.statuses(token(key)) != [401]:
                raise MayYetError("the key of before is still believed")
            return True

        wait_until(gone, "the key of before counts no more", 5.0, 0.2)
