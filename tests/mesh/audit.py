"""What must be shown of audit mode: it harms nobody, and says exactly what enforcing would refuse.

One list of calls, by every kind of caller, is run twice: under `mode = "audit"` and under `mode = "enforce"`.
"""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tests.lab.host import Host, Result
from tests.lab.waiting import wait_until
from tests.mesh import in_force
from tests.mesh.denial import denied
from tests.mesh.world import POLICIES, SCRAPER, STRANGER, World

INVENTORY = """[service]
name = "inventory"
[service.ports]
8080 = "http"
[inbound]
mode = "audit"
[[inbound.allow]]
from = ["orders", "shop"]
methods = ["GET"]
paths = ["/products/*"]
[[inbound.deny]]
from = ["shop"]
paths = ["/products/secret*"]
[[inbound.plaintext]]
from = ["198.18.0.3/32"]
ports = [8080]
paths = ["/metrics"]
"""
REDIS = """[service]
name = "redis"
[service.ports]
6379 = "tcp"
[inbound]
mode = "audit"
[[inbound.allow]]
from = ["shop"]
[[inbound.deny]]
from = ["orders"]
ports = [6379]
"""
ORDERS = """[service]
name = "orders"
[service.ports]
8081 = "http"
[inbound]
mode = "audit"
[[inbound.allow]]
from = ["shop"]
methods = ["GET"]
[[inbound.plaintext]]
from = ["local"]
ports = [8081]
"""
Key = tuple[str, ...]


@dataclass(frozen=True)
class Call:
    """One call of the list: ``run`` does it, ``passed`` reads how it went, ``refused`` is what enforcing does."""

    what: str
    refused: bool
    run: Callable[[], Result]
    passed: Callable[[Result], bool]


def _served(result: Result) -> bool:
    """Whatever the application says, it was the application."""
    return result.ok and result.stdout[-3:] not in {"000", "400", "403", "502", "503", "504"}


def _ponged(result: Result) -> bool:
    return "PONG" in result.stdout


def _calls(w: World) -> list[Call]:
    curl = ["curl", "-sS", "--max-time", "5", "--path-as-is", "-o", "/dev/null", "-w", "%{http_code}"]
    calls = []

    def http(refused: bool, who: str, run: Callable[..., Result], url: str, *options: str) -> None:
        what = f"{who}: {' '.join(options)} {url}"
        calls.append(Call(what, refused, lambda: run(*curl, *options, url), _served))

    def redis(refused: bool, who: str, run: Callable[..., Result], host: str) -> None:
        once = f"printf 'PING\\r\\nQUIT\\r\\n' | timeout 5 nc -4 {host} 6379"  # a reset makes redis-cli connect again
        calls.append(Call(f"{who}: redis", refused, lambda: run("sh", "-c", once), _ponged))

    def plain(host: Host) -> Callable[..., Result]:
        return lambda *argv: host.exec(argv)

    def orders(*argv: str) -> Result:
        return w.as_unit("orders", argv)

    def inventory(*argv: str) -> Result:
        return w.as_unit("inventory", argv, host=w.h2)

    products, address = "http://inventory/products", f"http://{w.h2.ipv4}:8080"
    for who, run, secret, product in (("shop", w.shop, True, False), ("orders", orders, False, False)):
        http(product, who, run, f"{products}/7")
        http(secret, who, run, f"{products}/secret")
        http(True, who, run, f"{products}/7", "-X", "DELETE")
        http(True, who, run, f"{products}/..%2f7")
        http(True, who, run, "http://inventory/elsewhere")
    http(True, "guest", w.guest, f"{products}/8")
    http(False, "shop, one host", w.shop, "http://orders/orders/7")
    http(True, "shop, one host", w.shop, "http://orders/orders/7", "-X", "DELETE")
    http(True, "guest, one host", w.guest, "http://orders/orders/8")
    http(False, "local", plain(w.h1), "http://127.0.0.1:8081/orders/7")
    http(False, "scraper", plain(w.outsider), f"{address}/metrics", "--interface", SCRAPER)
    http(True, "scraper", plain(w.outsider), f"{address}/products/9", "--interface", SCRAPER)
    http(True, "stranger", plain(w.outsider), f"{address}/metrics", "--interface", STRANGER)
    http(True, "local of h2", plain(w.h2), "http://127.0.0.1:8080/metrics")
    redis(False, "shop", w.shop, "redis")
    redis(True, "guest", w.guest, "redis")
    redis(True, "orders", orders, "redis")
    redis(True, "inventory, one host", inventory, "redis")
    redis(True, "local of h2", plain(w.h2), "127.0.0.1")
    return calls


