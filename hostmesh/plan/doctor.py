"""Judges a host's surroundings: what gets in the mesh's way there, and what would mend it. Pure."""

from collections.abc import Iterator

from hostmesh.plan.footprint import SYSCTLS, ports
from hostmesh.plan.foreign import judge_listing
from hostmesh.plan.routing import policy_rules
from hostmesh.plan.surroundings import OtherRule, Surroundings, Trouble
from hostmesh.policy.settings import Settings

KERNEL, SYSTEMD = (6, 1), 252
PORT_RANGE, RESERVED = "net.ipv4.ip_local_port_range", "net.ipv4.ip_local_reserved_ports"
LOOKED_AT = (*SYSCTLS, PORT_RANGE, RESERVED)
"""The sysctls that are judged. Strict rp_filter, forwarding and route_localnet make no difference (decisions/0003)."""

_FREE_BYTES, _FREE_INODES, _FREE_WATCHERS = 32 << 20, 256, 8
_LOCAL_TABLE = 255
_MODULES = {"tproxy": "nft_tproxy", "socket": "nft_socket"}


def judge(settings: Settings, there: Surroundings) -> tuple[Trouble, ...]:
    """All that is in the way, the host's own foundations first. Empty on a host that is well."""
    found = (
        *_foundations(there),
        *_ports(settings, there),
        *_sysctls(settings, there),
        *judge_listing(settings, there.listing),
        *_tables(there),
        *_rules(settings, there),
        *_names(there),
        *_time(there),
        *_room(there),
        *_versions(there),
    )
    return tuple(dict.fromkeys(found))  # a chain that several jump to is met more than once


def _foundations(there: Surroundings) -> Iterator[Trouble]:
    kernel = ".".join(map(str, there.kernel))
    if there.kernel < KERNEL:
        yield _problem("kernel", "kernel", f"Linux {kernel} is older than 6.1", "run a kernel of 6.1 or later")
    for name in there.unsupported:
        what = f"nftables cannot say `{name}` here"
        remedy = f"modprobe {_MODULES[name]}; a kernel without it cannot mesh (CONFIG_{_MODULES[name].upper()})"
        yield _problem("kernel", "kernel", what, remedy)
    if there.systemd < SYSTEMD:
        yield _problem("systemd", "systemd", f"systemd {there.systemd} is older than 252", "run systemd 252 or later")
    if not there.cgroup2:
        what = "is not cgroup2 alone: units cannot be told apart"
        remedy = "boot with systemd.unified_cgroup_hierarchy=1"
        yield _problem("cgroup", "/sys/fs/cgroup", what, remedy)
    if there.applied and not there.pinned:
        what = "the guard is not pinned: a slice that starts now has none, so no unit starts"
        yield _problem("guard", "/sys/fs/bpf/hostmesh", what, "hostmesh-guard, as root, pins it again")


def _ports(settings: Settings, there: Surroundings) -> Iterator[Trouble]:
    for port in ports(settings):
        for holder in there.holders:
            if (holder.port, holder.protocol) != (port.number, port.protocol):
                continue
            if not any(f"/{port.process}.service" in group for group in holder.cgroups):
                who = ", ".join(holder.processes) or "somebody"
                where = f"port {port.number}/{port.protocol}"
                what = f"is held by {who} ({', '.join(holder.cgroups) or 'no cgroup'}), not by {port.process}"
                key = f"[ports] {port.name} in hostmesh.toml"
                yield _problem("port", where, what, f"let it listen elsewhere, or set {key} on every host")


def _sysctls(settings: Settings, there: Surroundings) -> Iterator[Trouble]:
    for key, value in SYSCTLS.items():
        if key not in there.sysctls:
            yield _problem("sysctl", key, "is not known to this kernel", "hostmesh needs Linux 6.1 with IPv4 and IPv6")
        elif there.applied and there.sysctls[key] != value:
            what = f"is {there.sysctls[key]}, and was set to {value}: somebody resets it"
            yield _problem(
                "sysctl", key, what, f"grep -r {key} /etc/sysctl.d /usr/lib/sysctl.d; systemctl restart hostmeshd"
            )
    first, last = map(int, there.sysctls.get(PORT_RANGE, "0 0").split())
    reserved = _reserved(there.sysctls.get(RESERVED, ""))
    within = [p.number for p in ports(settings) if first <= p.number <= last and p.number not in reserved]
    if within:
        what = f"is {first} {last}: a connection may take port {', '.join(map(str, within))} while its process restarts"
        remedy = f"sysctl -w {RESERVED}={','.join(map(str, sorted(reserved | set(within))))}, and in /etc/sysctl.d"
        yield Trouble("port-range", "risk", PORT_RANGE, what, remedy)


