"""Turns the corpus, the vectors and the examples into the inputs from which each fuzz target sets out."""

import base64
import contextlib
import json
import ssl
import tomllib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from hostmesh.controller import config
from hostmesh.identity.authority import Authority, Slot, SlotState, make_intermediate, make_root
from hostmesh.names import SpiffeId, UnitName, dns_names_of
from hostmesh.policy.hostfile import render
from hostmesh.policy.settings import Marks, Settings
from hostmesh.wire import agent_control, controller, proxy_control
from hostmesh.wire.codec import encode
from tests.fuzz import messages

TESTS = Path(__file__).parents[1]
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def http_cases() -> list[dict[str, object]]:
    """The corpus of hostile HTTP."""
    files = sorted((TESTS / "corpus/http").glob("*.toml"))
    return [tomllib.loads(file.read_text()) for file in files]


def request() -> Iterator[bytes]:
    """What the corpus sends."""
    for case in http_cases():
        yield str(case["send"]).encode("latin-1")


def response() -> Iterator[bytes]:
    """Answers of all framings."""
    for head in (
        "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close, x-a\r\nX-A: 1\r\n",
        "HTTP/1.0 200\r\nConnection: keep-alive\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n",
        "HTTP/1.1 100 Continue\r\n",
        "HTTP/1.1 304 Not Modified\r\nETag: x\r\nX-Hostmesh-Error: denied\r\n",
    ):
        yield head.encode() + b"\r\n"


def body() -> Iterator[bytes]:
    """A size of pieces, then chunks."""
    for chunks in (b"0\r\n\r\n", b"3\r\nabc\r\n0\r\n\r\n", b'a;x="y"\r\n0123456789\r\n00\r\nX-Sum: 1\r\n\r\n'):
        yield b"\x03" + chunks
    for sent in request():
        yield b"\x05" + sent.partition(b"\r\n\r\n")[2]


def jwt() -> Iterator[bytes]:
    """A token as it is brought; then what the target signs: header and claims, a line each."""
    example = "eyJhbGciOiJFZERTQSIsImtpZCI6ImsifQ.eyJpc3MiOiJpIiwiYXVkIjoiYSIsImV4cCI6MTgwMDAwMDMwMH0.AAAA"
    yield b"0" + example.encode()
    header = b'{"alg":"EdDSA","kid":"k","typ":"JWT"}\n'
    for said in (
        {"sub": "ann", "nbf": 1_800_000_000.5, "realm": {"role": ["a", 7, True]}},
        {"sub": "a\r\nb: c", "aud": ["b", "a"], "realm.role": "x"},
        {"sub": None, "exp": "soon", "scope": "a b"},
    ):
        yield b"1" + header + json.dumps({"iss": "i", "aud": "a", "exp": 1_800_000_300, **said}).encode()
    for head in ('{"alg":"none"}', '{"alg":"EdDSA","crit":["b64"]}', '{"alg":"EdDSA","kid":["k"],"jwk":{"kty":"OKP"}}'):
        yield b"1" + head.encode() + b"\n" + b'{"iss":"i","aud":"a","exp":1800000300}'


def stream() -> Iterator[bytes]:
    """HTTP/2 as a peer speaks it: a CONNECT and a request in it, then what else there is of frames (RFC 9113)."""
    authority = b"web.unit.mesh.example:00000"
    block = b"".join(
        b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value
        for name, value in ((b":method", b"CONNECT"), (b":authority", authority))
    )
    begin = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(4, 0, 0, b"\0\4\0\1\0\0")
    connect = _frame(1, 4, 1, block)
    for sent in request():
        yield begin + connect + _frame(0, 0, 1, sent)
    others = (
        _frame(8, 0, 1, b"\0\0\1\0") + _frame(2, 0, 1, bytes(5)) + _frame(6, 0, 0, bytes(8)) + _frame(3, 0, 1, bytes(4))
    )
    yield begin + connect + others + _frame(7, 0, 0, bytes(8))
    yield begin + _frame(1, 0, 1, block[:20]) + _frame(9, 4, 1, block[20:]) + _frame(0, 9, 1, b"\1GET\0")


def _frame(kind: int, flags: int, number: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + number.to_bytes(4, "big") + payload


def dns() -> Iterator[bytes]:
    """Queries for names of the mesh and of the rule, the latter with an answer."""
    rest = b"\x01\x00\x00\x01" + bytes(6)
    for labels, kind in ((("inventory",), 1), (("inventory", "mesh"), 28), (("api", "example", "org"), 1)):
        name = b"".join(bytes([len(label)]) + label.encode() for label in labels) + b"\0"
        asked = name + kind.to_bytes(2, "big") + b"\0\1"
        query = b"\x12\x34" + rest + asked
        address = b"\xc0\x0c" + b"\0\1\0\1\0\0\0\x3c\0\x04" + bytes([198, 18, 0, 1])
        answer = b"\x12\x34\x81\x80\0\1\0\1\0\0\0\0" + asked + address
        yield len(query).to_bytes(2, "big") + query + answer


def snapshot() -> Iterator[bytes]:
    """The shared vectors."""
    for file in sorted((TESTS / "vectors/snapshot").glob("*.json")):
        yield json.dumps(json.loads(file.read_text()), separators=(",", ":")).encode()


def route() -> Iterator[bytes]:
    """Routes of the vectors, and a request to each."""
    vectors = json.loads((TESTS / "vectors/routes.json").read_text())
    for case in vectors["cases"]:
        routes = json.dumps(vectors["routes"][case["routes"]], separators=(",", ":"))
        fields = "".join(f"{name}: {value}\r\n" for name, value in case.get("headers", []))
        yield f"{routes}\n{case['method']} {case['target']} HTTP/1.1\r\nHost: h\r\n{fields}\r\n".encode()


def opening() -> Iterator[bytes]:
    """What clients of many protocols say first."""
    yield b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
    yield b"\r\nCONNECT a:80 HTTP/1.0\r\nHost: a:80\r\n\r\n"
    yield b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    yield b"*1\r\n$4\r\nPING\r\n"
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname="a.example.org")
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    yield outgoing.read()


