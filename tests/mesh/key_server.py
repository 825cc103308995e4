"""An issuer's key set: run on a host, serves the file that is named by https and http, as long as it runs.

python3 - FILE CERTIFICATE HTTPS_PORT HTTP_PORT
"""

import ssl
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Keys(BaseHTTPRequestHandler):
    """GET of anything."""

    def do_GET(self) -> None:
        """The file as it is now."""
        data = Path(sys.argv[1]).read_bytes()
        self.send_response(200)
        self.send_header("Content-Type", "application/jwk-set+json")
        self.send_header("Cache-Control", "public, max-age=3600")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def main() -> None:
    """Serve until killed."""
    _, _, certificate, https_port, http_port = sys.argv
    plain, sealed = (ThreadingHTTPServer(("", int(port)), Keys) for port in (http_port, https_port))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    sealed.socket = context.wrap_socket(sealed.socket, server_side=True, do_handshake_on_connect=False)
    threading.Thread(target=plain.serve_forever, daemon=True).start()
    sealed.serve_forever()


main()
