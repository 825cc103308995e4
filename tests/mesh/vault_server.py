"""A service that answers with what it got: run on a host as `vault_server.py PORT`."""

import collections
import http.server
import json
import os
import socket
import sys

SEEN: collections.Counter[str] = collections.Counter()


class Echo(http.server.BaseHTTPRequestHandler):
    """Host, path, headers (names in lower case, all values of one name), and what came so far, as JSON."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        SEEN[f"{self.path} {self.headers.get('x-user', '')}"] += 1
        headers = {name.lower(): self.headers.get_all(name) for name in self.headers}
        told = {"host": socket.gethostname(), "path": self.path, "headers": headers, "seen": SEEN}
        data = json.dumps(told).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("X-Version", "1")
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Nothing."""


server = http.server.ThreadingHTTPServer(("0.0.0.0", int(sys.argv[1])), Echo)
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
    notify.connect(os.environ["NOTIFY_SOCKET"].replace("@", "\0", 1))
    notify.send(b"READY=1")
server.serve_forever()
