"""Turns what the proxy counts of breakers, ejections and retry budgets into metrics, by service."""

from collections.abc import Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from hostmesh.wire.proxy_control import Circuit

_ONE = ("service",)
_EACH = ("service", "resource")


def breakers(circuits: Mapping[str, Circuit]) -> Iterator[Metric]:
    """All families; a service has those whose words its policy says."""
    families: tuple[tuple[str, str, type[GaugeMetricFamily | CounterMetricFamily]], ...] = (
        ("limits", "limit", GaugeMetricFamily),
        ("in_use", "in_use", GaugeMetricFamily),
        ("open", "open", GaugeMetricFamily),
        ("refused", "refused", CounterMetricFamily),
    )
    for field, name, family in families:
        metric = family(f"hostmesh_breaker_{name}", _HELP[name], labels=_EACH)
        for service, circuit in sorted(circuits.items()):
            for resource, value in sorted(getattr(circuit, field).items()):
                metric.add_metric((service, resource), value)
        yield metric
    ejected = GaugeMetricFamily("hostmesh_endpoints_ejected", "Endpoints that callers of this host avoid", labels=_ONE)
    ejections = CounterMetricFamily("hostmesh_ejections", "Endpoints ejected so far, each time counted", labels=_ONE)
    unpaid = CounterMetricFamily("hostmesh_retry_budget_spent", "Retries that the budget did not pay for", labels=_ONE)
    for service, circuit in sorted(circuits.items()):
        ejected.add_metric((service,), circuit.ejected)
        ejections.add_metric((service,), circuit.ejections)
        unpaid.add_metric((service,), circuit.unpaid)
    yield from (ejected, ejections, unpaid)


_HELP = {
    "limit": "How much of a service the callers of this host may use at once",
    "in_use": "How much they use",
    "open": "1 while what is over the limit is refused",
    "refused": "Requests, connections and retries refused for want of room",
}
