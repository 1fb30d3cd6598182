"""What exact integer arithmetic costs beside float arithmetic in bits and time, and what it saves.

And how much faster convolutions of 8-bit integers are than those of float32 here.

python -m bench arithmetic --data DIR --float RUN/float.safetensors --model RUN/model.safetensors

Sizes are whole files of crops from the middle of the images, every tile by the chain. Then, crops
encoded by float arithmetic here are decoded in fresh processes with other settings.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median

import click
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from bench import POSITIVE, chain_only, middle
from bench.inputs import open_rgb
from bench.measuring import check_equal, timed
from bench.report import markdown
from diffcodec import decode, load_model
from diffcodec.codec.many import encode_many
from diffcodec.container.parts import PLAN_NAMES
from diffcodec.models.model import Model
from diffcodec.networks.config import NetworkConfig
from diffcodec.networks.int8 import ByteConv, digits, kernels_work
from diffcodec.training.data import find_images, list_images

TILE, REPEATS, TURNS = 256, 5, 21
DECODE = """
import json, sys
from pathlib import Path
from diffcodec import decode, load_model
from diffcodec.errors import DiffcodecError

model, folder, arithmetic = load_model(sys.argv[1], sys.argv[3]), Path(sys.argv[2]), sys.argv[3]
failed = 0
for path in sorted(folder.glob("*.dfc")):
    try:
        decode(path.read_bytes(), model=model)
    except DiffcodecError:
        failed += 1
