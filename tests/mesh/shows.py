"""What must be shown of the main job: each function tries one thing in a `World`, asserts it, and gives the evidence.

The tests call them one by one; the demo prints them as a table.
"""

import json
import re
import time
from pathlib import Path

from tests.lab.host import Host, Result
from tests.lab.waiting import wait_until
from tests.mesh.told import total
from tests.mesh.world import POLICIES, SCRAPER, STRANGER, TRUST_DOMAIN, World

AT_ONCE = 1.0
TLS_RECORDS = (b"\x16\x03", b"\x17\x03")  # handshake, application data (RFC 8446, section 5.1)
REFUSED = (Path(__file__).parent / "refused.py").read_text()
THIEF = """
import socket
listener = socket.create_server(("", 8080))
listener.settimeout(4)
try:
    print("stole a connection of", listener.accept()[1])
except TimeoutError:
    print("nothing")
"""
GET = r"GET /products/7 HTTP/1.1\r\nHost: inventory\r\nConnection: close\r\n\r\n"
PSQL, PGBENCH = (("env", "PGPASSWORD=shop", program, "-h", "postgres", "-U", "shop") for program in ("psql", "pgbench"))
ORDERS = ["curl", "-sS", "--max-time", "10"]


def order(w: World, product: str) -> dict[str, object]:
    """Ask orders, from a plain process of its host (its policy names `local`), for a product."""
    said = w.h1.exec([*ORDERS, f"http://127.0.0.1:8081/orders/{product}"]).must().stdout
    answer: dict[str, object] = json.loads(said)
    return answer


def nothing_readable(w: World) -> str:
    """HTTP, redis and PostgreSQL between the hosts: the payload is not on the wire, TLS is"""
    marker = "confidential-4711"
    with w.lab.capture("tcp or udp") as wire:
        assert order(w, marker)["inventory"] == 200
        w.shop("redis-cli", "-h", "redis", "set", marker, marker).must()
        said = w.shop(*PSQL, "-Atc", f"select '{marker}'").must().stdout
        assert said.strip() == marker
    assert not wire.contains(marker.encode())
    streams = wire.streams()
    assert streams, "the capture saw nothing: it proves nothing"
    ports = {port for (_, a, _, b) in streams for port in (a, b) if port < 32768}
    assert ports in ({15008, 15010}, {15008}), f"other ports than the wire's were used: {ports}"
    wired = [data for (_, a, _, b), data in streams.items() if data and 15008 in (a, b)]
    assert wired and all(data[:2] in TLS_RECORDS for data in wired), "something on the wire's port is not TLS"
    seen = sum(map(len, wired))
    return f"{len(wired)} streams on port 15008, {seen} bytes, all of them TLS records; payload found 0 times"


def readable_without(w: World) -> str:
    """The same capture without the mesh (an unmeshed server and client): the payload is found"""
    marker = "confidential-4712"
    with w.h2.unit(["/usr/bin/python3", "-m", "http.server", "9000"]):
        wait_until(lambda: w.h1.exec(["nc", "-z", w.h2.ipv4, "9000"]).ok, "the plain server listens")
        with w.lab.capture("tcp port 9000") as wire:
            w.h1.exec(["curl", "-s", f"http://{w.h2.ipv4}:9000/{marker}"]).must()
    assert wire.contains(marker.encode())
    return "marker found"


def wire_refuses_strangers(w: World) -> str:
    """The wire's port from a host without identity: TLS 1.2 refused, no certificate refused, plain text refused"""
    target = f"{w.h2.ipv4}:15008"
    name = f"inventory.unit.{TRUST_DOMAIN}"
    base = ["openssl", "s_client", "-connect", target, "-servername", name, "-alpn", "h2", "-quiet"]
    old = w.outsider.exec([*base, "-tls1_2"], input="x\n", timeout=10)
    assert "alert protocol version" in old.stderr, old.stderr
    bare = w.outsider.exec([*base, "-tls1_3"], input="PRI * HTTP/2.0\r\n\r\n", timeout=10)
    assert "certificate required" in bare.stderr, bare.stderr
    return "TLS 1.2: alert protocol version; no certificate: alert certificate required"