def _reserved(text: str) -> set[int]:
    found: set[int] = set()
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        found |= set(range(int(first), int(last or first) + 1))
    return found


def _tables(there: Surroundings) -> Iterator[Trouble]:
    for file in there.reloads:
        what = "says `flush ruleset`: each reload of nftables.service takes our table too, until the agent has seen it"
        remedy = "flush only your own tables there: `table inet NAME` then `delete table inet NAME`"
        yield Trouble("flush", "risk", file, what, remedy)
    for table in there.legacy:
        what = "is a table of iptables-legacy, whose rules nft does not list: not looked into"
        remedy = "iptables-legacy-save shows it; move its rules to nft (iptables-translate)"
        yield Trouble("legacy", "risk", f"iptables {table}", what, remedy)


def _rules(settings: Settings, there: Surroundings) -> Iterator[Trouble]:
    for ours in policy_rules(settings):
        for rule in there.rules:
            if rule.version == ours.version and rule.preference <= ours.preference and _takes(rule, ours.mark):
                where = f"ip -{rule.version} rule {rule.preference}"
                what = (
                    f"takes packets with mark {ours.mark:#010x} to table {rule.table}, before ours ({ours.preference})"
                )
                remedy = f"give it a preference above {ours.preference}, or set route_table in hostmesh.toml"
                yield _problem("rule", where, what, remedy)


def _takes(rule: OtherRule, mark: int) -> bool:
    fits = (mark & rule.mask == rule.mark & rule.mask) != rule.inverted
    return fits and not rule.selective and rule.everything and rule.table != _LOCAL_TABLE


def _names(there: Surroundings) -> Iterator[Trouble]:
    if "dns" not in there.hosts:
        what = f"has `hosts: {' '.join(there.hosts)}`, without dns: meshed units cannot say the names of services"
        yield _problem("dns", "/etc/nsswitch.conf", what, "hosts: files dns")


def _time(there: Surroundings) -> Iterator[Trouble]:
    clock = there.clock
    if there.validity is not None and not there.validity[0] <= clock.now <= there.validity[1]:
        early = clock.now < there.validity[0]
        what = "is before this host's certificate begins" if early else "is after this host's certificate has ended"
        yield _problem(
            "clock",
            "clock",
            what,
            "set the clock: chronyc makestep, or timedatectl set-ntp true; then see hostmesh status",
        )
    if not clock.synchronized and not clock.container and not clock.service:
        what = "nothing keeps it: certificates are judged by it"
        yield Trouble("clock", "risk", "clock", what, "apt install systemd-timesyncd, or chrony")


def _room(there: Surroundings) -> Iterator[Trouble]:
    for disk in there.disks:
        if disk.read_only:
            yield _problem("disk", disk.path, "is read-only", f"see dmesg; mount -o remount,rw {disk.path}")
        elif disk.free_bytes < _FREE_BYTES or (disk.free_inodes is not None and disk.free_inodes < _FREE_INODES):
            what = f"has {disk.free_bytes >> 20} MB" + (
                f" and {disk.free_inodes} inodes left" if disk.free_inodes is not None else " left"
            )
            yield _problem("disk", disk.path, what, f"make room: du -x {disk.path}; journalctl --vacuum-size=100M")
    used, limit = there.inotify
    if used > limit - _FREE_WATCHERS:
        key = "fs.inotify.max_user_instances"
        what = f"is {limit}, and root uses {used}: the agent could not follow its policies"
        yield _problem("inotify", key, what, f"sysctl -w {key}={max(1024, 2 * limit)}, and in /etc/sysctl.d")


def _versions(there: Surroundings) -> Iterator[Trouble]:
    wanted = there.versions.get("hostmesh", "")
    for name, found in there.versions.items():
        if found != wanted:
            remedy = f"systemctl restart {name}" if name == "hostmeshd" else "install both packages of one version"
            yield _problem("version", name, f"is {found}, hostmesh is {wanted}", remedy)


def _problem(code: str, where: str, what: str, remedy: str) -> Trouble:
    return Trouble(code, "problem", where, what, remedy)