print(failed)
"""
SETTINGS = {
    "the same": {},
    "1 thread": {"OMP_NUM_THREADS": "1"},
    "2 threads": {"OMP_NUM_THREADS": "2"},
    "ATEN_CPU_CAPABILITY=default": {"ATEN_CPU_CAPABILITY": "default"},
    "ONEDNN_MAX_CPU_ISA=AVX2": {"ONEDNN_MAX_CPU_ISA": "AVX2"},
    "ONEDNN_MAX_CPU_ISA=SSE41": {"ONEDNN_MAX_CPU_ISA": "SSE41"},
}


def median_seconds(work: Callable[[], object]) -> float:
    """The median of a few runs, after one to warm up."""
    work()
    return median(timed(work)[1] for _ in range(REPEATS))


def compare_sizes(models: dict[str, Model], crops: list[Image.Image]) -> None:
    """Print the mean sizes by each arithmetic and every effort."""
    lines = []
    for effort in (plan for plan in PLAN_NAMES if plan in models["integer"].plans):
        sizes = {}
        for name, model in models.items():
            files = list(encode_many(crops, model, effort, progress=True))
            for crop, data in zip(crops[:2], files[:2], strict=True):
                check_equal(crop, decode(data, model=model), name)
            samples = np.array([3 * crop.width * crop.height for crop in crops])
            sizes[name] = float(np.mean(8 * np.array([len(data) for data in files]) / samples))
        difference = sizes["integer"] - sizes["float"]
        lines.append([effort, *(f"{size:.4f}" for size in sizes.values()), f"{difference:+.4f}"])
    click.echo("\n" + markdown(["effort", *models, "difference"], lines))


def compare_times(models: dict[str, Model]) -> None:
    """Print the time of one evaluation on one tile."""
    z = np.random.default_rng(0).normal(100, 50, (1, 3, TILE, TILE))
    sigma = models["integer"].plans["default"].levels[5]
    times: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(1 + TURNS):
        for name, model in models.items():
            times[name].append(timed(partial(model.posterior_x, z, sigma))[1])
    seconds = {name: median(found[1:]) for name, found in times.items()}  # the first warms up
    ratio = seconds["float"] / seconds["integer"]
    click.echo(
        f"\none evaluation on {TILE} x {TILE} pixels, {torch.get_num_threads()} threads: integer "
        f"{seconds['integer']:.3f} s, float {seconds['float']:.3f} s, medians of {TURNS} in turn: "
        f"integer is {ratio:.2f} times as fast"
    )


def compare_kernels(channels: Sequence[int], patch: int) -> None:
    """Print the time of a hidden convolution in float32 and in bytes, if these kernels are used."""
    if not kernels_work():
        click.echo("\n8-bit kernels are not used here")
        return
    columns = ["channels", "positions", "float32, ms", "a byte, ms", "two digits, ms", "faster by"]
    lines = []
    generator = torch.Generator().manual_seed(0)
    for i, c in enumerate(channels):
        side = TILE // patch >> i
        x = torch.randint(0, 1000, (1, c, side, side), generator=generator).float()
        w = torch.randint(-127, 128, (c, c, 3, 3), generator=generator).float()
        x, w = (t.contiguous(memory_format=torch.channels_last) for t in (x, w))
        of_digits, conv = digits(x, 0, 1000), ByteConv(w)
        floating = median_seconds(lambda x=x, w=w: F.conv2d(x, w, padding=1))  # type: ignore[misc]
        seconds = [floating]
        for count in (1, 2):
            parts = of_digits[:count]
            seconds.append(median_seconds(lambda b=parts, c=conv: c.sums(b, 0)))  # type: ignore[misc]
        times = [f"{1000 * each:.2f}" for each in seconds]
        faster = " and ".join(f"{floating / each:.1f}" for each in seconds[1:])
        lines.append([str(c), f"{side} x {side}", *times, faster])
    click.echo("\n" + markdown(columns, lines))


def count_failures(
    paths: dict[str, Path], models: dict[str, Model], crops: list[Image.Image]
) -> None:
    """Print how many files do not decode in other settings."""
    columns, lines = [f"decoding of {len(crops)} files", "float fails", "integer fails"], []
    with tempfile.TemporaryDirectory() as name:
        for arithmetic, model in models.items():
            folder = Path(name) / arithmetic
            folder.mkdir()
            for i, data in enumerate(encode_many(crops, model, "fast", progress=True)):
                (folder / f"{i:04}.dfc").write_bytes(data)
        for label, environment in SETTINGS.items():
            failed = {}
            for arithmetic, path in paths.items():
                arguments = [str(path), str(Path(name) / arithmetic), arithmetic]
                done = subprocess.run(
                    [sys.executable, "-c", DECODE, *arguments],
                    env=os.environ | environment,
                    capture_output=True,
                    text=True,
                    check=True,
                )
                failed[arithmetic] = json.loads(done.stdout)
            lines.append([label, str(failed["float"]), str(failed["integer"])])
    click.echo("\n" + markdown(columns, lines))


@click.command()
@click.option("--data", required=True, type=click.Path(path_type=Path), help="Folder or .npy.")
@click.option("--float", "float_model", required=True, type=click.Path(path_type=Path))
@click.option("--model", required=True, type=click.Path(path_type=Path), help="The integer one.")
@click.option(
    "--crop",
    default=128,
    type=POSITIVE,
    show_default=True,
    help="Side of the crops, for the sizes.",
)
@click.option(
    "--count", default=24, type=POSITIVE, show_default=True, help="Images, evenly from the folder."
)
@click.option(
    "--failures", default=100, type=POSITIVE, show_default=True, help="Files to decode elsewhere."
)
@click.option(
    "--side", default=32, type=POSITIVE, show_default=True, help="Side of these files' images."
)
@chain_only()
def main(
    data: Path, float_model: Path, model: Path, crop: int, count: int, failures: int, side: int
) -> None:
    """Print the comparisons."""
    paths = {"float": float_model, "integer": model}
    models = {name: load_model(path, name) for name, path in paths.items()}
    shape = (models["integer"].info.network or NetworkConfig()).main
    compare_kernels(shape.channels, shape.patch)
    found = list_images(find_images(data))
    images = [open_rgb(source) for source in found[:: max(1, len(found) // count)][:count]]
    compare_times(models)
    compare_sizes(models, [middle(image, crop) for image in images])
    per_image = -(-failures // len(images))
    rng = np.random.default_rng(0)
    crops = []
    for image in images:
        for _ in range(per_image):
            x, y = (int(rng.integers(n - side + 1)) for n in image.size)
            crops.append(image.crop((x, y, x + side, y + side)))
    count_failures(paths, models, crops[:failures])


if __name__ == "__main__":
    main()
