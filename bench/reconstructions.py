"""What a decoder shows of the same bytes: the ensemble, the mean, and that after steps of the flow.

z_t is drawn as a lossy file holds it, without coding it. Of each PSNR, MS-SSIM, and how steep the
picture is beside the original, by the mean of the absolute differences of neighbours.

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
from diffcodec.coding.chain import Asked, Posterior, Request, drive
from diffcodec.coding.top_down import ensemble_mean
from diffcodec.diffusion.color import from_domain, to_domain
from diffcodec.models.file import DEFAULT_MODEL
from diffcodec.models.model import Model


def continued(
    model: Model, effort: str, x: Array, timestep: int, steps: int
) -> Iterator[tuple[str, Array]]:
    """What is shown at a timestep: the ensemble, the mean, and that after steps of the flow."""
    plan = model.plans[model.info.lossy_plan(effort)]
    noise = np.random.default_rng(timestep).normal(size=x.shape)
    widths = np.array(model.domain.noise_multipliers)[:, None, None]

    def posterior(asked: Asked) -> Posterior:
        assert isinstance(asked, Request)
        found = model.posterior_x(asked.z[None], plan.levels[asked.timestep - 1])
        return Posterior(found[0][0], found[1][0])

    asked = Request(x + plan.levels[timestep - 1] * widths * noise, timestep)
    mean = posterior(asked).mean
    yield "ensemble", drive(ensemble_mean(mean, asked, plan, model.reflection), posterior)
    yield "mean", mean
    for s in range(timestep - 1, max(0, timestep - steps - 1), -1):
        z = mean + plan.levels[s - 1] / plan.levels[s] * (asked.z - mean)
        asked = Request(z, s)
        mean = posterior(asked).mean
        yield f"{timestep - s} down", mean


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
    found: dict[tuple[int, str], list[list[float]]] = {}
    for _, original in dataset(folder, limit, side).images():
        image = np.asarray(original)
        x = to_domain(image.transpose(2, 0, 1).astype(np.int32), model.color).astype(np.float64)
        for t in timesteps:
            for how, mean in continued(model, effort, x, t, steps):
                back = from_domain(np.rint(mean).astype(np.int32), model.color)
                shown = np.clip(back, 0, 255).astype(np.uint8).transpose(1, 2, 0)
                row = [*qualities(shown, image).values(), steepness(shown) / steepness(image)]
                found.setdefault((t, how), []).append(row)
    print(f"{'timestep':>8}  {'shown':>8}  {'PSNR (dB)':>9}  {'similarity':>10}  {'steepness':>9}")
    for (t, how), rows in found.items():
        psnr, similarity, steep = np.mean(rows, axis=0)
        print(f"{t:8}  {how:>8}  {psnr:9.2f}  {similarity:10.4f}  {steep:9.3f}")


if __name__ == "__main__":
    main()
