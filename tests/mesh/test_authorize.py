"""`[inbound.authorize]` through two real hosts: a gatekeeper of grpcio, asked in Envoy's own messages."""

import base64
import contextlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
from envoy.config.core.v3.base_pb2 import HeaderValue, HeaderValueOption
from envoy.service.auth.v3.external_auth_pb2 import CheckRequest, CheckResponse, DeniedHttpResponse, OkHttpResponse
from envoy.type.v3.http_status_pb2 import HttpStatus
from google.protobuf.wrappers_pb2 import BoolValue
from google.rpc.status_pb2 import Status

from hostmesh.policy.validate import load
from tests.lab.host import Host
from tests.lab.waiting import wait_until
from tests.mesh import in_force
from tests.mesh.extra import DEBIANS, OURS, added
from tests.mesh.told import in_journal, total
from tests.mesh.twins import PACER
from tests.mesh.world import POLICIES, TRUST_DOMAIN, World

pytestmark = pytest.mark.lab

VAULT, GATE = "vault.service", "gate.service"
PORT, GATE_PORT = 9070, 9191
POLICY = f"""[service]
[service.ports]
{PORT} = "http"
[[inbound.allow]]
from = ["guest"]
[observe]
access_log = "all"
trace = 1
[inbound.authorize]
service = "gate"
"""
RULE = f"{POLICIES}/{VAULT}.toml:9"
GATE_POLICY = f'[service]\n[service.ports]\n{GATE_PORT} = "grpc"\n[[inbound.allow]]\nfrom = ["vault"]\n'
UNIT_FILE = "[Service]\nType=notify\nExecStart={python} -u /opt/{name}.py {port}\n"
GATE_UNIT_FILE = UNIT_FILE + "RuntimeDirectory=gate\nExecStartPre=/bin/sh -c 'echo [] >/run/gate/answers'\n"


@dataclass
class Answered:
    """What a client got."""

    status: int
    headers: dict[str, str]
    body: str

    @property
    def echo(self) -> dict[str, Any]:
        """What the application got."""
        told: dict[str, Any] = json.loads(self.body)
        return told


class Gate:
    """A service on both hosts that asks one gatekeeper, on h2."""

    def __init__(self, w: World) -> None:
        self.w = w

    def ask(self, host: Host, path: str, *headers: str) -> Answered:
        """A request of guest, a unit of h1, to the service on this host: h1 is one pass, h2 the wire."""
        fields = [word for header in headers for word in ("-H", header)]
        done = self.w.guest("curl", "-sS", "-i", *fields, f"http://{host.ipv4}:{PORT}{path}").must()
        head, _, body = done.stdout.replace("\r\n", "\n").partition("\n\n")
        first, *lines = head.splitlines()
        return Answered(int(first.split()[1]), {k.lower(): v for k, v in (line.split(": ", 1) for line in lines)}, body)

    def answers(self, **by_path: CheckResponse | str) -> None:
        """What the gatekeeper says from now on of `/NAME`: a message, the name of a status, or `late`."""
        told = []
        for name, answer in by_path.items():
            if isinstance(answer, CheckResponse):
                told.append((f"/{name}", "answer", base64.b64encode(answer.SerializeToString()).decode()))
            else:
                told.append((f"/{name}", "late" if answer == "late" else "abort", "" if answer == "late" else answer))
        self.w.h2.write("/run/gate/answers.new", json.dumps(told))
        self.w.h2.exec(["mv", "/run/gate/answers.new", "/run/gate/answers"]).must()

    def asked(self, path: str) -> list[tuple[CheckRequest, dict[str, Any]]]:
        """The questions about this path so far."""
        made = [(CheckRequest.FromString(base64.b64decode(line["message"])), line) for line in self.lines()]
        return [one for one in made if one[0].attributes.request.http.path == path]

    def lines(self) -> list[dict[str, Any]]:
        """All that was asked so far."""
        return [json.loads(line) for line in self.w.h2.read("/run/gate/asked").splitlines()]

    @contextlib.contextmanager
    def policy(self, text: str) -> Iterator[None]:
        """This policy of the service in force on both hosts, for the length of a ``with``."""
        self._put(text)
        try:
            yield
        finally:
            self._put(POLICY)

    def _put(self, text: str) -> None:
        [wanted] = load({f"{VAULT}.toml": text})
        asked = wanted.authorize
        assert asked is not None
        expected = (wanted.mode, asked.service, asked.timeout_ms, asked.on_error)

        def is_known(host: Host) -> bool:
            known = in_force.unit(host, VAULT)
            said = known and known["authorize"]
            return bool(
                known and said and (known["mode"], said["service"], said["timeout_ms"], said["on_error"]) == expected
            )

        for host in (self.w.h1, self.w.h2):
            self.w.write_policy(host, VAULT, text)
        for host in (self.w.h1, self.w.h2):
            wait_until(partial(is_known, host), f"{host.name}: {text!r} is in force", 20.0, 0.1)


