"""How pictures look: one style, colours by codec, labels at the curves; SVG and PNG of each."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from bench.published import PUBLISHED

OURS = "#d62728"
COLOURS = {
    "jpeg": "#8c6d31",
    "jpeg444": "#c7a252",
    "jpeg2000": "#7f7f7f",
    "webp": "#2ca02c",
    "jpegxl": "#1f77b4",
    "avif": "#9467bd",
    "bpg": "#17becf",
    "png": "#8c6d31",
}
STYLE: Any = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e5e5e5",
    "axes.axisbelow": True,
    "svg.hashsalt": "diffcodec",  # the same picture, the same bytes
    "svg.fonttype": "path",
}
LABEL_GAP = 0.045  # between labels at curves, of the axes' height
EDGE = 0.8  # of the axes' width: labels right of it may meet
PUBLISHED_LINES = ("--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)))


def colour(name: str) -> str:
    """The colour of a codec, by the name of its results."""
    if name.startswith("diffcodec"):
        return OURS
    if name.startswith("jpegxl"):
        return COLOURS["jpegxl"]
    return COLOURS.get(name, "#444444")


def figure(width: float, height: float, columns: int = 1, **options: Any) -> tuple[Figure, Any]:
    """A figure in the style, and its axes."""
    with mpl.rc_context(STYLE):
        return plt.subplots(1, columns, figsize=(width, height), layout="constrained", **options)


def save(drawn: Figure, folder: Path, name: str) -> str:
    """Save a figure as SVG and PNG; returns the name."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn.savefig(folder / f"{name}.svg", metadata={"Date": None})
    drawn.savefig(folder / f"{name}.png", dpi=150)
    plt.close(drawn)
    return name


def label_curves(axes: Axes, labels: Sequence[tuple[float, float, str, str]]) -> None:
    """Texts right of points (x, y, text, colour) in data units; at the right edge pushed apart.

    Those of published curves stand left of their points.
    """
    axes.figure.canvas.draw()
    transform = axes.transAxes.inverted()
    placed: list[tuple[float, float, str, str]] = []
    for x, y, text, shade in labels:
        a, b = transform.transform(axes.transData.transform((x, y)))
        placed.append((min(float(a), 1.0), float(b), text, shade))
    placed.sort(key=lambda item: item[1])
    edge = [item for item in placed if item[0] > EDGE and not item[2].endswith(PUBLISHED)]
    heights = dict(zip(edge, spread([item[1] for item in edge]), strict=True))
    for item in placed:
        x, y, text, shade = item
        left = text.endswith(PUBLISHED)
        axes.annotate(
            text,
            (x, heights.get(item, y)),
            (-6, 3) if left else (5, 0),
            ha="right" if left else "left",
            xycoords="axes fraction",
            textcoords="offset points",
            color=shade,
            va="center",
            fontsize=9,
            annotation_clip=False,
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
        )


def spread(heights: Sequence[float]) -> list[float]:
    """Rising heights moved as little as leaves ``LABEL_GAP`` between them."""
    groups: list[list[float]] = []  # of neighbours that touch, each around its mean
    for height in heights:
        groups.append([height])
        while len(groups) > 1 and _bottom(groups[-1]) < _bottom(groups[-2]) + LABEL_GAP * len(
            groups[-2]
        ):
            groups[-2:] = [groups[-2] + groups[-1]]
    return [_bottom(group) + LABEL_GAP * i for group in groups for i in range(len(group))]


def _bottom(group: Sequence[float]) -> float:
    return float(np.mean(group)) - LABEL_GAP * (len(group) - 1) / 2


def plain_ticks(axis: Axis, steps: Sequence[float] = (1, 2, 5)) -> None:
    """Give a logarithmic axis ticks that are plain numbers."""
    axis.set_major_locator(LogLocator(subs=steps))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def bars(
    axes: Axes, values: Mapping[str, tuple[float, float, float]], shades: Sequence[str]
) -> None:
    """Horizontal bars with intervals (mean, low, high) and their numbers, first on top."""
    names = list(values)
    means = [values[name][0] for name in names]
    errors = np.nan_to_num([(m - low, high - m) for m, low, high in values.values()]).T
    places = range(len(names), 0, -1)
    axes.barh(places, means, color=shades, height=0.65)
    axes.errorbar(means, places, xerr=errors, fmt="none", ecolor="#333333", elinewidth=1)
    for place, mean, (_, above) in zip(places, means, errors.T, strict=True):
        axes.annotate(
            f"{mean:.3f}", (mean + above, place), (4, 0), textcoords="offset points", va="center"
        )
    axes.set_yticks(list(places), names)
    axes.grid(axis="y", visible=False)
    axes.margins(x=0.12)
