"""What an operator is told on a host: by `hostmesh status`, in the journal, by /metrics; each waited for."""

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from tests.lab.host import Host
from tests.lab.waiting import wait_until
from tests.mesh.world import World

SOON = 15.0


def samples(host: Host, name: str, **labels: str) -> list[Sample]:
    """What Prometheus would scrape of a metric on the host, with these labels and any others."""
    text = host.exec(["curl", "-sS", "--max-time", "5", "http://127.0.0.1:15020/metrics"]).must().stdout
    found = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return [sample for sample in found if sample.name == name and labels.items() <= sample.labels.items()]


def total(host: Host, name: str, **labels: str) -> float:
    """Their sum; 0 where there are none."""
    return sum(sample.value for sample in samples(host, name, **labels))


def metric(host: Host, name: str) -> float:
    """A metric without labels."""
    [sample] = samples(host, name)
    return float(sample.value)


def wait_metric(host: Host, name: str, value: float, timeout: float = SOON) -> None:
    """Wait until the metric has the value."""
    wait_until(lambda: metric(host, name) == value, f"{host.name}: {name} is {value:g}", timeout, 0.2)


def wait_above(host: Host, name: str, value: float, timeout: float = SOON) -> None:
    """Wait until the metric is above the value."""
    wait_until(lambda: metric(host, name) > value, f"{host.name}: {name} is above {value:g}", timeout, 0.2)


def in_status(w: World, host: Host, *words: str, timeout: float = SOON) -> str:
    """The line of `hostmesh status` (trouble or note) with all these words."""

    def found() -> str | None:
        said = w.status(host)
        controller, proxy = said["controller"]["error"], said["proxy"]["error"]
        findings = [f"{one['message']} {one['hint']}" for one in said["findings"]]
        lines = [*said["notes"], *said["failures"], *findings, controller, proxy]
        return next((line for line in lines if all(word in line for word in words)), None)

    return wait_until(found, f"{host.name}: status says {words}", timeout, 0.2)


def not_in_status(w: World, host: Host, *words: str, timeout: float = SOON) -> None:
    """Wait until nothing of `hostmesh status` says so any more."""

    def gone() -> bool:
        said = str(w.status(host))
        return not all(word in said for word in words)

    wait_until(gone, f"{host.name}: status says no longer {words}", timeout, 0.2)


def in_journal(host: Host, cursor: str, *words: str, timeout: float = SOON) -> str:
    """The message since ``cursor`` with all these words."""

    def found() -> str | None:
        lines = [str(entry.get("MESSAGE")) for entry in host.journal(after=cursor)]
        return next((line for line in lines if all(word in line for word in words)), None)

    return wait_until(found, f"{host.name}: the journal says {words}", timeout, 0.2)
