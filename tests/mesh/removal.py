"""What must be shown of leaving: `disable` and uninstall leave nothing behind, and never touched what is others'."""

from hostmesh.plan.footprint import SYSCTLS
from tests.lab.host import Host
from tests.mesh.world import UNITS, World

FOREIGN = """
table inet foreign {
  set blocked { type ipv4_addr; elements = { 198.18.9.9 } }
  chain input { type filter hook input priority filter; ip saddr @blocked drop comment "theirs"; }
}
"""


def traces(host: Host) -> dict[str, str]:
    """Everything on a host that hostmesh could have left: rules, routes, sysctls, units, slices, files, users, pins."""
    looks = {
        "nftables": "nft list tables",
        "rules": "ip -4 rule; ip -6 rule",
        "routes": "ip -4 route show table all; ip -6 route show table all",
        "sysctls": f"sysctl {' '.join(SYSCTLS)}",
        "slices": "find /sys/fs/cgroup -maxdepth 2 -name 'mesh*'",
        "units": "find /etc/systemd /usr/lib/systemd /usr/local/lib/systemd /run/systemd -iname '*mesh*'",
        "files": "find / -xdev -iname '*hostmesh*' -not -path '/var/log/journal/*'",
        "pins": "find /sys/fs/bpf -mindepth 1",
        "users": "getent passwd | grep hostmesh; getent group | grep hostmesh",
        "processes": "pgrep -a hostmesh",
    }
    return {what: host.exec(["sh", "-c", how]).stdout for what, how in looks.items()}


def nothing_left(w: World) -> str:
    """disable (with everything of ours dead on h2) and uninstall leave nothing; a foreign table is as it was"""
    for host in (w.h1, w.h2):
        host.exec(["nft", "-f", "-"], input=FOREIGN).must()
    foreign = w.h2.exec(["nft", "list", "table", "inet", "foreign"]).must().stdout
    for unit in ("hostmeshd.service", "hostmesh-proxy.service", "hostmesh-controller.service"):
        w.h2.systemctl("kill", "--signal=SIGKILL", unit)
        w.h2.systemctl("stop", unit)
    left: dict[str, dict[str, str]] = {}
    for name, units in UNITS.items():
        host = w.lab[name]
        for unit in units:
            host.exec(["hostmesh", "disable", "--now", unit]).must()
            assert "mesh" not in host.exec(["systemctl", "show", "-P", "ControlGroup", unit]).must().stdout
        host.exec(["/opt/hostmesh/bin/uninstall", "--purge"]).must()
        left[name] = traces(host)
        assert host.exec(["nft", "list", "table", "inet", "foreign"]).must().stdout == foreign
    outsider = traces(w.outsider)
    w.h2.wait_port(80, w.h2.ipv4)
    assert w.outsider.exec(["curl", "-sS", "-o", "/dev/null", f"http://{w.h2.ipv4}/"]).ok, "nginx isn't what it was"
    for name, found in left.items():
        for what in ("rules", "sysctls", "slices", "units", "files", "pins", "users", "processes"):
            assert found[what] == outsider[what], f"{name}: {what} left behind:\n{found[what]}"
        assert found["nftables"].split("\n") == ["table inet foreign", ""], found["nftables"]
        assert "7300" not in found["routes"], found["routes"]
    return f"{', '.join(outsider)}: as on a host that never had hostmesh; table inet foreign unchanged"
