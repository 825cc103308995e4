"""Turns an expression of Prometheus into the names and labels that it asks for, as far as ours go."""

import re

_METRIC = re.compile(r"\bhostmesh_[a-z0-9_]+")
_MATCHERS = re.compile(r"\{([^{}]*)\}")
_MATCHER = re.compile(r'([a-z_]+)\s*(?:=~|!~|!=|=)\s*"')
_GROUPED = re.compile(r"\b(?:by|without|on)\s*\(([^()]*)\)")
FROM_PROMETHEUS = frozenset({"instance", "job"})


def metrics(text: str) -> set[str]:
    """Names of ours; recorded ones are not, they have colons."""
    return {found.group() for found in _METRIC.finditer(text) if text[max(found.start() - 1, 0)] != ":"}


def labels(text: str) -> set[str]:
    """Labels that are matched or grouped by, without those that Prometheus itself gives."""
    matched = {name for inside in _MATCHERS.findall(text) for name in _MATCHER.findall(inside)}
    grouped = {name.strip() for inside in _GROUPED.findall(text) for name in inside.split(",")}
    return (matched | grouped) - FROM_PROMETHEUS - {""}
