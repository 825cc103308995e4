"""The controller killed after every step that the signer lists: the next life signs, no token is lost, no serial comes
twice."""

import asyncio
import re
import signal
from datetime import timedelta
from pathlib import Path

import pytest

from hostmesh.agent.controller_client import ControllerAway
from hostmesh.agent.enrol import JoinError, join
from hostmesh.agent.host_identity import new_request
from hostmesh.controller import admin, signer
from tests.lab.waiting import until
from tests.unit.controller.conftest import DEADLINE, Mesh, beside

# The real program, but for one step of the signer, after which it kills itself.
KILLED = """
import os, signal, sys
from hostmesh.controller import main, signer
number = int(sys.argv.pop(1))
step = signer.STEPS[number]

def last(what, one):
    step(what, one)
    os.kill(os.getpid(), signal.SIGKILL)

signer.STEPS = (*signer.STEPS[:number], last, *signer.STEPS[number + 1:])
sys.exit(main.main())
"""


def serials(mesh: Mesh) -> list[str]:
    """All that was signed, also what nobody got."""
    return re.findall(r"serial ([0-9a-f]+)", mesh.log())


def died(mesh: Mesh) -> None:
    """It did kill itself."""
    assert mesh.process is not None
    assert mesh.process.wait(DEADLINE) == -signal.SIGKILL


@pytest.mark.parametrize("number", range(len(signer.STEPS)), ids=[step.__name__ for step in signer.STEPS])
def test_killed_after(number: int, mesh: Mesh, tmp_path: Path) -> None:
    used = number >= signer.STEPS.index(signer.use_token)
    token, here, elsewhere = mesh.token("h1", "web"), mesh.state("h1"), tmp_path / "elsewhere"
    mesh.kill()

    mesh.start("-c", KILLED, str(number))
    with pytest.raises(JoinError, match="no controller could be reached"):
        join(token, state=here, config=here / "hostmesh.toml")
    died(mesh)
    assert [row.name for row in admin.hosts(config_path=mesh.path)] == (["h1"] if used else [])
    mesh.start()
    if used:
        with pytest.raises(JoinError, match="used before"):
            join(token, state=elsewhere, config=elsewhere / "hostmesh.toml")
    join(token, state=here, config=here / "hostmesh.toml")
    with pytest.raises(JoinError, match="used before"):
        join(token, state=elsewhere, config=elsewhere / "hostmesh.toml")
    assert not (here / "identity/join.key").exists()
    mesh.kill()

    mesh.start("-c", KILLED, str(number))
    asyncio.run(_sign_is_lost(mesh))
    died(mesh)
    mesh.start()
    assert asyncio.run(_sign(mesh))
    mesh.kill()

    mesh.age("h1", timedelta(days=4))
    mesh.start("-c", KILLED, str(number))
    asyncio.run(_renewed(mesh))
    told = serials(mesh)
    assert len(set(told)) == len(told) == 3 + (3 if number == signer.STEPS.index(signer.tell) else 0)


async def _sign(mesh: Mesh) -> list[str]:
    h1 = mesh.client("h1")
    try:
        return await h1.sign("web.service", new_request()[1])
    finally:
        await h1.close()


async def _sign_is_lost(mesh: Mesh) -> None:
    with pytest.raises(ControllerAway):
        await _sign(mesh)


async def _renewed(mesh: Mesh) -> None:
    """The host's own certificate is due: the first controller dies over it, the next one renews it."""
    h1 = mesh.client("h1")
    old = h1.identity.said.serial
    async with beside(h1.run()):
        await asyncio.to_thread(died, mesh)
        mesh.start()  # in the thread that outlives it: its child dies with its parent thread
        await until(lambda: h1.identity.said.serial != old, "renewed")
    await h1.close()
