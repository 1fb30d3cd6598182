"""Tiles and the coroutines that code them."""

import math
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from jaxtyping import Float64

from diffcodec.arrays import Array
from diffcodec.codec.planes import (
    adaptation_of,
    allowed,
    coded_channels,
    image_of,
    other_probabilities,
)
from diffcodec.coding.adaptation import Adaptation
from diffcodec.coding.bits_back import (
    UNLIMITED,
    EncodedTile,
    SeedAllowance,
    SeedSpentError,
    decode_tile,
    encode_tile,
    push_image,
    words_of,
)
from diffcodec.coding.chain import Answer, Asked, TileChain
from diffcodec.coding.reconstructions import RECONSTRUCTIONS, SEEDS
from diffcodec.coding.steps import OutOfRangeError
from diffcodec.coding.top_down import Descent, encode_below_preview
from diffcodec.container.parts import TILE_SIDE, Box, Container, Tile
from diffcodec.errors import CorruptError, ModelMismatchError, UnsupportedError
from diffcodec.images.color_sets import ColorSet
from diffcodec.images.modes import pixel_crc
from diffcodec.images.outliers import add_outliers
from diffcodec.models.model import Model

Result = TypeVar("Result")
Job = Generator[Asked, Answer, Result]


@dataclass(frozen=True)
class Choices:
    """What the format leaves to the encoder of an image without previews.

    Attributes:
        marks_from_pixels: smaller images carry no step marks, to save their bytes.
        seed_share: words of the shared seed, of all words of a tile, from which on a preview of the
            tile's own is tried.
        seed_bits: words of the seed at which a tile is at once coded so, in bits per sample.
        seed_words: the same in words, where that is more, and of the pop of z_2 in phases.
        tile_side: the longest of a tile.
    """

    marks_from_pixels: int = 1 << 16
    seed_share: float = 0.01
    seed_bits: float = 0.1
    seed_words: int = 256
    tile_side: int = TILE_SIDE


DEFAULT_CHOICES = Choices()


@dataclass(frozen=True)
class Part:
    """A tile that the chain codes: by which plan, its number in the image, and where it lies.

    ``draw`` is which seed and dither of the shared randomness its chain takes, ``label`` the class
    that the model is told, if it is told one, ``adaptation`` fits the model to the image.
    """

    plan: str
    index: int
    box: Box
    draw: int = 0
    label: int | None = None
    adaptation: Adaptation | None = None

    @property
    def pixels(self) -> int:
        """Area of the tile."""
        return self.box.width * self.box.height


@dataclass(frozen=True)
class View:
    """What a file is to show; see :func:`diffcodec.decode`.

    Raises:
        UnsupportedError: if there is no such reconstruction or seed.
    """

    timestep: int = 0
    reconstruct: str = "ensemble"
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.seed < SEEDS:
            raise UnsupportedError(f"seed {self.seed}: expected 0 to {SEEDS - 1}")
        if not isinstance(self.reconstruct, str) or self.reconstruct not in RECONSTRUCTIONS:
            raise UnsupportedError(
                f"reconstruction {self.reconstruct!r}: expected one of {', '.join(RECONSTRUCTIONS)}"
            )


EXACT = View()
MEAN = View(reconstruct="mean")  # what checksums of lossy files are of


def make_chain(
    model: Model, mode: str, part: Part, colors: ColorSet | None = None, exact: bool = True
) -> TileChain:
    """The chain of a tile.

    Args:
        model: to be asked.
        mode: of the image.
        part: of the image.
        colors: which can occur, if not all can.
        exact: whether the file goes down to the image itself.

    Raises:
        CorruptError: if there is none of this plan for the mode.
    """
    coded = coded_channels(mode, model.color)
    if part.plan not in model.plans or not coded:
        raise CorruptError(f"a tile of a {mode} image is coded by {part.plan!r}, which cannot be")
    if part.adaptation and not model.phased:
        raise CorruptError(f"the file adapts the phases of a model, and {model.info.name} has none")
    shape = (part.box.height, part.box.width)
    plan = model.plans[part.plan]
    can_occur = allowed(colors, model.color)
    same = (plan, model.domain, part.index, coded, shape)
    return TileChain(
        *same,
        draw=part.draw,
        label=part.label,
        allowed=can_occur,
        phased=model.phased,
        around_first=model.phased and exact,
        adaptation=part.adaptation,
    )


