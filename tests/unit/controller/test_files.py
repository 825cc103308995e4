"""What `init` and `join` write: modes, owners, the settings of a person kept; and what they refuse."""

import os
import pwd
import sqlite3
import tomllib
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from hostmesh.agent import host_identity
from hostmesh.agent.enrol import JoinError, join
from hostmesh.agent.host_identity import IdentityError, new_request
from hostmesh.controller import admin
from hostmesh.controller.config import Config, ConfigError, dump, load, parse
from hostmesh.controller.store import Store, StoreError
from tests.unit.controller.conftest import Mesh, own_address


def modes(folder: Path) -> dict[str, str]:
    paths = [folder, *folder.rglob("*")]
    return {str(path.relative_to(folder)): oct(path.stat().st_mode & 0o777)[2:] for path in paths}


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files to another user")
def test_init_gives_everything_to_the_controllers_user(tmp_path: Path) -> None:
    config = Config(state=tmp_path / "state")
    path = tmp_path / "etc/controller.toml"
    admin.init(config, path, user="nobody")
    found = modes(config.state)
    assert {name: found[name] for name in (".", "ca", "ca/1", "ca/1/root.key", "ca/1/intermediate.key")} == {
        ".": "700",
        "ca": "700",
        "ca/1": "700",
        "ca/1/root.key": "600",
        "ca/1/intermediate.key": "600",
    }
    admin.make_token("h1", ("web",), config_path=path)  # root writes; what SQLite makes beside it stays the user's
    with closing(Store(config.state / "controller.db")):
        nobody = pwd.getpwnam("nobody").pw_uid
        owners = {p.name: p.stat().st_uid for p in (config.state, *config.state.rglob("*"))}
        assert "controller.db-wal" in owners
        assert set(owners.values()) == {nobody}, owners
    assert load(path) == config
    with pytest.raises(admin.AdminError, match="already there"):
        admin.init(config, path, user="nobody")
    path.unlink()
    with pytest.raises(admin.AdminError, match="holds a CA or a store"):
        admin.init(config, path, user="nobody")


def test_an_init_that_was_cut_short_is_begun_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, path = Config(state=tmp_path / "state"), tmp_path / "controller.toml"
    config.state.mkdir()  # as systemd or tmpfiles leave it

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr("hostmesh.controller.store.Store.put_slot", killed)
        with pytest.raises(KeyboardInterrupt):
            admin.init(config, path, user=None)
    assert list(config.state.iterdir()) == []
    assert not path.exists()
    admin.init(config, path, user=None)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["controller.toml", "state"]
    assert admin.make_token("h1", ("web",), config_path=path).startswith("hostmesh1.")


def test_init_without_the_user_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(admin.AdminError, match="there is no user"):
        admin.init(Config(state=tmp_path / "state"), tmp_path / "c.toml", user="hostmesh-nobody-has-this")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"prot": 1}, "unknown key 'prot'"),
        ({"port": "15010"}, "port must be a whole number"),
        ({"listen": "::"}, "listen must be a list of strings"),
        ({"advertise": []}, "advertise is empty"),
        ({"listen": ["h1"]}, "does not appear to be an IPv4 or IPv6 address"),
        ({"vip_ranges": ["198.18.0.0/31"]}, "has no room"),
        ({"trust_domain": "Mesh!"}, "is not a trust domain"),
        ({"silence": 0}, "must be greater than 0"),
    ],
)
def test_wrong_settings_say_what_is_wrong(change: dict[str, object], complaint: str) -> None:
    assert parse(tomllib.loads(dump(Config())), "controller.toml") == Config()
    with pytest.raises(ConfigError, match=complaint):
        parse({**tomllib.loads(dump(Config())), **change}, "controller.toml")


def test_join_keeps_what_a_person_wrote(mesh: Mesh) -> None:
    folder = mesh.state("h1")
    folder.mkdir(parents=True)
    config = folder / "hostmesh.toml"
    config.write_text(
        '# ours\nmetrics_address = "127.0.0.2"\ncontrollers = [\n  "198.18.0.9:1",\n]\n\n[ports]\nwire = 15108\n'
    )
    mesh.join("h1")
    assert config.read_text().startswith("# ours\n")
    assert tomllib.loads(config.read_text()) == {
        "metrics_address": "127.0.0.2",
        "trust_domain": "mesh.test",
        "host": "h1",
        "controllers": [mesh.address],
        "ports": {"wire": 15108},
    }
    found = modes(folder / "identity")
    assert found == {".": "700", "host.key": "600", "host.crt": "600", "bundle.pem": "600"}


def test_join_does_not_change_meshes_silently(mesh: Mesh) -> None:
    folder = mesh.state("h1")
    folder.mkdir(parents=True)
    (folder / "hostmesh.toml").write_text('trust_domain = "other.test"\n')
    token = mesh.token("h1")
    with pytest.raises(JoinError, match=r"says trust_domain 'other\.test'"):
        join(token, state=folder, config=folder / "hostmesh.toml")
    assert not (folder / "identity").exists()


