"""What every container must keep to, read or written."""

import re
from collections.abc import Iterable, Mapping
from itertools import pairwise

from diffcodec.container.parts import (
    ADAPTATION,
    CHAIN_MODES,
    CODERS,
    COLOR_SET,
    LAYER_PLANS,
    LEAST_PREVIEW,
    METADATA_NAMES,
    MODES,
    MOST_DRAW,
    PLAN_NAMES,
    TILES,
    Container,
    Tile,
    tile_count,
)
from diffcodec.container.primitives import word_count
from diffcodec.errors import FormatError, UnsupportedFileError

_NAME = re.compile("[A-Za-z][A-Za-z0-9-]*")  # of a metadata entry
_LONGEST_NAME, _MOST_ENTRIES = 255, 255


def check_header(container: Container) -> None:
    """The rules that do not hang on what follows the header."""
    _check_name(container.mode, MODES)
    if len(container.model) != 4:
        raise FormatError(f"the model's identity is {container.model!r}, expected 4 bytes")
    _check_crc(container.pixel_crc, is_there=not container.has_tiles, where="the image")
    check_metadata(container.metadata)
    if TILES in container.metadata and container.whole:
        raise FormatError("the file tells of the sides of tiles, and one tile is the whole image")
    layers = container.layers
    if ADAPTATION in container.metadata and layers:
        raise FormatError("the file has an adaptation and layers, expected one or the other")
    if layers:
        plans = PLAN_NAMES if layers.is_exact else tuple(LAYER_PLANS)
        if layers.plan not in plans:
            raise FormatError(f"layers by {layers.plan!r}, expected one of {plans}")
        if not layers.timesteps or any(a <= b for a, b in pairwise((*layers.stops, -1))):
            raise FormatError(f"layers that reach the timesteps {layers.stops}: they must fall")
        if layers.is_exact and layers.is_part:
            raise FormatError("the last step is a part, and tiles follow: expected the whole step")
        if layers.is_exact and layers.timesteps[-1] < LEAST_PREVIEW:
            raise FormatError(
                f"tiles follow timestep {layers.timesteps[-1]}, expected at least {LEAST_PREVIEW}"
            )
        if container.mode not in CHAIN_MODES or container.whole:
            raise FormatError(
                f"layers of a {container.mode} image{' in one tile' if container.whole else ''}: "
                f"expected a tile grid and mode {' or '.join(CHAIN_MODES)}"
            )


def check_metadata(metadata: Mapping[str, bytes]) -> None:
    """Refuse too many entries, and names that are none or that must be known."""
    if len(metadata) > _MOST_ENTRIES:
        raise FormatError(
            f"there are {len(metadata)} metadata entries, expected at most {_MOST_ENTRIES}"
        )
    for name in metadata.keys() - set(METADATA_NAMES):
        _check_unknown_name(name)


def _check_name(name: str, table: Iterable[str]) -> None:
    if name not in table:
        raise FormatError(f"{name!r} is not one of {list(table)}")


def _check_unknown_name(name: str) -> None:
    if len(name) > _LONGEST_NAME or not _NAME.fullmatch(name):
        raise FormatError(
            f"metadata name {name!r}, expected a letter and then letters, digits and hyphens"
        )
    if name[0].isupper():
        raise UnsupportedFileError(
            f"the file needs {name!r}, which this diffcodec does not know: a newer diffcodec is "
            "needed"
        )


def check_container(container: Container) -> None:
    """Refuse what the layout could carry but the format forbids; both directions call it."""
    check_header(container)
    layers = container.layers
    count = tile_count(container.width, container.height, container.whole, container.tile_side)
    if layers:
        if any(len(payload) != count for payload in layers.payloads):
            raise FormatError(f"a layer has other than {count} tiles")
        if len(layers.payloads) != len(layers.timesteps):
            raise FormatError(
                f"there are {len(layers.payloads)} layers, expected {len(layers.timesteps)}"
            )
        if not layers.is_exact:
            count = 0
    if len(container.tiles) != count:
        raise FormatError(f"there are {len(container.tiles)} tiles, expected {count}")
    if not container.uses_model:
        if any(container.model):
            raise FormatError("the file names a model that no tile uses, expected 4 zero bytes")
        if container.float_arithmetic:
            raise FormatError("the file names float arithmetic, but no tile is a chain")
    _check_entries(container)
    has_marks = any(tile.marks for tile in container.tiles)
    for index, tile in enumerate(container.tiles):
        where = f"tile {index + 1} of {count}"
        check_tile(tile, where, container)
        if has_marks and tile.plan and not tile.marks:
            raise FormatError(f"{where} has no step marks, but other tiles have")


def _check_entries(container: Container) -> None:
    """Refuse entries of the metadata that say what the rest of the file cannot be."""
    for name, what in ((COLOR_SET, "a set of colours"), (ADAPTATION, "an adaptation")):
        if name in container.metadata and not container.uses_model:
            raise FormatError(f"the file has {what}, but no tile is a chain")


def check_tile(tile: Tile, where: str, container: Container) -> None:
    """Refuse a tile that its coder or the header rules out."""
    _check_name(tile.coder, CODERS)
    _check_crc(tile.pixel_crc, is_there=not tile.plan, where=where)
    if tile.outliers and container.mode not in CHAIN_MODES:
        raise FormatError(
            f"{where} of a {container.mode} image has outliers, expected none, or mode "
            f"{' or '.join(CHAIN_MODES)}"
        )
    if not tile.plan:
        if tile != Tile(tile.coder, tile.payload, tile.pixel_crc, outliers=tile.outliers):
            raise FormatError(
                f"{where} is {tile.coder!r}: only a chain has marks, preview, draw and class"
            )
        return
    if tile.preview:
        check_preview(tile.preview, where)
    elif tile.preview_payload:
        raise FormatError(f"{where} has a preview's payload without a preview")
    if not 0 <= tile.draw <= MOST_DRAW:
        raise FormatError(f"{where} has the draw {tile.draw}, expected 0 to {MOST_DRAW}")
    if container.layers and (tile.preview or tile.draw or tile.label is not None):
        raise FormatError(
            f"{where} has a preview, draw or class of its own below previews, expected none"
        )
    if container.mode not in CHAIN_MODES:
        raise FormatError(f"{where} of a {container.mode} image is a chain, which cannot be")
    if container.layers and tile.coder != container.layers.plan:
        raise FormatError(
            f"{where} is {tile.coder!r} below previews, expected {container.layers.plan!r}"
        )
    words = word_count(tile.payload)
    if any(b < a for a, b in pairwise((0, *tile.marks, words))):
        raise FormatError(f"the step marks of {where} are not in order within its {words} words")


def _check_crc(crc: int, is_there: bool, where: str) -> None:
    bits = 32 if is_there else 0
    if not 0 <= crc < 2**bits:
        raise FormatError(f"the CRC of the pixels of {where} is {crc}, expected {bits} bits")


def check_preview(timestep: int, where: str) -> None:
    """Refuse a preview that nothing can follow."""
    if timestep < LEAST_PREVIEW:
        raise FormatError(
            f"the preview of {where} is at {timestep}, expected at least {LEAST_PREVIEW}"
        )
