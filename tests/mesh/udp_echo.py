"""Says back what comes by UDP, to whom it came from: run on a host as `udp_echo.py PORT`."""

import os
import socket
import sys

listener = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
listener.bind(("0.0.0.0", int(sys.argv[1])))
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
    told.sendto(b"READY=1", os.environ["NOTIFY_SOCKET"])
while True:
    data, whom = listener.recvfrom(2048)
    listener.sendto(data, whom)
