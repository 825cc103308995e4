"""Turns the mesh's durable facts into rows and back: hosts, tokens, grants, workloads, VIPs, CA slots,
what is revoked. SQLite, WAL.

Law: what changes the catalog changes the revision in the same transaction. The controller and the command line may have
the file open at once; `changed_elsewhere` tells one of the other's writes.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import msgspec

from hostmesh.errors import HostmeshError
from hostmesh.names import UnitName
from hostmesh.registry.catalog import Catalog, Claim, Host, Workload, where_published
from hostmesh.registry.events import Claimed
from hostmesh.wire.snapshot import Revoked, Traffic

SCHEMA_VERSION = 4
_REVOKED = """
CREATE TABLE revoked (kind TEXT NOT NULL, name TEXT NOT NULL, begun_by INTEGER NOT NULL, reason TEXT NOT NULL,
  ends INTEGER, PRIMARY KEY (kind, name)) STRICT;
"""
_UPGRADES = {  # from this version to the next
    2: f"{_REVOKED} ALTER TABLE tokens ADD COLUMN used_by BLOB;",
    3: "ALTER TABLE words ADD COLUMN zone TEXT NOT NULL DEFAULT '';",
}
_SCHEMA = f"""{_REVOKED}
CREATE TABLE meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT;
CREATE TABLE hosts (name TEXT PRIMARY KEY, enrolled INTEGER NOT NULL) STRICT;
CREATE TABLE tokens (hash BLOB PRIMARY KEY, host TEXT NOT NULL, units TEXT NOT NULL, expires INTEGER NOT NULL,
  used INTEGER, used_by BLOB) STRICT;
CREATE TABLE grants (host TEXT NOT NULL, pattern TEXT NOT NULL, PRIMARY KEY (host, pattern)) STRICT;
CREATE TABLE words (host TEXT PRIMARY KEY REFERENCES hosts (name) ON DELETE CASCADE, addresses TEXT NOT NULL,
  wire_port INTEGER NOT NULL, revision INTEGER NOT NULL, silent INTEGER, zone TEXT NOT NULL DEFAULT '') STRICT;
CREATE TABLE workloads (host TEXT NOT NULL REFERENCES words (host) ON DELETE CASCADE, unit TEXT NOT NULL,
  service TEXT NOT NULL, ports TEXT NOT NULL, traffic TEXT NOT NULL, since INTEGER NOT NULL,
  ready INTEGER NOT NULL, PRIMARY KEY (host, unit)) STRICT;
