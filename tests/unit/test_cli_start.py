"""An answer comes at once: no verb loads what it does not need. Loading is what a verb's start-up time is made of."""

import subprocess
import sys

import pytest

from hostmesh.cli.main import VERBS

HEAVY = ("asyncio", "cryptography", "dbus_fast", "grpc", "h2", "nftables", "prometheus_client", "pyroute2")


def loaded(statement: str) -> set[str]:
    """Which of the heavy modules a fresh Python has after the statement."""
    program = f"import sys\n{statement}\nprint(*(name for name in {HEAVY} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    return set(done.stdout.splitlines()[-1].split()) if done.stdout.strip() else set()


def run(*arguments: str) -> str:
    return (
        f"sys.argv = {['hostmesh', *arguments]!r}\nfrom hostmesh.cli.main import main\n"
        "try: main()\nexcept SystemExit: pass"
    )


@pytest.mark.parametrize("verb", VERBS)
def test_to_understand_a_verb_takes_nothing_heavy(verb: str) -> None:
    assert loaded(run(verb, "--help")) == set()


@pytest.mark.parametrize("verb", ["check", "status", "diff", "explain", "certs"])
def test_who_only_looks_loads_nothing_heavy(verb: str) -> None:
    words = {"check": ["policies"], "explain": ["a", "b"]}.get(verb, [])
    assert loaded(run(verb, *words)) == set()


def test_what_changes_a_host_loads_neither_http2_nor_rtnetlink_before_it_needs_them() -> None:
    verbs = "import hostmesh.cli.enable, hostmesh.cli.disable, hostmesh.cli.uninstall, hostmesh.cli.run"
    doors = "import hostmesh.cli.bus, hostmesh.cli.doors, hostmesh.cli.founding, hostmesh.cli.removal"
    assert loaded(f"{verbs}\n{doors}") == {"asyncio", "dbus_fast", "nftables"}


def test_the_guard_starts_first_and_loads_nothing_of_the_kind() -> None:
    assert loaded("import hostmesh.apply.guard") == set()


def test_an_agent_does_without_what_its_controller_needs() -> None:
    assert "grpc" not in loaded("import hostmesh.agent.main, hostmesh.agent.enrol")