@pytest.fixture(scope="module")
def gate(mesh: World) -> Iterator[Gate]:
    one = Gate(mesh)
    vault = UNIT_FILE.format(python=DEBIANS, name="vault", port=PORT)
    with contextlib.ExitStack() as stack:
        gate_file = GATE_UNIT_FILE.format(python=OURS, name="gate", port=GATE_PORT)
        stack.enter_context(added(mesh, mesh.h2, GATE, gate_file, GATE_POLICY, gate="gate_server.py"))
        for host in (mesh.h1, mesh.h2):
            stack.enter_context(added(mesh, host, VAULT, vault, POLICY, vault="vault_server.py"))
        for host in (mesh.h1, mesh.h2):
            asks = partial(one.ask, host, "/ready")
            wait_until(lambda asks=asks: asks().status == 200, f"{host.name}: the gatekeeper is asked", 20.0, 0.2)
        yield one


@pytest.fixture(params=["h1", "h2"], ids=["one host", "the wire"])
def host(request: pytest.FixtureRequest, gate: Gate) -> Host:
    chosen: Host = getattr(gate.w, request.param)
    return chosen


def option(name: str, value: str, *, append: bool | None = None) -> HeaderValueOption:
    said = None if append is None else BoolValue(value=append)
    return HeaderValueOption(header=HeaderValue(key=name, value=value), append=said)


def denied(status: int = 0, body: str = "", *headers: HeaderValueOption) -> CheckResponse:
    no = DeniedHttpResponse(status=HttpStatus(code=status), headers=headers, body=body)
    return CheckResponse(status=Status(code=7, message="not this one"), denied_response=no)


def test_it_is_told_the_request_as_the_application_gets_it(gate: Gate, host: Host) -> None:
    path = f"/told-{host.name}?a=1"
    gate.answers()
    answered = gate.ask(host, path, "X-One: 1", "x-one: 2", "x-hostmesh-peer: spiffe://forged")
    assert answered.status == 200 and answered.echo["host"] == host.name
    [(question, line)] = gate.asked(path)
    attributes = question.attributes
    http = attributes.request.http
    assert attributes.source.principal == f"spiffe://{TRUST_DOMAIN}/unit/guest"
    assert attributes.destination.principal == f"spiffe://{TRUST_DOMAIN}/unit/vault"
    assert attributes.destination.service == "vault"
    assert attributes.destination.address.socket_address.port_value == PORT
    assert attributes.source.address.socket_address.address == gate.w.h1.ipv4
    assert (http.method, http.path, http.host, http.scheme, http.size) == (
        "GET",
        path,
        f"{host.ipv4}:{PORT}",
        "http",
        -1,
    )
    assert http.headers["x-one"] == "1,2" and http.headers[":path"] == path
    assert not [name for name in http.headers if "hostmesh" in name], "who calls is the mesh's to say"
    got = answered.echo["headers"]
    assert got["x-hostmesh-peer"] == [f"spiffe://{TRUST_DOMAIN}/unit/guest"]
    assert line["metadata"]["x-hostmesh-peer"] == f"spiffe://{TRUST_DOMAIN}/unit/vault", "in the unit's own name"
    assert 0 < line["time"] <= 0.2, "it knows how long it has"
    [trace] = got["traceparent"]
    assert line["metadata"]["traceparent"].split("-")[1] == trace.split("-")[1], "one trace"


def test_a_yes_changes_headers(gate: Gate, host: Host) -> None:
    yes = OkHttpResponse(
        headers=[option("x-user", "kim"), option("x-more", "b", append=True), option("x-empty", "")],
        headers_to_remove=["authorization"],
        response_headers_to_add=[option("x-version", "2"), option("x-seen", "gate")],
    )
    gate.answers(yes=CheckResponse(status=Status(), ok_response=yes))
    answered = gate.ask(host, "/yes", "x-user: root", "x-more: a", "X_Empty: forged", "authorization: secret")
    got = answered.echo["headers"]
    assert (got["x-user"], got["x-more"]) == (["kim"], ["a", "b"])
    assert not {"authorization", "x-empty", "x_empty"} & got.keys()
    assert (answered.status, answered.headers["x-version"], answered.headers["x-seen"]) == (200, "2", "gate")


