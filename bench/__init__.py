"""Comparisons and demonstrations; not part of the package."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING
from unittest import mock

from PIL import Image

from diffcodec.images.outliers import Found
from diffcodec.networks.config import NetworkConfig
from diffcodec.system.memory import keep_freed_memory

if TYPE_CHECKING:
    from diffcodec.models.model import Model

keep_freed_memory()  # as the commands do


@contextmanager
def chain_only() -> Iterator[None]:
    """Within it tiles are coded by the chain, or raw where that is smaller: never by WebP."""
    with mock.patch(
        "diffcodec.codec.tiles.encode_fallback", lambda image, *_: ("raw", image.tobytes())
    ):
        yield


@contextmanager
def no_color_sets() -> Iterator[None]:
    """Within it no image is looked at for colours that cannot occur, as other codecs do not."""
    with (
        mock.patch("diffcodec.codec.encoding.find_colors", Found),
        mock.patch("diffcodec.codec.layered_encoding.find_colors", Found),
    ):
        yield


def evaluations(model: "Model", effort: str) -> int:
    """Evaluations of the network for a tile: one a timestep, two where it has self-ensemble."""
    shape = model.info.network or NetworkConfig()
    return sum(2 if shape.ensemble_axes(sigma) else 1 for sigma in model.plans[effort].levels)


def middle(image: Image.Image, side: int) -> Image.Image:
    """The square in the middle of an image, RGB."""
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.convert("RGB").crop((left, top, left + side, top + side))


def identity(model: "Model") -> str:
    """The name and the digest of a model, as results show it."""
    return f"{model.info.name} {model.info.id.hex()}"
