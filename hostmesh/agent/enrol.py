"""Turns a join token into a host with an identity: key, request, enrolment, files, `hostmesh.toml`."""

import asyncio
import base64
import tomllib
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from hostmesh.agent.grpc_link import CallFailed, GrpcLink, Status, client_context
from hostmesh.agent.host_identity import forget_pending, must_be_valid, pending_request, save
from hostmesh.apply.files import Files
from hostmesh.errors import HostmeshError
from hostmesh.identity.svid import BadCertificate, controller_name, trust_domain_of
from hostmesh.policy.hostfile import quoted
from hostmesh.wire.codec import decode
from hostmesh.wire.controller import SERVICE, EnrolReply, EnrolRequest, JoinToken, read_token

CONFIG = Path("/etc/hostmesh/hostmesh.toml")
STATE = Path("/var/lib/hostmesh")
_TIMEOUT = 20.0


class JoinError(HostmeshError):
    """The host could not join: nothing was written, or all of it."""


@dataclass(frozen=True, slots=True)
class Joined:
    """What came of it."""

    host: str
    trust_domain: str
    controllers: tuple[str, ...]


def join(text: str, *, state: Path = STATE, config: Path = CONFIG, timeout: float = _TIMEOUT) -> Joined:
    """Enrols this host with a token. Tries every controller that the token names; ``timeout`` seconds each."""
    try:
        token = read_token(text)
        root = x509.load_der_x509_certificate(base64.b64decode(token.root, validate=True))
        trust_domain = trust_domain_of(root)
    except (ValueError, BadCertificate) as error:
        raise JoinError(str(error), "on the controller: hostmesh controller token HOST --unit UNIT") from error
    if config.exists():
        _check_same_mesh(config, trust_domain)
    key, csr = pending_request(state / "identity")
    reply = asyncio.run(_enrol(token, root, csr, timeout))
    if reply.trust_domain != trust_domain:
        raise JoinError(f"the controller is of {reply.trust_domain}, the token of {trust_domain}")
    must_be_valid(reply.chain, datetime.now(UTC))
    save(state / "identity", key, reply.chain, reply.trust_bundle)
    forget_pending(state / "identity")
    Files().write(str(config), _settings(config, token.host, reply))
    return Joined(token.host, trust_domain, tuple(reply.controllers))


async def _enrol(token: JoinToken, root: x509.Certificate, csr: str, within: float) -> EnrolReply:
    context, name = client_context(root.public_bytes(Encoding.PEM)), controller_name(trust_domain_of(root))
    body = msgspec.json.encode(EnrolRequest(secret=token.secret, host=token.host, csr=csr))
    failures = []
    for where in token.controllers:
        try:
            link = await GrpcLink.dial(where, context, name, within)
            try:
                return decode(await link.unary(f"/{SERVICE}/Enrol", body, within), EnrolReply)
            finally:
                await link.close()
        except CallFailed as error:
            if error.status not in (Status.UNAVAILABLE, Status.DEADLINE_EXCEEDED):
                raise JoinError(f"the controller at {where} refuses: {error.details}") from error
            failures.append(error.details)
        except msgspec.MsgspecError as error:
            raise JoinError(f"the controller at {where} answered something else: {error}") from error
    raise JoinError(
        f"no controller could be reached: {'; '.join(failures) or 'the token names none'}",
        "is hostmesh-controller.service running there, and TCP port 15011 open?",
    )


def _check_same_mesh(config: Path, trust_domain: str) -> None:
    try:
        told = tomllib.loads(config.read_text()).get("trust_domain", trust_domain)
    except (OSError, ValueError, RecursionError) as error:  # what TOML forbids, text that is none, nesting without end
        raise JoinError(f"{config} cannot be read: {error}") from error
    if told != trust_domain:
        raise JoinError(
            f"{config} says trust_domain {told!r}, the token is of {trust_domain!r}", f"change or remove {config}"
        )


def _settings(config: Path, host: str, reply: EnrolReply) -> str:
    """The host's settings with the three lines that joining knows; what else a person wrote stays as it is."""
    mine = {
        "trust_domain": quoted(reply.trust_domain),
        "host": quoted(host),
        "controllers": "[" + ", ".join(map(quoted, reply.controllers)) + "]",
    }
    before = config.read_text().splitlines() if config.exists() else []
    fresh = ["# Written by hostmesh join. What can be set: docs/architecture.md"]
    kept = _without_keys(before, mine) if before else fresh
    first_table = next((i for i, line in enumerate(kept) if line.lstrip().startswith("[")), len(kept))
    lines = [*kept[:first_table], *(f"{key} = {value}" for key, value in mine.items()), *kept[first_table:]]
    text = "\n".join(lines) + "\n"
    tomllib.loads(text)
    return text


def _without_keys(lines: list[str], keys: dict[str, str]) -> list[str]:
    """Top-level ``key = …`` lines taken out, with the lines that a list value goes on over."""
    kept: list[str] = []
    top, depth = True, 0
    for line in lines:
        if depth:
            depth += line.count("[") - line.count("]")
            continue
        if line.lstrip().startswith("["):
            top = False
        key, equals, value = line.partition("=")
        if top and equals and key.strip() in keys:
            depth = value.count("[") - value.count("]")
            continue
        kept.append(line)
    return kept
