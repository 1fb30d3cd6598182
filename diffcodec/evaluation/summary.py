"""Figures of many images as one table."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from diffcodec.diffusion.plan import Plan
from diffcodec.evaluation.measure import Evaluation
from diffcodec.intervals import format_interval, mean_interval


def summarise(results: Sequence[Evaluation], plan: Plan) -> dict[str, Any]:
    """Means over images in bits per dimension, and the bytes of all files.

    ``parts`` names each part of the bound and the noise level that the network sees there.
    """
    means = np.mean([r.parts_bpd for r in results], axis=0)
    names = part_names(len(plan.levels))
    summary: dict[str, Any] = {
        "images": len(results),
        "bound_bpd": mean_interval([float(r.parts_bpd.sum()) for r in results]),
        "parts": [
            {"part": name, "sigma": sigma, "bpd": float(bpd)}
            for name, sigma, bpd in zip(names, [*plan.levels, None], means, strict=True)
        ],
    }
    sizes = [(r.file_bpd, r.file_bytes) for r in results if r.file_bpd and r.file_bytes]
    if sizes:
        summary["file_bpd"] = mean_interval([bpd for bpd, _ in sizes])
        summary["file_bytes"] = sum(size for _, size in sizes)
    flows = [r.ode_bpd for r in results if r.ode_bpd is not None]
    if flows:
        summary["ode_bpd"] = mean_interval(flows)
    return summary


def part_names(timesteps: int) -> list[str]:
    """The parts of the bound of a chain, from the image up."""
    steps = [f"p(z_{t - 1} | z_{t})" for t in range(2, timesteps + 1)]
    return ["p(x | z_1)", *steps, f"p(z_{timesteps})"]


def format_summary(summary: dict[str, Any]) -> str:
    """The summary for people."""
    rows = [f"{'part':16} {'sigma':>8} {'bpd':>8}"]
    for part in summary["parts"]:
        sigma = "" if part["sigma"] is None else f"{part['sigma']:.4g}"
        rows.append(f"{part['part']:16} {sigma:>8} {part['bpd']:8.4f}")
    rows.append(f"{'bound':16} {'':>8} {format_interval(summary['bound_bpd'])} bits per dimension")
    if "file_bpd" in summary:
        rows.append(
            f"{'files':16} {'':>8} {format_interval(summary['file_bpd'])} bits per dimension"
        )
        rows.append(f"{'':16} {'':>8} {summary['file_bytes']} bytes")
    if "ode_bpd" in summary:
        rows.append(
            f"{'by the ODE':16} {'':>8} {format_interval(summary['ode_bpd'])} bits per dimension"
        )
    rows.append(f"means over {summary['images']} images, with 95 % intervals")
    return "\n".join(rows)
