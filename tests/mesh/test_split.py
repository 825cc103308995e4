"""Weights between versions, through two real hosts: so many of ten thousand, and the same value the same choice."""

from collections import Counter
from collections.abc import Iterator

import pytest

from tests.mesh.shelf import Shelf, shelf
from tests.mesh.world import World

pytestmark = pytest.mark.lab

SPLIT = '[[traffic.route]]\nname = "split"\nto = { shelf-v2 = 10, shelf = 90 }\n'
REQUESTS = 10_000
FIVE_SIGMA = 150  # of a binomial distribution: sqrt(10,000 * 0.1 * 0.9) = 30


@pytest.fixture(scope="module")
def versions(mesh: World) -> Iterator[Shelf]:
    with shelf(mesh) as made:
        yield made


def test_ten_of_a_hundred(versions: Shelf) -> None:
    with versions.routes(SPLIT):
        answers = versions.ask_often(REQUESTS, 8)
    counts = Counter((answer.status, answer.by) for answer in answers)
    print(dict(counts))
    assert set(counts) == {(200, "shelf"), (200, "shelf-v2")}
    assert abs(counts[200, "shelf-v2"] - REQUESTS // 10) <= FIVE_SIGMA


def test_the_same_value_the_same_choice(versions: Shelf) -> None:
    users = [f"user-{number}" for number in range(400)]
    with versions.routes(SPLIT.replace("10,", "50,").replace("90", "50") + 'sticky = "cookie:session"\n'):
        requests = [("GET", "/", {"cookie": f"a=1; session={user}"}) for user in users]
        first, again = versions.ask(requests, 2), versions.ask(requests[::-1], 3)[::-1]
        choices = [answer.by for answer in first]
        assert choices == [answer.by for answer in again]
        assert 140 <= choices.count("shelf-v2") <= 260  # 200, six sigma
        without = Counter(answer.by for answer in versions.ask([("GET", "/", {})] * 60))
        assert len(without) == 2, "without the cookie it is left to chance"
