"""Turns calls of hosts into signed certificates, words for the registry and watch events.

Law: who calls is what the verified peer certificate says, never what the message says. Every refusal has a gRPC status
code and a sentence for the person who reads the agent's journal.
"""

import base64
import binascii
import logging
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from functools import lru_cache
from typing import TypeVar

import grpc
import grpc.aio
import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from hostmesh.controller import ca
from hostmesh.controller.config import Config
from hostmesh.controller.feed import Feed
from hostmesh.controller.offers import check_port, check_zone, led_astray, offer, own_addresses
from hostmesh.controller.signer import Signer, Signing
from hostmesh.controller.store import BadToken, StaleError, Store, StoreError
from hostmesh.errors import HostmeshError
from hostmesh.identity import revocation, rotation, svid
from hostmesh.identity.attest import NotGranted, identity_of
from hostmesh.identity.authority import Authority, CannotSign
from hostmesh.identity.revocation import IsRevoked
from hostmesh.identity.rotation import SvidState
from hostmesh.identity.svid import BadCertificate
from hostmesh.names import BadName, SpiffeId, UnitName
from hostmesh.registry.catalog import RangeError
from hostmesh.registry.events import Offer, admit
from hostmesh.wire.codec import decode
from hostmesh.wire.controller import (
    SERVICE,
    EnrolReply,
    EnrolRequest,
    PublishReply,
    PublishRequest,
    RenewRequest,
    SignReply,
    SignRequest,
    WatchRequest,
)


class NotAdmitted(HostmeshError):
    """A caller whose certificate does not open this call."""


log = logging.getLogger(__name__)
Context = grpc.aio.ServicerContext[bytes, bytes]
Request = TypeVar("Request")
Reply = TypeVar("Reply")

