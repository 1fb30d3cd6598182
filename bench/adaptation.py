"""What fitting the model to each image gains, in whole files.

    python -m bench adaptation IMAGES...|DIR [--crop 256] [--color-sets]

Every image as it is and by ``encode --adapt``, decoded and compared; docs/benchmarks.md has the
figures.
"""

from contextlib import nullcontext
from functools import partial
from pathlib import Path

import click
import numpy as np
from PIL import Image

from bench import POSITIVE, no_color_sets
from bench.inputs import dataset
from bench.measuring import check_equal, timed
from diffcodec import decode, encode, load_model
from diffcodec.container.parts import ADAPTATION
from diffcodec.container.reader import parse
from diffcodec.models.model import Model


def measure(image: Image.Image, model: Model, effort: str) -> list[str]:
    """Bits per dimension of both files, the change, bytes of tables, how much longer it takes.

    Raises:
        click.ClickException: if the image does not come back.
    """
    rates, seconds, tables = [], [], b""
    for adapt in (False, True):
        data, _, spent = timed(partial(encode, image, model, effort, adapt=adapt))
        seconds.append(spent)
        check_equal(image, decode(data, model=model))
        rates.append(8 * len(data) / np.asarray(image).size)
        tables = parse(data).metadata.get(ADAPTATION, b"")
    change = f"{100 * (rates[1] / rates[0] - 1):+.1f} %"
    figures = [f"{rates[0]:.3f}", f"{rates[1]:.3f}", change, str(len(tables))]
    return [*figures, f"{seconds[1] / seconds[0]:.1f}"]


@click.command()
@click.argument("images", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--model", default="photo", show_default=True)
@click.option("--effort", default="default", show_default=True)
@click.option("--crop", type=POSITIVE, help="Only the middle of each, so long a side.")
@click.option("--color-sets", is_flag=True, help="With sets of the colours that can occur.")
def main(
    images: tuple[Path, ...], model: str, effort: str, crop: int | None, color_sets: bool
) -> None:
    """Print a row for each image."""
    used = load_model(model)
    click.echo("| bits per dimension | as it is | fitted | | bytes of tables | times as long |")
    click.echo("|---|---|---|---|---|---|")
    for name, image in (each for given in images for each in dataset(given, crop=crop).images()):
        with nullcontext() if color_sets else no_color_sets():
            row = measure(image, used, effort)
        click.echo(" | ".join([f"| {name}", *row]) + " |")


if __name__ == "__main__":
    main()