CREATE TABLE vips (service TEXT PRIMARY KEY, place INTEGER NOT NULL UNIQUE, owner TEXT NOT NULL) STRICT;
CREATE TABLE slots (id INTEGER PRIMARY KEY, state TEXT NOT NULL) STRICT;
"""
_PORTS = msgspec.json.Decoder(tuple[tuple[int, str], ...])
_TRAFFIC = msgspec.json.Decoder(Traffic)


class StoreError(HostmeshError):
    """The store cannot be used as it is."""


class StaleError(StoreError):
    """What was to be written was decided on an older state: read again, decide again."""


class BadToken(HostmeshError):
    """A join token that opens nothing."""


@dataclass(frozen=True, slots=True)
class Token:
    """A join token as kept: never its secret. Times: seconds since the epoch."""

    host: str
    units: tuple[str, ...]
    expires: int
    used: int | None


class Store:
    """One SQLite file. Not for several threads. Times are seconds since the epoch and are arguments.

    create_at: make a new file whose revisions begin here: milliseconds since the epoch, so that no two meshes share a
    revision, and a host that changed meshes is not taken for one that is up to date.
    """

    def __init__(self, path: Path, *, create_at: int | None = None) -> None:
        if create_at is None and not path.exists():
            raise StoreError(f"the store {path} is not there", "hostmesh controller init makes it")
        if create_at is not None and path.exists():
            raise StoreError(f"the store {path} is already there", "remove it only to throw the mesh away")
        self._path = path
        try:
            self._db = sqlite3.connect(path, timeout=5, isolation_level=None)
        except sqlite3.Error as error:
            raise StoreError(f"the store {path} cannot be opened: {error}", _remedy(error, path)) from error
        try:
            # FULL: a token that was used stays used, also when the power goes right after.
            self._db.executescript("PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA foreign_keys=ON;")
            if create_at is not None:
                self._db.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version={SCHEMA_VERSION};")
                self._db.execute("INSERT INTO meta VALUES ('revision', ?)", (create_at,))
                self._db.execute("COMMIT")
            version = self._upgraded(self._db.execute("PRAGMA user_version").fetchone()[0])
        except sqlite3.Error as error:
            self._db.close()
            raise StoreError(f"the store {path} cannot be read: {error}", _remedy(error, path)) from error
        if version != SCHEMA_VERSION:
            self._db.close()
            raise StoreError(f"the store {path} is of version {version}, this program knows {SCHEMA_VERSION}")
        self._seen = self._data_version()

    def _upgraded(self, version: int) -> int:
        """A store of a version before becomes one of this, each step whole or not at all."""
        while version in _UPGRADES:
            self._db.executescript(f"BEGIN IMMEDIATE; {_UPGRADES[version]} PRAGMA user_version={version + 1}; COMMIT;")
            version += 1
        return version

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            finally:
                if self._db.in_transaction:  # not after a full disk: SQLite has rolled back by itself
                    self._db.execute("ROLLBACK")
        except sqlite3.OperationalError as error:
            raise StoreError(
                f"the store {self._path} cannot be written: {error}", _remedy(error, self._path)
            ) from error

    def _data_version(self) -> int:
        return int(self._db.execute("PRAGMA data_version").fetchone()[0])

    def changed_elsewhere(self) -> bool:
        """Whether another process wrote since this was asked last."""
        before, self._seen = self._seen, self._data_version()
        return before != self._seen

    def revision(self) -> int:
        """The revision of the catalog: grows with every change, for ever."""
        return int(self._db.execute("SELECT value FROM meta WHERE name = 'revision'").fetchone()[0])

    # tokens, hosts, grants

    def add_token(self, secret: str, host: str, units: tuple[str, ...], expires: int, now: int) -> None:
        """Keep a new one-time token. Tokens that were used or expired a day ago are forgotten."""
        with self._transaction() as db:
            db.execute("DELETE FROM tokens WHERE max(expires, coalesce(used, 0)) < ?", (now - 86400,))
            row = (_hash(secret), host, msgspec.json.encode(units).decode(), expires)
            db.execute("INSERT INTO tokens VALUES (?, ?, ?, ?, NULL, NULL)", row)

    def enrol(self, secret: str, host: str, now: int, key: bytes) -> Token:
        """Use a token up: the host is in, with its grants, or `BadToken` says why not. All in one transaction.

        key: the hash of who asks. It may ask again while the token lives: an answer can be lost.
        """
        with self._transaction() as db:
            row = db.execute(
                "SELECT host, units, expires, used, used_by FROM tokens WHERE hash = ?", (_hash(secret),)
            ).fetchone()
            remedy = f"on the controller: hostmesh controller token {host} --unit UNIT"
            if row is None:
                raise BadToken("this join token is not known here", remedy)
            token = Token(row[0], tuple(msgspec.json.decode(row[1], type=list[str])), row[2], row[3])
            if token.host != host:
                raise BadToken(f"this join token is for host {token.host}, not for {host}", remedy)
            if token.used is not None and row[4] != key:
                raise BadToken("this join token was used before; each opens once", remedy)
            if token.expires <= now:
                raise BadToken("this join token has expired", remedy)
            db.execute("UPDATE tokens SET used = ?, used_by = ? WHERE hash = ?", (now, key, _hash(secret)))
            db.execute(
                "INSERT INTO hosts VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET enrolled = excluded.enrolled",
                (host, now),
            )
            rows = [(host, unit) for unit in token.units]
            db.executemany("INSERT OR IGNORE INTO grants VALUES (?, ?)", rows)
            return token

    def has_host(self, host: str) -> bool:
        """Whether the host was enrolled and not removed."""
        return self._db.execute("SELECT 1 FROM hosts WHERE name = ?", (host,)).fetchone() is not None

    def hosts(self) -> dict[str, tuple[str, ...]]:
        """All enrolled hosts and their grants."""
        return {name: self.grants(name) for (name,) in self._db.execute("SELECT name FROM hosts ORDER BY name")}

    def grants(self, host: str) -> tuple[str, ...]:
        """The units that a host may run: names and globs."""
        rows = self._db.execute("SELECT pattern FROM grants WHERE host = ? ORDER BY pattern", (host,))
        return tuple(pattern for (pattern,) in rows)

    def grant(self, host: str, patterns: tuple[str, ...]) -> None:
        """Let an enrolled host run more."""
        with self._transaction() as db:
            if not self.has_host(host):
                raise StoreError(f"host {host} is not enrolled", f"hostmesh controller token {host} --unit UNIT")
            db.executemany("INSERT OR IGNORE INTO grants VALUES (?, ?)", [(host, p) for p in patterns])

    def remove_host(self, host: str, one: Revoked, ends: int | None) -> bool:
        """Take a host out: its identity opens nothing any more, its endpoints go. False when it was not there.

        one: the entry that takes back what was signed for it, until ``ends``; a person's own entry stays.
        """
        with self._transaction() as db:
            db.execute("DELETE FROM tokens WHERE host = ?", (host,))
            db.execute("DELETE FROM grants WHERE host = ?", (host,))
            gone = db.execute("DELETE FROM hosts WHERE name = ?", (host,)).rowcount > 0
            if gone:
                self._next_revision(db)
                db.execute(
                    "INSERT INTO revoked VALUES (?, ?, ?, ?, ?) ON CONFLICT (kind, name) DO UPDATE SET "
                    "begun_by = excluded.begun_by, ends = excluded.ends WHERE begun_by > 0",
                    (one.kind, one.name, one.begun_by, one.reason, ends),
                )
            return gone

    # what is revoked

    def revoke(self, one: Revoked, ends: int | None, now: int, most: int) -> None:
        """Take back what the entry names; it replaces one of that name. Those that are over are forgotten."""
        with self._transaction() as db:
            db.execute("DELETE FROM revoked WHERE ends < ?", (now,))
            others = "SELECT count(*) FROM revoked WHERE (kind, name) <> (?, ?)"
            if db.execute(others, (one.kind, one.name)).fetchone()[0] >= most:
                raise StoreError(f"{most} entries are revoked", "revoke a host or a unit instead of its serials")
            row = (one.kind, one.name, one.begun_by, one.reason, ends)
            db.execute("INSERT OR REPLACE INTO revoked VALUES (?, ?, ?, ?, ?)", row)
            self._next_revision(db)

    def unrevoke(self, kind: str, name: str) -> None:
        """Take the entry away."""
        with self._transaction() as db:
            db.execute("DELETE FROM revoked WHERE kind = ? AND name = ?", (kind, name))
            self._next_revision(db)

    def revoked(self, now: int) -> list[Revoked]:
        """What is revoked, in order of kind and name."""
        rows = self._db.execute(
            "SELECT kind, name, begun_by, reason FROM revoked WHERE ends IS NULL OR ends >= ? ORDER BY kind, name",
            (now,),
        )
        return [Revoked(*row) for row in rows]

    # the catalog

    def load(self, trust_domain: str, vip_ranges: tuple[str, ...]) -> Catalog:
        """The catalog as it was last."""
        loads: dict[str, list[Workload]] = {}
        for host, unit, service, ports, traffic, since, ready in self._db.execute(
            "SELECT host, unit, service, ports, traffic, since, ready FROM workloads ORDER BY host, unit"
        ):
            words = (_PORTS.decode(ports), _TRAFFIC.decode(traffic))
            loads.setdefault(host, []).append(Workload(UnitName(unit), service, *words, since, bool(ready)))
        hosts, silent = {}, {}
        for name, addresses, wire_port, revision, silent_at, zone in self._db.execute("SELECT * FROM words"):
            where = tuple(msgspec.json.decode(addresses, type=list[str]))
            units = tuple(sorted(loads.get(name, ()), key=lambda load: load.unit))
            hosts[name] = Host(name, where, wire_port, units, revision, zone)
            if silent_at is not None:
                silent[name] = silent_at
        claims = {name: Claim(place, owner) for name, place, owner in self._db.execute("SELECT * FROM vips")}
        return Catalog(trust_domain, vip_ranges, hosts, claims, silent, where=where_published(hosts.values()))

    def put_word(self, host: Host, claims: list[Claimed]) -> None:
        """Keep what a host published, with the names that it needs.

        ``host.revision`` is the one after `revision`; `StaleError` when another process was quicker.
        """
        with self._transaction() as db:
            if not self.has_host(host.name):
                raise StoreError(f"host {host.name} is not enrolled")
            if host.revision != self._next_revision(db):
                raise StaleError("another process wrote to the store in between")
            db.execute("DELETE FROM words WHERE host = ?", (host.name,))
            addresses = msgspec.json.encode(host.addresses).decode()
            row = (host.name, addresses, host.wire_port, host.revision, host.zone)
            db.execute("INSERT INTO words VALUES (?, ?, ?, ?, NULL, ?)", row)
            rows = [_row(host, load) for load in host.workloads]
            db.executemany("INSERT INTO workloads VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
            db.executemany(
                "INSERT INTO vips VALUES (?, ?, ?) ON CONFLICT (service) DO UPDATE SET owner = excluded.owner",
                [(c.service, c.claim.index, c.claim.owner) for c in claims],
            )

    def put_silence(self, hosts: list[str]) -> int:
        """Keep that these hosts were not heard of; the revision of it."""
        with self._transaction() as db:
            revision = self._next_revision(db)
            db.executemany("UPDATE words SET silent = ? WHERE host = ?", [(revision, host) for host in hosts])
            return revision

    def release_service(self, service: str) -> bool:
        """Let another unit claim the name (its VIP stays). False when nobody owns it."""
        with self._transaction() as db:
            self._next_revision(db)
            return db.execute("UPDATE vips SET owner = '' WHERE service = ?", (service,)).rowcount > 0

    @staticmethod
    def _next_revision(db: sqlite3.Connection) -> int:
        row = db.execute("UPDATE meta SET value = value + 1 WHERE name = 'revision' RETURNING value").fetchone()
        return int(row[0])

    # CA slots: which key files count; the certificates and keys are files beside the store

    def slots(self) -> list[tuple[int, str]]:
        """Number and state of every CA slot."""
        return [(number, state) for number, state in self._db.execute("SELECT id, state FROM slots ORDER BY id")]

    def put_slot(self, number: int, state: str) -> None:
        """Set the state of a slot."""
        with self._transaction() as db:
            statement = "INSERT INTO slots VALUES (?, ?) ON CONFLICT (id) DO UPDATE SET state = excluded.state"
            db.execute(statement, (number, state))


def _remedy(error: sqlite3.Error, path: Path) -> str:
    """What helps against the primary result code (sqlite.org/rescode.html)."""
    match getattr(error, "sqlite_errorcode", 0) & 0xFF:
        case sqlite3.SQLITE_FULL:
            return f"its disk is full: df {path.parent} shows it; free some space there"
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_IOERR:
            return f"is its disk read-only or full, or the file another user's? df {path.parent}; ls -l {path.parent}"
        case sqlite3.SQLITE_BUSY:
            return "another process holds it: hostmesh controller commands end by themselves"
    return "restore it from its backup"


def _hash(secret: str) -> bytes:
    """Secrets have 256 random bits, so a plain digest is enough."""
    return sha256(secret.encode()).digest()


def _row(host: Host, load: Workload) -> tuple[str, str, str, str, str, int, bool]:
    ports, traffic = msgspec.json.encode(load.ports).decode(), msgspec.json.encode(load.traffic).decode()
    return (host.name, load.unit.full, load.service, ports, traffic, load.since, load.ready)