def stock_clients(w: World) -> str:
    """psql, pgbench, redis-cli, redis-benchmark and curl, unchanged, through the mesh"""
    w.shop(*PSQL, "-c", "select 1").must()
    bench = w.shop(*PGBENCH, "-i", "-q", "shop", timeout=60).must()
    bench = w.shop(*PGBENCH, "-c", "4", "-t", "100", "shop", timeout=60).must()
    tps = re.search(r"tps = (\d+)", bench.stdout)
    processed = re.search(r"actually processed: (\d+)/(\d+)", bench.stdout)
    assert tps and processed and processed[1] == processed[2] == "400", bench.stdout
    assert w.shop("redis-cli", "-h", "redis", "ping").must().stdout.strip() == "PONG"
    redis = w.shop(
        "redis-benchmark", "-h", "redis", "-n", "20000", "-c", "20", "-q", "-t", "set,get", timeout=60
    ).must()
    rates = re.findall(r"(SET|GET): ([\d.]+) requests per second", redis.stdout)
    assert {name for name, _ in rates} == {"SET", "GET"}, redis.stdout
    assert "404" in w.shop("curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", "http://web/no").must().stdout
    return f"exit 0 each; pgbench 400/400 at {tps[1]} tps; redis-benchmark {' '.join(f'{n} {r}/s' for n, r in rates)}"


def big_download(w: World, megabytes: int = 1024) -> str:
    """A download of 1 GB from nginx, by curl, with its checksum; its frames find memory that the proxy has already"""
    make = f"head -c {megabytes}M /dev/urandom > /var/www/html/big && sha256sum /var/www/html/big | cut -c-64"
    wanted = w.h2.exec(["sh", "-c", make], timeout=120).must().stdout.strip()
    before, started = _faults(w.h1), time.monotonic()
    got = (
        w.shop("sh", "-c", "curl -sS --fail http://web/big | sha256sum | cut -c-64", timeout=300).must().stdout.strip()
    )
    seconds, faults = time.monotonic() - started, _faults(w.h1) - before
    w.h2.exec(["rm", "/var/www/html/big"]).must()
    assert got == wanted
    assert faults < megabytes, f"{faults} page faults: memory went back to the kernel and was asked for again"
    return f"{megabytes} MiB in {seconds:.1f} s, {faults} page faults, SHA-256 equal ({wanted[:12]}…)"


def _faults(host: Host) -> int:
    """Minor page faults of the proxy's main process since its start (proc_pid_stat(5), field 10)."""
    return int(host.process_stat("hostmesh-proxy.service")[7])


def allowed(w: World) -> str:
    """orders asks inventory, as its policy says: 200"""
    assert order(w, "7") == {"order": "/orders/7", "inventory": 200, "product": '{"product": "7", "stock": 7}'}
    return "orders → http://inventory/products/7: 200"


def refused(host: Host, how: str, *arguments: str, run: object = None) -> dict[str, object]:
    """Try to call; gives how it was refused: errno or first line, and the seconds."""
    command = ["python3", "-c", REFUSED, *arguments]
    result: Result = run(*command) if callable(run) else host.exec(command)
    said: dict[str, object] = json.loads(result.must().stdout)
    assert float(str(said["seconds"])) < AT_ONCE, f"{how}: refused, but only after {said['seconds']} s"
    return said


def refused_by_policy_http(w: World) -> str:
    """A meshed unit that inventory's policy doesn't name: 403 at once, with the rule in the journal"""
    cursor = w.h2.journal_cursor()
    said = refused(w.h1, "guest", "inventory", "80", GET, run=w.guest)
    assert said["first"] == "HTTP/1.1 403 Forbidden", said
    rule = f"{POLICIES}/inventory.service.toml:no-allow"
    line = w.denials(w.h2, after=cursor, HOSTMESH_UNIT="inventory.service", HOSTMESH_VERDICT="deny")[0]
    assert line["HOSTMESH_RULE"] == rule
    assert line["HOSTMESH_PEER"] == f"spiffe://{TRUST_DOMAIN}/unit/guest"
    return f"{said['first']} in {said['seconds']} s; HOSTMESH_RULE={rule}"


