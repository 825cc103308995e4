"""Turns the agent's answer into a table of the identities in force on this host."""

import argparse

from hostmesh.cli import host, show
from hostmesh.cli.agent_link import ask
from hostmesh.wire.agent_control import GetStatus, Status


def configure(parser: argparse.ArgumentParser) -> None:
    """`hostmesh certs`."""
    show.add_json(parser)
    parser.set_defaults(do=certs)


def certs(arguments: argparse.Namespace) -> int:
    """Exit code 1 when a unit has none."""
    answer = ask(host.settings(), GetStatus(1), Status)
    if arguments.json:
        show.print_json({"host_svid_not_after": answer.controller.host_svid_not_after,
                         "units": {unit.unit: unit.svid for unit in answer.units}})  # fmt: skip
    else:
        own = f"spiffe://{answer.trust_domain}/host/{answer.host}"
        rows = [("(this host)", own, "", "", show.moment(answer.controller.host_svid_not_after))]
        for unit in answer.units:
            svid = unit.svid
            if svid is None:
                rows.append((unit.unit, unit.refused.partition("\n")[0] or "none yet", "", "", ""))
            else:
                rows.append(
                    (unit.unit, svid.spiffe_id, svid.serial, show.moment(svid.not_before), show.moment(svid.not_after))
                )
        print(show.table(("UNIT", "SPIFFE ID", "SERIAL", "FROM", "UNTIL"), rows))
    return 0 if all(unit.svid for unit in answer.units) else 1
