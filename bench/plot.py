"""Turns a bench's figures into a picture: one panel a load, a bar a contender, its spread as a line."""

from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure as Picture

from bench.loads import LOADS
from bench.report import COLUMNS, figures
from bench.rounds import Samples

SHOWN = {"top": "rps", "open1000": "p99", "open3200": "p99", "newconn": "rps", "bulk": "gbit", "same-host": "rps"}


def draw(samples: Samples, path: Path) -> None:
    """Writes an SVG, the same bytes for the same figures."""
    told = figures(samples)
    picture = Picture(figsize=(10, 1.6 * len(told) + 0.6), layout="constrained")
    for panel, (load, of) in zip(picture.subplots(len(told), 1, squeeze=False)[:, 0], told.items(), strict=True):
        names, column = list(reversed(of)), SHOWN[load]
        medians = [of[name][column].median for name in names]
        low = [of[name][column].median - of[name][column].low for name in names]
        high = [of[name][column].high - of[name][column].median for name in names]
        colours = ["tab:orange" if name == "hostmesh" else "tab:gray" for name in names]
        panel.barh(names, medians, xerr=[low, high], color=colours, capsize=3)
        panel.set_title(f"{LOADS[load].title}: {COLUMNS[column][0]}", loc="left", fontsize=9)
        panel.tick_params(labelsize=8)
    with mpl.rc_context({"svg.hashsalt": "hostmesh"}):
        picture.savefig(path, format="svg", metadata={"Date": None})
