"""Policies: what is read from good files, and what is said about bad ones."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostmesh.errors import Diagnostic, Place, PolicyError
from hostmesh.policy import schema, schema_routes
from hostmesh.policy.findings import Code
from hostmesh.policy.keys import Key, Table
from hostmesh.policy.model import (
    AccessLog,
    ClientAddress,
    InboundRule,
    Mode,
    OutboundRule,
    Policy,
    Protocol,
    Retries,
    Trace,
)
from hostmesh.policy.validate import load

FILE = "inventory.service.toml"
GOOD = """\
[service]
name  = "inventory"
[service.ports]
8080 = "http"
5432 = { protocol = "tcp", client_address = "local" }

[inbound]
mode = "audit"

[[inbound.allow]]
from    = ["orders.service", "spiffe://other.example/unit/*"]
methods = ["GET"]
paths   = ["/products/*"]
headers = { X-Tenant = "blue" }

[[inbound.plaintext]]
from    = ["198.51.100.7", "local", "2001:db8::/32"]
ports   = [8080]
paths   = ["/metrics"]

[[inbound.deny]]
from = ["legacy-*"]
ports = [5432]

[traffic]
timeout = "10s"
retries = { attempts = 3, per_try_timeout = "250ms", on = ["5xx", "connect-failure"], budget = 1 }

[outbound]
allow   = ["db", "cache.mesh:6379", "API.example.org:443", "198.51.100.0/24:53", "[2001:db8::1]:443", "2001:db8::/32"]

