"""The mean of a sample with its 95 % interval."""

import math
from collections.abc import Sequence

import numpy as np

Figure = dict[str, float | None]  # "mean" and "half_width"


def mean_interval(values: Sequence[float]) -> Figure:
    """The mean, and the half-width of its 95 % interval if there are several: 1.96 s / sqrt(n)."""
    half = 1.96 * float(np.std(values, ddof=1)) / math.sqrt(len(values)) if values[1:] else None
    return {"mean": float(np.mean(values)), "half_width": half}


def format_interval(figure: Figure) -> str:
    """The figure for people."""
    half = figure["half_width"]
    return f"{figure['mean']:.4f}" + ("" if half is None else f" +- {half:.4f}")
