"""Knocks in plain text until told to stop, and counts how it was answered: run on a host, prints one JSON line.

    python3 - STOP_FILE HOST:PORT...

{HOST:PORT: {"connected": n, "refused": n, "silent": n}}, over and over, a new connection every few milliseconds each.
"""

import collections
import json
import socket
import sys
import threading
import time
from pathlib import Path


def knock(target: str, stop: Path, count: "collections.Counter[str]") -> None:
    """One after the other."""
    host, _, port = target.rpartition(":")
    while not stop.exists():
        try:
            with socket.create_connection((host, int(port)), 0.2):
                count["connected"] += 1
        except TimeoutError:
            count["silent"] += 1
        except OSError:  # reset, or no such host while it boots
            count["refused"] += 1
        time.sleep(0.005)


def main() -> None:
    """All at once."""
    stop, targets = Path(sys.argv[1]), sys.argv[2:]
    counts: dict[str, collections.Counter[str]] = {target: collections.Counter() for target in targets}
    threads = [threading.Thread(target=knock, args=(target, stop, count)) for target, count in counts.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(json.dumps(counts))


main()
