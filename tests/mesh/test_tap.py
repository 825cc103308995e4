"""`hostmesh tap` on real hosts: what passes is shown; who looks costs no request, and who does not, nothing."""

import contextlib
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.lab.waiting import wait_until
from tests.mesh.told import metric, wait_metric
from tests.mesh.twins import Twins
from tests.mesh.upgrade import AGENT, reload
from tests.mesh.watching import tapping, watching
from tests.mesh.world import POLICIES, World

pytestmark = pytest.mark.lab
LOOKERS, RECORDS = "hostmesh_agent_taps", "hostmesh_agent_tap_records_total"
# Opens a connection, reads what the other side says first, says something, closes it.
TALK = """
import socket
with socket.create_connection(("twin", 9091), 5) as connection:
    connection.recv(100)
    connection.sendall(b"hello")
    connection.recv(100)
"""


def test_both_sides_show_a_request_with_all_that_is_known_of_it(pair: Twins) -> None:
    h1, h2 = pair.w.h1, pair.w.h2
    route = '[[traffic.route]]\nname = "all"\nmatch = { path = "/*" }\nto = "twin"\n'
    with pair.only(h2):
        pair.treat('retries = { attempts = 2, on = ["5xx"], budget = 1.0 }\n' + route, endpoints=1)
        with tapping(h1, "guest", "--count", "1") as caller, tapping(h2, "twin", "--count", "1") as callee:
            assert pair.ask(1).of("200") == 1
            [called], [served] = caller.all(), callee.all()
        pair.does(h2, "503")
        try:
            with tapping(h1, "guest", "--count", "2") as caller:
                pair.ask(1)
                tried, failed = caller.all()
        finally:
            pair.does(h2, "200")
    guest, twin = "spiffe://mesh.test/unit/guest", "spiffe://mesh.test/unit/twin"
    shown = ("unit", "direction", "peer", "method", "path", "status", "verdict", "tries", "endpoint", "route")
    assert [called[name] for name in shown] == [
        "guest.service", "outbound", twin, "GET", "/0", 200, "allow", 1, "twin.service on h2", "all",
    ]  # fmt: skip
    assert [served[name] for name in shown] == [
        "twin.service", "inbound", guest, "GET", "/0", 200, "allow", 1, "", "",
    ]  # fmt: skip
    assert called["rule"] == "builtin:no-outbound-policy" and served["rule"] == f"{POLICIES}/twin.service.toml:6"
    assert called["trace_id"] == served["trace_id"] != ""
    assert called["duration_us"] >= served["duration_us"] > 0
    assert (tried["kind"], tried["tries"], failed["tries"], failed["status"]) == ("retry", 1, 2, 503)


def test_only_what_is_wanted_is_shown(pair: Twins) -> None:
    h1, h2 = pair.w.h1, pair.w.h2
    pair.treat("")
    words = {
        "path": ("guest", "--path", "/1*", "--method", "GET", "--to", "tw*", "--count", "10"),
        "status": ("guest", "--status", "5xx", "--count", "5"),
        "slow": ("guest", "--slow", "300ms", "--count", "3"),
        "errors": ("guest", "--errors", "--count", "5"),
    }
    with contextlib.ExitStack() as stack:
        taps = {name: stack.enter_context(tapping(h1, *one)) for name, one in words.items()}
        denied = stack.enter_context(tapping(h2, "inventory", "--denied", "--from", "guest", "--count", "1"))
        pair.ask(20)
        for does, count in (("503", 5), ("after 0.4", 3), ("200", 0)):
            for host in (h1, h2):
                pair.does(host, does)
            pair.ask(count) if count else None
        assert pair.w.guest("curl", "-s", "http://inventory/products/1").ok
        found = {name: tap.all() for name, tap in taps.items()}
        [refused] = denied.all()
    assert [one["path"] for one in found["path"]].count("/1") == 1
    assert all(one["path"].startswith("/1") for one in found["path"])
    assert {one["status"] for one in found["status"] + found["errors"]} == {503}
    assert all(one["duration_us"] > 300_000 and one["status"] == 200 for one in found["slow"])
    assert (refused["kind"], refused["verdict"], refused["path"]) == ("denied", "deny", "/products/1")
    assert refused["rule"].endswith("/inventory.service.toml:no-allow")


def test_connections_are_shown_at_their_end(pair: Twins) -> None:
    pair.treat("")
    with tapping(pair.w.h1, "guest", "--count", "1") as tap:
        pair.w.guest("python3", "-c", TALK).must()
        [ended] = tap.all()
    assert (ended["kind"], ended["protocol"], ended["bytes_in"], ended["bytes_out"]) == ("connection", "tcp", 5, 8)
    assert ended["duration_us"] > 0