@contextlib.contextmanager
def _policies(w: World, mode: str) -> Iterator[None]:
    with contextlib.ExitStack() as changed:
        for host, unit, text in (
            (w.h2, "inventory.service", INVENTORY),
            (w.h2, "redis-server.service", REDIS),
            (w.h1, "orders.service", ORDERS),
        ):
            changed.enter_context(w.changed_policy(host, unit, text.replace('"audit"', f'"{mode}"')))
            wait_until(lambda h=host, u=unit: _mode(h, u) == mode, f"{unit} has mode {mode}", 5.0, 0.05)  # type: ignore[misc]
        probe = ["nc", "-z", "-w1", "-s", STRANGER, w.h2.ipv4, "8080"]
        wait_until(lambda: w.outsider.exec(probe).ok == (mode == "audit"), "the ruleset has it too", 5.0, 0.1)
        yield


def _mode(host: Host, unit: str) -> str:
    known = in_force.unit(host, unit)
    return str(known["mode"]) if known else ""


def _said(w: World, cursors: dict[str, str], verdict: str) -> Counter[Key]:
    """Refusals that the journals tell: by which rule, of whom, where and what."""
    told: Counter[Key] = Counter()
    for host in (w.h1, w.h2):
        for entry in host.journal(after=cursors[host.name], HOSTMESH_VERDICT=verdict):
            field = {key.removeprefix("HOSTMESH_"): str(value) for key, value in entry.items()}
            key = [field["UNIT"], field["RULE"], field["PEER"], field["PORT"]]
            if field["PEER"] == "plaintext":  # the kernel refuses it before there is a request
                key.append(field["CLIENT"])
            else:
                key += [field.get("METHOD", ""), field.get("PATH", "")]
            told[tuple(key)] += 1
    return told


def _run(w: World, verdict: str) -> tuple[dict[str, bool], Counter[Key], dict[str, float]]:
    """How each call went, what the journals told, and how /metrics counted the rules of the proxy."""
    calls = _calls(w)
    before = _counts(w)
    cursors = {host.name: host.journal_cursor() for host in (w.h1, w.h2)}
    went = {call.what: call.passed(call.run()) for call in calls}
    expected = sum(call.refused for call in calls)
    told = wait_until(
        lambda: (found := _said(w, cursors, verdict)).total() >= expected and found,
        f"{expected} refusals are told: {verdict}",
        5.0,
        0.2,
    )
    counted = {rule: count - before.get(rule, 0) for rule, count in _counts(w).items()}
    return went, told, {rule: count for rule, count in counted.items() if count}


def _counts(w: World) -> dict[str, float]:
    rules = [f"{unit}.service.toml:no-allow" for unit in ("inventory", "redis-server", "orders")]
    rules += [f"inventory.service.toml:{line}" for line in (7, 11)] + ["redis-server.service.toml:9"]
    return {rule: sum(denied(host, f"{POLICIES}/{rule}") for host in (w.h1, w.h2)) for rule in rules}


def says_what_enforcing_would_do(w: World) -> str:
    """The same calls under audit and under enforce: none fails in audit, and it told exactly what enforce refuses"""
    calls = _calls(w)
    with _policies(w, "audit"):
        audited, would, would_count = _run(w, "audit-deny")
        assert all(audited.values()), f"audit harmed: {[what for what, passed in audited.items() if not passed]}"
        with _policies(w, "enforce"):  # the same but for the mode, so that its mode tells that it is in force
            enforced, refused, count = _run(w, "deny")
    assert enforced == {call.what: not call.refused for call in calls}
    assert would == refused, f"audit only: {would - refused}; enforce only: {refused - would}"
    assert would_count == count and count, (would_count, count)
    assert would.total() == sum(call.refused for call in calls)
    return f"{len(calls)} calls, {would.total()} refused; audit told the same {len(would)} and 0 calls failed"
