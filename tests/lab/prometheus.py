"""Turns Debian's package into `promtool`, and a Prometheus that a test host can run. Nothing is installed here.

The package is downloaded and unpacked once, and kept beside the lab's layers; apt checks its signature.
"""

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.lab import rootfs
from tests.lab.host import Host

PACKAGE = "prometheus"
PORT = 9090
UNIT = "lab-prometheus.service"
_PROGRAM, _CONFIG, _DATA = "/usr/local/bin/prometheus", "/etc/lab-prometheus.yml", "/var/lib/lab-prometheus"
_SETTINGS = """
scrape_configs:
- job_name: hostmesh
  scrape_interval: 500ms
  static_configs: [{ targets: ["127.0.0.1:15020"] }]
"""


class NoPrometheusError(Exception):
    """It cannot be had here, with the reason."""


def program(name: str) -> Path:
    """One of its programs: ``prometheus`` or ``promtool``."""
    policy = _apt("apt-cache", "policy", PACKAGE)
    versions = [line.split()[1] for line in policy.splitlines() if line.strip().startswith("Candidate:")]
    if not versions or versions == ["(none)"]:
        raise NoPrometheusError(f"apt knows no package {PACKAGE} here: apt-get update")
    return rootfs.ensure_layer(PACKAGE, rootfs.recipe_hash(PACKAGE, *versions), _unpack) / "usr/bin" / name


def promtool(*arguments: str) -> str:
    """What it says; raises where it finds fault."""
    done = subprocess.run([program("promtool"), *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"promtool {' '.join(arguments)}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def _unpack(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as place:
        _apt("apt-get", "download", "-qq", "-o", "APT::Sandbox::User=root", PACKAGE, cwd=place)
        [archive] = Path(place).glob("*.deb")
        subprocess.run(["dpkg-deb", "--extract", archive, folder], check=True)


def _apt(*command: str, cwd: str = "/") -> str:
    environment = {**os.environ, "LC_ALL": "C"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NoPrometheusError(f"{' '.join(command)} ended with {done.returncode}\n{done.stderr}")
    return done.stdout


class Prometheus:
    """It, on a host whose agent it scrapes."""

    def __init__(self, host: Host) -> None:
        self.host = host

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Run it for the length of a ``with``, exemplars and all."""
        place = self.host.root / _PROGRAM.lstrip("/")
        shutil.copyfile(program("prometheus"), place)
        place.chmod(0o755)
        self.host.write(_CONFIG, _SETTINGS)
        flags = [f"--config.file={_CONFIG}", f"--storage.tsdb.path={_DATA}", "--enable-feature=exemplar-storage"]
        command = [_PROGRAM, *flags, f"--web.listen-address=127.0.0.1:{PORT}"]
        try:
            with self.host.unit(command, unit=UNIT):
                self.host.wait_port(PORT)
                yield
        finally:
            self.host.exec(["rm", "-rf", _PROGRAM, _CONFIG, _DATA]).must()

    def ask(self, path: str, **parameters: str) -> Any:  # noqa: ANN401 (JSON)
        """What its API answers."""
        url = f"http://127.0.0.1:{PORT}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        answer = json.loads(self.host.exec(["curl", "-sS", "--max-time", "5", url]).must().stdout)
        assert answer["status"] == "success", answer
        return answer["data"]
