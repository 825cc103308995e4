"""Revocation over real TLS: told to watchers at once, nothing more is signed, what was removed may come back anew."""

import asyncio
import base64
import sqlite3
import time
from contextlib import closing

import pytest
from cryptography import x509

from hostmesh.agent.controller_client import ControllerError
from hostmesh.agent.enrol import join
from hostmesh.agent.host_identity import new_request
from hostmesh.controller import admin
from hostmesh.controller.store import Store
from hostmesh.errors import HostmeshError
from hostmesh.identity import revocation, svid
from hostmesh.wire.snapshot import Revoked
from tests.unit.controller.conftest import Mesh, next_event, word

WEB = "spiffe://mesh.test/unit/web"


def signed(chain: list[str]) -> svid.Svid:
    return svid.read(x509.load_der_x509_certificate(base64.b64decode(chain[0])))


def counts(entries: list[Revoked], said: svid.Svid) -> bool:
    begun = said.not_before.timestamp()
    return revocation.of(entries, said.spiffe_id, said.dns_names, said.serial, begun) is None


def test_a_revoked_unit_is_told_withdrawn_and_signed_no_more(mesh: Mesh) -> None:
    mesh.join("h1", "web")
    mesh.join("h2")

    async def scenario() -> None:
        h1, h2 = mesh.client("h1"), mesh.client("h2")
        await h1.publish(word(("web", 80)))
        events = h2.watch()
        assert (await next_event(events)).services[0].endpoints
        began = time.monotonic()
        one = admin.revoke("unit", "web", "its key was printed", config_path=mesh.path)
        event = await next_event(events)
        assert time.monotonic() - began < 5.0
        assert (event.revoked, event.services[0].endpoints) == ([one], [])
        with pytest.raises(ControllerError, match=r"revoked: unit spiffe://mesh.test/unit/web \(its key was printed\)"):
            await h1.sign("web.service", new_request()[1])
        assert not (await h1.publish(word(("web", 80)))).refused
        assert admin.unrevoke("unit", "web", config_path=mesh.path) == Revoked("unit", WEB, 0, "")
        event = await next_event(events)
        assert (event.revoked, [e.host for e in event.services[0].endpoints]) == ([], ["h1"])
        assert counts([], signed(await h1.sign("web.service", new_request()[1])))
        await h1.close()
        await h2.close()

    asyncio.run(scenario())


def test_a_revoked_host_is_let_in_by_nothing(mesh: Mesh) -> None:
    mesh.join("h1", "web")
    token = mesh.token("h1", "web")
    admin.revoke("host", "h1", config_path=mesh.path)
    with pytest.raises(HostmeshError, match="h1 is revoked"):
        mesh.token("h1", "web")
    where = mesh.state("h1-again")
    with pytest.raises(HostmeshError, match="revoked"):
        join(token, state=where, config=where / "hostmesh.toml")

    async def scenario() -> None:
        h1 = mesh.client("h1")
        with pytest.raises(ControllerError, match="the certificate of host h1 is revoked"):
            await h1.sign("web.service", new_request()[1])
        await h1.close()

    asyncio.run(scenario())


def test_a_removed_host_leaves_nothing_that_counts_and_may_join_again(mesh: Mesh) -> None:
    mesh.join("h1", "web")
    mesh.join("h2")

    async def scenario() -> None:
        h1, h2 = mesh.client("h1"), mesh.client("h2")
        before = signed(await h1.sign("web.service", new_request()[1]))
        events = h2.watch()
        await next_event(events)
        began = time.monotonic()
        admin.remove("h1", config_path=mesh.path)
        revoked = (await next_event(events)).revoked
        assert time.monotonic() - began < 5.0
        assert not counts(revoked, before)
        await h1.close()
        await asyncio.to_thread(mesh.join, "h1", "web")
        again = mesh.client("h1")
        after = signed(await again.sign("web.service", new_request()[1]))
        assert counts(revoked, after)
        assert counts(revoked, again.identity.said)
        await again.close()
        await h2.close()

    asyncio.run(scenario())


def test_a_serial_is_taken_back_and_another_signed(mesh: Mesh) -> None:
    mesh.join("h1", "web")

    async def scenario() -> None:
        h1 = mesh.client("h1")
        events = h1.watch()
        await next_event(events)
        first = signed(await h1.sign("web.service", new_request()[1]))
        admin.revoke("serial", f"{first.serial:x}", config_path=mesh.path)
        revoked = (await next_event(events)).revoked
        assert not counts(revoked, first)
        assert counts(revoked, signed(await h1.sign("web.service", new_request()[1])))
        await h1.close()

    asyncio.run(scenario())


def test_what_is_revoked_outlives_the_controller_and_ends_with_its_certificates(mesh: Mesh) -> None:
    mesh.join("h1")
    admin.revoke("unit", "web", config_path=mesh.path)
    admin.remove("h1", config_path=mesh.path)
    mesh.kill()
    mesh.start()
    now = int(time.time())
    with closing(Store(mesh.config.state / "controller.db")) as store:
        assert [one.name for one in store.revoked(now)] == ["h1", WEB]
        assert [one.name for one in store.revoked(now + 16 * 86400)] == [WEB], "a person's word stands"
    with pytest.raises(HostmeshError, match="host h3 is not revoked"):
        admin.unrevoke("host", "h3", config_path=mesh.path)


def test_what_a_removed_host_held_never_counts_again_not_even_between(mesh: Mesh) -> None:
    mesh.join("h1")
    admin.revoke("host", "h1", config_path=mesh.path)
    admin.remove("h1", config_path=mesh.path)
    with closing(sqlite3.connect(mesh.config.state / "controller.db")) as database:
        refuse = "CREATE TRIGGER full BEFORE INSERT ON revoked BEGIN SELECT RAISE(ABORT, 'no room'); END"
        database.execute(refuse)
        with pytest.raises(sqlite3.IntegrityError, match="no room"):
            admin.unrevoke("host", "h1", config_path=mesh.path)
        assert [(one.name, one.begun_by) for one in admin.revoked(config_path=mesh.path)] == [("h1", 0)]
        database.execute("DROP TRIGGER full")
    assert admin.unrevoke("host", "h1", config_path=mesh.path).begun_by > 0
    assert [one.name for one in admin.revoked(config_path=mesh.path)] == ["h1"]


def test_a_store_of_the_version_before_is_taken_over(mesh: Mesh) -> None:
    mesh.join("h1", "web")
    mesh.kill()
    path = mesh.config.state / "controller.db"
    with closing(sqlite3.connect(path)) as database:
        database.executescript(
            "DROP TABLE revoked; ALTER TABLE tokens DROP COLUMN used_by; ALTER TABLE words DROP COLUMN zone;"
            "PRAGMA user_version=2;"
        )
    mesh.start()
    admin.revoke("unit", "web", config_path=mesh.path)
    assert [one.name for one in admin.revoked(config_path=mesh.path)] == [WEB]
