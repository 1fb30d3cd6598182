"""Steps across the borders of tiles in what is shown, beside those of neighbouring pixels.

z_t is drawn as a lossy file holds it, without coding it, and shown tile by tile, and with borders
evaluated once more.

    python -m bench seams --side 128 --timesteps 13,11,9,7,5,3,1 FOLDER
"""

from collections import defaultdict
from pathlib import Path

import click
import numpy as np
from PIL import Image

from bench import POSITIVE, check_timesteps
from bench.inputs import dataset
from diffcodec import load_model
from diffcodec.arrays import Array
from diffcodec.cli.options import parse_numbers
from diffcodec.codec.batches import progress_bar
from diffcodec.codec.descents import Descents
from diffcodec.codec.jobs import Part, View
from diffcodec.codec.planes import integers
from diffcodec.coding.top_down import Descent
from diffcodec.container.parts import Box
from diffcodec.images.modes import psnr
from diffcodec.models.file import DEFAULT_MODEL
from diffcodec.models.model import Model

NEAR = range(2, 10)  # pixels beside a border that a step is compared with


def at(model: Model, plan: str, x: Array, timestep: int, side: int) -> Descents:
    """Tiles of an image, [3, height, width], at a timestep."""
    height, width = x.shape[1:]
    corners = [(left, top) for top in range(0, height, side) for left in range(0, width, side)]
    boxes = [
        Box(left, top, min(side, width - left), min(side, height - top)) for left, top in corners
    ]
    parts = [Part(plan, index, box) for index, box in enumerate(boxes)]
    tiles = Descents(model, "RGB", parts, progress_bar(0, False), exact=False)
    multipliers = np.array(model.domain.noise_multipliers)[:, None, None]
    noise = np.random.default_rng(timestep).normal(size=x.shape)
    z = x + model.plans[plan].levels[timestep - 1] * multipliers * noise
    for part in parts:
        chain, box = tiles.chain(part), part.box
        rows, columns = slice(box.top, box.top + side), slice(box.left, box.left + side)
        chain.z[timestep] = z[:, rows, columns]
        tiles.put(part, Descent(chain, timestep))
    return tiles


def step_ratio(image: Image.Image, side: int) -> float:
    """The mean step across borders, as a multiple of that of pixels beside them."""
    pixels = np.asarray(image).astype(float)
    across, beside = [], []
    for axis in (0, 1):
        steps = np.abs(np.diff(pixels, axis=axis)).mean(axis=(1 - axis, 2))
        for border in range(side, pixels.shape[axis], side):
            across.append(steps[border - 1])
            near = [border - 1 + sign * far for far in NEAR for sign in (-1, 1)]
            beside += [steps[place] for place in near if 0 <= place < len(steps)]
    return float(np.mean(across) / np.mean(beside))


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--model", "model_name", default=DEFAULT_MODEL, show_default=True)
@click.option("--effort", default="default", show_default=True)
@click.option("--reconstruct", default="mean", show_default=True, help="As of decode.")
@click.option("--timesteps", type=parse_numbers, default="13,11,9,7,5,3,1", show_default=True)
@click.option("--side", type=POSITIVE, default=128, show_default=True, help="Of tiles.")
@click.option(
    "--crop",
    type=POSITIVE,
    default=256,
    show_default=True,
    help="Of the middle of each.",
)
@click.option("--limit", type=POSITIVE, default=3, show_default=True, help="Images at most.")
def main(
    folder: Path,
    model_name: str,
    effort: str,
    reconstruct: str,
    timesteps: tuple[int, ...],
    side: int,
    crop: int,
    limit: int,
) -> None:
    """Steps across borders and qualities, the mean of the images of a FOLDER.

    And of single images the step farthest from the original's, and the least that PSNR gained.
    """
    model = load_model(model_name)
    plan, view = model.info.lossy_plan(effort), View(reconstruct=reconstruct)
    check_timesteps(model, plan, timesteps)
    if crop <= side:
        raise click.ClickException(
            f"no borders of tiles of {side} within a crop of {crop}: give a larger --crop"
        )
    found: dict[int, list[list[float]]] = defaultdict(list)
    for _, image in dataset(folder, limit, crop).images():
        x = integers(image, Box(0, 0, crop, crop), model.color).astype(np.float64)
        for t in timesteps:
            row = [step_ratio(image, side)]
            for seams in (False, True):
                shown = Image.new("RGB", image.size)
                at(model, plan, x, t, side).show(shown, view, seams)
                row += [step_ratio(shown, side), psnr(shown, image)]
            found[t].append(row)
    columns = ("timestep", "original", "tile by tile", "PSNR, dB", "with seams", "PSNR, dB")
    click.echo("| " + " | ".join((*columns, "farthest from original", "least gained, dB")) + " |")
    click.echo("|---" * 8 + "|")
    for t, rows in found.items():
        original, _, before, seams, after = np.array(rows).T
        farthest = max(seams / original - 1, key=abs)
        ends = f"{100 * farthest:+.1f} % | {np.min(after - before):.3f}"
        means = " | ".join(f"{v:.3f}" for v in np.mean(rows, axis=0))
        click.echo(f"| {t} | {means} | {ends} |")


if __name__ == "__main__":
    main()
