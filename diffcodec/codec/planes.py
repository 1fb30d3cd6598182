"""Pixels of an image and tiles of a colour domain."""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diffcodec.arrays import Array, Flags
from diffcodec.coding.adaptation import Adaptation
from diffcodec.coding.codecs import Allowed
from diffcodec.coding.color_volume import MARGIN, ColorVolume
from diffcodec.coding.top_down import MayEnd
from diffcodec.container.parts import (
    ADAPTATION,
    CHAIN_MODES,
    COLOR_SET,
    EDGE_MULTIPLE,
    MODES,
    TILE_SIDE,
    TILES,
    Box,
    Container,
)
from diffcodec.diffusion.color import from_domain, to_domain
from diffcodec.errors import CorruptError
from diffcodec.images.color_sets import TABLES_LOCK, ColorSet
from diffcodec.images.modes import pixel_crc

MOST_INTEGER = 1023  # farther from 0 than any integer of a colour domain


def coded_channels(mode: str, color: str) -> int:
    """How many channels the chain codes: 3, 1 for grey (its chroma is known), 0 for none."""
    if mode not in CHAIN_MODES or (mode == "L" and color != "ycocg"):
        return 0
    return MODES[mode].channels


def color_set(container: Container) -> ColorSet | None:
    """Which colours can occur in the image of a file, if it tells.

    Raises:
        FormatError: if what it tells is malformed.
    """
    data = container.metadata.get(COLOR_SET)
    return None if data is None else ColorSet.unpack(data, MODES[container.mode].channels)


def may_end(container: Container, end: int) -> MayEnd:
    """Where the bits of a layer that ends at a timestep may end early."""
    layers = container.layers
    assert layers is not None
    is_last = end == layers.stops[-1]
    return MayEnd.IN_LAST_STEP if is_last and layers.is_part else MayEnd.NEVER


def adaptation_of(container: Container) -> Adaptation | None:
    """What fits the model to the image of a file, if anything does.

    Raises:
        FormatError: if what it tells is malformed.
    """
    data = container.metadata.get(ADAPTATION)
    return None if data is None else Adaptation.unpack(data)


def adaptation_entry(adaptation: Adaptation | None) -> dict[str, bytes]:
    """What the metadata of a file tell of its adaptation."""
    return {} if adaptation is None else {ADAPTATION: adaptation.pack()}


def colors_entry(colors: ColorSet | None) -> dict[str, bytes]:
    """What the metadata of a file tell of the colours that can occur."""
    return {} if colors is None else {COLOR_SET: colors.pack()}


def tiles_entry(side: int, size: tuple[int, int]) -> dict[str, bytes]:
    """What the metadata of a file tell of the longest side of its tiles, if there are several."""
    is_told = side != TILE_SIDE and max(size) > side
    return {TILES: bytes([side // EDGE_MULTIPLE])} if is_told else {}


def allowed(colors: ColorSet | None, color: str) -> Allowed | None:
    """A set of colours as the chain asks for it: of integers of the colour domain."""
    return None if colors is None else AllowedColors(colors, color)


@dataclass(frozen=True)
class AllowedColors:
    """A set of colours in a colour domain."""

    colors: ColorSet
    color: str

    def __call__(self, x: Array) -> Flags:
        """See ``Allowed``."""
        bounded = np.clip(x, -MOST_INTEGER, MOST_INTEGER).astype(np.int16)
        return self.colors.allowed(from_domain(bounded, self.color))

    @property
    def volume(self) -> ColorVolume:
        """See ``Allowed``."""
        with TABLES_LOCK:
            return _volume(self.colors, self.color)


@lru_cache(maxsize=1)
def _volume(colors: ColorSet, color: str) -> ColorVolume:
    """The volume of a set; of few colours it takes a quarter of a second."""
    low, high = ((-255, 255), (0, 255))[color == "rgb"]
    lowest = (-MARGIN, low - MARGIN, low - MARGIN)
    side = high - low + 1 + 2 * MARGIN
    shape = (256 + 2 * MARGIN, side, side)
    bits = np.zeros(-(-math.prod(shape) // 8), dtype=np.uint8)
    for rgb in np.array_split(colors.members(), 16, axis=-1):  # for the sake of memory
        x = to_domain(rgb.astype(np.int32), color)
        index = np.ravel_multi_index(
            [channel - first for channel, first in zip(x, lowest, strict=True)], shape
        )
        np.bitwise_or.at(bits, index >> 3, (1 << (index & 7)).astype(np.uint8))
    return ColorVolume(bits, shape, lowest)


def crop(source: Image.Image, box: Box) -> Image.Image:
    """A tile's part of an image."""
    return source.crop((box.left, box.top, box.left + box.width, box.top + box.height))


def integers(source: Image.Image, box: Box, color: str) -> NDArray[np.int16]:
    """A tile in the colour domain, [3, height, width]."""
    rgb = np.asarray(crop(source, box).convert("RGB")).transpose(2, 0, 1).astype(np.int16)
    return to_domain(rgb, color)


def paste(image: Image.Image, box: Box, x: NDArray[np.float64], color: str) -> None:
    """Put a tile of the colour domain, [3, height, width], in its place, rounded and clipped."""
    image.paste(image_of(x, image.mode, color), (box.left, box.top))


def image_of(x: NDArray[np.float64], mode: str, color: str) -> Image.Image:
    """Samples of the colour domain, [3, height, width], as an image, rounded and clipped."""
    rgb = from_domain(np.rint(x).astype(np.int32), color)
    pixels = np.clip(rgb, 0, 255).astype(np.uint8).transpose(1, 2, 0)
    return Image.fromarray(pixels if mode == "RGB" else pixels[:, :, 0])


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


def check_pixels(image: Image.Image, crc: int, float_arithmetic: bool = False) -> None:
    """Hold an image, or a tile of it, against its checksum.

    Raises:
        CorruptError: if it is another.
    """
    if pixel_crc(image) != crc:
        raise CorruptError(
            "the pixels do not match the file's checksum: " + other_probabilities(float_arithmetic)
        )
