"""Routes that requests of either version of HTTP must meet in the same way."""

from string import Template

_ROUTES = Template("""
[[traffic.route]]
name  = "canary"
match = { path = "/products/*", methods = ["GET"], headers = { x-canary = "1" } }
to    = "$name-v2"

[[traffic.route]]
name    = "rewritten"
match   = { path = "/products/{id}", query = { v = "2" } }
to      = "$name-v2"
rewrite = { path = "/v2/items/{id}", host = "$name-v2.example" }
request_headers  = { set = { x-set = "new" }, add = { x-add = "2" }, remove = ["x-gone"] }
response_headers = { set = { server = "mesh" }, remove = ["$removed"] }

[[traffic.route]]
name    = "prefix"
match   = { path = "/static/*" }
rewrite = { path = "/files/*" }

[[traffic.route]]
name     = "moved"
match    = { path = "/p/{id}" }
redirect = { to = "https://shop.example.org/products/{id}", status = 308 }

[[traffic.route]]
name    = "closed"
match   = { path = "/closed" }
respond = { status = 503, body = "closed for today", headers = { retry-after = "60" } }

[[traffic.route]]
name  = "nowhere"
match = { path = "/nowhere" }
to    = "no-such-$name"

[[traffic.route]]
name  = "forbidden"
match = { path = "/forbidden" }
to    = "inventory"
""")


def routes_of(name: str, *, removed: str) -> str:
    """Routes of the service of that name, which has a second version; ``removed``: a field of its responses."""
    return _ROUTES.substitute(name=name, removed=removed)
