"""Asks a service over keep-alive connections: run on a host, prints one JSON line for all requests.

    python3 - HOST CONNECTIONS < requests

Each line of the second argument's JSON list is [method, target, headers]; each connection takes every n-th of them. The
answer to each: [status, seconds, headers, body].
"""

import http.client
import json
import sys
import threading
import time

host, connections, text = sys.argv[1:]
requests = json.loads(text) if not text.isdigit() else [["GET", "/", {}]] * int(text)
answers: list[object] = [None] * len(requests)


def connection(first: int) -> None:
    client = http.client.HTTPConnection(host, timeout=20)
    for index in range(first, len(requests), int(connections)):
        method, target, headers, *body = requests[index]
        begun = time.monotonic()
        client.request(method, target, body=body[0] if body else None, headers=headers)
        answer = client.getresponse()
        said = answer.read().decode()
        answers[index] = [answer.status, time.monotonic() - begun, dict(answer.headers), said]


threads = [threading.Thread(target=connection, args=(index,)) for index in range(int(connections))]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(json.dumps(answers))
