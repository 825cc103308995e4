# ruff: noqa: E501  -- a table of sentences
"""The part of `schema.py` that is about `[[traffic.route]]`."""

from hostmesh.policy.keys import Key, Table

# fmt: off

ROUTE = Table(
    "traffic.route",
    "What some requests to the service meet: the first route that fits; where none does, the service itself. Requests are "
    "those on ports that speak `http`, `http2`, `grpc`, or `auto` where it turns out so, to the service by its name or VIP: who calls the address of an endpoint means that "
    "endpoint. With `redirect` or `respond` a request is answered by the caller's proxy, and nothing but `fault` may stand "
    "beside it. Where `to` or `mirror` name another service, the callers' `[outbound]` must allow it as well, and it judges "
    "the caller as if it had been called; its port of the same number is called, else its only one (neither: 503, `no-route`). "
    "A host may say so of services only whose units it may run (`hostmesh controller grant`).",
    (
        Key("name", "word", "file:line", "In journals and `explain`.", 'name = "canary"'),
        Key("match", "table", "every request", "See `[traffic.route.match]`.", 'match = { path = "/products/{id}" }'),
        Key("to", "service, or table of service = weight", "the service itself",
            "Where requests go; with weights, each to one of them by chance.", "to = { inventory-v2 = 10, inventory = 90 }"),
        Key("sticky", '"cookie:NAME", "header:NAME" or "source"', "by chance",
            "The same value, the same choice among the weights; without the value by chance. `source`: the caller's address.",
            'sticky = "cookie:session"'),
        Key("timeout", "duration", "the service's", "For a whole request, all tries together.", 'timeout = "2s"'),
        Key("retries", "table", "the service's", "As `[traffic.retries]`.", "retries = { attempts = 2 }"),
        Key("hedge", "table", "the service's", "As `[traffic.hedge]`.", 'hedge = { after = "50ms" }'),
        Key("rewrite", "table", "as it came", "See `[traffic.route.rewrite]`.", 'rewrite = { path = "/v2/{id}" }'),
        Key("request_headers", "table", "as they came", "See `[traffic.route.request_headers]`.",
            'request_headers = { set = { x-version = "2" } }'),
        Key("response_headers", "table", "as they came", "The same for responses.",
            'response_headers = { remove = ["server"] }'),
        Key("mirror", "table", "no copies", "See `[traffic.route.mirror]`.", 'mirror = { to = "inventory-v3", percent = 5 }'),
        Key("redirect", "table", "no", "See `[traffic.route.redirect]`.", 'redirect = { to = "https://shop.example.org/p/{id}" }'),
        Key("respond", "table", "no", "See `[traffic.route.respond]`.", 'respond = { status = 503, body = "closed" }'),
        Key("fault", "table", "no", "See `[traffic.route.fault]`.", 'fault = { abort = 503, abort_percent = 5 }'),
    ),
)

ROUTE_MATCH = Table(
    "traffic.route.match", "What of a request must fit: all that is given.",
    (
        Key("path", "path", "every path",
            "`/products/7`, `/products/*` (what begins so), or `/products/{id}`, where a variable is one segment. Compared in one "
            "normal form; a path that has none is answered with 400 where all else of the route fits.",
            'path = "/products/{id}"'),
        Key("methods", "list of HTTP methods", "every method", "Exactly as on the wire, in capitals.", 'methods = ["GET"]'),
        Key("headers", "table of header = value", "any",
            'Each header must be there once, with this value; `"*"`: it is there.', 'headers = { x-canary = "1" }'),
        Key("query", "table of parameter = value", "any", "The same of the query's parameters, decoded.", 'query = { v = "2" }'),
        Key("sni", "server name", "the route is for requests",
            "The route is for connections of TLS on ports that speak `tls` or `auto`, by the server that their client asks for: a name, "
            "`*.example.org` (one label or more before it) or `*` (any name). Beside it stand `name`, `to` and `sticky = \"source\"` only. The "
            "TLS is passed through as it is: certificates are the applications' own.", 'sni = "a.example.org"'),
    ),
)

ROUTE_REWRITE = Table(
    "traffic.route.rewrite", "Under what a request is asked for. The rewritten request is what the called unit's rules judge.",
    (
        Key("path", "path", "as it came",
            "With the variables of the match; `*` for what its `*` stands for. The query stays.", 'path = "/v2/{id}"'),
        Key("host", "host", "as it came", "The value of `Host`.", 'host = "inventory-v2"'),
    ),
)

ROUTE_HEADERS = Table(
    "traffic.route.request_headers",
    "What is done to headers. Those that frame or route a message, or that only the mesh may say, can't be touched.",
    (
        Key("set", "table of header = value", "nothing", "In place of all of this name.", 'set = { x-version = "2" }'),
        Key("add", "table of header = value", "nothing", "Behind those that are there.", 'add = { x-via = "canary" }'),
        Key("remove", "list of headers", "nothing", "All of this name.", 'remove = ["x-debug"]'),
    ),
)

ROUTE_MIRROR = Table(
    "traffic.route.mirror",
    "A copy goes to another service, and its answer is thrown away: nobody waits for it. Requests with bodies of more than "
    "64 KiB, and those that ask for another protocol, have no copy; the other service's port speaks `http`, `http2` or "
    "`grpc`, whatever the caller does.",
    (
        Key("to", "service", "must be given", "Who gets the copies.", 'to = "inventory-v3"'),
        Key("percent", "0..100", "100", "Of how many requests.", "percent = 5"),
        Key("max_pending", "1..10000", "64", "Copies under way at once, to one service, of all workers of a proxy; more are left out.", "max_pending = 64"),
    ),
)

ROUTE_REDIRECT = Table(
    "traffic.route.redirect", "Answered with another place to ask.",
    (
        Key("to", "path or URL", "must be given", "With variables and `*` in its path, as in `rewrite`. The query stays.",
            'to = "https://shop.example.org/p/{id}"'),
        Key("status", "301, 302, 303, 307 or 308", "302", "The answer's status.", "status = 308"),
    ),
)

ROUTE_RESPOND = Table(
    "traffic.route.respond", "Answered by the caller's proxy.",
    (
        Key("status", "200..599", "200", "The answer's status.", "status = 503"),
        Key("body", "text", "none", "At most 4096 bytes.", 'body = "closed"'),
        Key("headers", "table of header = value", "none", "The answer's headers.", 'headers = { retry-after = "60" }'),
    ),
)

ROUTE_FAULT = Table(
    "traffic.route.fault", "Trouble on purpose, to see what callers make of it.",
    (
        Key("delay", "duration", "none", "Held back for so long; it counts towards `timeout`. At most an hour.", 'delay = "2s"'),
        Key("delay_percent", "0..100", "100", "How many are held back.", "delay_percent = 10"),
        Key("abort", "400..599", "none", "Answered with this status.", "abort = 503"),
        Key("abort_percent", "0..100", "100", "How many are.", "abort_percent = 0.5"),
    ),
)

ROUTE_TABLES = (
    ROUTE, ROUTE_MATCH, ROUTE_REWRITE, ROUTE_HEADERS, ROUTE_MIRROR, ROUTE_REDIRECT, ROUTE_RESPOND, ROUTE_FAULT,
)
