# ruff: noqa: E501  -- a table of sentences
"""Holds every key of a policy file: what `validate.py` accepts and what `docs/policy.md` tells are this one table."""

from hostmesh.policy.keys import Key, Table
from hostmesh.policy.schema_routes import ROUTE_TABLES

# fmt: off
_PORTS = Key("ports", "list of ports", "every port of the unit", "The unit's ports for which the rule counts.", "ports = [8080]")
_METHODS = Key(
    "methods", "list of HTTP methods", "every method",
    "Exactly as on the wire, in capitals. Only for ports that speak `http`, `http2` or `grpc`, or are `auto`.", 'methods = ["GET", "HEAD"]',
)
_PATHS = Key(
    "paths", "list of paths", "every path",
    "`/products/*` fits what begins with `/products/`; without a `*` the whole path must be equal; `*` stands at the end only. "
    "Of gRPC: `/package.Service/Method`. Compared in one normal form; where a rule with `paths` applies, a path that has none is answered with 400.",
    'paths = ["/products/*"]',
)
_HEADERS = Key(
    "headers", "table of header = value", "any",
    "Each header must be there with exactly this value.", 'headers = { x-tenant = "blue" }',
)
_FROM = Key(
    "from", "list of callers", "must be given",
    "Unit names (`orders`), globs of them (`legacy-*`), or SPIFFE IDs, whose path may hold globs. `*` stands for any run of "
    "characters; `\"*\"` alone for every unit of the mesh.",
    'from = ["orders", "spiffe://other.example/unit/*"]',
)
_JWT = Key(
    "jwt", "table", "any request",
    "The request must bring a good token that says this; see `[jwt]`. Whoever lacks nothing but that is answered 401.",
    'jwt = { claims = { role = "buyer" } }',
)
_AUDIT = Key(
    "audit", "true or false", "false",
    "`true`: the rule is not in force. What it would have decided otherwise is recorded (`audit-deny`, `audit-allow`) and "
    "counted under its name.",
    "audit = true",
)

ROOT = Table(
    "", "Every table may be left out.",
    (
        Key("service", "table", "the unit serves nothing", "What the unit serves.", "[service]"),
        Key("inbound", "table", "nobody may call", "Who may call the unit.", "[inbound]"),
        Key("traffic", "table", "no time limit, no retries", "How callers behave; belongs to the service's owner.", "[traffic]"),
        Key("outbound", "table", "the unit may call everything", "What the unit may call.", "[outbound]"),
        Key("observe", "table", "errors only, 1 % of traces", "What is recorded.", "[observe]"),
    ),
)

SERVICE = Table(
    "service", "What the unit serves, and by which name callers find it.",
    (
        Key("name", "service name", "the unit's name, made a DNS label",
            "Meshed callers say `http://NAME/` or `NAME.mesh`. One DNS label.", 'name = "inventory"'),
        Key("ports", "table of port = protocol", "no ports", "See `[service.ports]`.", "[service.ports]"),
    ),
)

PORTS = Table(
    "service.ports",
    "The ports on which the unit listens: `PORT = \"PROTOCOL\"`, or `PORT = { protocol = …, client_address = … }`. "
    "Only these can be called through the mesh.",
    (
        Key("protocol", '"http", "http2", "grpc", "tcp", "tls" or "auto"', '"tcp"',
            "What the application speaks. `http` (HTTP/1.1), `http2` and `grpc` are understood: methods, paths, retries, traces; a client may "
            "speak either version, and is translated; upgrades such as WebSocket pass, and from then on only `idle_timeout` counts; CONNECT "
            "is answered with 501, since nobody could judge what it carries: an application that is itself a proxy is `tcp`. `tcp` and "
            "`tls` are carried as bytes; of `tls` the server that a client asks for is read (SNI), for `[[traffic.route]]` and the journal. "
            "`auto`: what each connection tells. Both sides are watched at once, without a timer: a first line of HTTP/1.x or the preface of "
            "HTTP/2 makes it `http` or `http2`, a ClientHello `tls`; anything else, or a server that speaks first, makes it bytes. What may "
            "still become one of these goes on to the application meanwhile. Before anything was told, a failure is a reset.",
            '8080 = "http"'),
        Key("client_address", '"auto", "keep" or "local"', '"auto"',
            "The source address that the application sees: `keep` the client's, `local` loopback. `auto`: keep where the unit "
            "listens beyond loopback.", '5432 = { protocol = "tcp", client_address = "local" }'),
    ),
)

