"""PNG files of photographs that have been JPEG, as they lie about everywhere.

    python -m bench jpegs --data photos24 --quality 90 --subsampling 4:2:0 --out DIR
    python -m bench lossless --data DIR --crop 128 --no-bound [--no-color-sets]

Their colours are those that a converter from YCbCr can reach: docs/colour-sets.md.
"""

import io
from pathlib import Path

import click
from PIL import Image

from bench.inputs import open_rgb
from diffcodec.training.data import find_images


@click.command()
@click.option("--data", required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder to write to.")
@click.option("--quality", default=90, show_default=True, type=click.IntRange(1, 100))
@click.option("--subsampling", default="4:2:0", type=click.Choice(["4:4:4", "4:2:2", "4:2:0"]))
@click.option("--limit", type=int, help="Only the first so many images.")
def main(data: Path, out: Path, quality: int, subsampling: str, limit: int | None) -> None:
    """Write each image of a folder as PNG, after it has been JPEG."""
    out.mkdir(parents=True, exist_ok=True)
    for path in find_images(data)[:limit]:
        jpeg = io.BytesIO()
        open_rgb(path).save(jpeg, "JPEG", quality=quality, subsampling=subsampling)
        with Image.open(jpeg) as decoded:
            decoded.save(out / f"{path.stem}.png")
    click.echo(f"{out}: {len(list(out.glob('*.png')))} images")


if __name__ == "__main__":
    main()
