"""Calls the service of `grpc_server.py`; prints what came as JSON. Run as `grpc_client.py HOST:PORT WAY`."""

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc

STREAMS = 1000
COPIED = (0, 5, 50_000)  # bytes of messages that a mirror gets, too


async def refusal(call: Any) -> list[object]:  # noqa: ANN401
    """Status, words and seconds of a call that fails."""
    begun = time.monotonic()
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return [error.code().name, error.details(), time.monotonic() - begun]
    return ["OK", "", time.monotonic() - begun]


async def unary(channel: grpc.aio.Channel) -> dict[str, object]:
    """One message, small and large, there and back; what stands around it."""
    call = channel.unary_unary("/lab.Echo/Unary")(b"hello", metadata=(("x-hostmesh-peer", "forged"),))
    said = await call
    large = bytes(1024 * 1024)
    return {
        "body": said.decode(),
        "peer": dict(await call.initial_metadata()).get("x-peer"),
        "length": dict(await call.trailing_metadata()).get("x-length"),
        "large": await channel.unary_unary("/lab.Echo/Unary")(large) == large,
    }


async def streams(channel: grpc.aio.Channel) -> dict[str, object]:
    """Many messages down, up, and both ways, each answered before the next is sent."""
    down = [message.decode() async for message in channel.unary_stream("/lab.Echo/Down")(b"1000")]

    async def many() -> AsyncIterator[bytes]:
        for _ in range(500):
            yield bytes(1000)

    both = channel.stream_stream("/lab.Echo/Both")()
    came = []
    for index in range(200):
        await both.write(str(index).encode())
        came.append((await both.read()).decode())
    await both.done_writing()
    return {
        "down": down == [str(index) for index in range(1000)],
        "up": (await channel.stream_unary("/lab.Echo/Up")(many())).decode(),
        "both": came == [str(index) for index in range(200)],
        "end": (await both.code()).name,
    }


async def deadline(channel: grpc.aio.Channel) -> dict[str, object]:
    """A call that has half a second, and what the server knows of it."""
    failed = await refusal(channel.unary_unary("/lab.Echo/Never")(b"late", timeout=0.5))
    call = channel.unary_unary("/lab.Echo/Never")(b"unwanted")
    await asyncio.sleep(0.2)  # a client that thinks better of it
    call.cancel()
    ends = time.monotonic() + 10
    while time.monotonic() < ends:
        known = (await channel.unary_unary("/lab.Echo/Cancelled")(b"")).decode().split()
        if {"late", "unwanted"} <= set(known):
            break
    return {"failed": failed, "cancelled": sorted(known)}


async def many(channel: grpc.aio.Channel) -> dict[str, object]:
    """So many streams open in both directions at the same time."""
    open_ = [channel.stream_stream("/lab.Echo/Both")() for _ in range(STREAMS)]
    await asyncio.gather(*(call.write(str(index).encode()) for index, call in enumerate(open_)))
    first = await asyncio.gather(*(call.read() for call in open_))
    await asyncio.gather(*(call.write(b"again") for call in open_))
    second = await asyncio.gather(*(call.read() for call in open_))
    await asyncio.gather(*(call.done_writing() for call in open_))
    codes = await asyncio.gather(*(call.code() for call in open_))
    return {
        "first": first == [str(index).encode() for index in range(STREAMS)],
        "second": set(second) == {b"again"},
        "codes": sorted({code.name for code in codes}),
    }


async def refused(channel: grpc.aio.Channel) -> dict[str, object]:
    """What policy denies, and what the server fails with."""
    codes = ("INVALID_ARGUMENT", "UNAVAILABLE", "DATA_LOSS")
    failed = {code: (await refusal(channel.unary_unary("/lab.Echo/Fail")(code.encode())))[:2] for code in codes}
    return {"denied": await refusal(channel.unary_unary("/lab.Echo/Secret")(b"")), "failed": failed}


async def retried(channel: grpc.aio.Channel) -> dict[str, object]:
    """A call that is unavailable twice."""
    key = f"{time.time_ns()}"
    said = await channel.unary_unary("/lab.Echo/Flaky")(f"{key} 2".encode())
    return {"asked": said.decode(), "never": await refusal(channel.unary_unary("/lab.Echo/Flaky")(b"never 9"))}


async def limited(channel: grpc.aio.Channel) -> list[object]:
    """The statuses of five calls, and what the last one was told beside its own."""
    call = channel.unary_unary("/lab.Echo/Unary")
    codes = [(await refusal(call(b"hello")))[0] for _ in range(5)]
    last = call(b"hello")
    await refusal(last)
    return [*codes, dict(await last.initial_metadata()), dict(await last.trailing_metadata())]


async def hedged(channel: grpc.aio.Channel) -> dict[str, object]:
    """Calls of which one host is late to answer: who answered, and how long the slowest took."""
    names, slowest = set(), 0.0
    for _ in range(20):
        begun = time.monotonic()
        names.add((await channel.unary_unary("/lab.Echo/Late")(b"h2 2")).decode())
        slowest = max(slowest, time.monotonic() - begun)
    return {"names": sorted(names), "slowest": slowest}


async def routed(channel: grpc.aio.Channel) -> dict[str, object]:
    """Calls that routes lead elsewhere, change or answer, on one connection."""
    asked = (("x-canary", "1"), ("x-set", "old"), ("x-add", "1"), ("x-gone", "1"))
    call = channel.unary_unary("/lab.Echo/Old")(b"led", metadata=asked)
    led = json.loads(await call)
    both, came = channel.stream_stream("/lab.Echo/Both")(), []
    for index in range(20):
        await both.write(str(index).encode())
        came.append((await both.read()).decode() == str(index))
    await both.done_writing()
    copied = [await channel.unary_unary("/lab.Echo/Unary")(bytes(size)) == bytes(size) for size in COPIED]
    split = [json.loads(await channel.unary_unary("/lab.Echo/Told")(b""))["by"] for _ in range(400)]
    answered = ("Closed", "Moved", "Nowhere", "Forbidden", "Faulty")
    return {
        "led": led,
        "headers": dict(await call.initial_metadata()),
        "both": [all(came), (await both.code()).name, dict(await both.initial_metadata()).get("x-route")],
        "copied": copied,
        "split": {name: split.count(name) for name in sorted(set(split))},
        "answered": {name: (await refusal(channel.unary_unary(f"/lab.Echo/{name}")(b"")))[0] for name in answered},
    }


async def main(target: str, way: str) -> None:
    """One way, over a channel of its own."""
    ways = {one.__name__: one for one in (unary, streams, deadline, many, refused, retried, limited, hedged, routed)}
    options = [("grpc.enable_retries", 0)]
    async with grpc.aio.insecure_channel(target, options=options) as channel:
        print(json.dumps(await asyncio.wait_for(ways[way](channel), 50)))


asyncio.run(main(*sys.argv[1:]))