_CODES: tuple[tuple[type[Exception], grpc.StatusCode], ...] = (
    (BadToken, grpc.StatusCode.PERMISSION_DENIED),
    (NotGranted, grpc.StatusCode.PERMISSION_DENIED),
    (IsRevoked, grpc.StatusCode.PERMISSION_DENIED),
    (CannotSign, grpc.StatusCode.FAILED_PRECONDITION),
    (RangeError, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (StaleError, grpc.StatusCode.ABORTED),
    (StoreError, grpc.StatusCode.UNAVAILABLE),
    (sqlite3.Error, grpc.StatusCode.UNAVAILABLE),
    (BadCertificate, grpc.StatusCode.INVALID_ARGUMENT),
    (BadName, grpc.StatusCode.INVALID_ARGUMENT),
    (NotAdmitted, grpc.StatusCode.PERMISSION_DENIED),
    (msgspec.MsgspecError, grpc.StatusCode.INVALID_ARGUMENT),
)


class Controller:
    """The calls of `wire/controller.py`. The store is asked inside the event loop: local SQLite, short transactions."""

    def __init__(self, config: Config, store: Store, authority: Authority, feed: Feed) -> None:
        self._config, self._store, self._authority, self._feed = config, store, authority, feed
        self._signer = Signer(store, authority, feed)

    def enrolment_handler(self) -> grpc.GenericRpcHandler:
        """What strangers with a token may call."""
        return _handler({"Enrol": _unary(EnrolRequest, self._enrol)})

    def host_handler(self) -> grpc.GenericRpcHandler:
        """What enrolled hosts may call."""
        calls = {
            "Renew": _unary(RenewRequest, self._renew),
            "Sign": _unary(SignRequest, self._sign),
            "Publish": _unary(PublishRequest, self._publish),
            "Watch": grpc.unary_stream_rpc_method_handler(self._watch),
        }
        return _handler(calls)

    async def _enrol(self, request: EnrolRequest, context: Context) -> EnrolReply:
        svid.check_host_name(request.host, self._config.trust_domain)
        key = svid.read_request(_der(request.csr))
        reply = self._host_reply(request.host, key, request.secret)
        log.info("host %s enrolled from %s", request.host, context.peer())
        return reply

    async def _renew(self, request: RenewRequest, context: Context) -> EnrolReply:
        host = self._caller(context, renewing=True)
        return self._host_reply(host, svid.read_request(_der(request.csr)))

    async def _sign(self, request: SignRequest, context: Context) -> SignReply:
        host = self._caller(context)
        unit = UnitName(request.unit)
        identity = identity_of(self._config.trust_domain, host, self._store.grants(host), unit)
        key = svid.read_request(_der(request.csr))
        return SignReply(chain=self._signer.sign(Signing(identity, host, key, self._config.unit_life)))

    async def _publish(self, request: PublishRequest, context: Context) -> PublishReply:
        host = self._caller(context)
        check_port(request.wire_port)
        check_zone(request.zone)
        grants = self._store.grants(host)
        offers: dict[UnitName, Offer] = {}
        refused: dict[str, str] = {}
        for workload in request.workloads:
            try:
                one = offer(workload)
                identity_of(self._config.trust_domain, host, grants, one.unit)
                if one.unit in offers:
                    raise BadName(f"{one.unit.full} is published twice")
                offers[one.unit] = one
            except (BadName, NotGranted) as error:
                refused[workload.unit] = str(error)
        addresses, others = own_addresses(self._feed.catalog, host, request.addresses)
        if others:
            log.warning("host %s published addresses that are another's: %s", host, ", ".join(others))
        admitted, foreign = admit(self._feed.catalog, offers.values())
        for unit, owner in foreign.items():
            remedy = "choose another, or release it: hostmesh controller release NAME"
            refused[unit.full] = f"the service name belongs to {owner}: {remedy}"
        unrouted = {}
        for index, one in enumerate(admitted):
            if why := led_astray(self._feed.catalog, host, one, grants):
                unrouted[one.unit.full] = why
                admitted[index] = replace(one, traffic=msgspec.structs.replace(one.traffic, routes=[]))
        self._feed.publish(host, addresses, request.wire_port, admitted, request.zone)
        if refused or unrouted:
            log.warning("host %s published what it may not: %s", host, ", ".join(sorted({*refused, *unrouted})))
        return PublishReply(refused=refused, unrouted=unrouted)

    async def _watch(self, body: bytes, context: Context) -> AsyncIterator[bytes]:
        try:
            request = decode(body, WatchRequest)
            async for event in self._feed.watch(request.revision, lambda: self._admit_watcher(context)):
                yield msgspec.json.encode(event)
        except (HostmeshError, sqlite3.Error, msgspec.MsgspecError) as error:
            await _abort(context, error)

    def _admit_watcher(self, context: Context) -> None:
        self._caller(context)

    def _caller(self, context: Context, *, renewing: bool = False) -> str:
        """The calling host. Raises `NotAdmitted` unless its certificate is in force and the host was not removed."""
        pem = next(iter(context.auth_context().get("x509_pem_cert", ())), b"")
        if not pem:
            raise NotAdmitted("no client certificate", "enrol this host: hostmesh join TOKEN")
        said = _read_peer(pem)
        self._feed.refresh()
        kind, _, host = said.spiffe_id.path.partition("/")
        if kind != "host" or said.spiffe_id.trust_domain != self._config.trust_domain:
            raise NotAdmitted(f"{said.spiffe_id} is not a host of {self._config.trust_domain}")
        if not self._store.has_host(host):
            raise NotAdmitted(f"host {host} is not enrolled, or was removed", "a new token lets it in again")
        begun = said.not_before.timestamp()
        taken_back = revocation.of(self._feed.revoked, said.spiffe_id, said.dns_names, said.serial, begun)
        if taken_back:
            raise NotAdmitted(f"the certificate of host {host} is revoked: {revocation.sentence(taken_back)}")
        state = rotation.state(ca.clock(), said.not_before, said.not_after, grace=rotation.HOST_GRACE)
        if state is SvidState.EXPIRED or (state is SvidState.GRACE and not renewing):
            raise NotAdmitted(
                f"the certificate of host {host} ended {said.not_after - rotation.HOST_GRACE:%Y-%m-%d %H:%M} UTC",
                "until its grace is over it can renew, and do nothing else",
            )
        return host

    def _host_reply(self, host: str, key: ec.EllipticCurvePublicKey, secret: str = "") -> EnrolReply:
        identity = SpiffeId.of_host(self._config.trust_domain, host)
        life = self._config.host_life + rotation.HOST_GRACE
        return EnrolReply(
            chain=self._signer.sign(Signing(identity, host, key, life, secret)),
            trust_bundle=[ca.base64_der(root) for root in self._authority.trust_bundle],
            trust_domain=self._config.trust_domain,
            controllers=self._config.endpoints(self._config.port),
        )


def _unary(kind: type[Request], call: Callable[[Request, Context], Awaitable[Reply]]) -> grpc.RpcMethodHandler:
    async def handle(body: bytes, context: Context) -> bytes:
        try:
            return msgspec.json.encode(await call(decode(body, kind), context))
        except (HostmeshError, sqlite3.Error, msgspec.MsgspecError) as error:
            await _abort(context, error)
            raise  # abort raises; this is for the reader

    handler: grpc.RpcMethodHandler = grpc.unary_unary_rpc_method_handler(handle)
    return handler


def _handler(calls: dict[str, grpc.RpcMethodHandler]) -> grpc.GenericRpcHandler:
    handler: grpc.GenericRpcHandler = grpc.method_handlers_generic_handler(SERVICE, calls)
    return handler


@lru_cache(maxsize=4096)
def _read_peer(pem: bytes) -> svid.Svid:
    return svid.read(x509.load_pem_x509_certificate(pem))


def _der(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise BadCertificate(f"the signing request is not base64: {error}") from error


async def _abort(context: Context, error: Exception) -> None:
    code = next((code for kind, code in _CODES if isinstance(error, kind)), grpc.StatusCode.INTERNAL)
    log.warning("refused %s: %s: %s", context.peer(), code.name, error)
    await context.abort(code, str(error))
