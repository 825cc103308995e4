"""Turns what an administrator decides of the mesh into the controller's files, on the controller's own host."""

import argparse
import re
from datetime import timedelta

from hostmesh.cli import host, show

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def configure(parser: argparse.ArgumentParser) -> None:
    """`hostmesh controller init|token|grant|hosts|remove|release|revoke|unrevoke|revoked`."""
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    init = verbs.add_parser("init", help="make CA, store and controller.toml on this host")
    init.add_argument("--trust-domain", default="mesh.local", metavar="NAME", help="default: %(default)s")
    init.add_argument("--name", default="controller", help="of this controller; default: %(default)s")
    init.add_argument(
        "--address", action="append", default=[], metavar="IP", help="by which hosts reach it; may be repeated"
    )
    init.add_argument(
        "--vip-range", action="append", default=[], metavar="CIDR", help="services' addresses; IPv4 and IPv6"
    )
    init.set_defaults(do=_init)
    token = verbs.add_parser("token", help="print a join token, good once, for one host and the units that it may run")
    token.add_argument("host", metavar="HOST")
    token.add_argument("--unit", action="append", default=[], metavar="UNIT", help="may be repeated; globs as db-*")
    token.add_argument("--ttl", type=_duration, default=timedelta(hours=1), metavar="TIME", help="30m, 2h; default: 1h")
    token.set_defaults(do=_token)
    grant = verbs.add_parser("grant", help="let an enrolled host run more units")
    grant.add_argument("host", metavar="HOST")
    grant.add_argument("units", nargs="+", metavar="UNIT")
    grant.set_defaults(do=_grant)
    hosts = verbs.add_parser("hosts", help="who is enrolled, what each may run and serves")
    show.add_json(hosts)
    hosts.set_defaults(do=_hosts)
    remove = verbs.add_parser("remove", help="take a host out of the mesh")
    remove.add_argument("host", metavar="HOST")
    remove.set_defaults(do=_remove)
    release = verbs.add_parser("release", help="let another unit claim a service's name")
    release.add_argument("service", metavar="SERVICE")
    release.set_defaults(do=_release)
    _revocation(verbs)


def _revocation(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    revoke = verbs.add_parser("revoke", help="refuse all certificates of a host or unit, or one, on every host at once")
    revoke.add_argument("--reason", default="", metavar="TEXT", help="kept and told with each refusal")
    revoke.set_defaults(do=_revoke)
    unrevoke = verbs.add_parser("unrevoke", help="take a revocation back")
    unrevoke.set_defaults(do=_unrevoke)
    for verb in (revoke, unrevoke):
        verb.add_argument("kind", choices=("host", "unit", "serial"), help="a serial as hostmesh certs shows it")
        verb.add_argument("name", metavar="NAME")
    revoked = verbs.add_parser("revoked", help="what is revoked, and why")
    show.add_json(revoked)
    revoked.set_defaults(do=_revoked)


def _duration(text: str) -> timedelta:
    match = re.fullmatch(r"([0-9]{1,6})([smhd])", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time: 30m, 2h, 1d")
    return timedelta(seconds=int(match[1]) * _SECONDS[match[2]])


def _init(arguments: argparse.Namespace) -> int:
    host.must_be_root("controller init")
    from hostmesh.controller import admin  # noqa: PLC0415  the CA takes its time to load
    from hostmesh.controller.config import Config  # noqa: PLC0415

    default = Config()
    config = Config(
        trust_domain=arguments.trust_domain,
        name=arguments.name,
        advertise=tuple(arguments.address) or default.advertise,
        vip_ranges=tuple(arguments.vip_range) or default.vip_ranges,
    )
    for path in admin.init(config):
        print(f"made    {path}")
    print("next    systemctl enable --now hostmesh-controller.service")
    return 0


def _token(arguments: argparse.Namespace) -> int:
    host.must_be_root("controller token")
    from hostmesh.controller import admin  # noqa: PLC0415  the CA takes its time to load

    admin.must_be_reachable(arguments.host, host.host_name(host.settings()))
    print(admin.make_token(arguments.host, tuple(arguments.unit), ttl=arguments.ttl))
    return 0


def _grant(arguments: argparse.Namespace) -> int:
    host.must_be_root("controller grant")
    from hostmesh.controller import admin  # noqa: PLC0415

    print(f"{arguments.host} may run: {', '.join(admin.grant(arguments.host, tuple(arguments.units)))}")
    return 0


def _hosts(arguments: argparse.Namespace) -> int:
    host.must_be_root("controller hosts")
    from hostmesh.controller import admin  # noqa: PLC0415

    rows = admin.hosts()
    if arguments.json:
        show.print_json(rows)
        return 0
    told = [
        (row.name, "silent" if row.silent else "heard", ", ".join(row.services) or "-", ", ".join(row.grants) or "-")
        for row in rows
    ]
    print(show.table(("HOST", "LATELY", "SERVES", "MAY RUN"), told))
    return 0


def _remove(arguments: argparse.Namespace) -> int:
    host.must_be_root("controller remove")
    from hostmesh.controller import admin  # noqa: PLC0415

    admin.remove(arguments.host)
    print(f"removed {arguments.host}: all that was signed for it is refused; a new token lets it in again")
    return 0


def _revoke(arguments: argparse.Namespace) -> int:
    host.must_be_root("controller revoke")
    from hostmesh.controller import admin  # noqa: PLC0415

    one = admin.revoke(arguments.kind, arguments.name, arguments.reason)
    print(f"revoked {one.kind} {one.name}: refused on every host, open connections end; nothing new is signed for it")
    return 0


def _unrevoke(arguments: argparse.Namespace) -> int:
    host.must_be_root("controller unrevoke")
    from hostmesh.controller import admin  # noqa: PLC0415

    one = admin.unrevoke(arguments.kind, arguments.name)
    if one.begun_by:
        print(f"{one.kind} {one.name} was removed: it may join with a new token, what it has stays refused")
    else:
        print(f"{one.kind} {one.name} counts again")
    return 0


def _revoked(arguments: argparse.Namespace) -> int:
    host.must_be_root("controller revoked")
    from hostmesh.controller import admin  # noqa: PLC0415

    entries = admin.revoked()
    if arguments.json:
        show.print_json(entries)
        return 0
    rows = [(one.kind, one.name, show.moment(one.begun_by) if one.begun_by else "all", one.reason or "-")
            for one in entries]  # fmt: skip
    print(show.table(("KIND", "NAME", "SIGNED BEFORE", "REASON"), rows))
    return 0


def _release(arguments: argparse.Namespace) -> int:
    host.must_be_root("controller release")
    from hostmesh.controller import admin  # noqa: PLC0415

    admin.release(arguments.service)
    print(f"released {arguments.service}: the unit that claims it next owns it; its address stays")
    return 0
