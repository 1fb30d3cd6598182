"""Comparisons and demonstrations; not part of the package."""

from unittest import mock

from PIL import Image


def without_webp() -> None:
    """From now on tiles are coded by the chain, or raw where that is smaller: never by WebP."""
    mock.patch("diffcodec.codec.encode_fallback", lambda image: ("raw", image.tobytes())).start()


def middle(image: Image.Image, side: int) -> Image.Image:
    """The square in the middle of an image, RGB."""
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.convert("RGB").crop((left, top, left + side, top + side))
