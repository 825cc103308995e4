"""A load without client retries: run on a host, prints one JSON line at the end.

    python3 - HOST PORT PATH CONNECTIONS AT_LEAST STOP_FILE SECONDS_BETWEEN

Keep-alive connections, each asking one request after the other, with a pause between them, until STOP_FILE is there and
AT_LEAST requests were made in all. Every answer but 200 and every error counts as failed; `slowest` and `longest_gap`
in seconds, times since the epoch.
"""

import collections
import http.client
import json
import sys
import threading
import time
from pathlib import Path


class Load:
    """The shared count of all connections."""

    def __init__(self, host: str, port: int, path: str, least: int, stop: Path) -> None:
        self.host, self.port, self.path, self.least, self.stop = host, port, path, least, stop
        self.lock = threading.Lock()
        self.requests = 0
        self.failures: collections.Counter[str] = collections.Counter()
        self.failed_at: list[float] = []
        self.slowest = 0.0
        self.longest_gap = 0.0
        self.last_good = time.time()

    def count(self, seconds: float, failure: str) -> None:
        """One request more."""
        now = time.time()
        with self.lock:
            self.requests += 1
            self.slowest = max(self.slowest, seconds)
            if failure:
                self.failures[failure] += 1
                self.failed_at.append(now)
            else:
                self.longest_gap = max(self.longest_gap, now - self.last_good)
                self.last_good = now

    def ended(self) -> bool:
        """Enough asked, and told to stop?"""
        return self.requests >= self.least and self.stop.exists()

    def connection(self, pause: float) -> None:
        """One connection's life; a failed one is made anew, its request not repeated."""
        client = http.client.HTTPConnection(self.host, self.port, timeout=20)
        while not self.ended():
            started = time.monotonic()
            failure = ""
            try:
                client.request("GET", self.path)
                answer = client.getresponse()
                answer.read()
                failure = "" if answer.status == 200 else str(answer.status)
            except (OSError, http.client.HTTPException) as error:
                failure = type(error).__name__
                client.close()
            self.count(time.monotonic() - started, failure)
            time.sleep(pause)
        client.close()


def main() -> None:
    """Run all connections, then tell."""
    host, port, path, connections, least, stop, pause = sys.argv[1:]
    load = Load(host, int(port), path, int(least), Path(stop))
    begun = time.time()
    threads = [threading.Thread(target=load.connection, args=(float(pause),)) for _ in range(int(connections))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    told = {
        "requests": load.requests,
        "failed": sum(load.failures.values()),
        "failures": dict(load.failures),
        "failed_at": load.failed_at[:100],
        "begun": begun,
        "ended": time.time(),
        "slowest": round(load.slowest, 3),
        "longest_gap": round(load.longest_gap, 3),
    }
    print(json.dumps(told))


main()
