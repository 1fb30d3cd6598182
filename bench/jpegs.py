"""PNG files of photographs that have been JPEG, as they lie about everywhere, or video frames.

    python -m bench jpegs --data photos24 --quality 90 --subsampling 4:2:0 --out DIR
    python -m bench jpegs --data photos24 --video --out DIR
    python -m bench lossless --data DIR --crop 128 --no-bound [--no-color-sets]

Their colours are those that a converter from YCbCr can reach: docs/colour-sets.md.
"""

import io
from pathlib import Path

import click
import numpy as np
from PIL import Image

from bench.inputs import open_rgb
from diffcodec.training.data import find_images

VIDEO_FRAMES = 8


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


@click.command()
@click.option("--data", required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder to write to.")
@click.option("--quality", default=90, show_default=True, type=click.IntRange(1, 100))
@click.option("--subsampling", default="4:2:0", type=click.Choice(["4:4:4", "4:2:2", "4:2:0"]))
@click.option("--video", is_flag=True, help="Frames of H.264 instead; needs PyAV.")
@click.option("--limit", type=int, help="Only the first so many images.")
def main(
    data: Path, out: Path, quality: int, subsampling: str, video: bool, limit: int | None
) -> None:
    """Write each image of a folder as PNG, after it has been JPEG or a frame of a video."""
    out.mkdir(parents=True, exist_ok=True)
    for path in find_images(data)[:limit]:
        image = open_rgb(path)
        decoded = as_frame(image) if video else as_jpeg(image, quality, subsampling)
        decoded.save(out / f"{path.stem}.png")
    click.echo(f"{out}: {len(list(out.glob('*.png')))} images")


if __name__ == "__main__":
    main()
