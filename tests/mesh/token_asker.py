"""Requests, one after the other on one connection: run on a host, prints one JSON line: a list of what came of each.

    python3 - HOST PORT REQUESTS       each: {"path": …, "headers": {…}}; `echo`: what the application got

Or a load until STOP is there, of several connections; the token is read anew for each request:

    python3 - HOST PORT load PATH TOKEN_FILE CONNECTIONS STOP       one JSON line: {"asked": …, "failed": {…}}
"""

import collections
import http.client
import json
import sys
import threading
from pathlib import Path


def asked(host: str, port: int, requests: list[dict[str, object]]) -> list[dict[str, object]]:
    """What came of each."""
    client, told = http.client.HTTPConnection(host, port, timeout=20), []
    for request in requests:
        client.putrequest("GET", str(request["path"]))
        for name, value in request["headers"]:  # type: ignore[attr-defined]
            client.putheader(name, value)
        client.endheaders()
        answer = client.getresponse()
        body = answer.read().decode()
        told.append(
            {
                "status": answer.status,
                "challenge": answer.getheader("WWW-Authenticate", ""),
                "error": answer.getheader("X-Hostmesh-Error", ""),
                "echo": json.loads(body) if answer.status == 200 else body,
            }
        )
    return told


def load(host: str, port: int, path: str, *, token: Path, connections: int, stop: Path) -> dict[str, object]:
    """How many were asked, and how those ended that were not answered with 200."""
    failed: collections.Counter[str] = collections.Counter()
    counts = [0] * connections

    def one(number: int) -> None:
        client = http.client.HTTPConnection(host, port, timeout=20)
        while not stop.exists():
            client.request("GET", path, headers={"Authorization": f"Bearer {token.read_text()}"})
            answer = client.getresponse()
            said = answer.read().decode()
            counts[number] += 1
            if answer.status != 200:
                failed[f"{answer.status} {said[:80]}"] += 1

    threads = [threading.Thread(target=one, args=(number,)) for number in range(connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {"asked": sum(counts), "failed": dict(failed)}


def main() -> None:
    """Ask, then tell."""
    host, port, what, *rest = sys.argv[1:]
    if what == "load":
        path, token, connections, stop = rest
        print(json.dumps(load(host, int(port), path, token=Path(token), connections=int(connections), stop=Path(stop))))
    else:
        print(json.dumps(asked(host, int(port), json.loads(what))))


main()
