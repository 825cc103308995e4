#!/usr/bin/env python3
"""A small HTTP service that knows nothing of a mesh: products by number, and metrics in plain text.

Every product's first request after the start answers 503, as a service does whose cache is cold: callers that
retry never notice.
"""

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count

PORT = 8080
served = count(1)
warm: set[str] = set()


class Inventory(BaseHTTPRequestHandler):
    """GET /products/N, POST /products/N (403 for most), GET /metrics."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Answer a product, its first time with 503."""
        if self.path == "/metrics":
            return self.reply(200, f"inventory_served_total {next(served)}\n", "text/plain")
        if not self.path.startswith("/products/"):
            return self.reply(404, json.dumps({"error": "no such thing"}))
        if "cold" in self.path and self.path not in warm:
            warm.add(self.path)
            return self.reply(503, json.dumps({"error": "warming up"}))
        next(served)
        return self.reply(200, json.dumps({"product": self.path.rsplit("/", 1)[1], "stock": 7}))

    def do_DELETE(self) -> None:
        """Would delete a product; no policy lets anybody come here."""
        self.reply(200, json.dumps({"deleted": self.path}))

    def reply(self, status: int, body: str, kind: str = "application/json") -> None:
        """One answer with its length."""
        data = body.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """The application's own log: who asked, for what, within which trace."""
        trace = self.headers.get("traceparent", "-")
        sys.stdout.write(f"{self.client_address[0]} {self.requestline} {int(code)} {trace}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    ThreadingHTTPServer(("0.0.0.0", PORT), Inventory).serve_forever()
