"""Other programs' nftables, each loaded for real and listed by libnftables: what the doctor says of it."""

import pytest

from hostmesh.apply.nft import Nft
from hostmesh.plan.foreign import judge_listing
from hostmesh.policy.settings import Settings
from tests.host.world import World, in_world

pytestmark = pytest.mark.kernel

IN, OUT = "type filter hook input priority 0", "type filter hook output priority 0"
LO, WIRE = "iifname lo accept", "tcp dport { 22, 15008 } accept"
ROUTE = "type route hook output priority -200"
NAT_OUT, NAT_PRE, NAT_POST = (f"type nat hook {hook} priority -100" for hook in ("output", "prerouting", "postrouting"))
DOCKER = {
    "DOCKER": ["iifname docker0 return", "iifname != docker0 tcp dport 8080 dnat to 172.17.0.2:80"],
    "PREROUTING": [NAT_PRE, "fib daddr type local jump DOCKER"],
    "OUTPUT": [NAT_OUT, "ip daddr != 127.0.0.0/8 fib daddr type local jump DOCKER"],
    "POSTROUTING": [NAT_POST, "ip saddr 172.17.0.0/16 oifname != docker0 masquerade"],
}
TAILSCALE = ["meta mark & 0x00ff0000 == 0x00040000 accept", "meta mark set mark and 0xff00ffff xor 0x40000"]

Chains = dict[str, list[str]]


@pytest.mark.parametrize(
    ("chains", "found"),
    [
        ({"c": [f"{IN}; policy drop", "ct state established accept", LO, "tcp dport 80 accept"]}, ["TCP 15008"]),
        ({"c": [f"{IN}; policy drop", LO, "tcp dport != 15008 accept"]}, ["TCP 15008"]),
        ({"c": [f"{IN}; policy drop", LO, "udp dport 53 accept"]}, ["TCP 15008"]),
        ({"c": [f"{IN}; policy drop", "tcp dport 15000-16000 accept"]}, ["let lo pass"]),
        ({"c": [f"{IN}; policy drop", "iifname != lo accept"]}, ["TCP 15008", "let lo pass"]),
        ({"c": [OUT, "oifname lo accept", "tcp dport 53 accept", "reject"]}, ["TCP 15008"]),
        ({"c": [f"{IN}; policy drop", LO, WIRE]}, []),
        (
            {"hosts": ["tcp dport 15008 accept"], "c": [f"{IN}; policy drop", LO, "ip saddr 198.18.0.0/24 jump hosts"]},
            [],
        ),
        ({"c": [f"{IN}; policy drop", "accept"]}, []),
        ({"c": [IN, "tcp dport 80 drop"]}, []),
        ({"c": [IN, "limit rate over 100/second drop"]}, []),
        ({"c": [IN, "tcp dport 15006-15008 reject"]}, ["drops port 15006", "drops port 15008"]),
        ({"c": [IN, "udp dport { 53, 15053 } drop"]}, ["drops port 15053"]),
        ({"c": [ROUTE, "meta mark set 0x1"]}, ["unit, outbound, proxy, inbound, allowed, delivered"]),
        ({"c": [ROUTE, "meta mark set ct mark"]}, ["unit, outbound, proxy, inbound, allowed, delivered"]),
        ({"c": [ROUTE, "meta mark set mark or 0x02000000"]}, ["ours (proxy)"]),
        ({"c": [ROUTE, "meta mark set mark and 0xfffffff0 or 0x10"]}, ["ours (unit)"]),
        ({"c": [ROUTE, *TAILSCALE, "ct mark set meta mark", "oifname eth0 meta mark set 3"]}, []),
        ({"c": [NAT_OUT, "meta l4proto tcp redirect to :3128"]}, ["every connection"]),
        ({"c": [NAT_PRE, "tcp dport 15008 dnat ip to 198.18.0.9:1"]}, ["port 15008"]),
        ({"c": [NAT_PRE, "tcp dport 80 redirect to :8080"]}, []),
        ({"c": [NAT_POST, "masquerade"]}, ["a false client"]),
        (DOCKER, []),
    ],
)
def test_what_is_said_of_it(chains: Chains, found: list[str]) -> None:
    def test(_: World) -> None:
        said = judged(chains)
        assert len(said) == len(found), said
        assert [words for words, line in zip(found, said, strict=True) if words not in line] == [], said

    in_world(test)


def judged(chains: Chains) -> list[str]:
    nft = Nft()
    family = "ip" if "DOCKER" in chains else "inet"
    body = "\n".join("chain {} {{\n{}\n}}".format(name, "\n".join(lines)) for name, lines in chains.items())
    nft.run(f"table {family} foreign {{\n{body}\n}}\n")
    return [f"{trouble.where}: {trouble.what}" for trouble in judge_listing(Settings(), nft.others())]


def test_ours_is_nobody_elses() -> None:
    def test(_: World) -> None:
        nft = Nft()
        nft.run("table inet hostmesh {\nchain c {\ntype filter hook input priority 0; policy drop\n}\n}\n")
        assert nft.others() == ()

    in_world(test)
