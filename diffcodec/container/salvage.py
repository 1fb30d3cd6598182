"""What is whole of a file that is damaged or cut."""

from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

from diffcodec.container.parts import Box, Container, Tile
from diffcodec.container.primitives import CRC_BYTES
from diffcodec.container.reader import FileReader
from diffcodec.container.rules import check_header, check_tile
from diffcodec.errors import FormatError
from diffcodec.limits import DEFAULT_LIMITS, Limits


class Damage(NamedTuple):
    """A part of a file that is lost.

    Attributes:
        part: its name, such as "tile 3 of 8".
        tile: the tile's number from 0; None for bytes that belong to no tile.
        box: the tile's pixels.
        reason: what is wrong.
    """

    part: str
    tile: int | None
    box: Box | None
    reason: str


@dataclass(frozen=True)
class Salvage:
    """What is whole of a damaged file.

    Attributes:
        container: the header; its tiles, and its layers' payloads, are left out.
        payloads: of the layers, by layer and tile; None where they are lost.
        tiles: None where they are lost.
        damage: what is lost, in the order of the file.
    """

    container: Container
    payloads: tuple[tuple[bytes | None, ...], ...]
    tiles: tuple[Tile | None, ...]
    damage: tuple[Damage, ...]


def salvage(data: bytes, limits: Limits = DEFAULT_LIMITS) -> Salvage:
    """Every part of a file that matches its checksum.

    Raises:
        FormatError: nothing of it is whole, or the header is not; or what is whole breaks a rule.
        UnsupportedFileError, LimitError: see :func:`diffcodec.container.reader.parse`.
    """
    file = FileReader(data, limits)
    container, layers, count = file.container, file.container.layer_count, file.header.tile_count
    sections = layers + container.has_tiles
    parts = {
        (section, tile): part
        for section in range(sections)
        for tile, part in enumerate(_read_section(file, section, section + 1 == sections))
    }
    lost = {place: part for place, part in parts.items() if isinstance(part, FormatError)}
    whole = {place: part for place, part in parts.items() if isinstance(part, bytes)}
    if not whole:
        raise next(iter(lost.values()))
    check_header(container)
    boxes = container.boxes()
    damage = [
        Damage(file.name(section, tile), tile, boxes[tile], str(error))
        for (section, tile), error in lost.items()
    ]
    if remaining := file.cursor.remaining:
        reason = f"{remaining} bytes follow the last part, expected none"
        damage.append(Damage("the end of the file", None, None, reason))
    payloads = tuple(
        tuple(whole.get((section, tile)) for tile in range(count)) for section in range(layers)
    )
    tiles = tuple(
        _read_tile(file, tile, whole.get((layers, tile)))
        for tile in range(count if container.has_tiles else 0)
    )
    return Salvage(container, payloads, tiles, tuple(damage))


def _read_tile(file: FileReader, index: int, content: bytes | None) -> Tile | None:
    if content is None:
        return None
    tile = file.parse_tile(index, content)
    check_tile(tile, file.name(file.container.layer_count, index), file.container)
    return tile


def _read_section(file: FileReader, section: int, is_last: bool) -> list[bytes | FormatError]:
    """The contents of its parts, or why there are none.

    Parts are looked for where the lengths before them say, and of the last section also where
    those behind do: one wrong length, or bytes that are missing or too many, cost one part.
    """
    cursor = file.cursor
    try:
        lengths = file.read_lengths(section)
    except FormatError as e:
        cursor.skip_to_end()
        return [e] * file.header.tile_count
    first = cursor.position
    starts = list(accumulate((n + CRC_BYTES for n in lengths), initial=first))
    shift = len(cursor.data) - starts[-1] if is_last else 0
    parts = []
    for tile, (start, length) in enumerate(zip(starts[:-1], lengths, strict=True)):
        part: bytes | FormatError
        for position in dict.fromkeys((start + shift, start)):
            try:
                cursor.position = max(position, first)
                part = file.read_part(section, tile, length)
                break
            except FormatError as e:
                part = e
        parts.append(part)
    if not is_last:
        cursor.position = starts[-1]
    elif isinstance(parts[-1], FormatError):
        cursor.skip_to_end()
    return parts
