"""Turns the bench's loads into counts of what the proxy's code does how often, from which the compiler arranges it.

    python -m bench.profile PROGRAM FOLDER        (make profile builds the one and merges the other)

PROGRAM is a proxy that was built to count (rustc's `-Cprofile-generate`); FOLDER gets a file a host.
Why, and what it brings: docs/decisions/0014-compiled-by-a-profile.md.
"""

import argparse
import shutil
from pathlib import Path

from bench.command import end_on_signals, tell
from bench.contenders import hostmesh
from bench.layer import bench_layer
from bench.loads import CONNECTIONS, LOADS
from bench.testbed import APP_PORT, CALLER, URL, Testbed, two_hosts
from tests.lab.host import Host

SECONDS = 4
COUNTING = "/opt/counting-proxy"
STATE = "var/lib/hostmesh-proxy"  # the one folder that the proxy may write to
DROP_IN = f"""
[Service]
ExecStart=
ExecStart={COUNTING}
Environment=LLVM_PROFILE_FILE=/{STATE}/%%p.profraw
"""


class NothingCountedError(Exception):
    """A proxy has left no counts: was it built to count?"""


def main() -> None:
    """Run the loads through proxies that count, and fetch the counts."""
    parser = argparse.ArgumentParser(prog="bench.profile")
    parser.add_argument("program", type=Path)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    end_on_signals()
    with two_hosts(tell, [bench_layer()]) as bed:
        for host in bed.hosts():
            _count_with(host, options.program)
        contender = hostmesh(bed)
        bed.wait_answered()
        for load in LOADS.values():
            tell(f"{load.title}, {SECONDS} s")
            load.run(contender, SECONDS)
        for title, command in _more(bed):
            tell(title)
            bed.run(command, host=bed.h1, unit=CALLER, timeout=60)
        for host in bed.hosts():
            _fetch(host, options.folder)


def _count_with(host: Host, program: Path) -> None:
    copy = host.root / COUNTING.lstrip("/")
    shutil.copy(program, copy)
    copy.chmod(0o755)
    host.write("/etc/systemd/system/hostmesh-proxy.service.d/counting.conf", DROP_IN)
    host.systemctl("daemon-reload")
    host.systemctl("restart", "hostmesh-proxy.service")


def _more(bed: Testbed) -> list[tuple[str, list[str]]]:
    """What the bench does not measure: HTTP/2, and connections of which the proxy reads nothing."""
    opaque = f"http://{bed.h2.ipv4}:{APP_PORT}/"  # no service: passed through
    return [
        ("HTTP/2 from the caller", ["h2load", "-n", "40000", "-c", "8", "-m", "10", f"{URL}/"]),
        ("opaque connections", ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{SECONDS}s", "-H", "Connection: close", opaque]),
    ]


def _fetch(host: Host, folder: Path) -> None:
    """Counts are written when a process ends."""
    host.systemctl("stop", "hostmesh-proxy.service")
    counts = list((host.root / STATE).glob("*.profraw"))
    if not counts:
        raise NothingCountedError(f"{host.name}: no counts in /{STATE}")
    for path in counts:
        shutil.copy(path, folder / f"{host.name}-{path.name}")


if __name__ == "__main__":
    main()
