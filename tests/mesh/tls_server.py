"""HTTP over TLS with its own certificate: run on a host as `tls_server.py PORT NAME CERTIFICATE KEY`; says NAME."""

import http.server
import os
import socket
import ssl
import sys

port, name, certificate, key = sys.argv[1:]


class Handler(http.server.BaseHTTPRequestHandler):
    """One request."""

    def do_GET(self) -> None:
        """Who is asked, and what is spoken."""
        assert isinstance(self.connection, ssl.SSLSocket)
        text = f"{name} {self.connection.version()}\n".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


class Server(http.server.ThreadingHTTPServer):
    """Its handshakes are made by the threads of connections, so that none holds up another."""

    def finish_request(self, request: object, client_address: object) -> None:
        """Begin with TLS."""
        assert isinstance(request, socket.socket)
        with context.wrap_socket(request, server_side=True) as connection:
            Handler(connection, client_address, self)


context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(certificate, key)
server = Server(("0.0.0.0", int(port)), Handler)
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
    told.sendto(b"READY=1", os.environ["NOTIFY_SOCKET"])
server.serve_forever()