def test_a_renewal_cut_short_is_finished(mesh: Mesh) -> None:
    mesh.join("h1")
    folder = mesh.state("h1") / "identity"
    new = host_identity.load(folder)
    other, _ = new_request()
    # killed after the chain was written, before the key was renamed
    (folder / "host.key.next").write_bytes(new.key)
    (folder / "host.key").write_bytes(other)
    assert host_identity.load(folder) == new
    # killed after the new key was written, before the chain was
    (folder / "host.key.next").write_bytes(other)
    assert host_identity.load(folder) == new
    (folder / "host.key").write_bytes(other)
    with pytest.raises(IdentityError, match="do not belong together"):
        host_identity.load(folder)


@pytest.mark.parametrize(("chain", "complaint"), [([], "no certificate"), (["AAAA"], "cannot be read")])
def test_an_answer_without_a_certificate_is_refused(chain: list[str], complaint: str) -> None:
    with pytest.raises(IdentityError, match=complaint):
        host_identity.must_be_valid(chain, datetime.now(UTC))


def test_a_store_that_is_not_one(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="is not there"):
        Store(tmp_path / "none.db")
    (tmp_path / "text.db").write_text("this is not a database, " * 100)
    with pytest.raises(StoreError, match="cannot be read"):
        Store(tmp_path / "text.db")
    with closing(sqlite3.connect(tmp_path / "newer.db")) as db:
        db.execute("PRAGMA user_version=99")
    with pytest.raises(StoreError, match="is of version 99"):
        Store(tmp_path / "newer.db")


def test_what_is_not_there_cannot_be_released_removed_or_granted(tmp_path: Path) -> None:
    mesh = Mesh(tmp_path)
    with pytest.raises(admin.AdminError, match="nobody owns"):
        admin.release("web", config_path=mesh.path)
    with pytest.raises(admin.AdminError, match="is not enrolled"):
        admin.remove("h9", config_path=mesh.path)
    with pytest.raises(StoreError, match="is not enrolled"):
        admin.grant("h9", ("web",), config_path=mesh.path)


def test_an_address_that_this_host_lacks(meshes: Callable[..., Mesh]) -> None:
    mesh = meshes(listen=(own_address(), "2001:2::dead"))
    assert "not listening on 2001:2::dead" in mesh.log()
    assert mesh.join("h1").host == "h1"
    with pytest.raises(AssertionError, match="has none of the addresses"):
        meshes(listen=("2001:2::dead",))


def test_a_second_controller_on_the_port_hears_of_it(mesh: Mesh) -> None:
    second = Mesh(mesh.folder / "second")
    second.path.write_text(dump(replace(second.config, port=mesh.config.port)))
    with pytest.raises(AssertionError, match="cannot listen on"):
        second.start()
    assert second.process is not None
    assert second.process.wait(10) == 1


def test_a_token_that_could_not_be_used_is_not_made(tmp_path: Path) -> None:
    path = tmp_path / "controller.toml"
    path.write_text(dump(Config(state=tmp_path / "state")))
    admin.must_be_reachable("h1", "h1", config_path=path)
    with pytest.raises(admin.AdminError, match="h2 could not reach this controller"):
        admin.must_be_reachable("h2", "h1", config_path=path)
    path.write_text(dump(Config(state=tmp_path / "state", advertise=("127.0.0.1", "198.18.0.1"))))
    admin.must_be_reachable("h2", "h1", config_path=path)


def test_a_full_disk_is_said_with_its_remedy_and_nothing_is_left_open(tmp_path: Path) -> None:
    path = tmp_path / "controller.db"
    with closing(Store(path, create_at=1)) as store:
        pages = store._db.execute("PRAGMA page_count").fetchone()[0]
        store._db.execute(f"PRAGMA max_page_count = {pages}")

        def fill(name: str) -> None:
            for number in range(1000):
                store.add_token(f"{name} {number}", "h1", ("web.service" * 20,), 10**10, 1)

        for name in ("first", "second"):  # which finds no transaction that the first left behind
            with pytest.raises(StoreError, match="cannot be written: database or disk is full") as said:
                fill(name)
            assert f"df {tmp_path}" in said.value.hint
        store._db.execute("PRAGMA max_page_count = 100000")
        store.add_token("one more", "h1", ("web.service",), 10**10, 1)
        assert store.enrol("one more", "h1", 2, b"key").host == "h1"


def test_a_store_that_cannot_be_opened_is_no_reason_to_restore_a_backup(tmp_path: Path) -> None:
    path = tmp_path / "controller.db"
    path.mkdir()
    with pytest.raises(StoreError, match=r"cannot be .*unable to open database file") as said:
        Store(path)
    assert "read-only or full" in said.value.hint
