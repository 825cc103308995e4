"""Another program that undoes what is ours, and a stopwatch beside it: run on a host, prints one JSON line.

    python3 - FIRST ROUNDS

FIRST: which of ``DEEDS`` is the first. Each round does one of them with nft or ip, whose commit the kernel tells by
netlink, as it tells every later one. Repaired is what reads as before; the time is from the first commit to the last,
both as they came from the kernel: {deed: [milliseconds, ...]}.
"""

import json
import queue
import re
import socket
import struct
import subprocess
import sys
import threading
import time

NETFILTER, ROUTE = 12, 0
NFT_GROUP, ROUTE_GROUPS = 1 << 6, 1 << 6 | 1 << 7 | 1 << 10 | 1 << 18  # routes and rules, IPv4 and IPv6
NEWGEN = 10 << 8 | 15
SECONDS = 10.0
DEEDS = {
    "flush ruleset": ["nft", "flush", "ruleset"],
    "delete table": ["nft", "delete", "table", "inet", "hostmesh"],
    "flush chain output": ["nft", "flush", "chain", "inet", "hostmesh", "output"],
    "flush chain prerouting": ["nft", "flush", "chain", "inet", "hostmesh", "prerouting"],
    "flush set meshed": ["nft", "flush", "set", "inet", "hostmesh", "meshed"],
    "delete all elements of map units": ["nft", "flush", "map", "inet", "hostmesh", "units"],
    "accept before all": ["nft", "insert", "rule", "inet", "hostmesh", "output", "accept"],
    "ip rule del": ["ip", "rule", "del", "pref", "7300"],
    "ip -6 rule del": ["ip", "-6", "rule", "del", "pref", "7301"],
    "ip route flush": ["ip", "route", "flush", "table", "7300"],
}


def commits(family: int, groups: int, heard: "queue.Queue[float]") -> None:
    """The time of every nftables commit, or of every change of rules and routes, as the kernel tells it."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, family) as listener:
        listener.setsockopt(socket.SOL_SOCKET, 33, 1 << 24)  # SO_RCVBUFFORCE
        listener.bind((0, groups))
        while True:
            datagram = listener.recv(1 << 20)
            now, at = time.monotonic(), 0
            while at + 16 <= len(datagram):
                length, kind = struct.unpack_from("=IH", datagram, at)
                if family == ROUTE or kind == NEWGEN:
                    heard.put(now)
                at += (length + 3) & ~3


def there() -> list[str]:
    """Table, rules and routes, without what packets put in and counted."""
    looks = "nft list table inet hostmesh; ip rule; ip -6 rule; ip route show table 7300; ip -6 route show table 7300"
    text = subprocess.run(["sh", "-c", looks], capture_output=True, text=True, check=False).stdout
    text = re.sub(r"\tset (refused_|replies)\w+ \{.*?\n\t\}", "", text, flags=re.DOTALL)
    text = re.sub(r"counter packets \d+ bytes \d+|elements = \{|[,}]$", "", text, flags=re.MULTILINE)
    return sorted(line.strip() for line in text.splitlines())


def undo(deed: list[str], heard: "queue.Queue[float]", wanted: list[str]) -> float:
    """Do it once, and wait until all is as it was; milliseconds between the first and the last commit."""
    while not heard.empty():
        heard.get()
    subprocess.run(deed, check=True)
    first = last = heard.get(timeout=SECONDS)
    while True:
        last = heard.get(timeout=SECONDS)
        while not heard.empty():
            last = heard.get()
        if there() == wanted:
            while not heard.empty():  # a commit while we read: it may have been the one that made it whole
                last = heard.get()
            return (last - first) * 1000


def main() -> None:
    """All rounds, one deed after the other."""
    heard: queue.Queue[float] = queue.Queue()
    for family, groups in ((NETFILTER, NFT_GROUP), (ROUTE, ROUTE_GROUPS)):
        threading.Thread(target=commits, args=(family, groups, heard), daemon=True).start()
    wanted = there()
    times: dict[str, list[float]] = {name: [] for name in DEEDS}
    first, rounds = map(int, sys.argv[1:])
    for count in range(first, first + rounds):
        name = list(DEEDS)[count % len(DEEDS)]
        times[name].append(round(undo(DEEDS[name], heard, wanted), 1))
    print(json.dumps(times))


main()