def refused_by_policy_method(w: World) -> str:
    """shop, whom redis names but inventory doesn't; orders' identity with DELETE is covered by the vectors: 403"""
    said = refused(w.h1, "shop", "inventory", "80", GET.replace("GET", "DELETE"), run=w.shop)
    assert said["first"] == "HTTP/1.1 403 Forbidden", said
    return f"{said['first']} in {said['seconds']} s"


def refused_by_policy_tcp(w: World) -> str:
    """A meshed unit that redis' policy doesn't name: reset at once, with the rule in the journal"""
    cursor = w.h2.journal_cursor()
    said = refused(w.h1, "guest", "redis", "6379", r"PING\r\n", run=w.guest)
    assert said["errno"] == "ECONNRESET", said
    rule = f"{POLICIES}/redis-server.service.toml:no-allow"
    line = w.denials(w.h2, after=cursor, HOSTMESH_UNIT="redis-server.service", HOSTMESH_VERDICT="deny")[0]
    assert line["HOSTMESH_RULE"] == rule
    return f"{said['errno']} in {said['seconds']} s; HOSTMESH_RULE={rule}"


def refused_plaintext(w: World) -> str:
    """Plain text to a meshed port, from another host and from an unmeshed process of the same host: reset at once"""
    seen = []
    for what, host, unit, address, port, *source in (
        ("another host", w.outsider, "inventory", w.h2.ipv4, "8080", STRANGER),
        ("another host, IPv6", w.outsider, "nginx", w.h2.ipv6, "80"),
        ("unmeshed process, loopback", w.h2, "inventory", "127.0.0.1", "8080"),
        ("unmeshed process, own address", w.h2, "inventory", w.h2.ipv4, "8080"),
    ):
        cursor = w.h2.journal_cursor()
        said = refused(host, what, address, port, GET, *source)
        assert said["errno"] == "ECONNREFUSED", (what, said)
        line = w.denials(w.h2, after=cursor, HOSTMESH_UNIT=f"{unit}.service", HOSTMESH_VERDICT="deny")[0]
        assert line["HOSTMESH_RULE"] == f"{POLICIES}/{unit}.service.toml:no-plaintext"
        seen.append(f"{what}: {said['errno']} {said['seconds']} s")
    return "; ".join(seen) + f"; HOSTMESH_RULE={line['HOSTMESH_RULE']}"


def vip_refused_to_unmeshed(w: World) -> str:
    """A service's VIP from an unmeshed process: refused at once; its name: unknown"""
    vip = w.services(w.h1)["inventory"]["vips"][0]
    said = refused(w.h1, "vip", vip, "80", GET)
    assert said["errno"] == "ECONNREFUSED", said
    name = w.h1.exec(["getent", "hosts", "inventory"])
    assert name.exit == 2, name
    return f"{vip}:80 {said['errno']} in {said['seconds']} s; inventory: not found"


def denial_counted(w: World) -> str:
    """Refusals are counted by rule in /metrics"""

    def count() -> float:
        return total(w.h2, "hostmesh_denied_total", rule=f"{POLICIES}/inventory.service.toml:no-allow")

    before = count()
    refused(w.h1, "guest", "inventory", "80", GET, run=w.guest)
    after = wait_until(lambda: count() if count() > before else None, "the counter grows", 5.0, 0.1)
    assert after == before + 1
    return f"hostmesh_denied_total {before:.0f} → {after:.0f}"


