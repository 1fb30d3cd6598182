"""What a decoder shows of the same bytes: the posterior mean beside its continuation by the flow.

z_t is drawn as a lossy file holds it, without coding it. After each further step of the flow, which
takes an evaluation, PSNR, MS-SSIM, and how steep the picture is beside the original, by the mean of
the absolute differences of neighbours.

python -m bench reconstructions --timesteps 13,11,9 FOLDER
"""

from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np

from bench import POSITIVE, check_timesteps
from bench.inputs import dataset
from bench.metrics import qualities
from diffcodec import load_model
from diffcodec.arrays import Array, Bytes
from diffcodec.cli.options import parse_numbers
from diffcodec.diffusion.color import from_domain, to_domain
from diffcodec.models.file import DEFAULT_MODEL
from diffcodec.models.model import Model


def continued(model: Model, effort: str, x: Array, timestep: int, steps: int) -> Iterator[Array]:
    """The posterior mean at a timestep, and after each of so many steps of the flow, if it has."""
    levels = model.plans[model.info.lossy_plan(effort)].levels
    noise = np.random.default_rng(timestep).normal(size=x.shape)
    z = x + levels[timestep - 1] * np.array(model.domain.noise_multipliers)[:, None, None] * noise
    for s in range(timestep, max(0, timestep - steps - 1), -1):
        mean = model.posterior_x(z[None], levels[s - 1])[0][0]
        yield mean
        if s > 1:
            z = mean + levels[s - 2] / levels[s - 1] * (z - mean)


def steepness(pixels: Bytes) -> float:
    """The mean of the absolute differences of neighbours."""
    values = pixels.astype(float)
    return float(sum(np.abs(np.diff(values, axis=axis)).mean() for axis in (0, 1)))


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--model", "model_name", default=DEFAULT_MODEL, show_default=True)
@click.option("--effort", default="default", show_default=True)
@click.option("--timesteps", type=parse_numbers, default="13,11,9", show_default=True)
@click.option("--steps", type=POSITIVE, default=3, show_default=True)
@click.option(
    "--side",
    type=POSITIVE,
    default=176,
    show_default=True,
    help="Of the middle of each.",
)
@click.option("--limit", type=POSITIVE, default=24, show_default=True, help="Images at most.")
def main(
    folder: Path,
    model_name: str,
    effort: str,
    timesteps: tuple[int, ...],
    steps: int,
    side: int,
    limit: int,
) -> None:
    """Qualities of reconstructions, the mean of the images of a FOLDER."""
    model = load_model(model_name)
    check_timesteps(model, model.info.lossy_plan(effort), timesteps)
    found: dict[tuple[int, int], list[list[float]]] = {}
    for _, original in dataset(folder, limit, side).images():
        image = np.asarray(original)
        x = to_domain(image.transpose(2, 0, 1).astype(np.int32), model.color).astype(np.float64)
        for t in timesteps:
            for step, mean in enumerate(continued(model, effort, x, t, steps)):
                back = from_domain(np.rint(mean).astype(np.int32), model.color)
                shown = np.clip(back, 0, 255).astype(np.uint8).transpose(1, 2, 0)
                row = [*qualities(shown, image).values(), steepness(shown) / steepness(image)]
                found.setdefault((t, step), []).append(row)
    print(f"{'timestep':>8}  {'steps':>5}  {'PSNR (dB)':>9}  {'similarity':>10}  {'steepness':>9}")
    for (t, step), rows in found.items():
        psnr, similarity, steep = np.mean(rows, axis=0)
        print(f"{t:8}  {step:5}  {psnr:9.2f}  {similarity:10.4f}  {steep:9.3f}")


if __name__ == "__main__":
    main()
