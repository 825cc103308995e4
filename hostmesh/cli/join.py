"""Turns a join token into a host of the mesh: identity, settings, and the units that run it, enabled and started."""

import argparse
import sys

from hostmesh.cli import host


def configure(parser: argparse.ArgumentParser) -> None:
    """`hostmesh join TOKEN`."""
    parser.add_argument(
        "token", metavar="TOKEN", help="as `hostmesh controller token` printed it; - reads it from stdin"
    )
    parser.set_defaults(do=join)


def join(arguments: argparse.Namespace) -> int:
    """The verb."""
    host.must_be_root("join")
    from hostmesh.agent import enrol  # noqa: PLC0415  loads TLS, HTTP/2 and cryptography
    from hostmesh.cli.bus import finish  # noqa: PLC0415

    given: str = arguments.token
    done = enrol.join(sys.stdin.readline() if given == "-" else given)
    print(f"joined  {done.trust_domain} as {done.host}, controllers {', '.join(done.controllers)}")
    finish(_start())
    print("next    hostmesh enable UNIT")
    return 0


async def _start() -> None:
    from hostmesh.apply.systemd import Systemd  # noqa: PLC0415
    from hostmesh.cli import founding  # noqa: PLC0415
    from hostmesh.cli.bus import Bus  # noqa: PLC0415

    systemd = Systemd()
    async with Bus() as bus:
        await founding.start_units(bus, systemd, founding.HOST_UNITS)
    await systemd.close()
