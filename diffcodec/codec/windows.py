"""A part of an image: the tiles that it touches, and how much of them it shows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from diffcodec.container.parts import Box, Container
from diffcodec.errors import UnsupportedError
from diffcodec.values import integer

SCALES = (1, 2, 4, 8)
# Noise up to which a timestep is fine enough for the mean of so many by so many pixels: at the
# levels of the shipped model crops of the Kodak set rich in detail are shown at over 40 dB.
SCALED_SIGMA = {1: 0.0, 2: 4.5, 4: 8.5, 8: 16.0}


@dataclass(frozen=True)
class Window:
    """The part of an image that is to be shown.

    Attributes:
        region: in the image.
        frame: the rectangle of the tiles that it takes, in the image.
        boxes: where these tiles lie in the frame, by their numbers.
        is_whole: whether that is the whole image.
    """

    region: Box
    frame: Box
    boxes: Mapping[int, Box]
    is_whole: bool

    @property
    def size(self) -> tuple[int, int]:
        """The size of the frame, (width, height)."""
        return self.frame.width, self.frame.height

    def cut(self, frame: Image.Image) -> Image.Image:
        """The region, from the image of the frame."""
        if self.region == self.frame:
            return frame
        left, top = self.region.left - self.frame.left, self.region.top - self.frame.top
        return frame.crop((left, top, left + self.region.width, top + self.region.height))


def find_window(container: Container, region: Sequence[int] | None, margin: int = 0) -> Window:
    """The tiles that a region of an image takes with a margin around it, or all of them.

    Raises:
        UnsupportedError: if it is none within the image.
        TypeError: if it is not four integers.
    """
    image = Box(0, 0, container.width, container.height)
    box = image if region is None else _checked(region, image)
    touched = {
        index: tile
        for index, tile in enumerate(container.boxes())
        if tile.left < box.left + box.width + margin
        and box.left - margin < tile.left + tile.width
        and tile.top < box.top + box.height + margin
        and box.top - margin < tile.top + tile.height
    }
    first, last = touched[min(touched)], touched[max(touched)]
    frame = Box(
        first.left,
        first.top,
        last.left + last.width - first.left,
        last.top + last.height - first.top,
    )
    boxes = {
        index: tile._replace(left=tile.left - frame.left, top=tile.top - frame.top)
        for index, tile in touched.items()
    }
    return Window(box, frame, boxes, region is None)


def _checked(region: Any, image: Box) -> Box:
    try:
        box = Box(*(integer("region", number) for number in region))
    except TypeError as error:
        raise TypeError(
            f"region: found {region!r}, expected four integers: left, top, width, height"
        ) from error
    is_within = 0 <= box.left < box.left + box.width <= image.width
    if not (is_within and 0 <= box.top < box.top + box.height <= image.height):
        raise UnsupportedError(
            f"region {','.join(map(str, box))}: the image is {image.width} x {image.height}; "
            "expected left, top, width and height of a part of it"
        )
    return box


def check_scale(scale: Any) -> int:
    """The factor by which an image is to be reduced.

    Raises:
        UnsupportedError: if it is none of ``SCALES``.
    """
    found = integer("scale", scale)
    if found not in SCALES:
        raise UnsupportedError(f"scale {found}: expected one of {', '.join(map(str, SCALES))}")
    return found


def scaled_timestep(levels: Sequence[float], scale: int) -> int:
    """The coarsest timestep that is fine enough for a reduced image; 0 for one in full."""
    return sum(sigma <= SCALED_SIGMA[scale] for sigma in levels)


def reduced(image: Image.Image, scale: int) -> Image.Image:
    """An image with the mean of a square of pixels for one; of palettes and bits a pixel of it."""
    if scale == 1:
        return image
    if image.mode in ("L", "LA", "RGB", "RGBA", "I;16"):
        is_deep = image.mode == "I;16"  # which Pillow does not reduce as it is
        small = image.convert("I").reduce(scale).convert("I;16") if is_deep else image.reduce(scale)
        small.info = dict(image.info)
        return small
    size = -(-image.width // scale), -(-image.height // scale)
    return image.resize(size, Image.Resampling.NEAREST)
