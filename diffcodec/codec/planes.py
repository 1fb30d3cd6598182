"""Pixels of an image and tiles of a colour domain."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diffcodec.container.parts import CHAIN_MODES, MODES, Box, Container
from diffcodec.diffusion.color import from_domain, to_domain
from diffcodec.errors import CorruptError
from diffcodec.images.modes import pixel_crc


def coded_channels(mode: str, color: str) -> int:
    """How many channels the chain codes: 3, 1 for grey (its chroma is known), 0 for none."""
    if mode not in CHAIN_MODES or (mode == "L" and color != "ycocg"):
        return 0
    return MODES[mode].channels


def crop(source: Image.Image, box: Box) -> Image.Image:
    """A tile's part of an image."""
    return source.crop((box.left, box.top, box.left + box.width, box.top + box.height))


def integers(source: Image.Image, box: Box, color: str) -> NDArray[np.int16]:
    """A tile in the colour domain, [3, height, width]."""
    rgb = np.asarray(crop(source, box).convert("RGB")).transpose(2, 0, 1).astype(np.int16)
    return to_domain(rgb, color)


def paste(image: Image.Image, box: Box, x: NDArray[np.float64], color: str) -> None:
    """Put a tile of the colour domain, [3, height, width], in its place, rounded and clipped."""
    rgb = from_domain(np.rint(x).astype(np.int32), color)
    pixels = np.clip(rgb, 0, 255).astype(np.uint8).transpose(1, 2, 0)
    part = Image.fromarray(pixels if image.mode == "RGB" else pixels[:, :, 0])
    image.paste(part, (box.left, box.top))


def other_probabilities(float_arithmetic: bool) -> str:
    """Why a whole file does not decode."""
    text = (
        "the file is whole, so this machine computed other probabilities than the one that "
        "encoded it"
    )
    if float_arithmetic:
        text += (
            "; it was made with float arithmetic, which is not the same on every machine: encode "
            "the image with --arithmetic integer, the default, to decode it anywhere"
        )
    return text


def check_pixels(image: Image.Image, container: Container) -> None:
    """Hold an image against the checksum of its file.

    Raises:
        CorruptError: if it is another.
    """
    if pixel_crc(image) != container.pixel_crc:
        raise CorruptError(
            "the pixels do not match the file's checksum: "
            + other_probabilities(container.float_arithmetic)
        )
