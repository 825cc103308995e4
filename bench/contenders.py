"""Who is measured: pairs of processes that carry HTTP from h1 to h2, each with a URL to load and pids to account.

All serve the same application, nginx with a fixed answer, on h2. `direct` and the peers reach an unmeshed nginx,
hostmesh a meshed one of the same configuration.
"""

from dataclasses import dataclass

from bench.certificates import write_pair
from tests.lab.host import Host
from tests.lab.waiting import wait_until
from tests.mesh.world import World

APP_PORT, MESHED_PORT, PEER_IN, PEER_OUT = 8000, 8001, 9001, 9002
NGINX = """
daemon off; worker_processes 1; pid /run/{name}.pid; error_log /dev/null;
events {{ worker_connections 4096; }}
http {{
  access_log off; keepalive_requests 1000000000; keepalive_timeout 600;
  server {{ listen {port} reuseport; location / {{ default_type text/plain; return 200 "{body}"; }} }}
}}
"""
HAPROXY = """
global
  maxconn 4000
  nbthread 2
  ssl-default-bind-options ssl-min-ver TLSv1.3
  ssl-default-server-options ssl-min-ver TLSv1.3
defaults
  mode http
  timeout connect 2s
  timeout client 60s
  timeout server 60s
  http-reuse always
  retries 3
  option redispatch
listen pair
  {listen}
"""
CLIENT_SIDE = "bind 127.0.0.1:{PEER_IN}\n  server peer {address}:{PEER_OUT} ssl verify required ca-file {ca} crt {crt}"
SERVER_SIDE = """bind {address}:{PEER_OUT} ssl crt {crt} ca-file {ca} verify required
  http-request deny if {{ path_beg /forbidden }}
  server app 127.0.0.1:{APP_PORT}"""
POLICY = f"""
[service]
name = "bench"
[service.ports]
{MESHED_PORT} = "http"
[[inbound.allow]]
from = ["bench-load"]
methods = ["GET"]
paths = ["/*"]
[traffic]
timeout = "10s"
retries = {{ attempts = 3, on = ["5xx", "connect-failure"] }}
[observe]
trace = 0.01
"""


@dataclass(frozen=True)
class Contender:
    """Where the load goes, whether it comes from a meshed unit; `proxies` and `app`: the units whose CPU is counted."""

    name: str
    url: str
    meshed: bool
    proxies: tuple[tuple[str, str], ...]
    app: str


def start(w: World) -> tuple[Contender, ...]:
    """Start all of them; they idle while another is measured."""
    for host in (w.h1, w.h2):
        host.exec(["sysctl", "-qw", "net.ipv4.tcp_congestion_control=reno"]).must()
    _application(w.h2, "bench-app", APP_PORT)
    _haproxy(w)
    _meshed(w)
    return (
        Contender("direct", f"http://{w.h2.ipv4}:{APP_PORT}/", False, (), "bench-app.service"),
        Contender(
            "haproxy",
            f"http://127.0.0.1:{PEER_IN}/",
            False,
            (("h1", "bench-haproxy.service"), ("h2", "bench-haproxy.service")),
            "bench-app.service",
        ),
        Contender(
            "hostmesh",
            f"http://bench:{MESHED_PORT}/",
            True,
            (("h1", "hostmesh-proxy.service"), ("h2", "hostmesh-proxy.service")),
            "bench-meshed.service",
        ),
    )


def _application(host: Host, name: str, port: int) -> None:
    host.write(f"/etc/{name}.conf", NGINX.format(name=name, port=port, body="x" * 100))
    host.write(
        f"/etc/systemd/system/{name}.service",
        f"[Service]\nExecStart=/usr/sbin/nginx -c /etc/{name}.conf\nLimitNOFILE=16384\n",
    )
    host.systemctl("daemon-reload")
    host.systemctl("start", f"{name}.service")


def _haproxy(w: World) -> None:
    files = {"ca": "/etc/bench-ca.pem", "crt": "/etc/bench.pem"}
    ca, certificate = write_pair()
    numbers = {"PEER_IN": PEER_IN, "PEER_OUT": PEER_OUT, "APP_PORT": APP_PORT, "address": w.h2.ipv4}
    for host, side in ((w.h1, CLIENT_SIDE), (w.h2, SERVER_SIDE)):
        host.write(files["ca"], ca)
        host.write(files["crt"], certificate)
        host.write("/etc/bench-haproxy.cfg", HAPROXY.format(listen=side.format(**files, **numbers)))
        host.write(
            "/etc/systemd/system/bench-haproxy.service",
            "[Service]\nExecStart=/usr/sbin/haproxy -db -f /etc/bench-haproxy.cfg\nLimitNOFILE=16384\n",
        )
        host.systemctl("daemon-reload")
        host.systemctl("start", "bench-haproxy.service")


def _meshed(w: World) -> None:
    _application(w.h2, "bench-meshed", MESHED_PORT)
    w.h2.exec(["hostmesh", "controller", "grant", "h2", "bench-meshed.service"]).must()
    w.h2.exec(["hostmesh", "controller", "grant", "h1", "bench-load.service"]).must()
    w.h2.exec(["hostmesh", "enable", "bench-meshed.service"]).must()
    w.write_policy(w.h2, "bench-meshed.service", POLICY)
    w.h2.systemctl("restart", "bench-meshed.service")
    w.write_policy(w.h1, "bench-load.service", "[observe]\ntrace = 0.01\n")
    ask = ["curl", "-sS", "-o", "/dev/null", "--max-time", "5", "--fail", f"http://bench:{MESHED_PORT}/"]
    wait_until(lambda: w.as_unit("bench-load", ask).ok, "the meshed application answers", 20.0, 0.1)


def cpu_seconds(host: Host, unit: str) -> float:
    """CPU seconds that the processes of a unit have used so far, from /proc/PID/stat (proc(5), fields 14 and 15)."""
    group = host.exec(["systemctl", "show", "-P", "ControlGroup", unit]).must().stdout.strip()
    command = f"for p in $(cat '/sys/fs/cgroup{group}/cgroup.procs'); do cat /proc/$p/stat; done; getconf CLK_TCK"
    *stats, ticks_a_second = host.exec(["sh", "-c", command]).must().stdout.splitlines()
    return sum(sum(map(int, stat.rpartition(")")[2].split()[11:13])) for stat in stats) / int(ticks_a_second)
