"""When an SVID is renewed: half its life with jitter, by whichever clock says it is older."""

import random

from hostmesh.agent.lifetimes import Lifetimes
from hostmesh.wire.proxy_control import SvidStatus

HOUR = 3600.0
T0 = 1_800_000_000.0
WANTED = {"web.service": "spiffe://m/unit/web"}


def svid(
    serial: str = "01", begins: float = T0, hours: float = 24, spiffe_id: str = WANTED["web.service"]
) -> SvidStatus:
    return SvidStatus("web.service", spiffe_id, serial, int(begins), int(begins + hours * HOUR))


def lifetimes() -> Lifetimes:
    return Lifetimes(random.Random(1))


def test_none_yet_is_due() -> None:
    assert lifetimes().due(WANTED, [], T0, 0.0) == ["web.service"]


def test_fresh_then_due_around_half_life() -> None:
    lives = lifetimes()
    assert lives.due(WANTED, [svid()], T0, 100.0) == []
    assert lives.due(WANTED, [svid()], T0 + 9 * HOUR, 100 + 9 * HOUR) == []
    assert lives.due(WANTED, [svid()], T0 + 12 * HOUR, 100 + 12 * HOUR) == ["web.service"]


def test_jitter_spreads_those_that_began_together() -> None:
    """Of many certificates made in one minute, some are due an hour before half-life, some are not."""
    lives = lifetimes()
    many = [
        SvidStatus(f"u{i}.service", f"spiffe://m/unit/u{i}", f"{i:x}", int(T0), int(T0 + 24 * HOUR)) for i in range(200)
    ]
    wanted = {one.unit: one.spiffe_id for one in many}
    lives.due(wanted, many, T0, 0.0)
    assert 20 < len(lives.due(wanted, many, T0 + 11 * HOUR, 11 * HOUR)) < 180


def test_a_wall_clock_set_back_does_not_make_it_younger() -> None:
    lives = lifetimes()
    lives.due(WANTED, [svid()], T0, 0.0)
    assert lives.due(WANTED, [svid()], T0 - 48 * HOUR, 13 * HOUR) == ["web.service"]


def test_a_wall_clock_that_is_ahead_counts_too() -> None:
    lives = lifetimes()
    lives.due(WANTED, [svid()], T0, 0.0)
    assert lives.due(WANTED, [svid()], T0 + 13 * HOUR, 60.0) == ["web.service"], "suspended, or the clock was mended"


def test_a_new_certificate_is_another_life() -> None:
    lives = lifetimes()
    lives.due(WANTED, [svid()], T0, 0.0)
    assert lives.due(WANTED, [svid("02", T0 + 12 * HOUR)], T0 + 12 * HOUR, 12 * HOUR) == []


def test_one_that_has_not_begun_is_due_at_once() -> None:
    """Signed while the controller's clock was a day ahead, or the host's own is a day behind now."""
    lives = lifetimes()
    assert lives.due(WANTED, [svid(begins=T0 + 24 * HOUR)], T0, 0.0) == ["web.service"]
    assert lives.due(WANTED, [svid()], T0 + 60, 60.0) == []
    assert lives.due(WANTED, [svid()], T0 - 24 * HOUR, 61.0) == ["web.service"]


def test_another_identity_is_due_at_once() -> None:
    assert lifetimes().due(WANTED, [svid(spiffe_id="spiffe://old/unit/web")], T0, 0.0) == ["web.service"]
