"""Images of random samples in every mode, and their files."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from diffcodec.container.parts import Tile
from diffcodec.images.modes import pixel_crc

SIZES = [(1, 1), (1, 9), (31, 1), (7, 5), (33, 32)]


def make_image(mode: str, size: tuple[int, int], levels: int = 256, seed: int = 0) -> Image.Image:
    """Samples over the whole range; few levels make them compressible. Mode P has 256 colours."""
    draw = np.random.default_rng(seed)
    width, height = size
    if mode == "1":
        data = np.packbits(draw.integers(0, 2, (height, width), np.uint8), axis=1)
    else:
        row = width * (2 if mode == "I;16" else len(mode))
        data = draw.integers(0, levels, (height, row), np.uint8) * np.uint8(255 // (levels - 1))
    image = Image.frombytes(mode, size, data.tobytes())
    if mode == "P":
        image.putpalette(draw.integers(0, 256, 768, np.uint8).tobytes())
    return image


def folder_of_two(image: Image.Image, path: Path) -> Path:
    """A folder with an image and the same turned upside down."""
    image.save(path / "a.png")
    image.transpose(Image.Transpose.ROTATE_180).save(path / "b.png")
    return path


def raw_tile(image: Image.Image) -> Tile:
    """The samples of an image as a tile."""
    return Tile("raw", image.tobytes(), pixel_crc=pixel_crc(image))


def saved(image: Image.Image, format: str = "PNG", **options: object) -> io.BytesIO:
    """A file of an image, as Pillow writes it."""
    stream = io.BytesIO()
    image.save(stream, format, **options)
    stream.seek(0)
    return stream