INBOUND = Table(
    "inbound", "Who may call. Without a rule that allows, nobody.",
    (
        Key("mode", '"enforce" or "audit"', '"enforce"',
            "`audit` decides and records, and lets pass what it would have refused; what of it is still open when `enforce` "
            "comes is ended.", 'mode = "audit"'),
        Key("allow", "list of tables", "nobody", "See `[[inbound.allow]]`.", "[[inbound.allow]]"),
        Key("deny", "list of tables", "nothing", "See `[[inbound.deny]]`.", "[[inbound.deny]]"),
        Key("limit", "list of tables", "no limit", "See `[[inbound.limit]]`.", "[[inbound.limit]]"),
        Key("jwt", "list of tables", "no token is believed", "See `[[inbound.jwt]]`.", "[[inbound.jwt]]"),
        Key("authorize", "table", "nobody else is asked", "See `[inbound.authorize]`.", "[inbound.authorize]"),
        Key("plaintext", "list of tables", "nobody", "See `[[inbound.plaintext]]`.", "[[inbound.plaintext]]"),
    ),
)

ALLOW = Table(
    "inbound.allow", "A rule that lets callers in. All keys given must fit; any one rule is enough.",
    (_FROM, _PORTS, _METHODS, _PATHS, _HEADERS, _JWT, _AUDIT),
)

DENY = Table(
    "inbound.deny",
    "A rule that refuses callers. It wins over every `allow`. On a port whose protocol is opaque, conditions on method, path, "
    "headers and token cannot be seen and count as met; the same holds for what speaks no HTTP on a port that is `auto`. One with `jwt` refuses only who brings such a token: it is no way "
    "to ask for one.",
    (_FROM, _PORTS, _METHODS, _PATHS, _HEADERS, _JWT, _AUDIT),
)

LIMIT = Table(
    "inbound.limit",
    "How much of the unit callers may have, of what the rules let in; all limits that fit hold. Counted by the unit's host "
    "for itself: of three hosts that serve it each lets in as much. What is over a limit is refused at once: HTTP with 429, "
    "`x-hostmesh-error: limited` and `retry-after`, gRPC with `RESOURCE_EXHAUSTED`, a TCP connection with a reset; the journal and "
    "`hostmesh_denied_total` name the limit. A saved policy keeps the counts of limits whose callers, ports, methods, paths, headers "
    "and `per` stay. With `mode = \"audit\"` it is recorded only. A path without normal form counts as one that fits.",
    (
        Key("from", "list of callers", "every caller, those without identity too", "As in `[[inbound.allow]]`.", 'from = ["*"]'),
        _PORTS, _METHODS, _PATHS, _HEADERS,
        Key("rate", '"N/s", "N/m" or "N/h"', "any", "So many requests, or connections that bring none, at a steady pace. On a port that is `auto` a connection counts once it has told which.", 'rate = "100/s"'),
        Key("burst", "1..1000000", "those of one second, 1 at least", "So many of them may come at once.", "burst = 200"),
        Key("concurrent", "1..1000000", "any", "So many may be under way: until their answer, or their connection to the application, ends; upgraded connections too.", "concurrent = 50"),
        Key("per", '"caller" or "all"', '"caller"',
            "Whose count: each caller's by its identity (its address, where it has none), or one of all together. 10,000 callers are "
            "told apart; those beyond share one place until others have been quiet.", 'per = "all"'),
    ),
)

