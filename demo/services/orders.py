#!/usr/bin/env python3
"""A small HTTP service that calls another one, as anybody would write it: no TLS, no retry, no tracing code."""

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx

PORT = 8081


class Orders(BaseHTTPRequestHandler):
    """GET /orders/N: an order with what inventory says of its product."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Ask inventory, answer with its word."""
        answer = httpx.get(f"http://inventory/products/{self.path.rsplit('/', 1)[1]}")
        body = json.dumps({"order": self.path, "inventory": answer.status_code, "product": answer.text}).encode()
        self.send_response(200 if answer.status_code == 200 else 502)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it so
        """One line a request."""
        print(self.client_address[0], format % args, flush=True)


if __name__ == "__main__":
    ThreadingHTTPServer(("0.0.0.0", PORT), Orders).serve_forever()
