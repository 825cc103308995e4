"""Turns a configuration file into a running controller: `hostmesh-controller --config FILE`."""

import argparse
import asyncio
import logging
import os
import sys
from pathlib import Path

from hostmesh.apply import limits
from hostmesh.apply.stderr import StderrHandler
from hostmesh.controller.config import PATH, load
from hostmesh.errors import HostmeshError

# gRPC has no switch for the TLS version. This list is for TLS 1.2 and names only a suite for RSA certificates, which
# this mesh does not have: TLS 1.2 finds no suite, 1.3 (whose suites are fixed) is what is left. Read once, at start.
TLS13_ONLY = {"GRPC_SSL_CIPHER_SUITES": "ECDHE-RSA-AES256-GCM-SHA384"}


def main() -> int:
    """The program. Exit code 1 with a sentence on stderr when it cannot start."""
    parser = argparse.ArgumentParser(prog="hostmesh-controller", description="The control plane of a hostmesh.")
    parser.add_argument("--config", type=Path, default=PATH)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s", handlers=[StderrHandler()])
    os.environ.update(TLS13_ONLY)
    from hostmesh.controller.run import run  # noqa: PLC0415  loads gRPC, which reads its environment once

    try:
        limits.check("hostmesh-controller.service")
        asyncio.run(run(load(arguments.config)))
    except HostmeshError as error:
        logging.error("hostmesh-controller: %s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
