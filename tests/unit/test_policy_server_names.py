"""Routes by the server that a client of TLS asks for, and ports on which each connection tells what is spoken."""

import pytest

from hostmesh.errors import PolicyError
from hostmesh.policy.model import Policy
from hostmesh.policy.validate import load
from hostmesh.wire.snapshot import RouteMatch, Share

FILE = "gate.service.toml"
HEAD = '[service.ports]\n8443 = "{protocol}"\n'


def read(text: str, protocol: str = "tls") -> Policy:
    (policy,) = load({FILE: HEAD.format(protocol=protocol) + text})
    return policy


def findings(text: str, protocol: str = "tls") -> list[str]:
    with pytest.raises(PolicyError) as raised:
        read(text, protocol)
    return str(raised.value).splitlines()


@pytest.mark.parametrize("protocol", ["tls", "auto"])
def test_names_in_one_form(protocol: str) -> None:
    match = 'match = { sni = "A.Example.org" }\nto = { one = 1, two = 9 }\nsticky = "source"\n'
    text = f'[[traffic.route]]\nname = "a"\n{match}'
    [route] = read(text, protocol).traffic.routes
    assert route.match == RouteMatch(sni="a.example.org")
    assert (route.to, route.sticky) == ([Share("one", 1), Share("two", 9)], "source")


def test_what_fits_everything_of_one_kind_leaves_the_other() -> None:
    requests = '[[traffic.route]]\nto = "one"\n'
    names = '[[traffic.route]]\nmatch = { sni = "*" }\nto = "two"\n'
    assert len(read(requests + names, "auto").traffic.routes) == 2
    assert len(read(names + requests, "auto").traffic.routes) == 2
    assert any("never reached" in line for line in findings(names + names, "auto"))


@pytest.mark.parametrize(
    ("route", "said"),
    [
        ('match = { sni = "a b" }\nto = "x"', "'a b' is not the name of a server"),
        ('match = { sni = "a.*" }\nto = "x"', "is not the name of a server"),
        ('match = { sni = "*." }\nto = "x"', "is not the name of a server"),
        ('match = { sni = "a.b", path = "/" }\nto = "x"', "'path' beside 'sni' would never fit"),
        ('match = { sni = "a.b" }\nto = "x"\ntimeout = "1s"', "'timeout' beside 'sni' would never be used"),
        ('match = { sni = "a.b" }\nto = "x"\nmirror = { to = "y" }', "'mirror' beside 'sni' would never be used"),
        ('match = { sni = "a.b" }\nto = { x = 1, y = 1 }\nsticky = "cookie:c"', "'cookie:c' is of requests"),
        ('match = { sni = "a.b" }', "the route leads nowhere"),
    ],
)  # fmt: skip
def test_what_is_wrong(route: str, said: str) -> None:
    told = findings(f"[[traffic.route]]\n{route}\n")
    assert any(said in line for line in told), told


@pytest.mark.parametrize(("protocol", "said"), [("http", "a port that speaks tls or auto"), ("tcp", "tls or auto")])
def test_a_route_by_name_needs_a_port_of_tls(protocol: str, said: str) -> None:
    told = findings('[[traffic.route]]\nmatch = { sni = "a.b" }\nto = "x"\n', protocol)
    assert any(said in line for line in told), told


def test_rules_may_ask_about_requests_where_there_may_be_some() -> None:
    rule = '[[inbound.allow]]\nfrom = ["a"]\nports = [8443]\nmethods = ["GET"]\n'
    assert read(rule, "auto").allow[0].methods == ("GET",)
    assert any("carried unread" in line for line in findings(rule))


def test_claims_in_headers_need_a_port_that_speaks_http() -> None:
    issuer = '[[inbound.jwt]]\nissuer = "https://id.example.org"\naudience = "a"\njwks = "https://id.example.org/k"\n'
    assert read(issuer, "auto").jwt
    told = findings(issuer + 'headers = { x-user = "sub" }\n', "auto")
    assert any("headers of claims beside port 8443, which is auto" in line for line in told), told
