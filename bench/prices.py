"""Turns features into what they cost: CPU and highest RPS with each, against the same load without it.

Ratios within a round only; each begins with another feature. CPU is that of the proxies, over the application's: what
agent, journald and collector take beside shows in RPS alone. HTTP/2 takes another client than the rest, so it is
against HTTP/1.1 by that client.
"""

import re
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial

from cryptography.hazmat.primitives.asymmetric import ec

from bench.contenders import Contender
from bench.loads import CONNECTIONS, Figures, Meter, top
from bench.rounds import Figure
from bench.testbed import CALLER, SERVICE, URL, Tell, Testbed, caller_policy, policy
from hostmesh.policy.hostfile import PLACE
from tests.lab.collector import GRPC, Collector
from tests.lab.host import Host
from tests.lab.waiting import wait_until
from tests.mesh import in_force
from tests.mesh.issuer import AUDIENCE, ISSUER, Key, claims, key_set, token
from tests.mesh.told import total
from tests.mesh.tracing import Traced
from tests.mesh.watching import tapping

KEY_SET = "/etc/hostmesh/bench-keys.json"
ROUTES = """
[[traffic.route]]
name = "canary"
match = { headers = { x-canary = "1" } }
request_headers = { set = { x-version = "2" } }
[[traffic.route]]
name = "product"
match = { path = "/products/{id}", methods = ["GET"] }
rewrite = { path = "/v2/{id}" }
[[traffic.route]]
name = "search"
match = { path = "/search", query = { v = "2" } }
[[traffic.route]]
name = "all"
match = { path = "/*" }
request_headers = { set = { x-version = "1" } }
response_headers = { set = { x-served-by = "bench" } }
"""
LIMITS = '[[inbound.limit]]\nrate = "1000000/s"\nconcurrent = 10000\n'
BREAKER = """
[traffic.breaker]
max_connections = 10000
max_pending = 10000
max_requests = 10000
consecutive_errors = 5
"""
TOKENS = f"""
[[inbound.jwt]]
issuer = "{ISSUER}"
audience = "{AUDIENCE}"
jwks = "{KEY_SET}"
headers = {{ x-user = "sub" }}
[[inbound.deny]]
from = ["*"]
jwt = {{ claims = {{ role = "thief" }} }}
"""

Prices = dict[str, dict[str, Figure]]
Measured = Callable[[Contender, int], Figures]
Beside = Callable[[Testbed], AbstractContextManager[object]]


class NotUnderstoodError(Exception):
    """A load's tool said something else than it does."""


@dataclass(frozen=True)
class Feature:
    """What is written in the policies for it, the load, what else goes on meanwhile, and against what it counts."""

    title: str
    inbound: str = ""
    traffic: str = ""
    trace: float = 0.01
    access_log: str = "errors"
    load: Measured = top
    beside: Beside = lambda _: nullcontext()
    against: str = "nothing"


NOTHING = Feature("nothing")


def measure(bed: Testbed, contender: Contender, *, rounds: int, seconds: int, tell: Tell) -> Prices:
    """By feature: ``rps``, and ``cpu`` of both proxies over the application's, against the same without it; ``errors``:
    requests that failed, and spans that were dropped."""
    Collector(bed.h2).install()
    key = Key("bench", "ES256", ec.generate_private_key(ec.SECP256R1()))
    bed.h2.write(KEY_SET, key_set([key]))
    features = _features(token(key, claims(exp=int(time.time()) + 86_400)))
    seen: dict[str, list[dict[str, float]]] = {feature.title: [] for feature in features}
    for number in range(rounds):
        begin = number % len(features)
        found = {
            feature.title: _one(bed, contender, feature, seconds) for feature in (*features[begin:], *features[:begin])
        }
        for feature in features:
            one, without = found[feature.title], found[feature.against]
            price = {"rps": one["rps"] / without["rps"], "cpu": one["x_app"] / without["x_app"]}
            seen[feature.title].append(price | {"errors": one["errors"]})
            tell(f"round {number + 1}/{rounds}  {feature.title:34} RPS {price['rps']:.2f}  CPU {price['cpu']:.2f}")
    _put_in_force(bed, NOTHING)
    return {
        title: {name: Figure.of([price[name] for price in prices]) for name in prices[0]}
        for title, prices in seen.items()
    }


