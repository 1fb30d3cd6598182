"""Comparisons and demonstrations; not part of the package."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING
from unittest import mock

import click
from PIL import Image

from diffcodec.cli.options import POSITIVE as POSITIVE
from diffcodec.cli.options import POSITIVE_NUMBER as POSITIVE_NUMBER
from diffcodec.images.outliers import Found
from diffcodec.networks.config import NetworkConfig
from diffcodec.system.memory import keep_freed_memory

if TYPE_CHECKING:
    from diffcodec.models.model import Model

SEVERAL = click.IntRange(min=2)  # of options that count what a spread is taken of

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


def check_side(image: Image.Image, side: int, name: str = "the image") -> None:
    """Check that an image, which is named, holds a square: Pillow crops beyond it, and adds black.

    Raises:
        click.ClickException: if it does not.
    """
    if not 0 < side <= min(image.size):
        raise click.ClickException(
            f"{name}: found {image.width} x {image.height} pixels, no square of {side} x {side} "
            "within; give another side, or leave it out"
        )


def middle(image: Image.Image, side: int, name: str = "the image") -> Image.Image:
    """The square in the middle of an image, RGB.

    Raises:
        click.ClickException: if the image, which is named, holds none.
    """
    check_side(image, side, name)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.convert("RGB").crop((left, top, left + side, top + side))


def check_timesteps(model: "Model", plan: str, timesteps: Sequence[int]) -> None:
    """Check that a plan of a model has the timesteps that are asked for.

    Raises:
        click.ClickException: if it has fewer.
    """
    last = len(model.plans[plan].levels)
    if max(timesteps) > last:
        raise click.ClickException(
            f"timestep {max(timesteps)}: {model.info.name} has {last} in its plan {plan}; give "
            f"--timesteps from 1 to {last}"
        )


def identity(model: "Model") -> str:
    """The name and the digest of a model, as results show it."""
    return f"{model.info.name} {model.info.id.hex()}"
