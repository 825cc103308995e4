"""The host's settings: what is read, what is refused, and that what `join` writes is read back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostmesh.errors import PolicyError
from hostmesh.policy.hostfile import load_settings, render
from hostmesh.policy.settings import Marks, Metrics, Overload, Paths, Ports, Settings, Timeouts, Traces
from hostmesh.policy.traces import Collector, collector_of

FILE = "hostmesh.toml"


@pytest.mark.parametrize(
    ("endpoint", "protocol", "found"),
    [
        ("http://127.0.0.1", "grpc", Collector(False, "127.0.0.1", 4317, "/")),
        ("https://[2001:2::1]:1/", "grpc", Collector(True, "2001:2::1", 1, "/")),
        ("http://otel.example", "http", Collector(False, "otel.example", 4318, "/v1/traces")),
        ("https://otel/x/y", "http", Collector(True, "otel", 4318, "/x/y")),
        ("", "http", None),
    ],
)
def test_an_endpoint_taken_apart(endpoint: str, protocol: str, found: Collector | None) -> None:
    assert collector_of(Traces(endpoint, protocol)) == found


def test_an_empty_file_means_the_defaults() -> None:
    assert load_settings(FILE, "") == Settings()


def test_everything_that_can_be_set() -> None:
    text = """
trust_domain = "mesh.example"
controllers = ["c1.example:15010", "[2001:2::1]:15010", "198.18.0.1:9"]
host = "h1"
zone = "a"
metrics_address = "::1"
route_table = 500
nflog_group = 5
[ports]
wire = 15108
[marks]
proxy = 0x20000000
[timeouts]
head = "5s"
stall = "250ms"
[paths]
state = "/srv/hostmesh"
[traces]
endpoint = "https://otel.example/v1/traces"
protocol = "http"
propagate = ["w3c", "b3", "b3"]
headers = { Authorization = "Bearer t" }
ca = "/etc/ssl/otel.pem"
queue = 10
"""
    assert load_settings(FILE, text) == Settings(
        "mesh.example", "h1", ("c1.example:15010", "[2001:2::1]:15010", "198.18.0.1:9"), "::1", 500, 5,
        Marks(proxy=0x2000_0000), Ports(wire=15108), Timeouts(head=5000, stall=250), Paths(state="/srv/hostmesh"),
        "a",
        Traces(
            "https://otel.example/v1/traces", "http", ("w3c", "b3"), (("authorization", "Bearer t"),),
            "/etc/ssl/otel.pem", 10,
        ),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "where", "says"),
    [
        ("trust_domain = 'X'\n", (1, 16), "not a trust domain"),
        ("controllers = ['c1']\n", (1, 16), "has no port"),
        ("controllers = ['c1:99999']\n", (1, 16), "has no port"),
        ("controllers = ['c_1:1']\n", (1, 16), "no host name or address"),
        ("host = 'H1'\n", (1, 8), "not a host name"),
        ("zone = 'Rack 1'\n", (1, 8), "not a zone"),
        ("metrics_address = 'x'\n", (1, 19), "not an address"),
        ("route_table = 255\n", (1, 15), "not in 256.."),
        ("[ports]\nwire = 15001\n", (2, 8), "port 15001 is for 'outbound' already"),
        ("[ports]\nwire = 0\n", (2, 8), "not in 1..65535"),
        ("[marks]\nproxy = 3\n", (2, 9), "not one bit"),
        ("[marks]\nunit = 4\n", (2, 8), "not a mask of low bits"),
        ("[marks]\ninbound = 0x01000000\n", (2, 11), "another mark has"),
        ("[timeouts]\nhead = 30\n", (2, 8), "a duration with its unit"),
        ("[timeouts]\nidle = '0s'\n", (2, 8), "not more than 0"),
        ("[paths]\nstate = 'x'\n", (2, 9), "not an absolute path"),
        ("[traces]\nendpoint = 'otel:4317'\n", (2, 12), "no URL of http or https"),
        ("[traces]\nendpoint = 'http://a b'\n", (2, 12), "no URL of http or https"),
        ("[traces]\nendpoint = 'http://otel/v1/traces'\n", (2, 12), "gRPC has its own"),
        ("[traces]\nendpoint = 'http://me:pw@otel'\n", (2, 12), "more than host, port and path"),
        ("[traces]\nendpoint = 'http://otel:99999'\n", (2, 12), "no URL"),
        ("[traces]\nprotocol = 'zipkin'\n", (2, 12), "none of: grpc, http"),
        ("[traces]\npropagate = ['b4']\n", (2, 14), "none of: b3, b3multi, w3c"),
        ("[traces]\nheaders = { 'a b' = 'x' }\n", (2, 21), "header's name"),
        ("[traces]\nca = 'x'\n", (2, 6), "not an absolute path"),
        ("[traces]\nqueue = 0\n", (2, 9), "not in 1..65536"),
        ("[overload]\ndelay = 500\n", (2, 9), "a duration with its unit"),
        ("[overload]\nrequests = 0\n", (2, 12), "not in 1..1000000"),
        ("[pats]\n", (1, 1), "unknown key 'pats'"),
        ("a\n", (1, 2), "not TOML"),
    ],
)
def test_finding(text: str, where: tuple[int, int], says: str) -> None:
    with pytest.raises(PolicyError) as caught:
        load_settings(FILE, text)
    (found,) = caught.value.diagnostics
    assert (found.place.line, found.place.column) == where
    assert says in found.message


WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@given(
    st.builds(
        Settings,
        trust_domain=st.sampled_from(["mesh.local", "a.b"]),
        host=st.sampled_from(["", "h1", "h2.example"]),
        zone=st.sampled_from(["", "a", "rack-1"]),
        controllers=st.lists(st.sampled_from(["c:1", "198.18.0.1:15010"]), max_size=2).map(tuple),
        marks=st.sampled_from([Marks(), Marks(allowed=0x2000_0000), Marks(unit=0x7FF)]),
        ports=st.builds(Ports, wire=st.integers(20000, 30000)),
        timeouts=st.builds(Timeouts, stall=st.integers(1, 86_400_000)),
        metrics=st.builds(Metrics, max_series=st.integers(1, 1_000_000), expire=st.integers(1, 86_400_000)),
        overload=st.builds(Overload, delay=st.integers(0, 86_400_000), requests=st.integers(0, 1_000_000)),
        paths=st.builds(Paths, state=WORDS.map(lambda text: "/" + text)),
        traces=st.builds(
            Traces,
            endpoint=st.sampled_from(["", "http://127.0.0.1:4317", "https://[2001:2::1]"]),
            propagate=st.sampled_from([(), ("b3",), ("w3c", "b3multi")]),
            headers=st.sampled_from([(), (("a", "b"), ("x-c", 'd "e"'))]),
            queue=st.integers(1, 65_536),
        ),
    )
)
def test_what_is_written_is_read_back(settings: Settings) -> None:
    assert load_settings(FILE, render(settings)) == settings
