"""Turns a `Controller` into two listening ports: mutual TLS for hosts, server TLS for enrolment."""

import logging
import socket
from collections.abc import Callable
from functools import partial

import grpc
import grpc.aio
from cryptography.hazmat.primitives.serialization import Encoding

from hostmesh.apply.clock import boottime
from hostmesh.controller import ca
from hostmesh.controller.config import Config
from hostmesh.controller.service import Controller
from hostmesh.errors import HostmeshError
from hostmesh.identity.authority import Authority

log = logging.getLogger(__name__)

_OPTIONS = [
    ("grpc.so_reuseport", 0),  # a second controller on the port is a mistake, and must hear of it
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
]


class PortTaken(HostmeshError):
    """A port that cannot be listened on."""


class Ports:
    """Both servers. The own certificate is made anew when it is due and used from the next handshake on."""

    def __init__(self, config: Config, authority: Authority, controller: Controller) -> None:
        self._config, self._authority = config, authority
        self._identity = ca.own_identity(authority, config)
        self.hosts = grpc.aio.server(options=_OPTIONS)
        self.hosts.add_generic_rpc_handlers((controller.host_handler(),))
        self.enrolment = grpc.aio.server(options=_OPTIONS)
        self.enrolment.add_generic_rpc_handlers((controller.enrolment_handler(),))

    async def start(self) -> tuple[int, int]:
        """Listen; the ports (mutual TLS, enrolment), chosen by the kernel where the settings say 0."""
        ports = []
        for server, port, mutual in (
            (self.hosts, self._config.port, True),
            (self.enrolment, self._config.enrolment_port, False),
        ):
            ports.append(_listen(server, self._config.listen, port, partial(self._credentials, mutual=mutual)))
            await server.start()
        return ports[0], ports[1]

    async def stop(self, grace: float) -> None:
        """Take no more calls, let running ones end for ``grace`` seconds."""
        await self.hosts.stop(grace)
        await self.enrolment.stop(grace)

    def _credentials(self, *, mutual: bool) -> grpc.ServerCredentials:
        """Of one address: a certificate, and what says at each handshake whether another counts from now on.

        No renewal needs a restart. "No change" is said as often as it is true: a change frees what handshakes beside it
        still read (grpcio 1.85), and a hundred hosts that come at once would end the controller.
        """
        used = self._identity

        def renewed() -> grpc.ServerCertificateConfiguration | None:
            nonlocal used
            if self._identity.is_due(ca.clock(), boottime()):
                self._identity = ca.own_identity(self._authority, self._config)
            if used is self._identity:
                return None
            used = self._identity
            return self._certificate(used, mutual=mutual)

        first = self._certificate(used, mutual=mutual)
        credentials: grpc.ServerCredentials = grpc.dynamic_ssl_server_credentials(first, renewed, mutual)
        return credentials

    def _certificate(self, identity: ca.ServerIdentity, *, mutual: bool) -> grpc.ServerCertificateConfiguration:
        roots = b"".join(root.public_bytes(Encoding.PEM) for root in self._authority.trust_bundle)
        pair = [(identity.key, identity.chain)]
        made: grpc.ServerCertificateConfiguration = grpc.ssl_server_certificate_configuration(
            pair, roots if mutual else None
        )
        return made


def _is_here(address: str) -> bool:
    """Whether this host has the address: one without IPv6 has no ::1, and must serve all the same."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.bind((address, 0))
    except OSError as error:
        log.warning("not listening on %s: %s", address, error.strerror)
        return False
    return True


def _listen(
    server: grpc.aio.Server, addresses: tuple[str, ...], port: int, credentials: Callable[[], grpc.ServerCredentials]
) -> int:
    everywhere = "::" in addresses  # takes IPv4 as well; and where there is no IPv6, gRPC takes IPv4 alone
    here = ["::"] if everywhere else [text for text in addresses if _is_here(text)]
    if not here:
        raise PortTaken(f"this host has none of the addresses {', '.join(addresses)}", "listen in controller.toml")
    for text in here:
        where = f"[{text}]:{port}" if ":" in text else f"{text}:{port}"
        try:
            port = server.add_secure_port(where, credentials())  # its own: the first certificate is given once
        except RuntimeError as error:
            hint = f"ss -ltnp 'sport = :{port}' shows who does"
            raise PortTaken(f"cannot listen on {where}: {error}", hint) from error
    return port
