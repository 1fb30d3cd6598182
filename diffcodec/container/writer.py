"""The way from the parts of a file to its bytes."""

import struct
from collections.abc import Mapping
from itertools import pairwise

from diffcodec.container.parts import CODERS, LAYER_PLANS, MAGIC, MODES, VERSION, Container, Tile
from diffcodec.container.primitives import (
    DRAW_BIT,
    FLOAT_BIT,
    LABEL_BIT,
    LAYERS_BIT,
    MARKS_BIT,
    METADATA_BIT,
    OUTLIERS_BIT,
    PART_BIT,
    PREVIEW_BIT,
    WHOLE_BIT,
    part_crc,
    varint,
)
from diffcodec.container.rules import check_container
from diffcodec.limits import DEFAULT_LIMITS


def pack(container: Container) -> bytes:
    """The bytes of a file. ``parse(pack(container)) == container``.

    Raises:
        FormatError: the container breaks a rule of the format.
        UnsupportedFileError: it has metadata that must not be ignored, and are not known here.
        LimitError: its metadata are more than readers accept by default.
    """
    check_container(container)
    DEFAULT_LIMITS.check_metadata(sum(map(len, container.metadata.values())))
    has_marks = any(tile.marks for tile in container.tiles)
    header = _pack_header(container, has_marks)
    sections = [*(container.layers.payloads if container.layers else ())]
    if container.tiles:
        sections.append(tuple(_pack_tile(tile, has_marks) for tile in container.tiles))
    parts = [header]
    for number, section in enumerate(sections):
        parts += [varint(len(content)) for content in section]
        for tile, content in enumerate(section):
            parts += [content, struct.pack("<I", part_crc(header, number, tile, content))]
    return b"".join(parts)


def _pack_header(container: Container, has_marks: bool) -> bytes:
    flags = MODES[container.mode].number | (WHOLE_BIT if container.whole else 0)
    flags |= LAYERS_BIT if container.layers else 0
    flags |= (METADATA_BIT if container.metadata else 0) | (MARKS_BIT if has_marks else 0)
    flags |= FLOAT_BIT if container.float_arithmetic else 0
    header = bytearray(MAGIC + bytes([VERSION, flags]))
    header += varint(container.width) + varint(container.height)
    header += container.model
    if container.metadata:
        header += pack_metadata(container.metadata)
    if container.layers:
        stops, label = container.layers.stops, container.layers.label
        flags = (0 if label is None else LABEL_BIT) | (PART_BIT if container.layers.is_part else 0)
        header.append(LAYER_PLANS[container.layers.plan] | flags)
        header += b"" if label is None else varint(label)
        header += b"".join(map(varint, (len(stops), *stops)))
    if not container.has_tiles:
        header += struct.pack("<I", container.pixel_crc)
    return bytes(header)


def pack_metadata(metadata: Mapping[str, bytes]) -> bytes:
    """The entries, of which there is at least one."""
    entries = [
        bytes([len(name)]) + name.encode("ascii") + varint(len(value)) + value
        for name, value in sorted(metadata.items())
    ]
    return bytes([len(entries)]) + b"".join(entries)


def _pack_tile(tile: Tile, has_marks: bool) -> bytes:
    flags = (PREVIEW_BIT if tile.preview else 0) | (DRAW_BIT if tile.draw else 0)
    flags |= 0 if tile.label is None else LABEL_BIT
    flags |= OUTLIERS_BIT if tile.outliers else 0
    fields = bytearray([CODERS[tile.coder] | flags])
    if tile.draw:
        fields.append(tile.draw)
    if tile.label is not None:
        fields += varint(tile.label)
    if not tile.plan:
        fields += struct.pack("<I", tile.pixel_crc)
    elif has_marks:
        increments = [b - a for a, b in pairwise((0, *tile.marks))]
        fields += b"".join(map(varint, (len(increments), *increments)))
    if tile.preview:
        fields += varint(tile.preview) + varint(len(tile.preview_payload)) + tile.preview_payload
    if tile.outliers:
        fields += varint(len(tile.outliers))
    return bytes(fields) + tile.payload + tile.outliers
