"""What is told of connections between hosts: every reason of the data plane has its remedy, and stands in the docs."""

import re
from pathlib import Path

import pytest

from hostmesh.observe.lines import event_fields
from hostmesh.wire.proxy_control import Event

ROOT = Path(__file__).parents[3]
UNTOLD = {"closed", "other"}  # nobody knows more than the message says
REASONS = sorted(set(re.findall(r'=> "([a-z-]+)",', (ROOT / "proxy/src/peer.rs").read_text())))


def wire_event(reason: str) -> Event:
    return Event(
        time_ns=1, kind="wire", unit="web.service", direction="inbound", verdict="deny", rule=f"builtin:{reason}",
        peer="spiffe://m/unit/x", service="", port=0, protocol="", message="handshake refused: why",
    )  # fmt: skip


def test_the_data_plane_has_reasons() -> None:
    assert {"expired", "revoked", "too-long"} <= set(REASONS)


@pytest.mark.parametrize("reason", REASONS)
def test_each_is_told_with_its_remedy(reason: str) -> None:
    fields = event_fields(wire_event(reason))
    message = str(fields["MESSAGE"])
    assert message.startswith("handshake refused: why")
    assert (message != "handshake refused: why") == (reason not in UNTOLD)
    assert (fields["HOSTMESH_RULE"], fields["HOSTMESH_UNIT"]) == (f"builtin:{reason}", "web.service")


@pytest.mark.parametrize("reason", REASONS)
def test_each_is_named_where_rules_are(reason: str) -> None:
    assert re.search(rf"[ `:\n]{reason}[,.]", (ROOT / "docs/architecture.md").read_text())
