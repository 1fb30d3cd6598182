"""Pictures of a run."""

import math
from collections.abc import Sequence
from pathlib import Path


def draw_split(parts_bpd: Sequence[float], levels: Sequence[float], path: Path) -> None:
    """Picture of the bound split by noise level; needs matplotlib (the extra ``train``).

    Args:
        parts_bpd: see :func:`diffcodec.diffusion.bound.chain_bound_bits`.
        levels: of the chain.
        path: of the picture, PNG.

    Raises:
        ImportError: without matplotlib.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    colors = ["C1", "C2", *["C0"] * (len(levels) - 2), "C3"]
    bars = axes.bar(range(len(parts_bpd)), parts_bpd, color=colors)
    if len(parts_bpd) <= 32:
        axes.bar_label(bars, [f"{bpd:.2f}" for bpd in parts_bpd], fontsize=7)
    every = math.ceil(len(parts_bpd) / 32)
    labels = [*(f"{sigma:.3g}" for sigma in levels), "prior"]
    places = range(0, len(labels), every)
    axes.set_xticks(places, [labels[i] for i in places], rotation=60, fontsize=8)
    axes.set(
        xlabel="noise level that the network sees, grey levels",
        ylabel="bits per dimension",
        title=f"bound: {sum(parts_bpd):.3f} bits per dimension",
    )
    axes.grid(axis="y", alpha=0.3)
    figure.savefig(path, dpi=120, format="png")
