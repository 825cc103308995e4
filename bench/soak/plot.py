"""Turns the samples of a soak into a picture: what must stay flat, over the time of the load."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from bench.soak.verdict import Sample

PANELS = {
    "resident memory, MB": " rss_mb",
    "descriptors": " fds",
    "sockets and ports in use": (" ports", " time_wait", " established", " half_open"),
    "load: requests/s, connections made/s": ("rate", "fresh"),
    "times at the busy connections, ms": ("p50", "p99"),
    "errors, conntrack entries": ("errors", " conntrack"),
}


def draw(samples: Sequence[Sample], warm_up: float, path: Path) -> None:
    """Writes an SVG, the same bytes for the same samples; what is before the warm-up's end is not judged."""
    picture = Figure(figsize=(10, 2.2 * len(PANELS)), layout="constrained")
    minutes = [sample["at"] / 60 for sample in samples]
    for panel, (title, endings) in zip(picture.subplots(len(PANELS), 1, sharex=True), PANELS.items(), strict=True):
        names = [name for name in samples[0] if name.endswith(endings)]
        for name in names:
            label = name.removesuffix(endings) if isinstance(endings, str) else name
            panel.plot(minutes, [sample[name] for sample in samples], label=label, linewidth=1)
        panel.axvspan(0, warm_up / 60, color="0.93")
        panel.set_title(title, loc="left", fontsize=9)
        panel.set_ylim(bottom=0)
        panel.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
        panel.tick_params(labelsize=8)
    panel.set_xlabel("minutes", fontsize=8)
    with mpl.rc_context({"svg.hashsalt": "hostmesh"}):
        picture.savefig(path, format="svg", metadata={"Date": None})