TOKEN = Table(
    "jwt",
    "What a rule asks of the request's token, as `jwt = { … }` in `[[inbound.allow]]` and `[[inbound.deny]]`. `jwt = {}`: any "
    "token that is good by `[[inbound.jwt]]`.",
    (
        Key("issuer", "text", "any of the unit's", "Exactly the token's `iss`.", 'issuer = "https://id.example.org"'),
        Key("audience", "text or list", "any of the issuer's", "The token's `aud` must have one of these.",
            'audience = "inventory"'),
        Key("claims", "table of claim = value or values", "any",
            "Each claim must be equal to the value (to one of several), or be a list that has it; of `scope` the words count. "
            "Text, numbers and true or false are never equal to each other. `realm.role` is the claim of that name, else "
            "`role` of the object `realm`.",
            'claims = { role = ["buyer", "admin"], realm.level = 3 }'),
    ),
)

JWT = Table(
    "inbound.jwt",
    "Whose tokens (JSON Web Tokens, RFC 7519) are believed. A token must be signed by a key of the issuer's set, by an "
    "algorithm that this key is for: RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384 or EdDSA; `none` and those with a "
    "shared secret are never believed, nor is any key that a token brings along. It must have `iss`, `aud` and `exp`, each "
    "as written here. Where it is not believed, the answer's `WWW-Authenticate` says why in one word: `malformed`, "
    "`algorithm`, `issuer`, `unknown-key`, `signature`, `expired`, `not-yet-valid` or `audience`.\n\n"
    "The agent reads the set of keys (JWKS, RFC 7517), again when `Cache-Control` says so (after a minute at least, an hour at "
    "most), and at once when a token names a key that is not in it; the request waits for that for a second at most. While "
    "the set cannot be had, the last one stays in force, over restarts too: `hostmesh status` says for how long.",
    (
        Key("issuer", "text", "must be given", "Exactly the token's `iss`. One table an issuer.",
            'issuer = "https://id.example.org"'),
        Key("audience", "text or list", "must be given", "The token's `aud` must have one of these.",
            'audience = ["inventory"]'),
        Key("jwks", "URL or absolute path", "must be given",
            "Where the issuer's public keys are: an `https` URL, checked by the host's own certificates of authorities, or a "
            "file that the agent may read.", 'jwks = "https://id.example.org/keys"'),
        Key("insecure_http", "true or false", "false",
            "Take an `http` URL too: whoever is on the way then decides which tokens are good.", "insecure_http = true"),
        Key("token", '"header:NAME" or "cookie:NAME"', '"header:authorization"',
            "Where the token stands: in `Authorization: Bearer …`, alone in another header, or in a cookie.",
            'token = "header:x-token"'),
        Key("forward", "true or false", "true", "`false`: the application does not get the header in which tokens stand.",
            "forward = false"),
        Key("leeway", "duration", '"60s"', "How far the clocks of issuer and host may be apart.", 'leeway = "10s"'),
        Key("algorithms", "list of algorithms", "RS256; for other keys what their curve says",
            "What keys are for that do not say it themselves (`alg`).", 'algorithms = ["PS256"]'),
        Key("headers", "table of header = claim", "none",
            "Claims of a good token that the application gets, as text; of a list all, with commas between. What a client "
            "sends under these names is always dropped. What no header can hold is left out, and told.",
            'headers = { x-user = "sub" }'),
    ),
)