def test_a_no_is_answered_told_and_counted(gate: Gate, host: Host) -> None:
    gate.answers(plain=denied(), login=denied(302, "log in\n", option("location", "https://id.example.org/")))
    counted, cursor = total(host, "hostmesh_denied_total", rule=RULE), host.journal_cursor()
    plain, login = gate.ask(host, "/plain"), gate.ask(host, "/login")
    assert (plain.status, plain.headers["x-hostmesh-error"], plain.body) == (403, "refused", "")
    assert (login.status, login.headers["location"], login.body) == (302, "https://id.example.org/", "log in\n")

    def told() -> list[dict[str, Any]]:
        entries = host.journal(unit=VAULT, after=cursor, HOSTMESH_KIND="denied")
        return [one for one in entries if one["HOSTMESH_RULE"] == RULE and one["HOSTMESH_VERDICT"] == "deny"]

    wait_until(lambda: len(told()) == 2, f"{host.name}: both are told", 10.0, 0.1)
    first = told()[0]
    assert "not this one" in first["MESSAGE"] and first["HOSTMESH_FLAG"] == "refused", first
    wait_until(
        lambda: total(host, "hostmesh_denied_total", rule=RULE) == counted + 2, f"{host.name}: both count", 10.0, 0.2
    )


def test_silence_is_a_no_in_time_or_what_on_error_says(gate: Gate, host: Host) -> None:
    bad = CheckResponse(status=Status(), ok_response=OkHttpResponse(headers_to_remove=["content-length"]))
    gate.answers(late="late", abort="RESOURCE_EXHAUSTED", bad=bad)
    why = {"late": "no answer in time", "abort": "gRPC status 8 as told", "bad": "it wants to change the header"}
    for path, words in why.items():
        cursor = host.journal_cursor()

        def is_told(path: str = path, words: str = words, cursor: str = cursor) -> bool:
            """Why is told once a second."""
            refused = gate.ask(host, f"/{path}")
            assert (refused.status, refused.headers["x-hostmesh-error"]) == (503, "no-verdict"), path
            entries = host.journal(unit=VAULT, after=cursor, HOSTMESH_FLAG="no-verdict", HOSTMESH_KIND="error")
            told = f"gate gives no verdict, requests are refused: {words}"
            return any(told in entry["MESSAGE"] for entry in entries)

        wait_until(is_told, f"{host.name}: {words!r} is told", 10.0, 0.3)
    flagged = {"unit": VAULT, "flag": "no-verdict"}
    counted = total(host, "hostmesh_flags_total", **flagged)
    with gate.policy(POLICY + 'on_error = "allow"\n'):
        for path in why:
            assert gate.ask(host, f"/{path}").echo["path"] == f"/{path}"
        wait_until(
            lambda: total(host, "hostmesh_flags_total", **flagged) == counted + len(why), f"{host.name}: flagged", 10.0
        )


def test_audit_records_what_it_would_refuse(gate: Gate, host: Host) -> None:
    gate.answers(no=denied(404, "gone"))
    with gate.policy(POLICY + '[inbound]\nmode = "audit"\n'):
        cursor = host.journal_cursor()
        assert gate.ask(host, "/no").echo["path"] == "/no"

        def told() -> bool:
            entries = host.journal(unit=VAULT, after=cursor, HOSTMESH_VERDICT="audit-deny")
            return any("not this one" in entry["MESSAGE"] for entry in entries)

        wait_until(told, f"{host.name}: it is told", 10.0, 0.1)


def test_who_is_refused_by_rules_is_not_asked_about(gate: Gate) -> None:
    gate.answers()
    for host in (gate.w.h1, gate.w.h2):
        refused = gate.w.shop("curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", f"http://{host.ipv4}:{PORT}/shop")
        assert refused.stdout in ("403", "000"), refused
    assert gate.asked("/shop") == []


def test_callers_without_identity_are_asked_about(gate: Gate) -> None:
    gate.answers(stranger=denied())
    w, outsider = gate.w, gate.w.outsider
    plain = f'[[inbound.plaintext]]\nfrom = ["{outsider.ipv4}"]\nports = [{PORT}]\n'
    with gate.policy(POLICY + plain):
        url = f"http://{w.h2.ipv4}:{PORT}/"

        def status(path: str) -> str:
            return outsider.exec(["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", url + path]).stdout

        wait_until(lambda: status("ready") == "200", "callers without identity are let in", 15.0, 0.2)
        assert (status("known"), status("stranger")) == ("200", "403")
    [(question, _)] = gate.asked("/known")
    source = question.attributes.source
    assert (source.principal, source.address.socket_address.address) == ("", outsider.ipv4)


