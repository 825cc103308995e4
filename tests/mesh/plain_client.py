"""Sends bytes of HTTP/1.1 and shows what comes: run on a host as a meshed unit, prints one JSON line.

    python3 - HOST PORT STEP…

A step is what is sent (escapes of Python), then what is waited for before the next one: `SENT|AWAITED`. All that was
received, or how the connection broke off, is printed.
"""

import json
import socket
import sys

host, port, *steps = sys.argv[1:]
received, how = b"", "open"
with socket.create_connection((host, int(port)), 10) as connection:
    connection.settimeout(10)
    try:
        for step in steps:
            sent, awaited = (part.encode().decode("unicode_escape").encode() for part in step.split("|"))
            connection.sendall(sent)
            while awaited not in received:
                more = connection.recv(65536)
                if not more:
                    how = "end"
                    break
                received += more
    except OSError as error:
        how = type(error).__name__
print(json.dumps({"received": received.decode(), "how": how}))
