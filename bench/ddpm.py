"""DDPM's progressive coding of CIFAR-10: its table (timestep, rate, distortion) by this codec.

python -m bench ddpm --data cifar10/test.npy [--model cifar10] [--limit 20]

Under DDPM's linear schedule of 1000 timesteps, ``z_t`` is sent from the top down. The ideal rate
is what DDPM reports (Ho et al. 2020, section 4.3 and its table of progressive coding): the sum of
``KL(q(z_s | z_t, x) || p(z_s | z_t))`` along one sampled chain for each image, here with the
model's variance; the distortion is the RMSE of the posterior mean of x as it is shown, in 8 bits.
After n of the 1000 steps, z_t with t = 1001 - n has been sent.

Beside it stand real files that stop at the same noise levels, by relative entropy coding under a
plan of few of the schedule's levels, in float arithmetic. Each is decoded, and the RMSE is that of
the decoded image.

DDPM's noise is in RGB, the codec's in YCoCg: sigma_t, sqrt(5) sigma_t and sqrt(8/3) sigma_t. The
transform keeps volumes, so for noise as large as DDPM's, sigma_t is its level over the geometric
mean of these, 1.54.

Networks are trained up to sigma_t = 800, where the schedule goes to 13,000. Above, x is taken for
independent Gaussian pixels, as in the chain's own prior, and the network is not asked; the files'
plan begins below. At z_1 (0.83) the network is between its first level, 0.5, and the range of its
second, from 1.0 on.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from bench import POSITIVE, identity
from bench.inputs import Dataset, dataset
from bench.report import OUT, Section, Table
from bench.store import write_json
from diffcodec import decode, encode
from diffcodec.arrays import Array
from diffcodec.container.parts import LOSSY_PLAN
from diffcodec.container.reader import parse
from diffcodec.diffusion.bound import PosteriorModel, gaussian_pixel_variance
from diffcodec.diffusion.color import DOMAINS, channels, from_domain, to_domain
from diffcodec.diffusion.losses import MAX_SIGMA
from diffcodec.diffusion.plan import Plan, falling_lattices
from diffcodec.diffusion.process import (
    Gaussian,
    discretized_gaussian_bits,
    gaussian_kl_bits,
    p_prior,
    p_reverse,
    q_posterior,
    q_sample,
    to_bits_per_dimension,
)
from diffcodec.diffusion.quantiser import first_sigma
from diffcodec.diffusion.schedule import linear
from diffcodec.models.model import Model, load_model

STEPS_DONE = {  # Ho et al. 2020: bits per dimension and RMSE after so many of 1000 steps
    1000: (1.77581, 0.95136),
    900: (0.11994, 12.02277),
    800: (0.05415, 18.47482),
    700: (0.02866, 24.43656),
    600: (0.01507, 30.80948),
    500: (0.00716, 38.03236),
}
PUBLISHED_DISTORTION_BPD = 1.97  # -log2 p(x | z_1)
ROWS = tuple(1001 - done for done in STEPS_DONE)  # timesteps t, rising
PLAN_RATIO = 1.5  # of the files' levels, at most
IMAGES = 20


def noise_levels(color: str) -> Array:
    """DDPM's linear schedule as levels of the codec's chain: noise of the same volume, [1000]."""
    multipliers = DOMAINS[color].noise_multipliers
    levels: Array = linear() / math.prod(multipliers) ** (1 / len(multipliers))
    return levels


def bounded(network: PosteriorModel, color: str) -> PosteriorModel:
    """The network up to the noise that it was trained for; independent Gaussian pixels above."""
    domain = DOMAINS[color]

    def posterior(z: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        if sigma[0] <= MAX_SIGMA:
            return network(z, sigma)
        std, centre = channels(domain.data_std, z), channels(domain.center, z)
        v = gaussian_pixel_variance(sigma[0] * channels(domain.noise_multipliers, z), std)
        weight = v / (sigma[0] * channels(domain.noise_multipliers, z)) ** 2
        return centre + weight * (z - centre), v.expand_as(z)

    return posterior


def shown_error(xhat: Tensor, x: Tensor, color: str) -> Tensor:
    """Mean squared error of RGB in 8 bits, [batch]."""
    shown, exact = (from_domain(field.round().to(torch.int32), color) for field in (xhat, x))
    return to_bits_per_dimension((shown.clamp(0, 255) - exact).double() ** 2)


@torch.inference_mode()
def send_all(
    model: PosteriorModel, x: Tensor, color: str, timesteps: Sequence[int], seed: int
) -> tuple[dict[int, tuple[Array, Array]], Array]:
    """The ideal rate of the reverse chain through these timesteps of DDPM's schedule.

    Args:
        model: gives xhat and v.
        x: integers of the colour domain as floats, [batch, 3, height, width].
        timesteps: falling, the last is 1.
        seed: of the sampled chain.

    Returns:
        For each of ``ROWS`` bits per dimension so far and the squared error of xhat, and the
        distortion -log2 p(x | z_1) in bits per dimension. All [batch].
    """
    domain, levels = DOMAINS[color], noise_levels(color)
    multipliers = channels(domain.noise_multipliers, x)
    generator = torch.Generator().manual_seed(seed)
    rows: dict[int, tuple[Array, Array]] = {}
    rate = torch.zeros(len(x))
    z, above = x, torch.zeros_like(multipliers)
    xhat = v = x
    for place, t in enumerate(tqdm(timesteps, "timesteps", leave=False, disable=None)):
        sigma = float(levels[t - 1]) * multipliers
        if place == 0:
            q = Gaussian(x, (sigma**2).expand_as(x))
            p = p_prior(domain, sigma)
        else:
            q, p = q_posterior(x, z, sigma, above), p_reverse(xhat, v, z, sigma, above)
        rate = rate + to_bits_per_dimension(gaussian_kl_bits(q, p))
        noise = torch.randn(x.shape, generator=generator)
        z, above = q_sample(q.mean, q.variance.sqrt(), noise), sigma
        xhat, v = model(z, torch.full((len(x),), float(levels[t - 1])))
        if t in ROWS:
            rows[t] = rate.double().numpy(), shown_error(xhat, x, color).numpy()
    distortion = to_bits_per_dimension(discretized_gaussian_bits(x, xhat, v))
    return rows, distortion.double().numpy()


def files_timesteps(levels: Array, ratio: float) -> list[int]:
    """Timesteps of the schedule for a plan, rising: the rows' and between them what the ratio asks.

    They end at the last level that networks know.
    """
    chosen = [ROWS[0]]
    for end in (*ROWS[1:], int(np.searchsorted(levels, MAX_SIGMA))):
        low, high = levels[chosen[-1] - 1], levels[end - 1]
        steps = math.ceil(math.log(high / low) / math.log(ratio))
        wanted = np.geomspace(low, high, steps + 1)[1:-1]
        chosen += [int(np.abs(np.log(levels / sigma)).argmin()) + 1 for sigma in wanted]
        chosen.append(end)
    return sorted(set(chosen))


def stopped_file(model: Model, image: Image.Image, timestep: int) -> tuple[int, int, float]:
    """A file that ends there: its bytes, those of its payload, and the squared error it decodes to.

    Args:
        model: with the plan as its "default".
        image: RGB.
        timestep: of the plan.
    """
    data = encode(image, model, timestep=timestep)
    shown = np.asarray(decode(data, model=model)).astype(np.float64)
    layers = parse(data).layers
    assert layers is not None
    payload = sum(len(part) for layer in layers.payloads for part in layer)
    return len(data), payload, float(np.mean((shown - np.asarray(image)) ** 2))


def measure(
    model: Model, images: Sequence[Image.Image], stride: int, ratio: float
) -> tuple[dict[int, dict[str, float]], float]:
    """The table by row's timestep, and the ideal distortion; means over images."""
    rgb = np.stack([np.asarray(image).transpose(2, 0, 1) for image in images]).astype(np.int16)
    x = torch.from_numpy(to_domain(rgb, model.color)).float()
    timesteps = sorted({*range(1, 1001, stride), *ROWS, 1000}, reverse=True)
    posterior = bounded(model.module.posterior_x, model.color)
    ideal, distortion = send_all(posterior, x, model.color, timesteps, seed=0)
    levels = noise_levels(model.color)
    chosen = files_timesteps(levels, ratio)
    above = (float(levels[t - 1]) for t in chosen[1:])  # the first is the quantiser's own
    plan = Plan((first_sigma(2), *above), falling_lattices(len(chosen)))
    coder = Model(model.network, {"default": plan, LOSSY_PLAN: plan}, model.name)
    dimensions = x[0].numel()
    table = {}
    for t in tqdm(sorted(ROWS, reverse=True), "files", disable=None):
        files = np.array([stopped_file(coder, image, chosen.index(t) + 1) for image in images])
        size, payload, error = files.mean(0)
        rate, squared = ideal[t]
        table[t] = {
            "sigma": float(linear()[t - 1]),
            "ideal_bpd": float(rate.mean()),
            "ideal_rmse": math.sqrt(squared.mean()),
            "payload_bpd": 8 * payload / dimensions,
            "file_bpd": 8 * size / dimensions,
            "file_rmse": math.sqrt(error),
        }
    return table, float(distortion.mean())