def retried(w: World) -> str:
    """inventory's first answer is 503, the second 200: one call for the application, one trace over both tries"""
    cursor = w.h2.journal_cursor()
    product = f"cold-{time.monotonic_ns()}"
    assert order(w, product)["inventory"] == 200
    lines = [e["MESSAGE"] for e in w.h2.journal(unit="inventory.service", after=cursor) if product in str(e["MESSAGE"])]
    own = [line for line in lines if re.match(r"[\d.]+ GET", line)]
    assert [line.split()[-2] for line in own] == ["503", "200"], own
    traces = [line.split()[-1].split("-") for line in own]
    assert traces[0][1] == traces[1][1], "two trace ids"
    assert traces[0][2] != traces[1][2], "one span for two tries"
    (_, trace, first, _), (_, _, second, _) = traces
    return f"application saw 200; inventory's log: 503, 200; trace {trace} on both, spans {first}, {second}"


def client_addresses(w: World) -> str:
    """nginx's own access log shows the caller's address, and redis and PostgreSQL on loopback work all the same"""
    w.shop("curl", "-sS", "-o", "/dev/null", "http://web/who").must()
    last = w.h2.exec(["sh", "-c", "grep ' /who ' /var/log/nginx/access.log | tail -n 1"]).must().stdout
    assert last.split()[0] == w.h1.ipv4, last
    bound = w.h2.exec(["ss", "-Hltn", "sport = :6379 or sport = :5432"]).must().stdout
    assert re.findall(r"(\S+):(?:6379|5432)\s", bound) and not re.search(
        r"(0\.0\.0\.0|\*|198\.18)\S*:(6379|5432)", bound
    ), bound
    assert w.shop("redis-cli", "-h", "redis", "ping").must().stdout.strip() == "PONG"
    return f"nginx: {last.split()[0]}; redis and PostgreSQL listen on loopback only: PONG, select 1"


def impostor(w: World) -> str:
    """inventory is stopped and another process binds its port: it gets none of the traffic"""
    w.h2.systemctl("stop", "inventory.service")
    try:
        with w.h2.unit(["/usr/bin/python3", "-u", "-c", THIEF]) as unit:
            wait_until(lambda: w.h2.exec(["ss", "-Hltn", "sport = :8080"]).must().stdout, "the thief listens")
            assert order(w, "7")["inventory"] in {502, 503, 504}
            wait_until(lambda: not w.h2.exec(["systemctl", "is-active", unit]).ok, "the thief has ended", 10)
            said = [e["MESSAGE"] for e in w.h2.journal(_SYSTEMD_UNIT=unit)]
    finally:
        w.h2.systemctl("start", "inventory.service")
    assert said == ["nothing"], said
    wait_until(lambda: order(w, "7")["inventory"] == 200, "inventory is back")
    return "orders got 5xx, the other process accepted nothing in 4 s"


def scraper(w: World) -> str:
    """A plain-text scraper that the policy names reads /metrics, and only that; another address doesn't"""

    def scrape(address: str, path: str) -> Result:
        return w.outsider.exec(
            [
                "curl",
                "-sS",
                "-w",
                "%{http_code}",
                "--max-time",
                "5",
                "--interface",
                address,
                f"http://{w.h2.ipv4}:8080{path}",
            ]
        )

    good = scrape(SCRAPER, "/metrics")
    assert good.ok and "inventory_served_total" in good.stdout and good.stdout.endswith("200"), good
    other_path = scrape(SCRAPER, "/products/7")
    assert other_path.stdout.endswith("403"), other_path
    stranger = scrape(STRANGER, "/metrics")
    assert stranger.exit == 7, f"not refused: {stranger}"
    return f"{SCRAPER}: /metrics 200, /products/7 403; {STRANGER}: connection refused"


def denial_beside_own_lines(w: World) -> str:
    """journalctl -u inventory.service shows a denial beside the unit's own lines"""
    cursor = w.h2.journal_cursor()
    allowed(w)
    refused(w.h1, "guest", "inventory", "80", GET, run=w.guest)
    w.denials(w.h2, after=cursor, HOSTMESH_UNIT="inventory.service", HOSTMESH_VERDICT="deny")
    shown = w.h2.journal(unit="inventory.service", after=cursor)
    own = [e for e in shown if e.get("_SYSTEMD_UNIT") == "inventory.service"]
    ours = [e for e in shown if e.get("HOSTMESH_VERDICT") == "deny"]
    assert own and ours, shown
    return str(ours[-1]["MESSAGE"])


