"""Rules and dashboard of `observability/`: sound, tested, and of metrics and labels that there are."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from hostmesh.observe.metrics import AGENT_HELP, PROXY_HELP, MeshCollector, Observed
from hostmesh.wire.proxy_control import Circuit, Stats, TrafficCount
from tests.lab.prometheus import promtool
from tests.lab.promql import labels, metrics

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "observability"
TRAFFIC = TrafficCount("a.service", "outbound", "p", "s", 1, "http", "2xx", 1, 1, 1, 1, 1, [1, 0])
STATS = Stats(
    id=1,
    bounds_us=[1000],
    traffic=[TRAFFIC],
    denied={"f:1": 1},
    gauges=dict.fromkeys(PROXY_HELP, 1),
    tls_failures={"server": {"expired": 1}},
    traces_dropped={"timeout": 1},
    circuits={"s": Circuit({"pending": 1}, {"pending": 1}, {"pending": 0}, {"pending": 1}, 1, 1, 1)},
    flags={"a.service": {"s": {"timeout": 1}}},
)
COUNTERS = {"reconciles", "journal_lost", "journal_suppressed", "nflog_lost", "events_dropped"}
EVERYTHING = Observed(
    "1",
    STATS,
    kernel={("a.service", "f:1"): 1},
    svids={"a.service": 1},
    key_sets={"https://id": (1.0, 1)},
    agent=dict.fromkeys(AGENT_HELP.keys() - COUNTERS, 1.0),
    counters=dict.fromkeys(COUNTERS, 1.0),
)
SHOWN = {
    sample.name: set(sample.labels)
    for family in MeshCollector(lambda: EVERYTHING).collect()
    for sample in family.samples
}


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((FOLDER / "rules.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def panels() -> list[tuple[str, str, str]]:
    """Title, expression and legend."""
    board = json.loads((FOLDER / "dashboard.json").read_text())
    found = [(panel["title"], target) for panel in board["panels"] for target in panel.get("targets", [])]
    return [(title, target["expr"], target["legendFormat"]) for title, target in found]


def asked() -> list[tuple[str, str]]:
    """Where something is asked of Prometheus, and what."""
    of_rules = [(rule.get("alert") or rule["record"], rule["expr"]) for rule in rules()]
    board = json.loads((FOLDER / "dashboard.json").read_text())
    variables = [(one["name"], one["definition"]) for one in board["templating"]["list"] if one["type"] == "query"]
    return of_rules + [(title, expression) for title, expression, _ in panels()] + variables


def test_promtool_finds_no_fault_with_the_rules_nor_their_tests_with_what_they_do() -> None:
    promtool("check", "rules", "--lint=all", "--lint-fatal", str(FOLDER / "rules.yml"))
    promtool("test", "rules", str(FOLDER / "rules.test.yml"))
    promtool("check", "config", "--syntax-only", str(FOLDER / "prometheus.yml"))


def test_each_expression_of_the_dashboard_parses(tmp_path: Path) -> None:
    made = [
        {"record": f"panel:{number}", "expr": re.sub(r"\[\$__rate_interval\]", "[5m]", expression)}
        for number, (_, expression, _) in enumerate(panels())
    ]
    file = tmp_path / "panels.yml"
    file.write_text(json.dumps({"groups": [{"name": "panels", "rules": made}]}))
    assert f"{len(made)} rules found" in promtool("check", "rules", str(file))


@pytest.mark.parametrize(("place", "expression"), asked(), ids=lambda one: one[:40])
def test_what_is_asked_for_is_there(place: str, expression: str) -> None:
    used = metrics(expression)
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    assert used | set(re.findall(r"\b[a-z]+:[a-z0-9_:]+", expression)) & recorded or "up{" in expression, place
    assert used <= SHOWN.keys(), place
    there = {label for name in used for label in SHOWN[name]}
    wanted = labels(expression) | ({"destination"} if "destination)" in expression else set())
    assert wanted <= there or not used, f"{place}: {wanted - there}"


def test_what_a_legend_or_a_summary_names_its_expression_has() -> None:
    for title, expression, legend in panels():
        names = set(re.findall(r"\{\{(\w+)\}\}", legend)) - {"instance"}
        there = {label for name in metrics(expression) for label in SHOWN[name]}
        assert names <= there, title
    assert any("{{flag}}" in legend for _, _, legend in panels())


def test_each_alert_is_tested_and_has_its_line_for_operators() -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    tests = yaml.safe_load((FOLDER / "rules.test.yml").read_text())["tests"]
    cases = [case for test in tests for case in test.get("alert_rule_test", [])]
    fired = {case["alertname"] for case in cases if case["exp_alerts"]}
    silent = {case["alertname"] for case in cases if not case["exp_alerts"]}
    for rule in rules():
        if name := rule.get("alert"):
            assert name in fired and name in silent, f"{name}: when it fires, and when it does not"
            assert f"`{name}`" in page and rule["annotations"]["runbook"] == f"docs/operations.md, {name}"
