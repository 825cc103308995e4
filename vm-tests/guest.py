"""Turns an image into a running machine: QEMU without KVM, a tap on the bridge, and ssh to it."""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from image import Image

from tests.lab.waiting import wait_until

BRIDGE = "br0"
_MEMORY = "512"


class GuestCommandError(AssertionError):
    """A command that had to succeed in a machine and didn't."""


@dataclass(frozen=True)
class Guest:
    """A machine: what it is called, where it is reached, and the folder of its key, console and ssh connection."""

    name: str
    index: int
    folder: Path

    @property
    def ipv4(self) -> str:
        """Its address on the bridge, /24."""
        return f"198.18.0.{self.index}"

    @property
    def console(self) -> Path:
        """What its kernel and systemd said."""
        return self.folder / f"{self.name}.console"

    def boot(self, image: Image, second: Path) -> "subprocess.Popen[bytes]":
        """Start the machine; its second disk is read-only, what it writes to the first is forgotten."""
        tap = f"tap{self.index}"
        for arguments in (f"tuntap add {tap} mode tap", f"link set {tap} master {BRIDGE} up"):
            subprocess.run(["ip", *arguments.split()], check=True)
        line = [
            "root=/dev/vda rw console=ttyS0 loglevel=4 net.ifnames=0 mitigations=off",
            f"ip={self.ipv4}:::255.255.255.0:{self.name}:eth0:off",
            f"systemd.hostname={self.name}",
        ]
        return subprocess.Popen(
            [
                *("qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
                *("-machine", "q35", "-accel", "tcg,thread=multi,tb-size=128", "-cpu", "max", "-m", _MEMORY),
                *("-kernel", str(image.kernel), "-initrd", str(image.initrd), "-append", " ".join(line)),
                *("-drive", f"file={image.disk},format=raw,if=virtio,snapshot=on"),
                *("-drive", f"file={second},format=raw,if=virtio,readonly=on"),
                *("-netdev", f"tap,id=net,ifname={tap},script=no,downscript=no"),
                *("-device", f"virtio-net-pci,netdev=net,mac=02:00:c6:12:00:{self.index:02x}"),
                *("-serial", f"file:{self.console}"),
            ],
            stdin=subprocess.DEVNULL,
            env={**os.environ, "TMPDIR": str(self.folder)},
        )

    def wait_booted(self, process: "subprocess.Popen[bytes]", seconds: float) -> None:
        """Wait until it takes commands."""

        def there() -> bool:
            if process.poll() is not None:
                raise ChildProcessError(f"{self.name} ended; its console:\n{self.console.read_text()[-3000:]}")
            return self.exec("true").returncode == 0

        wait_until(there, f"{self.name} takes commands over ssh", seconds, 1.0)

    def exec(self, command: str, *, input: str | None = None) -> "subprocess.CompletedProcess[str]":  # noqa: A002
        """Run a line of shell as root."""
        options = [
            f"IdentityFile={self.folder}/key",
            "UserKnownHostsFile=/dev/null",
            "StrictHostKeyChecking=no",
            "LogLevel=ERROR",
            "ConnectTimeout=10",
            f"ControlPath={self.folder}/{self.name}.ssh",
            "ControlMaster=auto",
            "ControlPersist=yes",
        ]
        flags = [word for option in options for word in ("-o", option)]
        return subprocess.run(
            ["ssh", "-F", "none", *flags, f"root@{self.ipv4}", command],
            input=input or "",
            capture_output=True,
            text=True,
            check=False,
        )

    def must(self, command: str, *, input: str | None = None) -> str:  # noqa: A002
        """Run a line of shell that must end with 0; what it wrote."""
        done = self.exec(command, input=input)
        if done.returncode:
            told = f"{self.name}: {command} ended with {done.returncode}\n{done.stdout}{done.stderr}"
            raise GuestCommandError(told.rstrip())
        return done.stdout


def make_key(folder: Path) -> None:
    """The key that the machines let in, for as long as they live."""
    argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "vm-smoke", "-f", str(folder / "key")]
    subprocess.run(argv, check=True)
