"""Comparisons and demonstrations; not part of the package."""

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any
from unittest import mock

from PIL import Image

from diffcodec.system.memory import keep_freed_memory

if TYPE_CHECKING:
    from diffcodec.models.model import Model

keep_freed_memory()  # as the commands do


def chain_only() -> AbstractContextManager[Any]:
    """Within it tiles are coded by the chain, or raw where that is smaller: never by WebP."""
    return mock.patch(
        "diffcodec.codec.tiles.encode_fallback", lambda image: ("raw", image.tobytes())
    )


def without_webp() -> None:
    """The same from now on."""
    chain_only().__enter__()


def evaluations(model: "Model", effort: str) -> int:
    """Of the network for a tile: one for each timestep, two where it has a second view."""
    shape = model.network.config
    return sum(2 if shape.view_axes(sigma) else 1 for sigma in model.plans[effort].levels)


def middle(image: Image.Image, side: int) -> Image.Image:
    """The square in the middle of an image, RGB."""
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.convert("RGB").crop((left, top, left + side, top + side))
