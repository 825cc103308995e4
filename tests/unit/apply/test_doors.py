"""The doors that need no root: files, sysctls below a folder, cgroup folders, the guard's instructions and settings."""

import json
import struct
from pathlib import Path

import pytest

from hostmesh.apply.cgroups import Cgroups
from hostmesh.apply.files import Files
from hostmesh.apply.guard import _settings
from hostmesh.apply.sysctl import SysctlError, Sysctls
from hostmesh.plan.guard import guard_program
from hostmesh.policy.settings import Marks


def test_files_are_written_whole_and_their_folders_come_and_go(tmp_path: Path) -> None:
    files = Files(tmp_path)
    path = "/etc/systemd/system/web.service.d/50-hostmesh.conf"
    assert files.read(path) is None
    files.write(path, "one\n")
    files.write(path, "two\n")
    assert files.read(path) == "two\n"
    assert files.find("/etc/systemd/system", "*.d/50-hostmesh.conf") == {path: "two\n"}
    assert [p.name for p in (tmp_path / path[1:]).parent.iterdir()] == ["50-hostmesh.conf"]
    assert (tmp_path / path[1:]).stat().st_mode & 0o777 == 0o644
    files.remove(path)
    files.remove(path)
    assert not (tmp_path / "etc/systemd/system/web.service.d").exists()
    assert (tmp_path / "etc/systemd/system").exists()


def test_a_drop_in_folder_with_somebody_elses_file_stays(tmp_path: Path) -> None:
    files = Files(tmp_path)
    files.write("/x/web.service.d/50-hostmesh.conf", "ours")
    files.write("/x/web.service.d/override.conf", "theirs")
    files.remove("/x/web.service.d/50-hostmesh.conf")
    assert files.read("/x/web.service.d/override.conf") == "theirs"


def test_a_write_that_fails_leaves_the_old_text_and_nothing_else(tmp_path: Path) -> None:
    files = Files(tmp_path)
    files.write("/a", "old")
    with pytest.raises(UnicodeEncodeError):
        files.write("/a", "\ud800")
    assert files.read("/a") == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_sysctls_remember_what_was_there_the_first_time(tmp_path: Path) -> None:
    (tmp_path / "net/ipv4").mkdir(parents=True)
    value = tmp_path / "net/ipv4/tcp_fwmark_accept"
    value.write_text("0\n")
    files = Files(tmp_path)
    sysctls = Sysctls(lambda: files.read("/kept"), lambda text: files.write("/kept", text), tmp_path)
    sysctls.set("net.ipv4.tcp_fwmark_accept", "1")
    sysctls.set("net.ipv4.tcp_fwmark_accept", "2")
    assert (value.read_text(), sysctls.before()) == ("2", {"net.ipv4.tcp_fwmark_accept": "0"})
    assert json.loads((tmp_path / "kept").read_text()) == {"net.ipv4.tcp_fwmark_accept": "0"}
    sysctls.restore("net.ipv4.tcp_fwmark_accept")
    assert (value.read_text(), sysctls.before()) == ("0", {})
    with pytest.raises(SysctlError, match=r"sysctl net\.none: No such file"):
        sysctls.get("net.none")


def test_cgroups_are_folders(tmp_path: Path) -> None:
    inner = tmp_path / "mesh.slice/mesh-web.slice/web.service"
    inner.mkdir(parents=True)
    (tmp_path / "mesh.slice/mesh-web.slice/cgroup.events").write_text("populated 1\nfrozen 0\n")
    cgroups = Cgroups(tmp_path)
    assert cgroups.slices() == {"mesh-web.slice"}
    assert cgroups.id("mesh.slice/mesh-web.slice") == inner.parent.stat().st_ino
    assert cgroups.ids("mesh.slice/mesh-web.slice") == {inner.stat().st_ino, inner.parent.stat().st_ino}
    assert (cgroups.id("none"), cgroups.ids("none")) == (0, frozenset())
    assert cgroups.populated("mesh.slice/mesh-web.slice")
    assert not cgroups.populated("mesh.slice/mesh-web.slice/web.service")


def test_the_guards_jumps_land_where_their_comments_say() -> None:
    """Forward only, on ``pass``, ``drop`` or an instruction before these; nothing falls off the end."""
    program = guard_program(0x0800_0000, 0x0500_0000)
    code = [struct.unpack("=BBhi", program[at : at + 8]) for at in range(0, len(program), 8)]
    drop, passes = len(code) - 4, len(code) - 2
    assert code[drop:] == [(0xB7, 0, 0, 0), (0x95, 0, 0, 0), (0xB7, 0, 0, 1), (0x95, 0, 0, 0)]
    jumps = {
        (value, at + 1 + offset) for at, (op, _, offset, value) in enumerate(code) if op in (0x05, 0x15, 0x45, 0x55)
    }
    assert {(0x0800_0000, passes), (0x0500_0000, passes), (0, drop), (6, drop), (43, passes)} < jumps
    assert all(0 < to <= passes for _, to in jumps)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", (0x0800_0000, 0x0100_0000, "/sys/fs/bpf/hostmesh")),
        ("[marks]\nallowed = 0x2000_0000\noutbound = 64\n[paths]\nbpffs = '/b/h'\n", (0x2000_0000, 64, "/b/h")),
    ],
)
def test_the_guard_reads_its_numbers(tmp_path: Path, text: str, found: tuple[int, int, str]) -> None:
    (tmp_path / "hostmesh.toml").write_text(text)
    marks, folder = _settings(tmp_path / "hostmesh.toml")
    assert (marks.allowed, marks.outbound, str(folder)) == found
    assert _settings(tmp_path / "none.toml") == (Marks(), Path("/sys/fs/bpf/hostmesh"))


@pytest.mark.parametrize("value", ["'x'", "0", "3", "0x8000_0000"])
def test_a_mark_that_cannot_be_keeps_the_slice_closed(tmp_path: Path, value: str) -> None:
    (tmp_path / "hostmesh.toml").write_text(f"[marks]\nallowed = {value}\n")
    with pytest.raises(ValueError, match=r"marks\.allowed must be one bit"):
        _settings(tmp_path / "hostmesh.toml")
