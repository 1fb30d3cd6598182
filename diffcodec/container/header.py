"""The header of a file: what it claims, before anything is read that grows with that."""

from dataclasses import replace
from typing import NamedTuple

from diffcodec.container.parts import (
    CODERS,
    LAYER_PLANS,
    MAGIC,
    VERSION,
    Container,
    Layers,
    tile_count,
)
from diffcodec.container.primitives import (
    FLOAT_BIT,
    LABEL_BIT,
    LAYERS_BIT,
    MARKS_BIT,
    METADATA_BIT,
    MODE_BITS,
    PART_BIT,
    WHOLE_BIT,
    ByteReader,
    coder_of,
    mode_of,
)
from diffcodec.errors import FormatError, UnsupportedFileError
from diffcodec.limits import Limits

ARCHIVE_VERSION = ord("A")  # what an archive has in the place of the version


class Header(NamedTuple):
    """What stands before the layers and tiles.

    Attributes:
        container: of the file, without its tiles and its layers' payloads.
        tile_count: how many tiles a layer has, and the file if it has any.
        has_marks: whether its chains have step marks.
        data: the bytes, which all checksums cover.
    """

    container: Container
    tile_count: int
    has_marks: bool
    data: bytes


def read_header(reader: ByteReader, limits: Limits) -> Header:
    """The header, from the beginning of a file.

    Raises:
        FormatError, UnsupportedFileError, LimitError, TruncatedError: see
            :func:`diffcodec.container.reader.parse`.
    """
    _read_magic(reader)
    _check_version(reader.u8("the version"))
    flags = reader.u8("the image mode")
    mode, whole = mode_of(flags & MODE_BITS), bool(flags & WHOLE_BIT)
    width, height = reader.varint("the width"), reader.varint("the height")
    tile_count(width, height, whole)  # that it has pixels
    limits.check_image(width, height)
    container = Container(  # read in the order of the file
        mode,
        width,
        height,
        model=reader.take(4, "the model's identity"),
        whole=whole,
        metadata=read_metadata(reader, limits) if flags & METADATA_BIT else {},
        tiles=(),
        float_arithmetic=bool(flags & FLOAT_BIT),
    )
    count = tile_count(width, height, whole, container.tile_side)
    limits.check_tiles(count)
    if flags & LAYERS_BIT:
        container = replace(container, layers=_read_layers(reader, limits))
    if not container.has_tiles:
        container = replace(container, pixel_crc=reader.u32("the checksum of the pixels"))
    data = bytes(reader.data[: reader.position])
    return Header(container, count, bool(flags & MARKS_BIT), data)


def _read_magic(reader: "ByteReader") -> None:
    reader.prepare(len(MAGIC))
    found = bytes(reader.data[: len(MAGIC)])
    if not found:
        raise FormatError("the data is empty, expected a diffcodec file")
    if not MAGIC.startswith(found):
        raise FormatError(
            f"not a diffcodec file: it starts with the bytes {found.hex(' ')}, expected "
            f"{MAGIC.hex(' ')}"
        )
    reader.take(len(MAGIC), "the magic number")


def _check_version(version: int) -> None:
    if version < VERSION:
        raise FormatError(f"the format version is {version}, expected {VERSION}")
    if version == ARCHIVE_VERSION:
        raise UnsupportedFileError(
            "it is an archive of many images: use ls and extract, or diffcodec.open_archive"
        )
    if version > VERSION:
        raise UnsupportedFileError(
            f"the file is of format version {version}, this diffcodec reads version {VERSION}: "
            "a newer diffcodec is needed"
        )


def read_metadata(reader: "ByteReader", limits: Limits) -> dict[str, bytes]:
    """The entries, names in order."""
    count = reader.u8("the number of metadata entries")
    if count == 0:
        raise FormatError("the file claims 0 metadata entries, expected at least one")
    metadata: dict[str, bytes] = {}
    total, last = 0, ""
    for _ in range(count):
        raw_name = reader.take(reader.u8("a metadata name"), "a metadata name")
        name = raw_name.decode("ascii", "backslashreplace")
        if metadata and name <= last:
            raise FormatError(f"the metadata name {name!r} is out of order or there twice")
        size = reader.varint(f"the length of metadata {name!r}")
        total += size
        limits.check_metadata(total)
        metadata[name] = reader.take(size, f"metadata {name!r}")
        last = name
    return metadata


def _read_layers(reader: "ByteReader", limits: Limits) -> Layers:
    """What the header says of the layers."""
    what = "the timesteps of the layers"
    number = reader.u8("the plan of the layers")
    plan = coder_of(number & ~(LABEL_BIT | PART_BIT), "plan of the layers", CODERS | LAYER_PLANS)
    label = reader.varint("the class of the layers") if number & LABEL_BIT else None
    count = reader.varint(what)
    limits.check_timesteps(count)
    reader.need(count, what)
    stops = tuple(reader.varint(what) for _ in range(count))
    limits.check_timesteps(max(stops, default=0))
    if stops in ((), (0,)):
        raise FormatError("the file has no layers, expected at least one")
    return Layers(plan, stops, (), label, bool(number & PART_BIT))
