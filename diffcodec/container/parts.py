"""A file as its parts, and the tables that name them."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from diffcodec.errors import FormatError

MAGIC = b"\x89DFC"
VERSION = 1
ADAPTATION = "Adaptation"  # the metadata entry that fits the model to the image
COLOR_SET = "Colors"  # the one that tells which colours can occur
TILES = "Tiles"  # and how long the sides of tiles are at most, if not TILE_SIDE
METADATA_NAMES = (
    *(
        ADAPTATION,
        COLOR_SET,
        TILES,
        "chunks",
        "dpi",
        "exif",
        "icc",
        "palette",
        "text",
        "transparency",
        "xmp",
    ),
)
TILE_SIDE, LEAST_TILE_SIDE = 512, 96  # of tiles between others at least 64 are left of that
MOST_DRAW = 255  # of the shared randomness, beyond the first
LEAST_PREVIEW = 2  # timestep of previews that tiles follow: below z_1 there is no chain left
EDGE_MULTIPLE = 8  # divides a tile's side, so that rounding edges up keeps every side within it


class Mode(NamedTuple):
    """What the format says of an image mode.

    Attributes:
        number: in the header of files.
        channels: samples of a pixel.
        bits: of a pixel, in the layout of the samples; each row begins a new byte.
        by_chain: whether a chain can code it.
    """

    number: int
    channels: int
    bits: int
    by_chain: bool = False


MODES = {  # by Pillow's names
    "1": Mode(1, channels=1, bits=1),
    "L": Mode(2, channels=1, bits=8, by_chain=True),
    "LA": Mode(3, channels=2, bits=16),
    "P": Mode(4, channels=1, bits=8),
    "RGB": Mode(5, channels=3, bits=24, by_chain=True),
    "RGBA": Mode(6, channels=4, bits=32),
    "I;16": Mode(7, channels=1, bits=16),
}
CHAIN_MODES = tuple(name for name, mode in MODES.items() if mode.by_chain)
PLAN_NAMES = ("fast", "default", "best")
LOSSY_PLAN = "lossy"  # of files without loss never; some models have one
CODERS = {  # their numbers
    **{"raw": 0, "webp": 1, "png": 2, "planes": 3, "planes-420": 4},
    **{"fast": 16, "default": 17, "best": 18},
}
LAYER_PLANS = {name: CODERS[name] for name in PLAN_NAMES} | {LOSSY_PLAN: 19}


class Box(NamedTuple):
    """A rectangle of the image, in pixels."""

    left: int
    top: int
    width: int
    height: int


@dataclass(frozen=True)
class Tile:
    """One tile as coded.

    Attributes:
        coder: a name in ``CODERS``: a fallback coder's, or of a chain its plan's.
        payload: the coder's bytes; of a chain, 32-bit little-endian words in decoding order, the
            first without zero bytes on top.
        pixel_crc: CRC-32 of the tile's samples, in the layout of PIL's ``tobytes``; 0 of a chain,
            which has it within its payload.
        marks: for timesteps T, T-1, ..., 1, or those below a preview, the payload words that
            reaching it takes; chains only.
        preview: the timestep of a preview of the tile's own, or 0; chains only.
        preview_payload: what leads there, coded as a layer.
        draw: which seed and dither of the shared randomness the chain takes; chains only.
        label: the class that the model was told, or None; chains only.
        outliers: by a plain coder, what is to be added to the tile's samples; empty if nothing.
    """

    coder: str
    payload: bytes
    pixel_crc: int = 0
    marks: tuple[int, ...] = ()
    preview: int = 0
    preview_payload: bytes = b""
    draw: int = 0
    label: int | None = None
    outliers: bytes = b""

    @property
    def size(self) -> int:
        """Bytes of what the coders made."""
        return sum(map(len, (self.payload, self.preview_payload, self.outliers)))

    @property
    def plan(self) -> str | None:
        """The plan of a chain; None where a fallback coder has coded the tile."""
        return self.coder if self.coder in PLAN_NAMES else None


@dataclass(frozen=True)
class Layers:
    """The previews of a file, from the coarsest on.

    Attributes:
        plan: of all tiles, a name in ``LAYER_PLANS``.
        stops: the timesteps that the layers reach, falling; a last 0 says that tiles follow, which
            hold the exact image.
        payloads: by layer and tile; of a file that is read in part, those that are there.
        label: the class that the model was told of all tiles, or None.
        is_part: whether the bits of the last layer may end within its last step.
    """

    plan: str
    stops: tuple[int, ...]
    payloads: tuple[tuple[bytes, ...], ...]
    label: int | None = None
    is_part: bool = False

    @property
    def is_exact(self) -> bool:
        """Whether the file goes on to the exact image."""
        return self.stops[-1] == 0

    @property
    def timesteps(self) -> tuple[int, ...]:
        """What the layers reach."""
        return self.stops[:-1] if self.is_exact else self.stops


@dataclass(frozen=True)
class Container:
    """A file as its parts.

    Attributes:
        mode: the image mode, a name in ``MODES``.
        width: in pixels, at least 1.
        height: in pixels, at least 1.
        model: the first 4 bytes of the SHA-256 of the model file; zeros if there are neither layers
            nor a tile that is a chain.
        whole: one tile covers the whole image, whatever its size.
        metadata: byte strings by name: those of ``METADATA_NAMES``, and others that begin with a
            small letter, which decoding ignores.
        tiles: in the order of :meth:`boxes`; none if the file ends with a layer.
        float_arithmetic: the model was evaluated in floating point; only if there is a model.
        layers: previews, if the file has any.
        pixel_crc: if the file ends with a layer, CRC-32 of the samples that the decoder shows then,
            in the layout of PIL's ``tobytes``; 0 of other files, whose tiles have their own.
    """

    mode: str
    width: int
    height: int
    model: bytes
    whole: bool
    metadata: Mapping[str, bytes]
    tiles: tuple[Tile, ...]
    float_arithmetic: bool = False
    layers: Layers | None = None
    pixel_crc: int = 0

    @property
    def layer_count(self) -> int:
        """How many layers the header claims."""
        return len(self.layers.timesteps) if self.layers else 0

    @property
    def has_tiles(self) -> bool:
        """Whether the header claims tiles."""
        return self.layers is None or self.layers.is_exact

    @property
    def uses_model(self) -> bool:
        """Whether decoding it takes a model."""
        chains = any(tile.plan for tile in self.tiles)
        return self.layers is not None or chains

    @property
    def labels(self) -> set[int]:
        """The classes that the model is told."""
        told = [self.layers.label if self.layers else None, *(tile.label for tile in self.tiles)]
        return {label for label in told if label is not None}

    @property
    def tile_side(self) -> int:
        """The longest side that a tile may have.

        Raises:
            FormatError: what the metadata say of it is malformed.
        """
        told = self.metadata.get(TILES)
        if told is None:
            return TILE_SIDE
        side = EDGE_MULTIPLE * int.from_bytes(told, "little")
        if len(told) != 1 or not LEAST_TILE_SIDE <= side < TILE_SIDE:
            raise FormatError(
                f"the side of tiles is told by {told[:9]!r}, expected a byte of "
                f"{LEAST_TILE_SIDE // EDGE_MULTIPLE} to {TILE_SIDE // EDGE_MULTIPLE - 1}"
            )
        return side

    def boxes(self) -> list[Box]:
        """The rectangle of each tile, in raster order."""
        if self.whole:
            return [Box(0, 0, self.width, self.height)]
        return tile_grid(self.width, self.height, self.tile_side)


def tile_grid(width: int, height: int, most: int | None = None) -> list[Box]:
    """Cut an image into tiles of nearly equal sides, in raster order.

    A side n has k = ceil(n / most) parts with edges at i n / k, rounded up to a multiple of 8.

    Args:
        width: of the image.
        height: of the image.
        most: the longest side of a tile; ``TILE_SIDE`` if it is not given.
    """
    columns, rows = (list(pairwise(_edges(side, most or TILE_SIDE))) for side in (width, height))
    return [Box(x, y, right - x, bottom - y) for y, bottom in rows for x, right in columns]


def _edges(side: int, most: int) -> list[int]:
    parts = _ceil_divide(side, most)
    inner = (_ceil_divide(i * side, parts * EDGE_MULTIPLE) for i in range(1, parts))
    return [0, *(edge * EDGE_MULTIPLE for edge in inner), side]


def tile_count(width: int, height: int, whole: bool, most: int | None = None) -> int:
    """The length of ``boxes()`` by arithmetic: the sides may be a hostile file's claim."""
    if width < 1 or height < 1:
        raise FormatError(f"the image is {width} x {height} pixels, expected at least 1 x 1")
    most = most or TILE_SIDE
    return 1 if whole else _ceil_divide(width, most) * _ceil_divide(height, most)


def _ceil_divide(a: int, b: int) -> int:
    return -(-a // b)
