"""The agent's connections to its controllers: who fails, who waits and who leaves, all at the same time."""

import asyncio
import os
import signal
import socket
import time

import pytest

from hostmesh.agent.controller_client import CALL_TIMEOUT, ControllerAway, ControllerClient
from hostmesh.agent.host_identity import new_request
from tests.unit.controller.conftest import Mesh

NOBODY = "127.0.0.1:1"


async def signed(client: ControllerClient) -> list[str]:
    return await client.sign("web.service", new_request()[1])


def test_all_who_find_a_controller_dead_reach_the_other(mesh: Mesh) -> None:
    """As after a reboot, when a hundred units want their SVID: each must not send the others back to the dead one."""
    mesh.join("h1", "web")

    async def scenario() -> None:
        for controllers in ((NOBODY, mesh.address), (NOBODY, NOBODY, mesh.address)):
            client = ControllerClient(controllers, mesh.state("h1"), draw=lambda: 0.0)
            chains = await asyncio.gather(*(signed(client) for _ in range(7)))
            assert all(chains)
            await client.close()

    asyncio.run(scenario())


def test_who_waits_for_a_connection_that_is_dropped_gets_the_next(mesh: Mesh) -> None:
    mesh.join("h1", "web")

    async def scenario() -> None:
        client = mesh.client("h1")
        waiting = asyncio.create_task(signed(client))
        for _ in range(3):  # while it is made, as a renewal or another join may
            await asyncio.sleep(0)
            assert not waiting.done()
            client._drop_link()
        assert await waiting
        await client.close()

    asyncio.run(scenario())


def test_an_identity_that_cannot_be_used_now_ends_nothing(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    mesh.join("h1", "web")

    def none_left(_: str) -> int:
        raise OSError(24, "Too many open files")

    async def scenario() -> None:
        client = mesh.client("h1")
        events = client.watch()
        first = asyncio.ensure_future(anext(events))
        with monkeypatch.context() as patch:
            patch.setattr(os, "memfd_create", none_left)
            with pytest.raises(ControllerAway, match="Too many open files"):
                await signed(client)
            assert not first.done()
        await asyncio.wait_for(first, 10)
        await events.aclose()
        await client.close()

    asyncio.run(scenario())


def test_close_waits_neither_for_a_silent_address_nor_for_a_frozen_controller(mesh: Mesh) -> None:
    mesh.join("h1", "web")
    assert mesh.process

    async def close(client: ControllerClient, waiting: "asyncio.Task[list[str]]") -> None:
        began = time.monotonic()
        waiting.cancel()
        await client.close()
        assert time.monotonic() - began < CALL_TIMEOUT / 4
        with pytest.raises(asyncio.CancelledError):
            await waiting

    async def scenario(silent: socket.socket) -> None:
        client = ControllerClient((f"127.0.0.1:{silent.getsockname()[1]}",), mesh.state("h1"))
        waiting = asyncio.create_task(signed(client))
        silent.setblocking(False)
        loop = asyncio.get_running_loop()
        with (await loop.sock_accept(silent))[0] as accepted:
            accepted.setblocking(False)
            assert await loop.sock_recv(accepted, 1)  # it waits for the other half of the handshake now
            await close(client, waiting)

    async def frozen(pid: int) -> None:
        client = mesh.client("h1")
        await signed(client)
        os.kill(pid, signal.SIGSTOP)
        try:
            calls = [asyncio.create_task(signed(client)) for _ in range(2)]
            await asyncio.sleep(0)
            client._drop_link()  # one call goes on upon a connection that retires
            await close(client, calls[0])
            with pytest.raises(ControllerAway, match="closed here"):
                await calls[1]
        finally:
            os.kill(pid, signal.SIGCONT)

    with socket.create_server(("127.0.0.1", 0)) as silent:
        asyncio.run(scenario(silent))
    asyncio.run(frozen(mesh.process.pid))
