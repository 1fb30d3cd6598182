"""Pictures of a run; they need matplotlib (the extra ``train``)."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from diffcodec.training.log import Record


def draw_split(parts_bpd: Sequence[float], levels: Sequence[float], path: Path | BinaryIO) -> None:
    """Picture of the bound split by noise level.

    Args:
        parts_bpd: see :func:`diffcodec.diffusion.bound.chain_bound_bits`.
        levels: of the chain.
        path: of the picture, PNG, or a stream that it is written to.

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


def draw_curve(records: Sequence[Record], timesteps: int, path: Path) -> None:
    """Picture of a run's log.

    Args:
        records: lines of the log, by step.
        timesteps: of the plan whose bound is in them.
        path: of the picture, PNG.

    Raises:
        ImportError: without matplotlib.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    lowest = math.inf
    for name, label, style in (
        ("train_bpd", "training loss, means of 50 steps", "-"),
        ("held_out_bpd", f"held-out bound, {timesteps} timesteps", "o-"),
    ):
        steps = [r["step"] for r in records if name in r]
        bpd = [r[name] for r in records if name in r]
        if steps:
            axes.plot(steps, bpd, style, label=label, markersize=3, linewidth=1)
            lowest = min(lowest, *bpd)
    axes.set(xlabel="step", ylabel="bits per dimension", ylim=(lowest - 0.1, lowest + 2))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)
