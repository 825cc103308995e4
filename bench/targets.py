"""Turns samples into the ratios that the project has promised itself, and says which of them are kept.

A ratio is taken round by round (what was measured within seconds of each other), then the median of the rounds is.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from bench.contenders import BEFORE, OURS
from bench.loads import Figures
from bench.rounds import Figure, Samples


@dataclass(frozen=True)
class Target:
    """What `latest.json` calls it, and the three marks: proof, traffic, goal. ``higher``: more is better."""

    key: str
    title: str
    marks: tuple[float, float, float]
    higher: bool = True

    def reached(self, value: float) -> list[bool]:
        """Which marks a value reaches."""
        return [value >= mark if self.higher else value <= mark for mark in self.marks]


TARGETS = (
    Target("rps_vs_direct", "highest RPS against direct", (0.22, 0.35, 0.45)),
    Target("rps_vs_envoy_l7", "highest RPS against Envoy L7", (2.5, 4, 5)),
    Target("rps_vs_haproxy_l7", "highest RPS against HAProxy L7", (1.0, 1.6, 2)),
    Target("cpu_vs_envoy_l7", "CPU a request (x app) against Envoy L7, at the top", (0.35, 0.2, 0.15), higher=False),
    Target("cpu_3200_vs_envoy_l7", "the same at 3,200 RPS", (0.45, 0.35, 0.25), higher=False),
    Target("added_p50_3200_vs_envoy_l7", "added p50 at 3,200 RPS against Envoy L7", (0.4, 0.28, 0.2), higher=False),
    Target("p99_3200_vs_envoy_l7", "p99 at 3,200 RPS against Envoy L7", (0.5, 0.3, 0.2), higher=False),
    Target("newconn_vs_envoy_l7", "a connection a request against Envoy L7", (1.2, 1.6, 2)),
    Target("bulk_vs_direct", "bulk, one stream, against direct", (0.2, 0.3, 0.4)),
    Target("same_host_l7_vs_direct", "same host, L7 policy, RPS against direct", (0.35, 0.45, 0.5)),
)
MEMORY_TARGETS = (
    Target("proxy_idle", "MB of the proxy, idle", (20, 15, 10), higher=False),
    Target("proxy_1000_conns", "MB of the proxy, 1,000 open connections", (40, 25, 20), higher=False),
    Target("proxy_1000_units", "MB of the proxy, 1,000 units", (60, 40, 25), higher=False),
    Target("agent_100_units", "MB of the agent, 100 units", (80, 70, 50), higher=False),
)
# what the same is by the proxies' own time: under hostmesh the application takes less, which "x app" counts against it
BY_TIME = {
    "cpu_us_vs_envoy_l7": "CPU a request (us) against Envoy L7, at the top",
    "cpu_us_3200_vs_envoy_l7": "the same at 3,200 RPS",
}
FLOORS = (
    Target("rps_vs_haproxy_l7", "highest RPS against HAProxy L7", (1.0, 1.0, 1.0)),
    Target("cpu_vs_haproxy_l7", "CPU a request (x app) against HAProxy L7", (1.0, 1.0, 1.0), higher=False),
)


def _over(figure: str) -> Callable[[Figures, Figures, Figures], float]:
    return lambda ours, theirs, _: ours[figure] / theirs[figure]


def _added(ours: Figures, theirs: Figures, direct: Figures) -> float:
    return (ours["p50"] - direct["p50"]) / (theirs["p50"] - direct["p50"])


# of this checkout against another one: key, what it is, load, figure; what the application takes may differ as well
CHANGES = {
    "rps_vs_before": ("highest RPS", "top", "rps"),
    "cpu_vs_before": ("CPU a request (x app), at the top", "top", "x_app"),
    "cpu_us_vs_before": ("CPU a request (us), at the top", "top", "proxy_cpu_us"),
    "rps_same_host_vs_before": ("highest RPS, same host", "same-host", "rps"),
    "cpu_same_host_vs_before": ("CPU a request (x app), same host", "same-host", "x_app"),
    "cpu_us_same_host_vs_before": ("CPU a request (us), same host", "same-host", "proxy_cpu_us"),
    "cpu_3200_vs_before": ("CPU a request (x app) at 3,200 RPS", "open3200", "x_app"),
    "newconn_vs_before": ("a connection a request, RPS", "newconn", "rps"),
    "cpu_newconn_vs_before": ("a connection a request, CPU (x app)", "newconn", "x_app"),
    "cpu_us_newconn_vs_before": ("a connection a request, CPU (us)", "newconn", "proxy_cpu_us"),
    "bulk_vs_before": ("bulk, one stream", "bulk", "gbit"),
}

# key: load, peer, ratio(ours, theirs, direct) of one round
_RATIOS: dict[str, tuple[str, str, Callable[[Figures, Figures, Figures], float]]] = {
    "rps_vs_direct": ("top", "direct", _over("rps")),
    "rps_vs_envoy_l7": ("top", "envoy-l7", _over("rps")),
    "rps_vs_haproxy_l7": ("top", "haproxy", _over("rps")),
    "cpu_vs_envoy_l7": ("top", "envoy-l7", _over("x_app")),
    "cpu_vs_haproxy_l7": ("top", "haproxy", _over("x_app")),
    "cpu_3200_vs_envoy_l7": ("open3200", "envoy-l7", _over("x_app")),
    "cpu_3200_vs_haproxy_l7": ("open3200", "haproxy", _over("x_app")),
    "cpu_us_vs_envoy_l7": ("top", "envoy-l7", _over("proxy_cpu_us")),
    "cpu_us_3200_vs_envoy_l7": ("open3200", "envoy-l7", _over("proxy_cpu_us")),
    "added_p50_3200_vs_envoy_l7": ("open3200", "envoy-l7", _added),
    "p99_3200_vs_envoy_l7": ("open3200", "envoy-l7", _over("p99")),
    "newconn_vs_envoy_l7": ("newconn", "envoy-l7", _over("rps")),
    "bulk_vs_direct": ("bulk", "direct", _over("gbit")),
    "same_host_l7_vs_direct": ("same-host", "direct", _over("rps")),
    **{key: (load, BEFORE, _over(figure)) for key, (_, load, figure) in CHANGES.items()},
}


def ratios(samples: Samples) -> dict[str, Figure]:
    """Every ratio that these samples can tell."""
    told = {}
    for key, (load, peer, ratio) in _RATIOS.items():
        seen = samples.get(load, {})
        wanted = {OURS, peer} | ({"direct"} if ratio is _added else set())
        if wanted <= seen.keys() and seen[OURS]:
            direct = seen.get("direct", seen[peer])
            told[key] = Figure.of([ratio(*three) for three in zip(seen[OURS], seen[peer], direct, strict=True)])
    return told


# key of `rss_mb`: name of what was measured
_MEMORY = {
    "proxy_idle": "hostmesh idle",
    "proxy_1000_conns": "hostmesh 1000 connections",
    "proxy_1000_units": "hostmesh-proxy 1000 units",
    "agent_100_units": "hostmeshd 100 units",
}


def memory(seen: Mapping[str, Figure]) -> dict[str, Figure]:
    """What was promised of memory, of what was measured; the larger of two hosts counts."""
    return {key: replace(seen[name], median=seen[name].high) for key, name in _MEMORY.items() if name in seen}