AUTHORIZE = Table(
    "inbound.authorize",
    "Who else is asked about each request that the rules and limits let pass: a *gatekeeper*, a service of the mesh that speaks "
    "gRPC and the convention of Envoy's `ext_authz` (`envoy.service.auth.v3.Authorization/Check`), such as OPA or Authorino. The unit's "
    "proxy calls it in the unit's name, as the unit would: the gatekeeper must allow the unit in its `[[inbound.allow]]`, its "
    "`[traffic]` counts, and the calls are in both units' metrics, journals and traces.\n\n"
    "It is told the caller (SPIFFE ID and address), the called unit, method, path with query, host and headers, as the application would get "
    "them; not the body. Its yes may set, add and remove headers of the request and of the response; its no is 403, or the "
    "status, headers and body that it names, with `x-hostmesh-error: refused`. An answer that is late, cannot be read, or asks for what "
    "is not done here (headers that frame or route a message or are the mesh's, changes of the query) is no verdict: 503 with "
    "`x-hostmesh-error: no-verdict`, or what `on_error` says; the journal tells why. With `mode = \"audit\"` a no is recorded only. Each try of a request is asked about. "
    "Connections of ports that carry no requests (`tcp`, `tls`) are judged by the rules alone; `auto` ports may not stand beside it. "
    "What was let in before a change of policy is not asked about again.",
    (
        Key("service", "service", "must be given", "The gatekeeper. Where the unit has an `[outbound]`, that must allow it.", 'service = "gatekeeper"'),
        Key("timeout", "duration", "200ms", "For its answer, with the connection to it.", 'timeout = "100ms"'),
        Key("on_error", '"deny" or "allow"', '"deny"',
            "What comes of a request without a verdict. `allow`: it goes on, flagged `no-verdict` in journal and metrics.",
            'on_error = "allow"'),
    ),
)

PLAINTEXT = Table(
    "inbound.plaintext",
    "Callers without identity, named one by one: a scraper, a load balancer. Everything else in plain text is reset.",
    (
        Key("from", "list of networks", "must be given",
            'Addresses or networks in CIDR form, or `"local"`: processes of this host that are not meshed.',
            'from = ["198.51.100.7/32", "local"]'),
        Key("ports", "list of ports", "must be given", "The unit's ports for which the rule counts.", "ports = [8080]"),
        _METHODS, _PATHS,
    ),
)

TRAFFIC = Table(
    "traffic", "How callers treat the service. It travels to every caller at once.",
    (
        Key("timeout", "duration", "no limit", "For a whole request, all tries together.", 'timeout = "10s"'),
        Key("connect_timeout", "duration", "no limit of its own",
            "For a connection to an endpoint; then it is a connect failure.", 'connect_timeout = "2s"'),
        Key("idle_timeout", "duration", "no limit",
            "A request, its tunnel, or a TCP connection in which nothing moves in either direction for so long (a tenth more at "
            "most) is ended.", 'idle_timeout = "5m"'),
        Key("retries", "table", "no retries", "See `[traffic.retries]`.", "retries = { attempts = 3 }"),
        Key("hedge", "table", "one endpoint at a time", "See `[traffic.hedge]`.", 'hedge = { after = "100ms" }'),
        Key("breaker", "table", "no limit, no ejection", "See `[traffic.breaker]`.", "breaker = { consecutive_errors = 5 }"),
        Key("route", "list of tables", "every request to the service itself", "See `[[traffic.route]]`.", "[[traffic.route]]"),
        Key("balance", '"least-request", "round-robin", "ewma" or a table', '"least-request"',
            "How an endpoint is chosen, by each calling host for itself. `least-request`: of two taken by chance the one with "
            "fewer requests in flight. `ewma`: the one whose answers took less time lately (peak EWMA), times its requests in "
            "flight. A table for consistent hashing: see `[traffic.balance]`.", 'balance = "ewma"'),
        Key("prefer", '"any" or "near"', '"any"',
            "`near`: endpoints on the caller's host first, then those in its zone (`zone` in `hostmesh.toml`), then all others, "
            "by the capacity left: near ones carry 1.4 times their healthy share, the rest goes farther. A zone of which a "
            "quarter is gone keeps its callers, one of which half is gone keeps seven in ten.", 'prefer = "near"'),
        Key("slow_start", "duration", "at once",
            "An endpoint that joins others gets its share little by little, over so long. Not with consistent hashing.", 'slow_start = "30s"'),
        Key("panic", "0..1", "0",
            "With a smaller share of healthy endpoints than this all count as healthy, so that the last ones are not overrun. "
            "0: only where none can be reached.", "panic = 0.5"),
    ),
)

