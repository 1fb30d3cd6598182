"""How bits per dimension fall with training time, model size and steps: three pictures.

python -m bench scaling --run cifar10=RUN --run photo=RUN --ablation DIR --plans plans.json

From the logs of ``diffcodec train``, the results of ``bench ablation`` (whose networks all trained
for the same time) and those of ``bench plans``.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from bench.ablation import RESULT, VARIANTS, Variant, folder_name
from bench.pictures import figure, label_curves, plain_ticks, save
from diffcodec.training.folder import LOG
from diffcodec.training.log import read_log

SHAPE = {"channels", "blocks", "patch"}
SHADES = ("C0", "C1", "C2", "C3")
BPD = "bits per dimension"


def held_out_curve(run: Path) -> tuple[list[float], list[float]]:
    """Hours of training and the held-out bound at each validation of a run.

    Raises:
        click.ClickException: if it has no log, or no validation in it.
    """
    try:
        points = [record for record in read_log(run) if "held_out_bpd" in record]
    except OSError as e:
        raise click.ClickException(
            f"{run}: no {LOG} to read ({e.strerror}); give the folder of a run of diffcodec train"
        ) from e
    if not points:
        raise click.ClickException(f"{run}: no validation in its log yet")
    return [p["seconds"] / 3600 for p in points], [p["held_out_bpd"] for p in points]


def draw_time(runs: dict[str, Path], out: Path) -> None:
    """The held-out bound against hours of training."""
    drawn, axes = figure(6.5, 4.2)
    labels = []
    for (name, run), shade in zip(runs.items(), SHADES, strict=False):
        hours, bpd = held_out_curve(run)
        axes.plot(hours, bpd, "o-", color=shade, markersize=3)
        labels.append((hours[-1], bpd[-1], name, shade))
    axes.set(xlabel="hours of training", ylabel=f"held-out bound, {BPD}", xscale="log")
    plain_ticks(axes.xaxis)
    label_curves(axes, labels)
    save(drawn, out, "bpd-by-time")


def draw_size(results: Sequence[dict[str, Any]], out: Path) -> None:
    """The held-out bound against parameters, after the same time."""
    drawn, axes = figure(6.5, 4.2)
    sizes = [r["parameters"] / 1e6 for r in results]
    bounds = [r["held_out_bpd"] for r in results]
    axes.plot(sizes, bounds, "o", color=SHADES[0])
    (minutes,) = {r["minutes"] for r in results}
    axes.set(xlabel="parameters, millions", ylabel=f"held-out bound, {BPD}", xscale="log")
    axes.set_title(f"each network after {minutes:g} minutes", fontsize=10)
    plain_ticks(axes.xaxis)
    for r, size, bound in zip(results, sizes, bounds, strict=True):
        at = {"xytext": (4, 4), "textcoords": "offset points", "fontsize": 8}
        axes.annotate(r["variant"], (size, bound), **at)
    save(drawn, out, "bpd-by-size")


def draw_steps(results: Sequence[dict[str, Any]], images: int, out: Path) -> None:
    """Bound and files against the number of evaluations, for each kind of plan."""
    drawn, axes = figure(6.5, 4.2)
    labels = []
    for kind, shade in (("found", SHADES[0]), ("geometric", SHADES[1])):
        rows = sorted((r for r in results if r["plan"] == kind), key=lambda r: r["budget"])
        steps = [r["budget"] for r in rows]
        for figures, style in (("files_bpd", "o-"), ("bound_bpd", "o--")):
            bpd = [r[figures] for r in rows]
            axes.plot(steps, bpd, style, color=shade, markersize=3)
            labels.append((steps[-1], bpd[-1], f"{kind}, {figures.removesuffix('_bpd')}", shade))
    axes.set(xlabel="network evaluations, at most", ylabel=f"{BPD}, {images} crops", xscale="log")
    plain_ticks(axes.xaxis)
    label_curves(axes, labels)
    save(drawn, out, "bpd-by-steps")


@click.command()
@click.option("--run", "runs", multiple=True, metavar="NAME=DIR", help="A training run's folder.")
@click.option("--ablation", type=click.Path(exists=True, path_type=Path), help="Its results.")
@click.option("--plans", type=click.Path(exists=True, path_type=Path), help="Its results.")
@click.option("--out", default=Path("results/scaling"), type=click.Path(path_type=Path))
def main(runs: tuple[str, ...], ablation: Path | None, plans: Path | None, out: Path) -> None:
    """Draw what there are results of."""
    if runs:
        if not all("=" in run for run in runs):
            raise click.BadParameter("expected NAME=DIR", param_hint="--run")
        draw_time({name: Path(path) for name, path in (run.split("=", 1) for run in runs)}, out)
    if ablation:
        networks = (
            ablation / folder_name(name) / RESULT
            for name, variant in VARIANTS.items()
            if variant == Variant(variant.network) and set(variant.network) <= SHAPE
        )
        found = [json.loads(path.read_text()) for path in networks if path.exists()]
        draw_size(found, out)
    if plans:
        result = json.loads(plans.read_text())
        draw_steps(result["results"], result["images"], out)


if __name__ == "__main__":
    main()
