"""Time and peak memory of one large image, through the command line and back.

python -m bench large --data DIR [--megapixels 24] [--effort fast]

The image is a mosaic of the folder's images, 3 wide to 2 high.
"""

import hashlib
import itertools
import math
import tempfile
from pathlib import Path

import click
from PIL import Image

from bench import POSITIVE_NUMBER
from bench.inputs import Dataset, dataset
from bench.measuring import timed
from bench.store import child_peak_mb


def mosaic(data: Dataset, width: int, height: int) -> Image.Image:
    """The images beside and below each other, again and again, cut at the edges."""
    canvas = Image.new("RGB", (width, height))
    images = itertools.cycle(image for _, image in data.images())
    top = 0
    while top < height:
        left, row = 0, 0
        while left < width:
            image = next(images)
            canvas.paste(image, (left, top))
            left, row = left + image.width, max(row, image.height)
        top += row
    return canvas


def run(*arguments: str) -> str:
    """Time and largest memory of a command."""
    peak, seconds, _ = timed(lambda: child_peak_mb("-m", "diffcodec", *arguments))
    return f"{arguments[0]}: {seconds:.0f} s, peak memory {peak} MB"


@click.command()
@click.option("--data", required=True, type=click.Path(path_type=Path), help="Folder or .npy.")
@click.option("--megapixels", default=24.0, type=POSITIVE_NUMBER, show_default=True)
@click.option("--effort", default="fast", show_default=True)
def main(data: Path, megapixels: float, effort: str) -> None:
    """Encode and decode the mosaic, and check that it comes back."""
    height = round(math.sqrt(megapixels * 1e6 / 1.5))
    image = mosaic(dataset(data), round(1.5 * height), height)
    expected = hashlib.sha256(image.tobytes()).hexdigest()
    with tempfile.TemporaryDirectory() as name:
        source, coded, copy = (str(Path(name) / f) for f in ("in.png", "in.dfc", "out.png"))
        image.save(source, compress_level=1)
        click.echo(f"{image.width} x {image.height}, {effort}")
        del image
        click.echo(run("encode", source, coded, "--effort", effort))
        click.echo(f"{Path(coded).stat().st_size} bytes")
        click.echo(run("decode", coded, copy))
        with Image.open(copy) as decoded:
            if hashlib.sha256(decoded.tobytes()).hexdigest() != expected:
                raise click.ClickException("the decoded image differs from the original")


if __name__ == "__main__":
    main()