def trace() -> Iterator[bytes]:
    """Requests whose caller says in each way where they stand in their trace; passed on in all ways."""
    trace_id, span = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    several = f"X-B3-TraceId: {trace_id}\r\nX-B3-SpanId: {span}\r\nX-B3-ParentSpanId: {span}\r\n"
    for fields in (
        "",
        f"traceparent: 00-{trace_id}-{span}-01\r\ntracestate: a=b\r\nbaggage: k=v\r\n",
        f"traceparent: 01-{trace_id}-{span}-00-more\r\nb3: 0\r\n",
        f"b3: {trace_id}-{span}-d-{span}\r\n",
        f"b3: {trace_id[16:]}-{span}\r\n",
        f"{several}X-B3-Sampled: 1\r\n",
        f"{several}X-B3-Flags: 1\r\n",
    ):
        yield f"\7GET / HTTP/1.1\r\nHost: h\r\n{fields}\r\n".encode()


def certificate() -> Iterator[bytes]:
    """A root, a chain, and what systemd would keep of a unit."""
    root_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    root = make_root("mesh.example", root_key, now=NOW, serial=1)
    intermediate = make_intermediate(root, root_key, key.public_key(), now=NOW, serial=2)
    ca = Authority("mesh.example", (Slot(SlotState.ACTIVE, root, intermediate, key),))
    who = SpiffeId.of_unit("mesh.example", UnitName("web.service"))
    hour = timedelta(hours=1)
    chain = ca.sign(who, dns_names_of("h1"), key.public_key(), now=NOW, life=hour, serial=3)
    ders = [each.public_bytes(Encoding.DER) for each in (*chain, root)]
    yield from ders
    parts = [b"web.service", b"a key", *ders[:-1]]
    yield b"hostmesh-svid-1\n" + b"".join(len(part).to_bytes(4, "big") + part for part in parts)


def control() -> Iterator[bytes]:
    """Frames as the agent sends them."""
    vector = proxy_control.SetSnapshot(4, msgspec.json.decode(next(snapshot()), type=proxy_control.Snapshot))
    leaf = base64.b64encode(next(certificate())).decode()
    asked = (
        proxy_control.GetStatus(1),
        proxy_control.GetStats(2),
        proxy_control.GetCsr(3, "nginx.service"),
        vector,
        proxy_control.SetSvid(5, "nginx.service", [leaf]),
    )
    for message in asked:
        yield encode(message)
    yield b"".join(map(encode, asked))


def policy() -> Iterator[bytes]:
    """The examples, and TOML that they do not use."""
    for file in sorted((TESTS.parent / "policies").glob("*.toml")):
        yield file.read_bytes()
    yield b"a.\"b\".'c' = 1\n[[x]]\ny = [{z = 1979-05-27T07:32:00Z}, '''a''']\n[x.w]\nf = inf\n"


def settings() -> Iterator[bytes]:
    """Both files as the verbs write them."""
    yield render(Settings(host="h1", controllers=("[::1]:15010",), marks=Marks(unit=0xFF))).encode()
    yield config.dump(config.Config()).encode()


def framed_messages() -> Iterator[bytes]:
    """One of each kind that is small, behind the byte that chooses it."""
    asked = (agent_control.GetStatus(1), agent_control.Done(1, ["a"], 2), proxy_control.GetCsr(1, "a.service"))
    for kind, message in enumerate((*asked, proxy_control.Ack(1))):
        yield bytes([kind]) + encode(message)
    first = len(messages.FRAMED)
    yield bytes([first]) + msgspec.json.encode(controller.EnrolRequest("s", "h1", "AAAA"))
    yield bytes([first + len(messages.BODIES) - 2]) + msgspec.json.encode(controller.WatchRequest(3))
    token = controller.JoinToken("secret", "h1", ["127.0.0.1:15011"], "AAAA")
    yield bytes([first + len(messages.BODIES)]) + controller.write_token(token).encode()


def words(inputs: list[bytes]) -> Iterator[str]:
    """A dictionary (libFuzzer, "Dictionaries"): every word of the inputs that a mutation would hardly hit upon."""
    found = {word for text in inputs for word in text.replace(b'"', b" ").split() if 3 < len(word) < 24}
    for word in sorted(found)[:400]:
        yield '"' + "".join(f"\\x{byte:02x}" for byte in word) + '"\n'
