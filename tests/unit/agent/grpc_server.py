"""gRPC's own server, for the tests of the agent's link: prints its port, then which calls were cancelled."""

import asyncio
import signal
import sys
from collections import defaultdict
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import grpc.aio

UNLIMITED = -1


class Calls(grpc.GenericRpcHandler):
    """``/test/…``: bodies are bytes. Who waits is waited for with ``Waiting`` and let go with ``Release``."""

    def __init__(self) -> None:
        self._waiting: defaultdict[bytes, asyncio.Event] = defaultdict(asyncio.Event)
        self._released: defaultdict[bytes, asyncio.Event] = defaultdict(asyncio.Event)

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        name = details.method.removeprefix("/test/")
        streams = {"Count": self.count, "Break": self.break_off, "Tick": self.tick}
        if name in streams:
            return grpc.unary_stream_rpc_method_handler(streams[name])
        unary = {"Echo": self.echo, "Refuse": self.refuse, "Wait": self.wait, "Waiting": self.waiting}
        found = (unary | {"Release": self.release}).get(name)
        return found and grpc.unary_unary_rpc_method_handler(found)

    async def echo(self, body: bytes, _: object) -> bytes:
        return body

    async def refuse(self, body: bytes, context: grpc.aio.ServicerContext) -> bytes:
        await context.abort(grpc.StatusCode.PERMISSION_DENIED, body.decode())
        return b""

    async def wait(self, body: bytes, _: object) -> bytes:
        self._waiting[body].set()
        try:
            await self._released[body].wait()
        except asyncio.CancelledError:
            print(f"{body.decode()} cancelled", flush=True)
            raise
        return body

    async def waiting(self, body: bytes, _: object) -> bytes:
        await self._waiting[body].wait()
        return body

    async def release(self, body: bytes, _: object) -> bytes:
        self._released[body].set()
        return body

    def release_all(self) -> None:
        for body in tuple(self._waiting):
            self._released[body].set()

    async def count(self, body: bytes, _: object) -> AsyncIterator[bytes]:
        for number in range(int(body)):
            yield str(number).encode()

    async def break_off(self, body: bytes, context: grpc.aio.ServicerContext) -> AsyncIterator[bytes]:
        async for one in self.count(body, context):
            yield one
        await context.abort(grpc.StatusCode.PERMISSION_DENIED, f"after {body.decode()}")

    async def tick(self, body: bytes, _: object) -> AsyncIterator[bytes]:
        yield body
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            print(f"{body.decode()} cancelled", flush=True)
            raise


async def stop(server: grpc.aio.Server) -> None:
    print("stopping", flush=True)
    await server.stop(grace=10)


async def main(pair: bytes) -> None:
    options = [("grpc.max_receive_message_length", UNLIMITED), ("grpc.max_send_message_length", UNLIMITED)]
    options += [("grpc.http2.max_ping_strikes", 0)]
    server = grpc.aio.server(options=options)
    calls = Calls()
    server.add_generic_rpc_handlers((calls,))
    credentials = grpc.ssl_server_credentials([(pair, pair)], pair, require_client_auth=True)
    print(server.add_secure_port("127.0.0.1:0", credentials), flush=True)
    await server.start()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, lambda: loop.create_task(stop(server)))
    loop.add_signal_handler(signal.SIGUSR1, calls.release_all)
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]).read_bytes()))
