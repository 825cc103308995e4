"""`hostmesh explain` on the caller's host tells what a request would meet, each thing with its line."""

import pytest

from tests.mesh.twins import POLICY, Twins
from tests.mesh.world import POLICIES

pytestmark = pytest.mark.lab
TRAFFIC = """timeout = "3s"
balance = { by = "consistent-hash", on = "header:x-user" }
prefer = "near"
breaker = { max_requests = 9, consecutive_errors = 4 }
[[traffic.route]]
name = "slow"
match = { path = "/slow/*" }
to = "twin"
fault = { delay = "100ms", delay_percent = 100 }
"""


def test_a_request_that_was_not_made(pair: Twins) -> None:
    h1 = pair.w.h1
    pair.treat(TRAFFIC)
    first = POLICY.count("\n") + 1
    file = f"{POLICIES}/twin.service.toml"
    told = h1.exec(["hostmesh", "explain", "guest", "twin:80", "GET", "/slow/1", "--header", "x-user: 7"]).must().stdout
    wanted = [
        f"route slow, by {file}:{first + 4}",
        "100 % are held back for 0.1 s, on purpose",
        f"in 3 s at most, all tries together ({file}:{first})",
        f"of all callers of this host at most 9 requests at once, else 503, breaker-open ({file}:{first + 3})",
        f"an endpoint is left alone for 30 s after 4 errors in a row, at most 50% of them ({file}:{first + 3})",
        f"one of 2 by consistent-hash on header:x-user = '7' ({file}:{first + 1}): "
        "twin.service on h1, twin.service on h2",
        f"the capacity that is left there: this host 1, this zone 0, elsewhere 1 ({file}:{first + 2})",
        "taken on port 15001 of this host (outbound)",
        "to twin.service on h1 within this host, no wire",
        "to twin.service on h2 by mTLS on port 15008 (wire)",
        f"allowed, by {file}:6",
    ]
    assert [text for text in wanted if text not in told] == [], told
