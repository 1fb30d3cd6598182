"""What other coders make of the planes that an image was converted from, and of half their chroma.

    python -m bench planes IMAGES...|DIR
    python -m bench planes --quality 90 IMAGES...|DIR

The second makes JPEG of the images first, with chroma of half the resolution, and codes this too: a
coder that undid the decoder's interpolation would have no more to tell.
"""

import io
from itertools import islice
from pathlib import Path

import click
import imagecodecs
import numpy as np
from PIL import Image

from bench import POSITIVE, check_side
from bench.inputs import dataset
from diffcodec.arrays import Bytes
from diffcodec.images.color_sets import find_color_set
from diffcodec.images.fallback import encode_fallback
from diffcodec.images.source_planes import to_planes


def jpegxl(samples: Bytes) -> int:
    """Bytes without loss at effort 9."""
    samples = np.ascontiguousarray(samples)
    return len(imagecodecs.jpegxl_encode(samples, lossless=True, effort=9, numthreads=1))


def upsampled(half: Bytes, size: tuple[int, int]) -> Bytes:
    """Chroma as libjpeg-turbo interpolates it ("fancy"), to [height, width]."""
    rows = np.pad(half.astype(int), 1, mode="edge")
    middle_rows = 3 * rows[1:-1]
    sums = np.stack([middle_rows + rows[:-2], middle_rows + rows[2:]], 1).reshape(-1, rows.shape[1])
    inner = 3 * sums[:, 1:-1]
    pairs = np.stack([inner + sums[:, :-2] + 8 >> 4, inner + sums[:, 2:] + 7 >> 4], -1)
    return pairs.reshape(len(sums), -1)[: size[0], : size[1]].astype(np.uint8)


def made_jpeg(image: Image.Image, quality: int) -> tuple[bytes, Image.Image, Bytes]:
    """A JPEG, what it decodes to, and its own chroma, [2, height / 2, width / 2]."""
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality, subsampling="4:2:0")
    decoded = Image.open(stream)
    decoded.load()
    with Image.open(stream) as scaled:  # chroma comes as it is where luma is scaled to its size
        scaled.draft("YCbCr", (image.width // 2, image.height // 2))
        chroma = np.asarray(scaled).transpose(2, 0, 1)[1:]
    return stream.getvalue(), decoded, chroma


def share_recovered(planes: Bytes, chroma: Bytes) -> float:
    """The share of the samples of chroma that interpolation of the JPEG's own chroma gives."""
    size = planes.shape[:2]
    same = [upsampled(half, size) == planes[..., c] for half, c in zip(chroma, (0, 2), strict=True)]
    return float(np.mean(same))


@click.command()
@click.argument("images", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--quality", type=click.IntRange(1, 100), help="Make JPEG of them before.")
@click.option("--crop", type=POSITIVE, help="Side of the middle that is taken.")
@click.option("--limit", type=POSITIVE, help="Only the first so many images.")
def main(
    images: tuple[Path, ...], quality: int | None, crop: int | None, limit: int | None
) -> None:
    """Print bits per dimension of RGB and of the planes, by WebP and JPEG XL."""
    names = ["WebP", "WebP, planes", "JPEG XL 9", "JPEG XL 9, planes"]
    if quality:
        names += ["JPEG XL 9, half chroma", "the JPEG", "chroma recovered, %"]
    click.echo("| image | " + " | ".join(names) + " |\n" + "|---" * (len(names) + 1) + "|")
    rows = []
    given = (each for path in images for each in dataset(path, crop=crop).images())
    for name, original in islice(given, limit):
        image, jpeg, chroma = original, b"", np.zeros((2, 0, 0), np.uint8)
        if quality:
            check_side(image, 2, name)
            jpeg, image, chroma = made_jpeg(image, quality)
        colors = find_color_set(image)
        if colors is None or colors.conversion in (None, "grey"):
            click.echo(f"| {name} has no conversion |")
            continue
        planes = np.asarray(to_planes(image, colors.conversion))
        luma = planes[..., 1]
        sizes = [len(encode_fallback(image, by)[1]) for by in (None, colors.conversion)]
        sizes += [jpegxl(np.asarray(image)), jpegxl(planes[..., [1, 0, 2]])]
        figures = [8 * size / planes.size for size in sizes]
        if quality:
            halved = jpegxl(luma) + sum(map(jpegxl, chroma))
            figures += [8 * size / planes.size for size in (halved, len(jpeg))]
            figures.append(100 * share_recovered(planes, chroma))
        rows.append(figures)
        click.echo(f"| {name} | " + " | ".join(f"{value:.3f}" for value in figures) + " |")
    if rows:
        mean = np.mean(rows, axis=0)
        click.echo("| mean | " + " | ".join(f"{value:.3f}" for value in mean) + " |")


if __name__ == "__main__":
    main()
