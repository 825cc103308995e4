"""Turns Debian 12, its own kernel included, into a disk that a virtual machine boots; kept in the lab's cache."""

import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.lab import rootfs

PACKAGES = (*rootfs.SYSTEM, "linux-image-cloud-amd64", "initramfs-tools", "udev", "nginx-light")
_DISK_SIZE = "3G"

# Runs in the tree. The second disk brings what is to be installed, and whom to let in. A machine's address is on the
# kernel's command line, ip=, which systemd-network-generator reads.
_FINISH = """
systemctl disable nginx nftables apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer \
    e2scrub_reap.service fstrim.timer
systemctl mask getty@.service serial-getty@.service
systemctl enable ssh systemd-networkd systemd-network-generator
systemctl set-default multi-user.target
rm -f /etc/hostname
printf '# no resolver here\\n' > /etc/resolv.conf
printf '127.0.0.1 localhost\\n::1 localhost\\n' > /etc/hosts
printf '/dev/vda / ext4 defaults 0 0\\n/dev/vdb /mnt ext4 ro 0 0\\n' > /etc/fstab
printf 'AuthorizedKeysFile /mnt/key.pub\\n' > /etc/ssh/sshd_config.d/smoke.conf
sed -i 's/^MODULES=.*/MODULES=list/; s/^COMPRESS=.*/COMPRESS=lz4/' /etc/initramfs-tools/initramfs.conf
printf 'virtio_pci\\nvirtio_blk\\next4\\n' >> /etc/initramfs-tools/modules
update-initramfs -u
"""


@dataclass(frozen=True)
class Image:
    """What QEMU takes: the disk (never written to), the kernel and its initrd."""

    disk: Path
    kernel: Path
    initrd: Path


def image() -> Image:
    """The image, made when it isn't there: a minute or two, 1 GB."""
    key = rootfs.recipe_hash(rootfs.RELEASE, *PACKAGES, _FINISH, _DISK_SIZE)
    folder = rootfs.ensure_layer("vm", key, _make)
    return Image(folder / "disk.ext4", folder / "vmlinuz", folder / "initrd.img")


def _make(folder: Path) -> None:
    print("vm-smoke: making the disk of the machines (a minute or two, once)", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(prefix="tree-", dir=folder) as name:
        tree = Path(name)
        tree.chmod(0o755)
        rootfs.bootstrap(tree, PACKAGES, _FINISH)
        for kind, target in (("vmlinuz-*", "vmlinuz"), ("initrd.img-*", "initrd.img")):
            (found,) = (tree / "boot").glob(kind)
            shutil.copy(found, folder / target)
        subprocess.run(
            ["mke2fs", "-q", "-t", "ext4", "-d", str(tree), str(folder / "disk.ext4"), _DISK_SIZE], check=True
        )
