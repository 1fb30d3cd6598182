"""How far samples are from images, by sampler and number of steps.

python -m bench samples --data cifar10/test.npy --model cifar10 --size 32 [-n 64]
    [--way ancestral:20 --way ddim:10 ...] [--out samples.png]

The distance is KID's (Binkowski et al. 2018), the squared maximum mean discrepancy of a cubic
kernel, unbiased, but of plain features of pixels in the place of Inception's, which no package
ships: colours of a 4 x 4 grid, and how much luma changes over 1, 2 and 4 pixels in each quarter.
It tells washed out or noisy samples, and wrong colours, from images; of objects it knows nothing.
Beside it stand other images of the data, and the same with the pixels of each row shuffled.
"""

from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from bench import POSITIVE, SEVERAL
from bench.report import markdown
from diffcodec.arrays import Array
from diffcodec.models.model import load_model
from diffcodec.sampling.draw import grid, sample
from diffcodec.training.data import find_images, list_images, read_rgb

MOST_IMAGES = 2000  # of the data
GRID, SCALES = 4, (1, 2, 4)
WAYS = ("ancestral:10", "ancestral:20", "ancestral:50", "ddim:10", "ddim:20", "heun:10")
Pictures = NDArray[np.uint8]  # [n, height, width, 3]


def features(images: Pictures) -> Array:
    """What is compared, [n, features]."""
    x = images.astype(np.float64) / 255
    luma = x @ (0.299, 0.587, 0.114)
    found = [_cells(x[..., channel], GRID).mean(2) for channel in range(3)]
    for scale in SCALES:
        for axis in (1, 2):
            change = np.roll(luma, -scale, axis) - luma
            kept = change[:, :-scale] if axis == 1 else change[..., :-scale]
            found.append(np.log(_cells(kept, 2).std(2) + 1 / 255))
    return np.concatenate(found, 1)


def _cells(x: Array, count: int) -> Array:
    """The pixels of a grid of so many cells a side, [n, cells, pixels]."""
    height, width = (side // count * count for side in x.shape[1:])
    cells = x[:, :height, :width].reshape(len(x), count, height // count, count, width // count)
    return cells.transpose(0, 1, 3, 2, 4).reshape(len(x), count * count, -1)


def distance(a: Array, b: Array) -> float:
    """Unbiased squared maximum mean discrepancy of two sets of features, by KID's kernel."""

    def kernel(p: Array, q: Array) -> Array:
        found: Array = (p @ q.T / p.shape[1] + 1) ** 3
        return found

    def within(p: Array) -> float:
        products = kernel(p, p)
        return float((products.sum() - products.trace()) / (len(p) * (len(p) - 1)))

    return within(a) + within(b) - 2 * float(kernel(a, b).mean())


def read(data: Path, size: int, least: int) -> Pictures:
    """The middle of the first images that are large enough.

    Raises:
        click.ClickException: if they are too few.
    """
    found = []
    for source in list_images(find_images(data))[:MOST_IMAGES]:
        rgb = read_rgb(source) if isinstance(source, Path) else np.asarray(source)
        top, left = ((side - size) // 2 for side in rgb.shape[1:])
        if min(top, left) >= 0:
            found.append(rgb[:, top : top + size, left : left + size].transpose(1, 2, 0))
    if len(found) < least:
        raise click.ClickException(
            f"{data}: found {len(found)} images of at least {size} x {size} pixels, expected "
            f"{least}: two more than samples of each way; give more, or fewer of these by -n"
        )
    return np.stack(found)


def parse_way(text: str) -> tuple[str, int]:
    """A sampler and its steps."""
    sampler, _, steps = text.partition(":")
    return sampler, int(steps)


@click.command()
@click.option("--data", required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--model", default="cifar10", show_default=True)
@click.option("--size", default=32, type=POSITIVE, show_default=True, help="Sides of the samples.")
@click.option(
    "-n", "count", default=64, type=SEVERAL, show_default=True, help="Samples of each way."
)
@click.option("--way", "ways", multiple=True, type=parse_way, help="Sampler and steps.")
@click.option("--out", type=click.Path(path_type=Path), help="A grid of the first way's, PNG.")
def main(
    data: Path,
    model: str,
    size: int,
    count: int,
    ways: tuple[tuple[str, int], ...],
    out: Path | None,
) -> None:
    """Draw samples, and print the table of distances."""
    images, loaded = read(data, size, count + 2), load_model(model, "float")
    others, images = images[:count], images[count:]
    shuffled = np.random.default_rng(0).permuted(others, axis=2)
    plain = features(images)
    mean, deviation = plain.mean(0), plain.std(0) + 1e-9

    def row(name: str, steps: str, pictures: Pictures) -> tuple[str, str, str]:
        found = distance((features(pictures) - mean) / deviation, (plain - mean) / deviation)
        return name, steps, f"{found:.3f}"

    rows = [row("images of the data", "-", others), row("the same, rows shuffled", "-", shuffled)]
    for sampler, steps in ways or tuple(map(parse_way, WAYS)):
        drawn = sample(loaded, count, (size, size), steps=steps, sampler=sampler)
        if out is not None:
            grid(drawn).save(out)
            out = None
        rows.append(row(sampler, str(steps), drawn))
        click.echo(f"{rows[-1]}", err=True)
    click.echo(markdown(("samples", "steps", "distance of pixel features"), rows))


if __name__ == "__main__":
    main()
