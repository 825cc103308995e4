"""A gatekeeper of grpcio that does as it is told, without generated code: run on a host as `gate_server.py PORT`.

/run/gate/answers: JSON, a list of [MARK, WAY, WORD]; the first whose MARK stands in the question counts.
WAY `answer`: the message WORD, base64; `abort`: the status WORD; `late`: nothing, ever. Every question is put into
/run/gate/asked: one JSON line of its base64 and its metadata.
"""

import asyncio
import base64
import json
import os
import socket
import sys
from pathlib import Path

import grpc

METHOD = "Check"
SERVICE = "envoy.service.auth.v3.Authorization"
FOLDER = Path("/run/gate")
ASKED = os.open(FOLDER / "asked", os.O_WRONLY | os.O_CREAT | os.O_APPEND)


async def check(question: bytes, context: grpc.aio.ServicerContext) -> bytes:
    """As the file says."""
    metadata = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
    line = {"message": base64.b64encode(question).decode(), "metadata": metadata, "time": context.time_remaining()}
    os.write(ASKED, json.dumps(line).encode() + b"\n")
    told = json.loads((FOLDER / "answers").read_text())
    way, word = next(((way, word) for mark, way, word in told if mark.encode() in question), ("answer", ""))
    if way == "abort":
        await context.abort(grpc.StatusCode[word], "as told")
    if way == "late":
        await asyncio.Event().wait()
    return base64.b64decode(word)


async def main() -> None:
    """Serve, and say so to systemd."""
    server = grpc.aio.server()
    handlers = {METHOD: grpc.unary_unary_rpc_method_handler(check)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    server.add_insecure_port(f"0.0.0.0:{sys.argv[1]}")
    await server.start()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.connect(os.environ["NOTIFY_SOCKET"].replace("@", "\0", 1))
        notify.send(b"READY=1")
    await server.wait_for_termination()


asyncio.run(main())