def _features(bearer: str) -> tuple[Feature, ...]:
    by_http1 = "HTTP/1.1, by h2load"
    with_token = partial(top, says=("-H", f"Authorization: Bearer {bearer}"))
    return (
        NOTHING,
        Feature("four routes, headers set", traffic=ROUTES),
        Feature("limits: rate and concurrent", inbound=LIMITS),
        Feature("breaker, ejection", traffic=BREAKER),
        Feature("a token that was seen before", inbound=TOKENS, load=with_token),
        Feature('access_log = "all", both sides', access_log="all"),
        Feature("traces at 1 %, to a collector", beside=_collecting),
        Feature("traces at 10 %, to a collector", trace=0.1, beside=_collecting),
        Feature("somebody taps both sides", beside=_tapped),
        Feature(by_http1, load=partial(_h2load, (f"-c{CONNECTIONS}", "--h1"))),
        Feature("HTTP/2, as many connections", load=partial(_h2load, (f"-c{CONNECTIONS}", "-m1")), against=by_http1),
        Feature("HTTP/2, an eighth of them", load=partial(_h2load, (f"-c{CONNECTIONS // 8}", "-m8")), against=by_http1),
    )


def _one(bed: Testbed, contender: Contender, feature: Feature, seconds: int) -> Figures:
    """The figures of a load with the feature."""
    _put_in_force(bed, feature)
    with feature.beside(bed):
        feature.load(contender, 1)  # connections, caches, keys
        before = _dropped(bed)
        figures = feature.load(contender, seconds)
        return figures | {"errors": figures["errors"] + _dropped(bed) - before}


def _dropped(bed: Testbed) -> float:
    return sum(total(host, "hostmesh_traces_dropped_total") for host in bed.hosts())


def _put_in_force(bed: Testbed, feature: Feature) -> None:
    """Write the policies, and wait until both proxies go by them: a service's time limit tells one from another."""
    limit = 601_000 if _limit(bed, bed.h1) == 600_000 else 600_000
    observe = f'trace = {feature.trace}\naccess_log = "{feature.access_log}"\n'
    traffic = f'timeout = "{limit // 1000}s"\n' + feature.traffic
    bed.world.write_policy(bed.h1, f"{CALLER}.service", caller_policy(observe))
    bed.world.write_policy(bed.h2, "bench-meshed.service", policy(feature.inbound, traffic, observe))
    for host, unit in ((bed.h1, CALLER), (bed.h2, "bench-meshed")):

        def goes_by_it(host: Host = host, unit: str = unit) -> bool:
            told = in_force.unit(host, f"{unit}.service")
            wanted = (feature.trace, feature.access_log)
            return _limit(bed, host) == limit and told is not None and (told["trace"], told["access_log"]) == wanted

        wait_until(goes_by_it, f"{host.name} goes by the policies for: {feature.title}", 20.0, 0.05)


def _limit(bed: Testbed, host: Host) -> int:
    return int(bed.world.services(host)[SERVICE]["traffic"]["timeout_ms"])


@contextmanager
def _collecting(bed: Testbed) -> Iterator[None]:
    """A collector on the services' host, and both proxies send it their spans."""
    collector = Collector(bed.h2)
    traced = Traced(bed.world, collector, {host.name: host.read(PLACE) for host in bed.hosts()})
    with collector.running():
        try:
            traced.configure(f'\n[traces]\nendpoint = "http://{bed.h2.ipv4}:{GRPC}"\n')
            yield
        finally:
            traced.configure("")
    collector.forget()


@contextmanager
def _tapped(bed: Testbed) -> Iterator[None]:
    """Who looks for what is slow gets nothing shown: what is paid is that each request is looked at."""
    with tapping(bed.h1, CALLER, "--slow", "10s"), tapping(bed.h2, "bench-meshed", "--slow", "10s"):
        yield


def _h2load(how: tuple[str, str], contender: Contender, seconds: int) -> Figures:
    command = ["h2load", "-t1", *how, f"-D{seconds}", f"{URL}/"]
    meter = Meter(contender)
    said = contender.bed.run(command, host=contender.bed.h1, unit=contender.caller, timeout=seconds + 30)
    found = re.search(r"(\d+) succeeded, (\d+) failed, (\d+) errored", said)
    if not found:
        raise NotUnderstoodError(f"h2load said nothing of requests:\n{said}")
    good, failed, errored = map(int, found.groups())
    return {"rps": good / seconds, "errors": failed + errored, **meter.figures(good)}