def test_clients_of_http_2_are_asked_about(gate: Gate, host: Host) -> None:
    gate.answers(no=denied(401, "who?"))
    argv = ["--http2-prior-knowledge", "-s", "-i", "-H", "cookie: a=1", "-H", "cookie: b=2"]
    path = f"/h2-{host.name}"
    assert gate.w.guest("curl", *argv, f"http://{host.ipv4}:{PORT}{path}").stdout.startswith("HTTP/2 200")
    [(question, _)] = gate.asked(path)
    http = question.attributes.request.http
    assert (http.method, http.host, http.headers["cookie"]) == ("GET", f"{host.ipv4}:{PORT}", "a=1; b=2")
    refused = gate.w.guest("curl", *argv, f"http://{host.ipv4}:{PORT}/no").stdout
    assert refused.startswith("HTTP/2 401") and refused.endswith("who?"), refused


def test_the_gatekeepers_own_policy_counts(gate: Gate, host: Host) -> None:
    gate.answers()
    h2 = gate.w.h2
    with gate.w.changed_policy(h2, GATE, GATE_POLICY.replace("vault", "nobody")):
        cursor = host.journal_cursor()

        def refused() -> bool:
            answered = gate.ask(host, "/own")
            return answered.headers.get("x-hostmesh-error") == "no-verdict"

        wait_until(refused, f"{host.name}: the gatekeeper lets nobody in", 15.0, 0.1)
        in_journal(host, cursor, "gate gives no verdict", "denied")
    wait_until(lambda: gate.ask(host, "/own").status == 200, f"{host.name}: it lets in again", 15.0, 0.1)


def test_copies_are_asked_about_as_any_request(gate: Gate) -> None:
    yes = OkHttpResponse(headers=[option("x-user", "kim")])
    gate.answers(yes=CheckResponse(status=Status(), ok_response=yes), no=denied())
    w, route = gate.w, '[[traffic.route]]\nmatch = { path = "/copied/*" }\nmirror = { to = "vault" }\n'

    def seen(path: str) -> list[int]:
        """How often each application got this path, with the gatekeeper's word."""
        return [int(gate.ask(host, "/seen").echo["seen"].get(f"{path} kim", 0)) for host in (w.h1, w.h2)]

    def is_known() -> bool:
        return bool(w.services(w.h1)["vault"]["traffic"]["routes"])

    with gate.policy(POLICY + route):
        wait_until(is_known, "h1 knows the route", 20.0, 0.1)
        for path, status in (("/copied/yes", "200"), ("/copied/no", "403")):
            argv = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", f"http://vault{path}"]
            assert [w.guest(*argv).stdout for _ in range(12)] == [status] * 12
        wait_until(lambda: sum(seen("/copied/yes")) == 24, "all and their copies are there", 10.0, 0.2)
        wait_until(lambda: len(gate.asked("/copied/no")) == 24, "copies are asked about", 10.0, 0.2)
        assert min(seen("/copied/yes")) > 0, "here and there"
        assert seen("/copied/no") == [0, 0]


def test_explain_names_it(gate: Gate) -> None:
    told = gate.w.h2.exec(["hostmesh", "explain", "guest", "vault", "GET", "/x"]).stdout
    assert f"{RULE}" in told and "then gate is asked; without its verdict within 200 ms: 503" in told, told


def test_under_load_each_is_asked_about_once_also_over_a_reload(gate: Gate) -> None:
    gate.answers(**{"13": denied()})
    w, before = gate.w, len(gate.lines())
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(w.guest, "python3", "-c", PACER, "vault", "3000", "600", "8", "0", timeout=60)
        for host in (w.h1, w.h2):
            host.systemctl("reload", "hostmesh-proxy")
        answers = json.loads(asking.result().must().stdout)["answers"]
    thirteen = sum(f"/{number}".startswith("/13") for number in range(3000))
    statuses = {status: sum(n for word, n in answers.items() if word.startswith(status)) for status in ("200", "403")}
    assert statuses == {"200": 3000 - thirteen, "403": thirteen}, answers
    assert len(gate.lines()) == before + 3000


def test_a_gatekeeper_that_dies_is_told_and_comes_back(gate: Gate, host: Host) -> None:
    gate.answers()
    w = gate.w
    w.h2.systemctl("stop", GATE)
    try:
        cursor = host.journal_cursor()
        refused = gate.ask(host, "/dead")
        assert (refused.status, refused.headers["x-hostmesh-error"]) == (503, "no-verdict")
        in_journal(host, cursor, "gate gives no verdict, requests are refused")
    finally:
        w.h2.systemctl("start", GATE)
    wait_until(lambda: gate.ask(host, "/dead").status == 200, f"{host.name}: it is back", 20.0, 0.2)