def policy_change(w: World) -> str:
    """A policy change is in force on both hosts, without a restart, in under 1 s"""
    text = (
        w.policy("inventory.service")
        .replace('from = ["orders"]', 'from = ["orders", "shop"]')
        .replace("attempts = 3", "attempts = 5")
    )
    started = (
        w.h2.exec(["systemctl", "show", "-P", "ExecMainStartTimestamp", "hostmeshd", "hostmesh-proxy"]).must().stdout
    )
    curl = ["curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", "http://inventory/products/7"]
    assert w.shop(*curl).must().stdout == "403"
    poll = f"until [ $({' '.join(curl)}) = 200 ]; do :; done; date +%s.%N"

    def attempts() -> int:
        return int(w.services(w.h1)["inventory"]["traffic"]["retries"]["attempts"])

    with w.h1.popen(["hostmesh", "run", "--unit", "shop", "--", "timeout", "10", "sh", "-c", poll]) as poller:
        cursor = w.h2.journal_cursor()
        w.denials(w.h2, after=cursor, HOSTMESH_UNIT="inventory.service", HOSTMESH_VERDICT="deny")
        with w.changed_policy(w.h2, "inventory.service", text):
            before = time.time()
            there = wait_until(lambda: attempts() == 5 and time.time() - before, "h1 knows the new retries", 5.0, 0.01)
            said, error = poller.communicate(timeout=20)
            assert poller.returncode == 0, error
            here = float(said) - before
    assert there < 1.0, there
    assert here < 1.0, here
    wait_until(lambda: w.shop(*curl).must().stdout == "403", "the old policy is back", 5.0, 0.05)
    assert (
        w.h2.exec(["systemctl", "show", "-P", "ExecMainStartTimestamp", "hostmeshd", "hostmesh-proxy"]).must().stdout
        == started
    )
    return f"caller's host: {there * 1000:.0f} ms; first call let in after {here * 1000:.0f} ms"


def wrong_policy(w: World) -> str:
    """A wrong file changes nothing and says why, with line and column"""
    text = w.policy("inventory.service").replace("[[inbound.allow]]\nfrom", "[[inbound.allow]]\nform", 1)
    line = text[: text.index("form")].count("\n") + 1
    cursor = w.h2.journal_cursor()
    with w.changed_policy(w.h2, "inventory.service", text):
        where = f"inventory.service.toml:{line}:1"
        told = wait_until(
            lambda: [e for e in w.h2.journal(after=cursor) if where in str(e.get("MESSAGE"))],
            f"the journal names {where}",
            5.0,
            0.05,
        )
        assert "from" in str(told[0]["MESSAGE"]), told
        allowed(w)
        checked = w.h2.exec(["hostmesh", "check", POLICIES])
        assert checked.exit == 1 and where in checked.stdout + checked.stderr, checked
    wait_until(lambda: not w.status(w.h2)["findings"], "the error is gone", 5.0, 0.05)
    return str(told[0]["MESSAGE"]).splitlines()[0]


def same_host(w: World) -> str:
    """Two meshed units of one host: one pass through one proxy, both policies; a unit that isn't named gets 403"""
    assert w.shop("curl", "-sS", "-w", "%{http_code}", "http://orders/orders/7").must().stdout.endswith("200")
    cursor = w.h1.journal_cursor()
    said = refused(w.h1, "guest", "orders", "80", GET, run=w.guest)
    assert said["first"] == "HTTP/1.1 403 Forbidden", said
    line = w.denials(w.h1, after=cursor, HOSTMESH_UNIT="orders.service", HOSTMESH_VERDICT="deny")[0]
    assert line["HOSTMESH_DIRECTION"] == "local", line
    return f"shop → orders: 200; guest → orders: {said['first']}; HOSTMESH_RULE={line['HOSTMESH_RULE']}"
