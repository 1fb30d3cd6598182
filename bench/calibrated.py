"""A network of one fixed variance made a codec by ``calibrate``: bits by the number of steps.

python -m bench calibrated --model RUN/float.safetensors --data cifar10/train.npy
    --test cifar10/test.npy [--steps 10 --steps 20 --steps 40] [--files 16]

The network is a float model file, as of ``diffcodec train --loss simple --variance fixed-large``,
or a folder of a diffusers pipeline. Tables of variances are fitted to crops of --data, by noise
level and channel, and by classes of contrast too; bounds, all by the same noise, and files, which
are decoded and compared, are of the middle of the first images of --test, by geometric levels.
"""

from pathlib import Path

import click
import numpy as np
import torch

from bench import POSITIVE, SEVERAL, chain_only
from bench.classes import files
from bench.inputs import dataset
from bench.objectives import CROP, SEED, bound
from bench.report import markdown
from diffcodec.diffusion.plan import geometric_plan
from diffcodec.models.calibration import CLASSES, calibrate
from diffcodec.models.converted import open_network
from diffcodec.models.model import Model
from diffcodec.networks.calibrated import CalibratedNetwork
from diffcodec.training.crops import CropSampler, domain_batch
from diffcodec.training.data import find_images

STEPS, FILES_STEPS = (10, 20, 40), 20


@click.command()
@click.option("--model", required=True, help="A float model file or a diffusers folder.")
@click.option("--data", required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--test", required=True, type=click.Path(exists=True, path_type=Path))
@click.option(
    "--steps", multiple=True, type=POSITIVE, default=STEPS, show_default=True, help="Of the bounds."
)
@click.option("--crop", default=CROP, type=POSITIVE, show_default=True, help="Sides of all images.")
@click.option(
    "--crops", default=64, type=POSITIVE, show_default=True, help="That tables are fitted to."
)
@click.option("--limit", type=SEVERAL, default=64, show_default=True, help="Test images.")
@click.option(
    "--files", "few", default=16, type=POSITIVE, show_default=True, help="Of these, coded as files."
)
def main(
    model: str,
    data: Path,
    test: Path,
    steps: tuple[int, ...],
    crop: int,
    crops: int,
    limit: int,
    few: int,
) -> None:
    """Fit the tables, and print that of bits."""
    plain = open_network(model)
    sampler = CropSampler(find_images(data), crop, "none")
    fitted = domain_batch(sampler.batch(crops, SEED, 0), plain.color)
    images = [image for _, image in dataset(test, limit, crop).images()]
    rgb = np.stack([np.asarray(image).transpose(2, 0, 1) for image in images])
    x = domain_batch(torch.from_numpy(rgb), plain.color)
    networks = {"its own": plain.network, "fixed small": plain.network}
    for count, name in ((1, "by noise level and channel"), (CLASSES, f"{CLASSES} classes too")):
        table = calibrate(plain, fitted, classes=count)
        networks[f"calibrated, {name}"] = CalibratedNetwork(plain.network, table)
    rows = []
    for name, network in networks.items():
        variance = "fixed-small" if name == "fixed small" else "learned"
        plans = {str(count): geometric_plan(count) for count in {*steps, FILES_STEPS}}
        row = [name]
        for count in steps:
            found = bound(Model(network, {"default": plans[str(count)]}), x, variance)
            row.append(f"{found['mean']:.3f} ± {found['half_width']:.3f}")
        if variance == "learned":
            coder = Model(network, {"default": plans[str(FILES_STEPS)]})
            with chain_only():
                row.append(f"{np.mean(files(coder, images[:few])):.3f}")
        rows.append(row + [""] * (len(steps) + 2 - len(row)))
        click.echo(f"{row}", err=True)
    columns = ("variance", *(f"{count} steps, bound" for count in steps))
    click.echo(markdown((*columns, f"{FILES_STEPS} steps, {few} files"), rows))


if __name__ == "__main__":
    main()