@contextmanager
def encoding(model: Model) -> Iterator[None]:
    """A ValueError of the chain is the model's."""
    try:
        yield
    except ValueError as e:
        raise ModelMismatchError(
            f"model {model.info.name} cannot code this image ({e}); give another model"
        ) from e


@contextmanager
def decoding(model: Model, index: int) -> Iterator[None]:
    """A ValueError of the chain is the file's."""
    try:
        yield
    except (ValueError, OutOfRangeError) as e:
        raise CorruptError(
            f"tile {index} does not decode ({e}): "
            + other_probabilities(model.arithmetic == "float")
        ) from e


def chain_parts(container: Container) -> list[Part]:
    """The tiles that are chains.

    Raises:
        FormatError: if what the file tells of its adaptation is malformed.
    """
    adaptation = adaptation_of(container)
    pairs = zip(container.boxes(), container.tiles, strict=True)
    return [
        Part(tile.plan, index, box, tile.draw, tile.label, adaptation)
        for index, (box, tile) in enumerate(pairs)
        if tile.plan
    ]


def encode_job(
    model: Model, chain: TileChain, x: Array, checksum: int, choices: Choices = DEFAULT_CHOICES
) -> Job[EncodedTile | None]:
    """The shortest code of a tile by a chain, or None where it has none.

    Args:
        model: of the chain.
        chain: of the tile.
        x: integers of the colour domain, [3, height, width].
        checksum: the CRC of the tile's samples.
        choices: when a preview of its own is tried.
    """
    coded = None
    try:
        with encoding(model):
            begun = yield from push_image(chain, x, checksum)
            allowance = UNLIMITED if chain.preview else _allowance(chain, choices)
            coded = yield from encode_tile(chain, x, allowance, checksum, begun)
        heights = coded.heights
    except OutOfRangeError:
        return None
    except SeedSpentError as e:
        heights = e.heights
    if coded and (chain.preview or coded.seed_words <= choices.seed_share * len(coded.words)):
        return coded
    try:
        with encoding(model):
            other = yield from encode_below_preview(chain, x, heights, checksum, begun)
    except OutOfRangeError:
        return coded
    return min(coded, other, key=lambda tile: tile.size) if coded else other


def _allowance(chain: TileChain, choices: Choices) -> SeedAllowance:
    """Words of the seed from which on a tile is at once coded below a preview.

    In phases the pop of z_2 has fewer: what spends some there spends many at z_3, whose pop takes
    as much, while p(z_1 | z_2) gives back less.
    """
    in_all = max(choices.seed_bits * math.prod(chain.shape) / 32, choices.seed_words)
    return SeedAllowance(in_all, choices.seed_words if chain.phased else in_all)


def decode_job(
    model: Model, chain: TileChain, tile: Tile, timestep: int = 0
) -> Job[Float64[Array, "3 height width"] | Descent]:
    """A chain tile at a timestep; its exact x in the colour domain if its plan has no such one."""
    with decoding(model, chain.tile):
        if tile.preview:
            descent = Descent(chain)
            yield from descent.decode_layer(tile.preview_payload, tile.preview, timestep)
            if timestep >= tile.preview:
                return descent
            chain.forget_answers()
            chain = descent.below()

        def checksum(x: Array) -> int:
            image = image_of(x, "L" if chain.coded == 1 else "RGB", model.color)
            return pixel_crc(add_outliers(image, tile.outliers) if tile.outliers else image)

        x = yield from decode_tile(chain, words_of(tile.payload), timestep, checksum)
    return Descent(chain, timestep) if timestep and timestep in chain.z else x
