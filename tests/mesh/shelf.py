"""A service in three versions on h2 (`shelf`, `shelf-v2`, `shelf-v3`), called by shop from h1, to try routes on."""

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.lab.waiting import wait_until
from tests.mesh import in_force
from tests.mesh.extra import added
from tests.mesh.world import World

HERE = Path(__file__).parent
ASKER = (HERE / "asker.py").read_text()
VERSIONS = {"shelf": 8091, "shelf-v2": 8092, "shelf-v3": 8093}
UNIT = "[Service]\nExecStart=/usr/bin/python3 /opt/shelf.py {port} {name}\nDynamicUser=yes\n"
POLICY = '[service]\nname = "{name}"\n[service.ports]\n{port} = "http"\n[[inbound.allow]]\nfrom = ["shop"]\n'
SHOP = '[outbound]\nallow = ["shelf", "shelf-v2", "shelf-v3"]\n'
Asked = tuple[str, str, dict[str, str]]


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    seconds: float
    headers: dict[str, str]
    body: str

    @property
    def by(self) -> str:
        """Who served it."""
        return self.headers.get("x-served-by", "")

    @property
    def seen(self) -> dict[str, Any]:
        """What the server says that it was asked."""
        told: dict[str, Any] = json.loads(self.body)
        return told


@dataclass(frozen=True)
class Shelf:
    """The three versions."""

    world: World

    def ask(self, requests: Sequence[Sequence[object]], connections: int = 1) -> list[Answer]:
        """Ask the service, as shop: (method, target, headers[, body]) each."""
        argv = ["python3", "-c", ASKER, "shelf", str(connections), json.dumps(requests)]
        return [Answer(*one) for one in json.loads(self.world.shop(*argv, timeout=120).must().stdout)]

    def ask_often(self, count: int, connections: int) -> list[Answer]:
        """``GET /`` so many times."""
        argv = ["python3", "-c", ASKER, "shelf", str(connections), str(count)]
        return [Answer(*one) for one in json.loads(self.world.shop(*argv, timeout=120).must().stdout)]

    @contextlib.contextmanager
    def routes(self, text: str) -> Iterator[None]:
        """These routes, in force on the caller's host for the length of a ``with``; then none."""
        self._put(text)
        try:
            yield
        finally:
            self._put("")

    def _put(self, text: str) -> None:
        self.world.write_policy(self.world.h2, "shelf.service", POLICY.format(name="shelf", port=8091) + text)
        count = text.count("[[traffic.route]]")

        def known() -> bool:
            return len(self.world.services(self.world.h1)["shelf"]["traffic"]["routes"]) == count

        wait_until(known, f"h1 knows {count} routes of shelf", 10.0, 0.05)

    @contextlib.contextmanager
    def recorded(self) -> Iterator[str]:
        """Every request of shop gets its line (few of them: lines are limited). Gives the journal's cursor."""
        h1 = self.world.h1
        with self.world.changed_policy(h1, "shop.service", SHOP + '[observe]\naccess_log = "all"\n'):

            def known() -> bool:
                return in_force.records_all(h1, "shop.service")

            wait_until(known, "shop's requests are recorded", 10.0, 0.05)
            yield h1.journal_cursor()

    def told(self, cursor: str, **fields: str) -> list[dict[str, str]]:
        """Lines of shop on h1, waited for."""
        return self.world.denials(self.world.h1, after=cursor, HOSTMESH_UNIT="shop.service", **fields)


@contextlib.contextmanager
def shelf(world: World) -> Iterator[Shelf]:
    """The three, up and meshed; gone after the ``with``."""
    h2 = world.h2
    units = [f"{name}.service" for name in VERSIONS]
    with contextlib.ExitStack() as stack:
        for name, port in VERSIONS.items():
            texts = UNIT.format(name=name, port=port), POLICY.format(name=name, port=port)
            stack.enter_context(added(world, h2, f"{name}.service", *texts, shelf="shelf_server.py"))
        stack.enter_context(world.changed_policy(world.h1, "shop.service", SHOP))
        made = Shelf(world)

        def ready() -> bool:
            known = world.services(world.h1)
            there = all(name in known and known[name]["endpoints"] for name in VERSIONS)
            return there and set(units) <= set(world.serials(h2)) and made.ask([("GET", "/", {})])[0].status == 200

        wait_until(ready, "h1 knows and reaches all versions of shelf", 20.0, 0.2)
        yield made
