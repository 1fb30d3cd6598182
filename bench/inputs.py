"""Images to measure on: any folder, arrays of images, and a synthetic set that needs no data."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bench import middle
from diffcodec.images.metadata import stripped
from diffcodec.images.modes import in_8_bits
from diffcodec.images.reading import read_image
from diffcodec.training.data import Source, find_images, list_images

SYNTHETIC_SIDE = 64
FOLDER = Path(__file__).parents[1]
EXAMPLES = FOLDER / "examples"


@dataclass(frozen=True)
class Dataset:
    """Named images, read one by one.

    Attributes:
        name: of the results.
        sources: by the images' names.
        crop: side of the middle that is taken, or None.
        options: as on the command line.
    """

    name: str
    sources: dict[str, Source]
    crop: int | None
    options: str

    def __len__(self) -> int:
        return len(self.sources)

    def images(self) -> Iterator[tuple[str, Image.Image]]:
        """Names and images, in RGB."""
        for name, source in self.sources.items():
            image = open_rgb(source)
            yield name, image if self.crop is None else middle(image, self.crop, name)


def check_samples(path: Path, samples: bytes, expected: str) -> None:
    """Check that the samples read from a package are those that figures were measured with.

    Raises:
        click.ClickException: if their SHA-256 is another.
    """
    found = hashlib.sha256(samples).hexdigest()
    if found != expected:
        raise click.ClickException(f"{path}: SHA-256 {found} of the samples, expected {expected}")


def open_rgb(source: Source) -> Image.Image:
    """The pixels alone, as other codecs get them, of a file or of an array [3, height, width].

    Grey of 16 bits is scaled to 8.
    """
    if isinstance(source, Path):
        return in_8_bits(stripped(read_image(source)), "RGB")
    return Image.fromarray(np.ascontiguousarray(source.transpose(1, 2, 0)))


def dataset(
    data: Path, limit: int | None = None, crop: int | None = None, name: str | None = None
) -> Dataset:
    """The first images of a folder or an array, by file name or by place in the array."""
    sources = list_images(find_images(data))[:limit]
    named: dict[str, Source] = {}
    for i, source in enumerate(sources):
        label = f"{i:05}"
        if isinstance(source, Path):
            label = source.relative_to(data).as_posix() if data.is_dir() else source.name
        named[label] = source
    if name is None:
        name = data.resolve().name if data.is_dir() else f"{data.resolve().parent.name}-{data.stem}"
        name += f"-crop{crop}" if crop else ""
        name += f"-first{limit}" if limit else ""
    options = f"--data {data.name}" + (f" --crop {crop}" if crop else "")
    return Dataset(name, named, crop, options + (f" --limit {limit}" if limit else ""))


def synthetic(side: int = SYNTHETIC_SIDE) -> Dataset:
    """Pictures that are no photographs: flat, ramp, checkerboard, text-like, noise, disc."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:side, :side]
    flat = np.full((side, side, 3), (90, 160, 200))
    ramp = np.stack([x * 255 // side, y * 255 // side, (x + y) * 127 // side], -1)
    board = np.repeat(((x // 4 + y // 4) % 2 * 255)[..., None], 3, -1)
    lines = np.repeat(
        (rng.random((side // 2, side // 2)) < 0.3).repeat(2, 0).repeat(2, 1)[..., None], 3, -1
    )
    text = np.where(lines & (y // 6 % 2 == 0)[..., None], 30, 245)
    noise = rng.integers(0, 256, (side, side, 3))
    inside = (x - side / 2) ** 2 + (y - side / 2) ** 2 < (side / 3) ** 2
    disc = np.where(inside[..., None], (200, 60, 30), ramp)
    pictures = {"flat": flat, "ramp": ramp, "checkerboard": board, "text": text}
    pictures |= {"noise": noise, "disc": disc}
    sources: dict[str, Source] = {name: _planes(a) for name, a in pictures.items()}
    return Dataset("synthetic", sources, None, "(synthetic pictures of bench all)")


def _planes(array: NDArray[np.int64]) -> NDArray[np.uint8]:
    return array.astype(np.uint8).transpose(2, 0, 1)