def test_a_person_reads_a_line_and_ends_it_well(pair: Twins) -> None:
    pair.treat("")
    with watching(pair.w.h1, "tap", "guest", "--count", "1") as tap:
        assert tap.say() == "looking at guest.service; Ctrl-C ends it\n"
        pair.ask(1)
        line = tap.text()
    assert "  guest > twin:80  GET /0  200  " in line and "  by builtin:no-outbound-policy  at twin.service on " in line
    with tapping(pair.w.h1, "guest") as tap:
        tap.send(signal.SIGINT)
        assert tap.ended() == 0


def test_who_may_and_what_may_be_looked_at(mesh: World) -> None:
    tap = ("hostmesh", "tap", "guest")
    refused = mesh.h1.exec(["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *tap])
    assert (refused.exit, refused.stderr) == (1, "hostmesh tap: only root may do this\n")
    unknown = mesh.h1.exec(["hostmesh", "tap", "nobody"])
    assert unknown.exit == 1 and "nobody.service has no policy on this host" in unknown.stderr


def test_whoever_is_slow_costs_no_request_and_is_told_what_it_lost(
    pair: Twins, rounds: Callable[[int, int], int]
) -> None:
    h1, asked = pair.w.h1, rounds(8_000, 60_000)
    pair.treat("")
    alone = pair.ask(asked // 4, pace=2000, connections=40)
    with tapping(h1, "guest") as slow, tapping(h1, "guest", "--status", "404") as idle:
        done = pair.ask(asked, pace=2000, connections=40)
        shown = lost = 0
        while shown + lost < asked:
            record = slow.line()
            lost += record.get("lost", 0)
            shown += "lost" not in record
        assert done.answers.keys() == {"200 h1", "200 h2"} and done.all == asked, done.answers
        idle.send(signal.SIGINT)
        assert idle.ended() == 0
    assert shown + lost == asked and lost > asked // 2, (shown, lost)
    for name, one in (("nobody looks", alone), ("two look, one takes nothing", done)):
        print(f"{name}: {one.all} requests, p50 {one.took[one.all // 2] * 1000:.2f} ms, lasted {one.lasted:.2f} s")
    print(f"shown {shown}, told as lost {lost}")
    assert done.lasted < asked / 2000 * 1.5, "at its pace, nearly"


def test_while_nobody_looks_nothing_is_sent(pair: Twins) -> None:
    h1 = pair.w.h1
    pair.treat("")
    wait_metric(h1, LOOKERS, 0)  # whoever looked before was killed
    before = metric(h1, RECORDS)
    pair.ask(200)
    assert (metric(h1, RECORDS), metric(h1, LOOKERS)) == (before, 0)
    with tapping(h1, "guest") as tap:
        pair.ask(50)
        wait_metric(h1, RECORDS, before + 50)
        tap.send(signal.SIGKILL)
        wait_metric(h1, LOOKERS, 0, timeout=3.0)
    pair.ask(200)
    assert metric(h1, RECORDS) == before + 50, "nor after one that looked was killed"


def test_a_look_lives_through_a_reload_and_not_longer_than_its_agent(pair: Twins) -> None:
    h1 = pair.w.h1
    pair.treat("")
    with tapping(h1, "guest") as tap:
        reload(h1)
        before = metric(h1, RECORDS)
        wait_until(lambda: pair.ask(1).of("200") and metric(h1, RECORDS) > before, "the new proxy shows it", 5.0, 0.1)
        assert tap.line()["unit"] == "guest.service"
        frozen = h1.main_pid(AGENT)
        h1.exec(["kill", "-KILL", str(frozen)]).must()
        assert tap.ended() == 1
    h1.wait_another_process(AGENT, frozen, 20.0)
    wait_metric(h1, "hostmesh_agent_proxy_connected", 1)
    pair.ask(100)
    assert (metric(h1, RECORDS), metric(h1, LOOKERS)) == (0, 0)


def test_a_look_ends_though_its_agent_does_not_say_so(pair: Twins) -> None:
    """Frozen, it neither says that somebody looks on nor that nobody does; its lease of 5 s runs out."""
    h1 = pair.w.h1
    pair.treat("")
    with tapping(h1, "guest", "--count", "1") as tap, ThreadPoolExecutor() as threads:
        before, agent = metric(h1, RECORDS), h1.main_pid(AGENT)
        asking = threads.submit(pair.ask, 1_600, pace=200)
        assert tap.line()["unit"] == "guest.service"
        with tapping(h1, "guest"):
            h1.exec(["kill", "-STOP", str(agent)]).must()
            try:
                time.sleep(7)  # the length of the freeze is what is tried
            finally:
                h1.exec(["kill", "-CONT", str(agent)]).must()
            assert asking.result().of("200") == 1_600
            recorded = metric(h1, RECORDS) - before
    assert 0 < recorded < 1_600 - 200, "for two seconds, of 200 requests each, nobody looked"
