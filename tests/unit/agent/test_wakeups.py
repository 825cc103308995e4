"""Many causes, few runs: with the event loop's own clock."""

import asyncio

from hostmesh.agent.wakeups import Wakeups


def test_a_burst_is_one_wakeup_with_all_its_reasons() -> None:
    async def burst() -> frozenset[str]:
        wakeups = Wakeups()
        for reason in ("policies", "policies", "network"):
            wakeups.request(reason)
        return await asyncio.wait_for(wakeups.wait(), 5)

    assert asyncio.run(burst()) == {"policies", "network"}


def test_an_urgent_reason_is_not_held_back_by_a_patient_one() -> None:
    async def both() -> tuple[frozenset[str], float]:
        wakeups, loop = Wakeups(), asyncio.get_running_loop()
        began = loop.time()
        wakeups.request("timer", 30.0)
        wakeups.request("ruleset", 0.0)
        return await asyncio.wait_for(wakeups.wait(), 5), loop.time() - began

    reasons, took = asyncio.run(both())
    assert reasons == {"timer", "ruleset"}
    assert took < 5


def test_later_requests_do_not_push_the_run_away() -> None:
    async def steady() -> int:
        wakeups, count = Wakeups(), 0

        async def ask() -> None:
            nonlocal count
            while True:
                wakeups.request("again", 0.02)
                count += 1
                await asyncio.sleep(0.001)

        asking = asyncio.create_task(ask())
        await asyncio.wait_for(wakeups.wait(), 5)
        asking.cancel()
        return count

    assert asyncio.run(steady()) > 1


def test_what_comes_after_a_run_is_the_next_run() -> None:
    async def twice() -> tuple[frozenset[str], frozenset[str]]:
        wakeups = Wakeups()
        wakeups.request("one", 0.0)
        first = await asyncio.wait_for(wakeups.wait(), 5)
        wakeups.request("two", 0.0)
        return first, await asyncio.wait_for(wakeups.wait(), 5)

    assert asyncio.run(twice()) == ({"one"}, {"two"})
