"""Which colours images keep to, and how much of them each known conversion reaches.

    python -m bench color-sets IMAGES...|DIR

docs/colour-sets.md says what it finds.
"""

from pathlib import Path

import click
import numpy as np

from bench.inputs import dataset, open_rgb
from diffcodec.arrays import Flags
from diffcodec.images.color_sets import CONVERSIONS, ColorSet, find_color_set, triples
from diffcodec.images.reading import read_image
from diffcodec.training.data import Source


def described(colors: ColorSet | None) -> str:
    """A set in words."""
    if colors is None:
        return "none"
    bits = (np.frombuffer(channel, np.uint8) for channel in colors.values)
    counts = [str(int(np.bitwise_count(channel).sum())) for channel in bits]
    values = [f"{', '.join(counts)} of 256 values"] if counts else []
    return "; ".join([*filter(None, [colors.conversion]), *values])


def shares(source: Source, reached: list[Flags]) -> list[float]:
    """The share of an image's pixels that is in each of some tables of triples."""
    r, g, b = np.moveaxis(np.asarray(open_rgb(source)).astype(np.int64), -1, 0)
    colors, counts = np.unique(r << 16 | g << 8 | b, return_counts=True)
    return [float(counts[table[colors]].sum() / r.size) for table in reached]


@click.command()
@click.argument("images", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
def main(images: tuple[Path, ...]) -> None:
    """Print the set of each image, and the share of its pixels that each conversion reaches.

    In percent, "all" only where not one pixel is outside.
    """

    def row(first: str, second: str, figures: list[float]) -> None:
        cells = ["all" if share == 1 else f"{100 * share:.2f}" for share in figures]
        click.echo(" | ".join(["| " + first, second, *cells]) + " |")

    click.echo("| image | set | " + " | ".join(CONVERSIONS) + " |")
    click.echo("|---" * (len(CONVERSIONS) + 2) + "|")
    reached = [triples(name) for name in CONVERSIONS]
    row("all triples", "", [float(table.mean()) for table in reached])
    for name, source in (each for given in images for each in dataset(given).sources.items()):
        image = read_image(source) if isinstance(source, Path) else open_rgb(source)
        row(name, described(find_color_set(image)), shares(source, reached))


if __name__ == "__main__":
    main()
