#!/usr/bin/env python3
"""A service that passes a request on, and what says where it stands in its trace, as instrumented services do.

Answers what it got and what the next answered. Run as ``passes_on.py PORT NEXT [cold]``; with ``cold`` the first
request for each path that has that word in it gets 503.
"""

import json
import sys
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PASSED = ("traceparent", "tracestate", "baggage", "b3", "x-b3-traceid", "x-b3-spanid", "x-b3-sampled", "x-b3-flags")
PORT, NEXT, COLD = int(sys.argv[1]), sys.argv[2], "cold" in sys.argv[3:]
warm: set[str] = set()


class PassesOn(BaseHTTPRequestHandler):
    """GET anything."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Ask the next, answer with both words."""
        if COLD and "cold" in self.path and self.path not in warm:
            warm.add(self.path)
            return self.reply(503, {})
        got = {name: value for name in PASSED if (value := self.headers.get(name)) is not None}
        request = urllib.request.Request(NEXT + self.path, headers=got)
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                text = answer.read().decode()
        except urllib.error.HTTPError as error:
            text = error.read().decode()
        return self.reply(200, {"got": got, "next": json.loads(text) if text.startswith("{") else text})

    def reply(self, status: int, said: object) -> None:
        """One answer with its length."""
        data = json.dumps(said).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


if __name__ == "__main__":
    ThreadingHTTPServer(("0.0.0.0", PORT), PassesOn).serve_forever()
