"""What `[traffic]` can say of load balancing and retries, and what it cannot."""

import pytest

from hostmesh.errors import PolicyError
from hostmesh.plan.snapshot import traffic_of
from hostmesh.policy.findings import Code
from hostmesh.policy.model import Balance, Hedge, Traffic
from hostmesh.policy.traffic import hedge_as_sent
from hostmesh.policy.validate import load
from hostmesh.wire.snapshot import Breaker, ConsistentHash
from hostmesh.wire.snapshot import Hedge as WireHedge

FILE = "web.service.toml"


def traffic(text: str) -> Traffic:
    (policy,) = load({FILE: f"[traffic]\n{text}\n"})
    return policy.traffic


@pytest.mark.parametrize(
    ("text", "expect"),
    [
        ("", Balance("least-request")),
        ("balance = 'ewma'", Balance("ewma")),
        ("balance = { by = 'round-robin' }", Balance("round-robin")),
        ("balance = { by = 'consistent-hash', on = 'source' }", Balance("consistent-hash", "source")),
        (
            "balance = { by = 'consistent-hash', on = 'header:X-User', bound = 2 }",
            Balance("consistent-hash", "header:x-user", 2.0),
        ),
        ("balance = { by = 'consistent-hash', on = 'cookie:Id' }", Balance("consistent-hash", "cookie:Id")),
    ],
)
def test_how_an_endpoint_is_chosen(text: str, expect: Balance) -> None:
    assert traffic(text).balance == expect


@pytest.mark.parametrize(
    ("text", "expect"),
    [
        ("", (0, 0)),
        ("backoff = '1s'", (1000, 1000)),
        ("backoff = '10ms'", (10, 250)),
        ("max_backoff = '10ms'", (10, 10)),
        ("backoff = '10ms'\nmax_backoff = '20ms'", (10, 20)),
    ],
)
def test_waits_between_tries(text: str, expect: tuple[int, int]) -> None:
    retries = traffic(f"[traffic.retries]\n{text}").retries
    assert retries is not None
    assert (retries.backoff_ms, retries.max_backoff_ms) == expect


@pytest.mark.parametrize(
    ("text", "expect"),
    [
        ("", None),
        ("hedge = { after = '100ms' }", Hedge(100)),
        ("hedge = { after = '1s', attempts = 3, non_idempotent = true }", Hedge(1000, 3, non_idempotent=True)),
    ],
)
def test_when_another_endpoint_is_asked_too(text: str, expect: Hedge | None) -> None:
    assert traffic(text).hedge == expect
    (policy,) = load({FILE: f"[service.ports]\n80 = 'http'\n[[traffic.route]]\n{text}\n"})
    (route,) = traffic_of(policy).routes
    assert hedge_as_sent(expect) == route.hedge


def test_it_reaches_the_proxy_as_it_was_said() -> None:
    text = "balance = { by = 'consistent-hash', on = 'cookie:id', bound = 1.25 }\nprefer = 'near'\nslow_start = '30s'\n"
    text += "panic = 0.5\nhedge = { after = '50ms' }\nretries = { on = ['retriable-4xx', 'unavailable'] }\n"
    (policy,) = load({FILE: f"[traffic]\n{text}"})
    said = traffic_of(policy)
    assert (said.balance, said.hash) == ("consistent-hash", ConsistentHash("cookie:id", 1.25))
    assert (said.prefer, said.slow_start_ms, said.panic) == ("near", 30_000, 0.5)
    assert said.hedge == WireHedge(after_ms=50, attempts=2)
    assert said.retries is not None
    assert said.retries.on == ["retriable-4xx", "unavailable"]


def test_limits_and_ejection_reach_the_proxy_as_they_were_said() -> None:
    text = "connect_timeout = '2s'\nidle_timeout = '5m'\nbreaker = { max_pending = 256, consecutive_errors = 5 }"
    (policy,) = load({FILE: f"[traffic]\n{text}\n"})
    said = traffic_of(policy)
    assert (said.connect_timeout_ms, said.idle_timeout_ms) == (2000, 300_000)
    assert said.breaker == Breaker(0, 256, 0, 0, 5, 30_000, 0.5, f"{FILE}:4")
    assert traffic_of(load({FILE: "[traffic]\n"})[0]).breaker is None


def test_two_units_of_one_service_may_say_the_same_breaker_in_other_lines() -> None:
    text = "service.name = 'x'\n[traffic]\nbreaker = { max_requests = 7 }\n"
    assert len(load({"a.service.toml": text, "b.service.toml": "\n\n" + text})) == 2
    with pytest.raises(PolicyError):
        load({"a.service.toml": text, "b.service.toml": text.replace("7", "8")})


@pytest.mark.parametrize(
    ("text", "code", "place", "says", "hint"),
    [
        ("balance = 'random'", Code.BAD_VALUE, (2, 11), "none of: consistent-hash", ""),
        ("balance = 'emwa'", Code.BAD_VALUE, (2, 11), "none of", "'ewma'"),
        ("balance = 'consistent-hash'", Code.MISSING, (2, 11), "does not say by what", "header:x-user"),
        ("balance = {}", Code.MISSING, (2, 11), "lacks 'by'", "consistent-hash"),
        ("balance = { by = 'ewma', on = 'source' }", Code.BAD_VALUE, (2, 26), "nothing is hashed by 'ewma'", ""),
        ("balance = { by = 'consistent-hash', on = 'path' }", Code.BAD_VALUE, (2, 42), "nothing to hash by", "cookie:"),
        ("balance = { by = 'consistent-hash', on = 'header:' }", Code.BAD_VALUE, (2, 42), "nothing to hash by", ""),
        (
            "balance = { by = 'consistent-hash', on = 'source', bound = 0.5 }",
            Code.BAD_VALUE, (2, 60), "0.5 is not in 1..100", "",
        ),
        ("breaker = {}", Code.BAD_VALUE, (2, 11), "limits nothing", "consecutive_errors"),
        ("breaker = { max_requests = 0 }", Code.BAD_VALUE, (2, 28), "0 is not in 1..", ""),
        ("breaker = { max_ejected = 50 }", Code.BAD_VALUE, (2, 27), "not in 0..1", "50 % is 0.5"),
        ("breaker = { errors = 5 }", Code.UNKNOWN_KEY, (2, 13), "unknown key 'errors'", ""),
        ("idle_timeout = '0s'", Code.BAD_VALUE, (2, 16), "not more than 0", ""),
        ("prefer = 'nearest'", Code.BAD_VALUE, (2, 10), "none of: any, near", "'near'"),
        ("slow_start = 30", Code.WRONG_TYPE, (2, 14), "a duration with its unit", '"30s"'),
        ("panic = 50", Code.BAD_VALUE, (2, 9), "50 is not in 0..1", "50 % is 0.5"),
        ("retries = { backoff = '1s', max_backoff = '10ms' }", Code.BAD_VALUE, (2, 43), "shorter than backoff", ""),
        ("retries = { on = ['unavailible'] }", Code.BAD_VALUE, (2, 19), "none of", "'unavailable'"),
    ],
)  # fmt: skip
def test_what_it_cannot_say(text: str, code: Code, place: tuple[int, int], says: str, hint: str) -> None:
    with pytest.raises(PolicyError) as caught:
        traffic(text)
    (found,) = caught.value.diagnostics
    assert (found.code, found.place.line, found.place.column) == (code, *place)
    assert says in found.message
    assert hint in found.hint
