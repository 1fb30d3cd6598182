"""Tiles of an aerial photograph, as people keep them in data sets, from a package.

pip download --no-deps deepforest==2.1.0
python -m bench.aerial deepforest-2.1.0-py3-none-any.whl aerial
python -m bench archive --data aerial/tiles.npy

The forest of Yellowstone from an aircraft, 1249 x 1035 pixels, cut to 304 tiles of 64 x 64, row by
row (MIT licence). uint8 [tiles, 64, 64, 3].
"""

import zipfile
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bench.inputs import check_samples

SIDE = 64
PICTURE = "deepforest/data/2019_YELL_2_541000_4977000_image_crop.png"
SAMPLES = "f7ec154a91cf80e88c3e40c023a4aaf78c3214cc53470cccee4a0b3df34312cd"  # SHA-256 of the tiles


def read_tiles(package: Path) -> NDArray[np.uint8]:
    """The tiles [tiles, side, side, 3].

    Raises:
        click.ClickException: if it is another file.
    """
    try:
        with zipfile.ZipFile(package) as archive, archive.open(PICTURE) as file:
            pixels = np.asarray(Image.open(file).convert("RGB"))
    except (OSError, zipfile.BadZipFile, KeyError) as e:
        raise click.ClickException(f"{package}: not the package ({e})") from e
    rows, columns = (side // SIDE for side in pixels.shape[:2])
    cut = pixels[: rows * SIDE, : columns * SIDE].reshape(rows, SIDE, columns, SIDE, 3)
    tiles = cut.swapaxes(1, 2).reshape(-1, SIDE, SIDE, 3)
    check_samples(package, tiles.tobytes(), SAMPLES)
    return tiles


@click.command()
@click.argument("package", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
def main(package: Path, out: Path) -> None:
    """Write the tiles in PACKAGE to tiles.npy in OUT."""
    out.mkdir(parents=True, exist_ok=True)
    np.save(out / "tiles.npy", read_tiles(package))


if __name__ == "__main__":
    main()
