"""The main job, on real hosts with stock services: every row of what must be shown."""

import pytest

from tests.mesh import shows, survival
from tests.mesh.world import World

pytestmark = pytest.mark.lab


@pytest.mark.parametrize(
    "show",
    [
        shows.allowed,
        shows.same_host,
        shows.nothing_readable,
        shows.readable_without,
        shows.wire_refuses_strangers,
        shows.stock_clients,
        shows.refused_by_policy_http,
        shows.refused_by_policy_method,
        shows.refused_by_policy_tcp,
        shows.refused_plaintext,
        shows.vip_refused_to_unmeshed,
        shows.denial_counted,
        shows.retried,
        shows.client_addresses,
        shows.impostor,
        shows.scraper,
        shows.denial_beside_own_lines,
        shows.policy_change,
        shows.wrong_policy,
        shows.big_download,
        survival.control_dies,
        survival.proxy_dies,
    ],
    ids=lambda show: show.__name__,
)
def test_shown(mesh: World, show: object) -> None:
    assert callable(show)
    print(show(mesh))
