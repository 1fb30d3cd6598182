"""PNG files of photographs that have been JPEG, as they lie about everywhere, or other YCbCr.

    python -m bench jpegs --data photos24 --quality 90 --subsampling 4:2:0 --out DIR
    python -m bench jpegs --data photos24 --video --out DIR
    python -m bench jpegs --data photos24 --photo-cd --out DIR
    python -m bench lossless --data DIR --crop 128 --no-bound [--no-color-sets]

Their colours are those that a converter from YCbCr can reach: docs/colour-sets.md.
"""

import io
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import convolve

from bench import POSITIVE, check_side
from bench.inputs import dataset
from diffcodec.images.source_planes import from_planes

VIDEO_FRAMES = 8
VIDEO_SIDE = 16 + VIDEO_FRAMES  # x264 takes one macroblock at least
TENT = (0.25, 0.5, 0.25)


def as_jpeg(image: Image.Image, quality: int, subsampling: str) -> Image.Image:
    """What a JPEG leaves of an image."""
    jpeg = io.BytesIO()
    image.save(jpeg, "JPEG", quality=quality, subsampling=subsampling)
    return Image.open(jpeg)


def as_frame(image: Image.Image) -> Image.Image:
    """The last frame of a short clip that pans over an image: H.264 at x264's defaults, 4:2:0."""
    import av

    clip = io.BytesIO()
    width, height = ((side - VIDEO_FRAMES) // 2 * 2 for side in image.size)
    with av.open(clip, "w", format="mp4") as target:
        stream = target.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for shift in range(VIDEO_FRAMES):
            part = image.crop((shift, shift, shift + width, shift + height))
            target.mux(stream.encode(av.VideoFrame.from_ndarray(np.asarray(part))))
        target.mux(stream.encode())
    clip.seek(0)
    with av.open(clip, "r") as source:
        *_, last = source.decode(video=0)
    return Image.fromarray(last.to_ndarray(format="rgb24"))


def as_photo_cd(image: Image.Image) -> Image.Image:
    """An image by way of Photo CD, as Kodak's: 8-bit PhotoYCC, chroma of every second sample."""
    width, height = image.size
    even = (0, height % 2), (0, width % 2), (0, 0)
    r, g, b = np.pad(np.asarray(image), even, mode="edge").transpose(2, 0, 1).astype(np.float64)
    luma = 0.299 * r + 0.587 * g + 0.114 * b
    planes = [luma / 1.3584]
    for chroma in ((b - luma) / 2.2179 + 156, (r - luma) / 1.8215 + 137):
        smooth = convolve(chroma, np.outer(TENT, TENT), mode="nearest")
        planes.append(interpolated(smooth[::2, ::2].round()))
    y, u, v = (Image.fromarray(each.round().clip(0, 255).astype(np.uint8)) for each in planes)
    return from_planes(Image.merge("RGB", (u, y, v)), "photoycc").crop((0, 0, width, height))


def interpolated(halved: NDArray[np.float64]) -> NDArray[np.float64]:
    """Twice the size: samples, and between them the means of two or four, halves rounded up."""
    height, width = halved.shape
    edged = np.pad(halved, ((0, 1), (0, 1)), mode="edge")
    whole = np.empty((2 * height, 2 * width))
    for row, column in np.ndindex(2, 2):
        parts = [edged[i : i + height, j : j + width] for i, j in np.ndindex(row + 1, column + 1)]
        whole[row::2, column::2] = np.mean(parts, 0)
    return np.floor(whole + 0.5)


@click.command()
@click.option("--data", required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder to write to.")
@click.option("--quality", default=90, show_default=True, type=click.IntRange(1, 100))
@click.option("--subsampling", default="4:2:0", type=click.Choice(["4:4:4", "4:2:2", "4:2:0"]))
@click.option("--video", is_flag=True, help="Frames of H.264 instead; needs PyAV.")
@click.option("--photo-cd", is_flag=True, help="By way of Photo CD instead.")
@click.option("--limit", type=POSITIVE, help="Only the first so many images.")
def main(
    data: Path,
    out: Path,
    quality: int,
    subsampling: str,
    video: bool,
    photo_cd: bool,
    limit: int | None,
) -> None:
    """Write each image of a folder as PNG, after it has been JPEG, video or on a Photo CD."""
    used = dataset(data, limit)
    stems = {name: Path(name).stem for name in used.sources}
    first = {stems[name]: name for name in reversed(used.sources)}
    for name, stem in stems.items():
        if name != first[stem]:
            raise click.ClickException(
                f"{first[stem]} and {name} would both become {stem}.png: rename one"
            )
    out.mkdir(parents=True, exist_ok=True)
    for name, image in used.images():
        if photo_cd:
            decoded = as_photo_cd(image)
        else:
            if video:
                check_side(image, VIDEO_SIDE, name)
            decoded = as_frame(image) if video else as_jpeg(image, quality, subsampling)
        decoded.save(out / f"{stems[name]}.png")
    click.echo(f"{out}: {len(list(out.glob('*.png')))} images")


if __name__ == "__main__":
    main()
