"""Finds what the proxy must know of the collector of traces: where its name leads, what its certificates end in.

The proxy looks up no names and reads no files of the host's. A lookup that fails leaves what was known before.
"""

import asyncio
import base64
import socket
from collections.abc import Callable
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from hostmesh.agent.reports import Reports
from hostmesh.plan.facts import CollectorFacts
from hostmesh.policy.settings import Traces
from hostmesh.policy.traces import Collector, collector_of

EVERY = 30.0
_SECONDS = 5.0
_NOT_FOUND = "the collector of traces is not found"
_NOT_TRUSTED = "[traces] ca is not read"


class CollectorWatch:
    """Looks again and again; ``changed`` is called when what is known became another. first: set once it has looked."""

    def __init__(self, traces: Traces, reports: Reports, changed: Callable[[], None]) -> None:
        self._traces, self._reports, self._changed = traces, reports, changed
        self._collector = collector_of(traces)
        self.known = CollectorFacts()
        self.first = asyncio.Event()

    async def run(self) -> None:
        """Look until cancelled; without a collector there is nothing to look for."""
        if self._collector is None:
            self.first.set()
            return
        while True:
            known = CollectorFacts(await self._addresses(self._collector), self._ca())
            if known != self.known:
                self.known = known
                self._changed()
            self.first.set()
            await asyncio.sleep(EVERY)

    async def _addresses(self, collector: Collector) -> tuple[str, ...]:
        if collector.is_address:
            return (collector.host,)
        loop = asyncio.get_running_loop()
        try:
            lookup = loop.getaddrinfo(collector.host, collector.port, type=socket.SOCK_STREAM)
            found = await asyncio.wait_for(lookup, _SECONDS)
        except (OSError, TimeoutError) as error:
            self._reports.state(_NOT_FOUND, f"{collector.host}: {error or 'no answer'}")
            return self.known.addresses
        self._reports.state(_NOT_FOUND, "")
        return tuple(dict.fromkeys(str(address[0]) for *_, address in found))

    def _ca(self) -> tuple[str, ...]:
        if not self._traces.ca:
            return ()
        try:
            certificates = x509.load_pem_x509_certificates(Path(self._traces.ca).read_bytes())
        except (OSError, ValueError) as error:
            self._reports.state(_NOT_TRUSTED, f"{self._traces.ca}: {error}")
            return self.known.ca
        self._reports.state(_NOT_TRUSTED, "")
        return tuple(base64.b64encode(one.public_bytes(Encoding.DER)).decode() for one in certificates)