BALANCE = Table(
    "traffic.balance",
    "The same value of a request goes to the same endpoint, from every host. When an endpoint leaves, only what it had moves. A "
    "request without the value goes to any.",
    (
        Key("by", '"consistent-hash" or a word of `balance`', "must be given", "How an endpoint is chosen.",
            'by = "consistent-hash"'),
        Key("on", '"header:NAME", "cookie:NAME" or "source"', "must be given for consistent hashing",
            "Whose value counts. `source`: the caller's address, for protocols other than `http` as well.",
            'on = "header:x-user"'),
        Key("bound", "1..100", "no bound",
            "No endpoint has more than so many times the mean of requests in flight; what is over goes to the next one.",
            "bound = 1.25"),
    ),
)

BREAKER = Table(
    "traffic.breaker",
    "When callers leave the service, or one of its endpoints, alone. Each host counts for itself, all its units together. What "
    "is over a limit is answered at once with 503 and `x-hostmesh-error: breaker-open` (TCP: reset), and not tried again. The "
    "breaker counts as open from the first refusal until a second without one; both are told in the caller's journal.",
    (
        Key("max_connections", "1..1000000", "no limit",
            "Connections in use: of TCP, and those that carry a request. A request over it waits for one (as pending), a TCP "
            "connection is refused.", "max_connections = 100"),
        Key("max_pending", "1..1000000", "no limit", "Requests and TCP connections that wait for a connection.",
            "max_pending = 256"),
        Key("max_requests", "1..1000000", "no limit", "HTTP requests under way, those that wait too.", "max_requests = 1000"),
        Key("max_retries", "1..1000000", "no limit", "Retries under way; over it a failure is passed on as it is.",
            "max_retries = 10"),
        Key("consecutive_errors", "1..1000", "no ejection",
            "An endpoint is ejected (gets nothing) after so many failed tries, one after the other: 5xx, what gRPC has for it (`UNAVAILABLE`, `INTERNAL` …), no connection, no answer "
            "in time.", "consecutive_errors = 5"),
        Key("eject", "duration", "30s",
            "For so long; when it fails again soon after its return twice, three times… ten times as long.", 'eject = "30s"'),
        Key("max_ejected", "0..1", "0.5",
            "Of all endpoints at most this share, rounded down, is ejected. At 1 all may be: then callers get 503 with "
            "`x-hostmesh-error: ejected`, or all of them where `panic` says so.", "max_ejected = 0.5"),
    ),
)

RETRIES = Table(
    "traffic.retries",
    "When a request is tried again. Only idempotent methods are (RFC 9110, 9.2.2), and connect failures of any. Where `on` names no "
    "failure to connect (`connect-failure`, `5xx` and `gateway-error` do), or there are no retries, a request for which there was no "
    "connection goes to each other endpoint once.",
    (
        Key("attempts", "1..10", "2", "Tries in all, with the first.", "attempts = 3"),
        Key("per_try_timeout", "duration", "no limit", "For one try.", 'per_try_timeout = "2s"'),
        Key("on", "list of words", '["connect-failure"]',
            "What counts as failed. `5xx`; `gateway-error`: 502, 503, 504; `connect-failure`: nothing reached the application; "
            "`reset`: no answer came, or not in time; `retriable-4xx`: 409, 425, 429. By the status of gRPC: `cancelled`, "
            "`deadline-exceeded`, `internal`, `resource-exhausted`, `unavailable`.", 'on = ["5xx", "connect-failure"]'),
        Key("budget", "0..1", "0.2", "Retries at most this share of requests.", "budget = 0.2"),
        Key("backoff", "duration", "at once, then 25ms",
            "The wait before a retry is by chance, up to this; up to twice as much before each further one. Said by neither key: "
            "the first retry comes at once, the next within 25ms, 50ms … 250ms.",
            'backoff = "25ms"'),
        Key("max_backoff", "duration", "250ms, at least `backoff`", "What the wait grows to.", 'max_backoff = "1s"'),
        Key("non_idempotent", "true or false", "false", "Also retry POST, PATCH and the like.", "non_idempotent = true"),
    ),
)