[observe]
access_log = "all"
trace      = 0.5
"""


def one(text: str, name: str = FILE) -> Policy:
    (policy,) = load({name: text})
    return policy


def findings(text: str, name: str = FILE) -> tuple[Diagnostic, ...]:
    with pytest.raises(PolicyError) as caught:
        load({name: text})
    return caught.value.diagnostics


def test_everything_that_can_be_said() -> None:
    policy = one(GOOD)
    assert (policy.unit.full, policy.service, policy.mode) == ("inventory.service", "inventory", Mode.AUDIT)
    assert [(p.number, p.protocol, p.client_address, p.place.line) for p in policy.ports] == [
        (5432, Protocol.TCP, ClientAddress.LOCAL, 5),
        (8080, Protocol.HTTP, ClientAddress.AUTO, 4),
    ]
    assert policy.allow == (
        InboundRule(
            Place(FILE, 10, 1),
            ("orders", "spiffe://other.example/unit/*"),
            methods=("GET",),
            paths=("/products/*",),
            headers=(("x-tenant", "blue"),),
        ),
    )
    assert policy.deny == (InboundRule(Place(FILE, 21, 1), ("legacy-*",), (5432,)),)
    assert policy.plaintext[0].sources == ("198.51.100.7/32", "local", "2001:db8::/32")
    assert (policy.plaintext[0].ports, policy.plaintext[0].paths) == ((8080,), ("/metrics",))
    assert policy.traffic.timeout_ms == 10_000
    assert policy.traffic.retries == Retries(Place(FILE, 27, 11), 3, 250, ("5xx", "connect-failure"), 1.0)
    assert policy.traffic.place == Place(FILE, 25, 1)
    assert policy.outbound == (
        OutboundRule(Place(FILE, 30, 12), service="db"),
        OutboundRule(Place(FILE, 30, 18), service="cache", port=6379),
        OutboundRule(Place(FILE, 30, 37), host="api.example.org", port=443),
        OutboundRule(Place(FILE, 30, 60), network="198.51.100.0/24", port=53),
        OutboundRule(Place(FILE, 30, 82), network="2001:db8::1/128", port=443),
        OutboundRule(Place(FILE, 30, 103), network="2001:db8::/32"),
    )
    assert (policy.observe.access_log, policy.observe.trace) == (AccessLog.ALL, Trace(0.5))
    assert policy.allow[0].place.rule == "inventory.service.toml:10"


def test_what_silence_means() -> None:
    policy = one("", "postgresql@15-main.service.toml")
    assert (policy.service, policy.mode, policy.ports) == ("postgresql-15-main", Mode.ENFORCE, ())
    assert (policy.allow, policy.deny, policy.plaintext, policy.outbound) == ((), (), (), None)
    assert (policy.traffic.timeout_ms, policy.traffic.retries, policy.traffic.balance.by) == (0, None, "least-request")
    assert (policy.observe.access_log, policy.observe.trace) == (AccessLog.ERRORS, Trace())


def test_traces_of_what_fails() -> None:
    assert one("[observe]\ntrace = { errors = true }\n").observe.trace == Trace(0.01, errors=True)
    assert one("[observe.trace]\nshare = 0\n").observe.trace == Trace(0.0)


HTTP = '[service.ports]\n80 = "http"\n5 = "tcp"\n'
ALLOW = HTTP + "[[inbound.allow]]\nfrom = ['a']\n"
DENY = HTTP + "[[inbound.deny]]\nfrom = ['a']\n"
GATE = HTTP + "[inbound.authorize]\n"
PLAIN = HTTP + "[[inbound.plaintext]]\nports = [80]\n"
CASES: list[tuple[str, Code, tuple[int, int], str, str]] = [
    ("[inbund]\n", Code.UNKNOWN_KEY, (1, 1), "unknown key 'inbund'", "'inbound'"),
    ("[inbound]\nmdoe = 'audit'\n", Code.UNKNOWN_KEY, (2, 1), "unknown key 'mdoe' in [inbound]", "'mode'"),
    ("[inbound]\nmode = 'audti'\n", Code.BAD_VALUE, (2, 8), "none of: audit, enforce", "'audit'"),
    ("[inbound]\nmode = 1\n", Code.WRONG_TYPE, (2, 8), "expected a string, found a whole number", ""),
    (HTTP + "[inbound]\nauthorize = {}\n", Code.MISSING, (5, 13), "[inbound.authorize] lacks 'service'", "gatekeeper"),
    (GATE + "service = 'A B'\n", Code.BAD_VALUE, (5, 11), "not a service name", ""),
    (GATE + "service = 'inventory'\n", Code.BAD_VALUE, (5, 11), "no gatekeeper of its own", ""),
    (GATE + "service = 'g'\ntimeout = '0s'\n", Code.BAD_VALUE, (6, 11), "more than 0", ""),
    (GATE + "service = 'g'\non_error = 'ask'\n", Code.BAD_VALUE, (6, 12), "none of: allow, deny", ""),
    (GATE + "service = 'g'\n[outbound]\nallow = ['db']\n", Code.BAD_VALUE, (5, 11), "does not allow 'g'", '"g"'),
    (GATE.replace('"http"', '"tcp"') + "service = 'g'\n", Code.BAD_VALUE, (4, 1), "carry no requests", "http"),
    (GATE.replace('"tcp"', '"auto"') + "service = 'g'\n", Code.BAD_VALUE, (4, 1), "port 5, which is auto", "5 ="),
    ("inbound = 'audit'\n", Code.WRONG_TYPE, (1, 11), "expected a table, found a string", ""),
    ("a = \n", Code.SYNTAX, (1, 5), "not TOML", ""),
    ("[service]\nname = 'In_v'\n", Code.BAD_VALUE, (2, 8), "not a service name", ""),
    ("[service.ports]\n0 = 'tcp'\n", Code.BAD_VALUE, (2, 1), "not a port: 1..65535", ""),
    ("[service.ports]\n080 = 'tcp'\n", Code.BAD_VALUE, (2, 1), "not a port", ""),
    ("[service.ports]\n65536 = 'tcp'\n", Code.BAD_VALUE, (2, 1), "not a port", ""),
    ("[service.ports]\n80 = 'htpt'\n", Code.BAD_VALUE, (2, 6), "none of", "'http'"),
    ("[service.ports]\n80 = 'udp'\n", Code.BAD_VALUE, (2, 6), "none of: auto, grpc, http", "one of"),
    ("[service.ports]\n80 = {}\n81 = []\n", Code.WRONG_TYPE, (3, 6), "expected a protocol or a table", ""),
    ("[[inbound.allow]]\nports = []\n", Code.MISSING, (1, 1), "lacks 'from'", "orders"),
    ("[inbound]\nallow = ['a']\n", Code.WRONG_TYPE, (2, 10), "expected a table, found a string", ""),
    ("[inbound.allow]\nfrom = ['a']\n", Code.WRONG_TYPE, (1, 1), "expected a list of tables", "[[inbound.allow]]"),
    ("[[inbound.allow]]\nfrom = 'a'\n", Code.WRONG_TYPE, (2, 8), "expected a list of strings", '["a"]'),
    ("[[inbound.allow]]\nfrom = []\n", Code.BAD_VALUE, (2, 8), "an empty list", ""),
    ("[[inbound.allow]]\nfrom = ['a b']\n", Code.BAD_VALUE, (2, 9), "no caller", ""),
    ("[[inbound.allow]]\nfrom = ['spiffe://*/unit/a']\n", Code.BAD_VALUE, (2, 9), "named as a whole", ""),
    ("[[inbound.allow]]\nfrom = ['spiffe://A/unit/a']\n", Code.BAD_VALUE, (2, 9), "not a SPIFFE ID", ""),
    (ALLOW + "ports = [81]\n", Code.BAD_VALUE, (6, 10), "81 is not declared", "5, 80"),
    (ALLOW + "methods = ['get']\n", Code.BAD_VALUE, (6, 12), "case counts", "'GET'"),
    (ALLOW + "methods = ['G T']\n", Code.BAD_VALUE, (6, 12), "not an HTTP method", ""),
    (ALLOW + "paths = ['x']\n", Code.BAD_VALUE, (6, 10), "begins with a slash", "'/x'"),
    (ALLOW + "paths = ['/*/x']\n", Code.BAD_VALUE, (6, 10), "at the end only", ""),
    (ALLOW + "paths = ['/a/../b']\n", Code.BAD_VALUE, (6, 10), "a dot segment", ""),
    (ALLOW + "paths = ['/%7ea*']\n", Code.BAD_VALUE, (6, 10), "normal form", "'/~a*'"),
    (ALLOW + "paths = ['/a?b']\n", Code.BAD_VALUE, (6, 10), "no query", ""),
    (DENY + "ports = [5]\npaths = ['/']\n", Code.BAD_VALUE, (7, 1), "carried unread", ""),
    ("[[inbound.allow]]\nfrom = ['a']\npaths = ['/']\n", Code.BAD_VALUE, (3, 1), "the unit has none", ""),
    (ALLOW + "headers = { 'a b' = 'x' }\n", Code.BAD_VALUE, (6, 13), "header's name", ""),
    (ALLOW + "headers = { a = ' x' }\n", Code.BAD_VALUE, (6, 13), "header's value", ""),
    (ALLOW + "headers = { a = 'x', A = 'y' }\n", Code.DUPLICATE, (6, 22), "twice", ""),
    (HTTP + "[[inbound.plaintext]]\nfrom = ['local']\n", Code.MISSING, (4, 1), "lacks 'ports'", ""),
    (PLAIN + "from = ['1.2.3.4/8']\n", Code.BAD_VALUE, (6, 9), "a host", "'1.0.0.0/8'"),
    (PLAIN + "from = ['x']\n", Code.BAD_VALUE, (6, 9), "not a network", ""),
    (PLAIN + "from = ['::1']\n", Code.BAD_VALUE, (6, 9), "this host itself", "'local'"),
    ("[traffic]\ntimeout = 10\n", Code.WRONG_TYPE, (2, 11), "expected a duration with its unit", '"10s"'),
    ("[traffic]\ntimeout = '10'\n", Code.BAD_VALUE, (2, 11), "not a duration", ""),
    ("[traffic]\ntimeout = '0s'\n", Code.BAD_VALUE, (2, 11), "not more than 0", "leave the key out"),
    ("[traffic]\ntimeout = '25h'\n", Code.BAD_VALUE, (2, 11), "at most a day", ""),
    ("[traffic]\nhedge = {}\n", Code.MISSING, (2, 9), "hedge lacks 'after'", 'after = "100ms"'),
    ("[traffic]\nhedge = { after = '1s', attempts = 1 }\n", Code.BAD_VALUE, (2, 36), "1 is not in 2..5", ""),
    ("[traffic]\ntimeout = '1s'\nhedge = { after = '1s' }\n", Code.BAD_VALUE, (3, 19), "no shorter", "never"),
    ("[traffic.retries]\nattempts = 0\n", Code.BAD_VALUE, (2, 12), "0 is not in 1..10", ""),
    ("[traffic.retries]\nattempts = true\n", Code.WRONG_TYPE, (2, 12), "found true or false", ""),
    ("[traffic.retries]\nbudget = 20\n", Code.BAD_VALUE, (2, 10), "20 is not in 0..1", "20 % is 0.2"),
    ("[traffic.retries]\nbudget = nan\n", Code.BAD_VALUE, (2, 10), "nan is not in 0..1", ""),
    ("[traffic.retries]\non = ['5x']\n", Code.BAD_VALUE, (2, 7), "none of", "'5xx'"),
    (
        "[traffic]\ntimeout = '1s'\nretries = { per_try_timeout = '2s' }\n",
        Code.BAD_VALUE, (3, 31), "longer than timeout", "",
    ),
    ("[outbound]\n", Code.MISSING, (1, 1), "lacks 'allow'", "allow = []"),
    ("[outbound]\nallow = ['a_b']\n", Code.BAD_VALUE, (2, 10), "no destination", ""),
    ("[outbound]\nallow = ['a:0']\n", Code.BAD_VALUE, (2, 10), "'0' is not a port", ""),
    ("[outbound]\nallow = ['300.1.1.1']\n", Code.BAD_VALUE, (2, 10), "not a host name", ""),
    ("[outbound]\nallow = ['10.0.0.1/8']\n", Code.BAD_VALUE, (2, 10), "names a host", "'10.0.0.0/8'"),
    ("[observe]\naccess_log = 'error'\n", Code.BAD_VALUE, (2, 14), "none of", "'errors'"),
    ("[observe]\ntrace = 1.5\n", Code.BAD_VALUE, (2, 9), "1.5 is not in 0..1", ""),
    ("[observe]\ntrace = { error = true }\n", Code.UNKNOWN_KEY, (2, 11), "in [observe.trace]", "'errors'"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "code", "where", "says", "hint"), CASES, ids=lambda value: repr(value)[:60])
def test_finding(text: str, code: Code, where: tuple[int, int], says: str, hint: str) -> None:
    (found,) = [d for d in findings(text) if d.code == code] or [None]
    assert found is not None, findings(text)
    assert (found.place.file, found.place.line, found.place.column) == (FILE, *where)
    assert says in found.message
    assert hint in found.hint


@pytest.mark.parametrize(
    ("name", "says", "hint"),
    [
        ("inventory.toml", "'inventory' is not a unit's name", "inventory.service.toml"),
        ("inventory.service", "does not end in .toml", "UNIT.toml"),
        ("inventory.socket.toml", "a socket unit has no policy", "inventory.service.toml"),
        ("postgresql@.service.toml", "a template is no unit", "postgresql@NAME.service.toml"),
        ("a b.service.toml", "not a unit's name", "UNIT.toml"),
    ],
)
def test_file_name(name: str, says: str, hint: str) -> None:
    (found,) = findings("", name)
    assert (found.code, found.place) == (Code.FILE_NAME, Place(name))
    assert says in found.message
    assert hint in found.hint


def test_every_code_is_shown_by_a_case() -> None:
    shown = {case[1] for case in CASES} | {Code.FILE_NAME}
    assert shown == set(Code) - {Code.UNREADABLE}, "what cannot be read is told by whoever opens files"


def test_all_errors_of_all_files_at_once_in_order() -> None:
    with pytest.raises(PolicyError) as caught:
        load({"b.service.toml": "x = 1\ny = 2\n", "a.service.toml": "[service]\nname = 1\n", "c.service.toml": ""})
    assert [(d.place.file, d.place.line) for d in caught.value.diagnostics] == [
        ("a.service.toml", 2),
        ("b.service.toml", 1),
        ("b.service.toml", 2),
    ]
    assert "b.service.toml:2:1: unknown key 'y' at the top [unknown-key]\n" in str(caught.value)
    assert "3 errors; nothing was changed" in str(caught.value)


def test_one_mistake_is_told_once() -> None:
    text = "[service.ports]\n80 = 'htp'\n[[inbound.allow]]\nfrom = ['a']\nports = [80]\npaths = ['/']\n"
    assert len(findings(text)) == 1
    text = "[service.ports]\n99999 = 'http'\n[[inbound.allow]]\nfrom = ['a']\nports = [99999]\npaths = ['/']\n"
    assert [d.place.line for d in findings(text)] == [2, 5], "the number itself is wrong in both places"


@pytest.mark.parametrize(
    ("files", "place", "says"),
    [
        (
            {"x/a.service.toml": "", "y/a.service.toml": ""},
            Place("y/a.service.toml"),
            "a.service has a policy already: x/a.service.toml",
        ),
        (
            {"a.service.toml": "[service.ports]\n80 = 'tcp'\n", "b.service.toml": "[service.ports]\n80 = 'http'\n"},
            Place("b.service.toml", 2, 1),
            "port 80 is declared already: a.service.toml:2:1",
        ),
        (
            {
                "a.service.toml": "service.name = 'x'\n[traffic]\ntimeout = '1s'\n",
                "b.service.toml": "service.name = 'x'\n[traffic]\ntimeout = '2s'\n",
            },
            Place("b.service.toml", 2, 1),
            "service 'x' has another [traffic] already: a.service.toml:2:1",
        ),
    ],
)
def test_what_two_policies_of_a_host_cannot_say(files: dict[str, str], place: Place, says: str) -> None:
    with pytest.raises(PolicyError) as caught:
        load(files)
    (found,) = caught.value.diagnostics
    assert (found.code, found.place, found.message) == (Code.DUPLICATE, place, says)


def test_two_units_may_serve_one_service_in_the_same_way() -> None:
    text = "service.name = 'x'\n[traffic]\ntimeout = '1s'\nretries = { attempts = 3 }\n"
    assert len(load({"a.service.toml": text, "b.service.toml": "\n\n" + text})) == 2


def test_the_order_of_files_does_not_matter() -> None:
    files = {"b.service.toml": GOOD, "a.service.toml": "", "c.service.toml": "[inbound]\nmode = 'audit'\n"}
    assert load(files) == load(dict(reversed(files.items())))


# what an example needs beside it, by the table and key that it is of
BESIDE = {
    ("traffic.hedge", "attempts"): 'after = "100ms"\n',
    ("traffic.hedge", "non_idempotent"): 'after = "100ms"\n',
    ("traffic.route", "sticky"): "to = { inventory-v2 = 10, inventory = 90 }\n",
    ("traffic.route.mirror", "percent"): 'to = "inventory-v3"\n',
    ("traffic.route.mirror", "max_pending"): 'to = "inventory-v3"\n',
    ("traffic.route.redirect", "status"): 'to = "/p/{id}"\n',
    ("traffic.route.fault", "delay_percent"): 'delay = "2s"\n',
    ("traffic.route.fault", "abort_percent"): "abort = 503\n",
}
BELIEVED = '[[inbound.jwt]]\nissuer = "https://id.example.org"\naudience = "inventory"\njwks = "/etc/keys"\n'
ELSEWHERE = ("", schema.PORTS.name, schema.JWT.name, schema.TOKEN.name)
KEYS = [(table, key) for table in schema.TABLES for key in table.keys if table.name not in ELSEWHERE]


@pytest.mark.parametrize(("table", "key"), KEYS, ids=lambda value: value.name)
def test_the_examples_of_the_reference_are_right(table: Table, key: Key) -> None:
    if key.example.startswith("["):
        assert any(key.example.strip("[]") == other.name for other in schema.TABLES)
        return
    head = f"[[{table.name}]]\n" if table.name.startswith("inbound.") else f"[{table.name}]\n"
    if table.name.startswith("traffic.route"):
        has_match = "match" in (key.name, table.name.rpartition(".")[2])
        head = "[[traffic.route]]\n" + ("" if has_match else 'match = { path = "/products/{id}" }\n')
        head += 'to = "inventory-v2"\n' if key.name == "sni" else ""
        head += f"[{table.name}]\n" if table is not schema_routes.ROUTE else ""
    others = {"from": 'from = ["a"]\n', "ports": "ports = [8080]\n"} if table.name.startswith("inbound.") else {}
    if table is schema.PLAINTEXT:
        others["from"] = 'from = ["local"]\n'
    if table is schema.LIMIT:
        others |= {"rate": 'rate = "100/s"\n'}
    if table is schema.AUTHORIZE:
        head, others = "[inbound.authorize]\n", {"service": 'service = "gatekeeper"\n'}
    if table is schema.BALANCE:
        others = {"by": 'by = "consistent-hash"\n', "on": 'on = "source"\n'}
    rest = "".join(line for name, line in others.items() if name != key.name)
    rest += BESIDE.get((table.name, key.name), "")
    ports = '[service.ports]\n8080 = "http"\n8443 = "tls"\n' + BELIEVED
    one(f"{ports}{head}{key.example}\n{rest}" if table is not schema.SERVICE else f"{head}{key.example}\n")


def ends_well(text: str) -> None:
    found: tuple[Diagnostic, ...] = ()
    policies: tuple[Policy, ...] = ()
    try:
        policies = load({FILE: text})
    except PolicyError as error:
        found = error.diagnostics
    assert bool(found) != bool(policies)
    assert all(d.place.line <= text.count("\n") + 1 for d in found)


@given(st.text())
def test_no_text_crashes(text: str) -> None:
    ends_well(text)


@given(st.data())
def test_no_damaged_policy_crashes(data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(GOOD)))
    end = data.draw(st.integers(start, min(len(GOOD), start + 40)))
    ends_well(GOOD[:start] + data.draw(st.text(max_size=12)) + GOOD[end:])


VALUES = st.recursive(
    st.one_of(
        st.integers(-(2**70), 2**70).map(str),
        st.sampled_from(["nan", "-inf", "1e400", "0.5", "true", "1979-05-27", "07:32:00", '""', '"*"', '"spiffe://"']),
        st.text(st.characters(codec="ascii", exclude_characters="'", categories=["L", "N", "P"]), max_size=20).map(
            lambda text: f"'{text}'"
        ),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda items: f"[{', '.join(items)}]"),
        st.dictionaries(
            st.sampled_from(sorted({key.name for table in schema.TABLES for key in table.keys} | {"80", "route"})),
            inner,
            max_size=3,
        ).map(lambda table: "{" + ", ".join(f"{key} = {value}" for key, value in table.items()) + "}"),
    ),
    max_leaves=5,
)


@given(st.sampled_from([(t.name, k.name) for t in schema.TABLES for k in t.keys]), VALUES)
def test_no_value_under_any_key_crashes(key: tuple[str, str], value: str) -> None:
    table, name = key
    for head in (f"[{table}]\n", f"[[{table}]]\n") if table else ("",):
        ends_well(f"{head}{name} = {value}\n")


def test_a_rule_is_named_as_journal_and_explain_name_it() -> None:
    assert re.fullmatch(r"inventory\.service\.toml:\d+", one(GOOD).deny[0].place.rule)