def make_table(results: dict[int, dict[str, float]]) -> Table:
    """The results as a table of text, with the published figures."""
    columns = ["steps done", "sigma", "DDPM: bits/dim", "RMSE", "ideal: bits/dim", "RMSE"]
    columns += ["files: payload, bits/dim", "whole, bits/dim", "RMSE"]
    lines = []
    for done, published in STEPS_DONE.items():
        row = results[1001 - done]
        cells = [f"{done / 10:.0f} %", f"{row['sigma']:.4g}"]
        for rate, rmse in (published, (row["ideal_bpd"], row["ideal_rmse"])):
            cells += [f"{rate:.3f}", f"{rmse:.2f}"]
        cells += [f"{row['payload_bpd']:.3f}", f"{row['file_bpd']:.3f}", f"{row['file_rmse']:.2f}"]
        lines.append(cells)
    return Table("ddpm", "Rate and distortion by the share of reverse steps done", columns, lines)


def run(data: Dataset, model: Model, stride: int, ratio: float, out: Path) -> None:
    """The section ``ddpm`` of the results; of a float model."""
    images = [image for _, image in data.images()]
    results, distortion = measure(model, images, stride, ratio)
    steps = len(range(1, 1001, stride))
    count = len(files_timesteps(noise_levels(model.color), ratio))
    rate = results[1]["ideal_bpd"]
    paragraphs = [
        f"Model {identity(model)} in float arithmetic, {len(images)} images; "
        f"the ideal rate at {steps} timesteps, files by a plan of {count}. Payload: without the "
        "container's bytes.",
        f"Rate and distortion after the last step: {rate:.3f} + {distortion:.3f} = "
        f"{rate + distortion:.3f} bits per dimension; DDPM: {STEPS_DONE[1000][0]:.3f} + "
        f"{PUBLISHED_DISTORTION_BPD} = 3.75.",
    ]
    table = make_table(results)
    command = f"python -m bench ddpm --data test.npy --model {model.info.name}"
    command += f" --limit {len(images)}"
    command += f" --stride {stride}" if stride > 1 else ""
    Section("DDPM's progressive coding", command, paragraphs, [table]).write(out / "ddpm")
    document: dict[str, Any] = {"rows": results, "distortion_bpd": distortion}
    write_json(out / "ddpm" / "ddpm.json", document | {"images": len(images), "timesteps": steps})
    click.echo("\n\n".join([*paragraphs, table.markdown()]))


@click.command()
@click.option("--data", required=True, type=click.Path(path_type=Path), help="CIFAR-10's test.npy.")
@click.option("--model", default="cifar10", help="Name or path; integer models as float ones.")
@click.option("--limit", default=IMAGES, type=POSITIVE, help="Images: the first so many.")
@click.option("--stride", default=1, type=POSITIVE, help="Of the timesteps of the ideal rate.")
@click.option("--ratio", default=PLAN_RATIO, help="Of neighbouring levels of the files' plan.")
@click.option("--out", default=OUT, type=click.Path(path_type=Path), help="Folder of results.")
def main(data: Path, model: str, limit: int, stride: int, ratio: float, out: Path) -> None:
    """DDPM's table of timestep, rate and distortion, by the bound and by real files."""
    run(dataset(data, limit), load_model(model, "float"), stride, ratio, out)


if __name__ == "__main__":
    main()