HEDGE = Table(
    "traffic.hedge",
    "When another endpoint is asked, too: where one was slow, the first response wins, and what the other does is cancelled. "
    "Asked are only endpoints that the request was not sent to, with what is written down of it: a body of at most 64 KiB that "
    "came whole. A hedge counts as a retry does, in the budget of `[traffic.retries]` (without one: 0.2) and `max_retries`.",
    (
        Key("after", "duration", "must be given", "So long after a try began without a response's head, the next one begins.",
            'after = "100ms"'),
        Key("attempts", "2..5", "2", "Tries of one request in all, with the first and with retries.", "attempts = 3"),
        Key("non_idempotent", "true or false", "false",
            "Also hedge POST, PATCH and the like, and with them all of gRPC: what the application does it may do twice.",
            "non_idempotent = true"),
    ),
)

OUTBOUND = Table(
    "outbound",
    "What the unit may call. Without this table it may call what it could before: services of the mesh with mTLS, the rest as "
    "it was.\n\n"
    "Services and networks hold as they are written, networks for all protocols. Names: TCP only, as looked up by the unit "
    "through its own DNS. A name stands for the addresses of the answers that the unit got for it (A and AAAA, through CNAMEs) "
    "from a resolver of the host's `/etc/resolv.conf`, or from one that is listed here as a network; queries to "
    "others are refused, UDP and TCP, and so is what is no DNS query on port 53. It holds for the answer's TTL and a "
    "minute more, a day at most. Refused are thus: an address that was never looked up (one in a configuration file "
    "or in `/etc/hosts`); a program that keeps an address for longer, such as one that looks up only when it starts; "
    "and, after the proxy was restarted (not reloaded), an address that is not looked up again. List the network for these. Two"
    " names that share an address are one: the port, not the name in the request, is what is judged. UDP, QUIC too, "
    "needs a network.",
    (
        Key("allow", "list of destinations", "must be given",
            "Services (`db`), host names (`api.example.org`), addresses and networks (`198.51.100.0/24`), each with `:PORT` if "
            "only one port is meant. Names: TCP only, as looked up. Everything else is refused. An empty list refuses "
            "everything.",
            'allow = ["db", "api.example.org:443", "[2001:db8::1]:443"]'),
    ),
)

OBSERVE = Table(
    "observe", "What is recorded of the unit's traffic.",
    (
        Key("access_log", '"all", "errors" or "none"', '"errors"', "Which requests get a line in the unit's journal.",
            'access_log = "all"'),
        Key("trace", "0..1 or table", "0.01",
            "The share of the traces begun here that is recorded, where `[traces]` of `hostmesh.toml` names a collector; for "
            "others their beginner decided. Or a table, see `[observe.trace]`.", "trace = 1"),
    ),
)

TRACE = Table(
    "observe.trace", "Which traces are recorded.",
    (
        Key("share", "0..1", "0.01", "The share of the traces that are begun here.", "share = 0.01"),
        Key("errors", "true or false", "false",
            "Record what fails, whoever began the trace and whatever he decided: the request or connection and its tries, as this "
            "unit's proxy saw them. Nobody can be asked afterwards for what went well elsewhere, so such a trace has those "
            "hops only that saw a failure and have `errors` too.", "errors = true"),
    ),
)

TABLES = (
    ROOT, SERVICE, PORTS, INBOUND, ALLOW, DENY, LIMIT, JWT, TOKEN, AUTHORIZE, PLAINTEXT, TRAFFIC, BALANCE, BREAKER, RETRIES, HEDGE,
    *ROUTE_TABLES, OUTBOUND, OBSERVE, TRACE,
)
