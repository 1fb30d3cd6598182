"""The content of a group's record: images that share a stack, or whole files one after another."""

import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from diffcodec.container.header import read_metadata
from diffcodec.container.parts import (
    ADAPTATION,
    CHAIN_MODES,
    CODERS,
    COLOR_SET,
    MODES,
    PLAN_NAMES,
    TILES,
    Tile,
)
from diffcodec.container.primitives import ByteReader, coder_of, mode_of, varint
from diffcodec.container.rules import check_metadata
from diffcodec.container.writer import pack_metadata
from diffcodec.errors import CorruptError, FormatError, LimitError, UnsupportedFileError
from diffcodec.limits import DEFAULT_LIMITS, Limits

FILES, SHARED = 0, 1  # kinds of group
_COLORS_BIT, _GREY_BIT, _METADATA_BIT, _LABELS_BIT, _FLOAT_BIT = 0x08, 0x10, 0x20, 0x40, 0x80
_MODE_BITS = 0x07
_ADAPTED_BIT = 0x40  # of the plan
MOST_IMAGES = 1 << 16  # of a group
MOST_LABEL_BITS = 24


@dataclass(frozen=True)
class SharedGroup:
    """Images of one size and mode, whose chains share a stack.

    Attributes:
        mode, width, height: of each image.
        count: how many there are.
        pixel_crc: CRC-32 of the samples of all images, one after another.
        model: as of a file; zeros if no image is a chain.
        plan: of the chains.
        float_arithmetic: the model was evaluated in floating point.
        others: the images, by place, that a fallback coder codes.
        grey: R, G and B of the chains' images, of mode RGB, are equal: they are coded as of mode L.
        labels: by place, the classes that the model was told.
        colors: which colours can occur in all of them, as of a file; empty if all can.
        adaptation: what fits the model to all of them, as of a file; empty if nothing does.
        metadata: of images that have some, by place.
        payload: the stack's words.
    """

    mode: str
    width: int
    height: int
    count: int
    pixel_crc: int
    model: bytes
    plan: str
    float_arithmetic: bool
    others: Mapping[int, Tile]
    grey: bool = False
    labels: Mapping[int, int] = field(default_factory=dict)
    colors: bytes = b""
    adaptation: bytes = b""
    metadata: Mapping[int, Mapping[str, bytes]] = field(default_factory=dict)
    payload: bytes = b""

    @property
    def chain_mode(self) -> str:
        """The mode of the images as the chains code them."""
        return "L" if self.grey else self.mode

    @property
    def chains(self) -> list[int]:
        """Places of the images that are chains."""
        return [place for place in range(self.count) if place not in self.others]


Group = SharedGroup | tuple[bytes, ...]  # or files


def pack_group(group: Group) -> bytes:
    """The content of a record. ``parse_group(pack_group(group)) == group``."""
    if isinstance(group, tuple):
        lengths = b"".join(varint(len(file)) for file in group)
        return b"".join((bytes([FILES]), varint(len(group)), lengths, *group))
    flags = MODES[group.mode].number | (_COLORS_BIT if group.colors else 0)
    flags |= (_GREY_BIT if group.grey else 0) | (_LABELS_BIT if group.labels else 0)
    flags |= (_METADATA_BIT if group.metadata else 0) | _FLOAT_BIT * group.float_arithmetic
    out = bytearray([SHARED, flags])
    out += varint(group.width) + varint(group.height) + varint(group.count)
    out += struct.pack("<I", group.pixel_crc) + group.model
    plan = CODERS[group.plan] | (_ADAPTED_BIT if group.adaptation else 0)
    out += bytes([plan]) + varint(len(group.others))
    last = -1
    for place, tile in sorted(group.others.items()):
        out += varint(place - last - 1) + bytes([CODERS[tile.coder]])
        out += varint(len(tile.payload)) + tile.payload
        last = place
    if group.labels:
        out += _pack_labels(group.labels, group.count)
    if group.colors:
        out += varint(len(group.colors)) + group.colors
    if group.adaptation:
        out += varint(len(group.adaptation)) + group.adaptation
    if group.metadata:
        entries = [varint(p) + pack_metadata(m) for p, m in sorted(group.metadata.items())]
        packed = zlib.compress(varint(len(entries)) + b"".join(entries), 9)
        out += varint(len(packed)) + packed
    return bytes(out) + group.payload


def _pack_labels(labels: Mapping[int, int], count: int) -> bytes:
    """A number of each image in as few bits as the largest takes: its class + 1, or 0."""
    width = (max(labels.values()) + 1).bit_length()
    numbers = "".join(f"{labels.get(k, -1) + 1:0{width}b}" for k in reversed(range(count)))
    return bytes([width]) + int(numbers, 2).to_bytes(-(-width * count // 8), "little")


def _read_labels(reader: ByteReader, count: int) -> dict[int, int]:
    width = reader.u8("the bits of a class")
    if not 1 <= width <= MOST_LABEL_BITS:
        raise FormatError(f"classes of {width} bits, expected 1 to {MOST_LABEL_BITS}")
    packed = reader.take(-(-width * count // 8), "the classes of a group")
    bits = f"{int.from_bytes(packed, 'little'):0{width * count}b}"
    if len(bits) > width * count:
        raise FormatError("bits follow the classes of a group")
    numbers = [int(bits[end - width : end], 2) for end in range(len(bits), 0, -width)]
    return {place: number - 1 for place, number in enumerate(numbers) if number}


def parse_group(content: bytes, limits: Limits = DEFAULT_LIMITS) -> Group:
    """What a record holds; payloads stay coded.

    Raises:
        FormatError: it breaks a rule of the format.
        UnsupportedFileError: it needs what is not known here.
        LimitError: it is over a limit.
    """
    reader = ByteReader(content)
    kind = reader.u8("the kind of a group")
    if kind == FILES:
        count = _read_count(reader)
        sizes = [reader.varint("the length of a file") for _ in range(count)]
        files = tuple(reader.take(size, "a file of a group") for size in sizes)
        if reader.remaining:
            raise FormatError("bytes follow the last file of a group")
        return files
    if kind != SHARED:
        raise UnsupportedFileError(
            f"a group of the kind {kind}, expected {FILES} or {SHARED}: a newer diffcodec may know "
            "it"
        )
    group = _read_shared(reader, limits)
    _check_shared(group)
    return group


def _read_count(reader: ByteReader) -> int:
    count = reader.varint("the number of images in a group")
    if not 1 <= count <= MOST_IMAGES:
        raise FormatError(f"a group of {count} images, expected 1 to {MOST_IMAGES}")
    return count


def _read_shared(reader: ByteReader, limits: Limits) -> SharedGroup:
    flags = reader.u8("the mode of a group")
    mode = mode_of(flags & _MODE_BITS)
    width, height = reader.varint("the width"), reader.varint("the height")
    limits.check_image(width, height)
    count = _read_count(reader)
    if width * height * count > limits.pixels:
        raise LimitError(
            f"a group of {count} images of {width} x {height} pixels, the limit is {limits.pixels} "
            "pixels; raise the limit pixels if you trust the source"
        )
    return SharedGroup(  # read in the order of the record
        mode=mode,
        width=width,
        height=height,
        count=count,
        pixel_crc=reader.u32("the checksum of the pixels"),
        model=reader.take(4, "the model's identity"),
        plan=coder_of(
            (plan := reader.u8("the plan of a group")) & ~_ADAPTED_BIT, "plan of a group"
        ),
        float_arithmetic=bool(flags & _FLOAT_BIT),
        grey=bool(flags & _GREY_BIT),
        others=_read_others(reader, count),
        labels=_read_labels(reader, count) if flags & _LABELS_BIT else {},
        colors=_read_block(reader, "the colours", limits) if flags & _COLORS_BIT else b"",
        adaptation=_read_adaptation(reader, limits) if plan & _ADAPTED_BIT else b"",
        metadata=_read_all_metadata(reader, count, limits) if flags & _METADATA_BIT else {},
        payload=reader.take(reader.remaining, "the payload"),
    )


def _read_others(reader: ByteReader, count: int) -> dict[int, Tile]:
    others: dict[int, Tile] = {}
    place = -1
    what = "an image by a fallback coder"
    for _ in range(reader.varint(what)):
        place += 1 + reader.varint(what)
        coder = coder_of(reader.u8(what), "coder of an image")
        if place >= count or coder in PLAN_NAMES:
            raise FormatError(f"image {place} of {count} by {coder!r}, expected a fallback coder")
        others[place] = Tile(coder, reader.take(reader.varint(what), what))
    return others


def _read_adaptation(reader: ByteReader, limits: Limits) -> bytes:
    found = _read_block(reader, "the adaptation", limits)
    if not found:
        raise FormatError("an adaptation of 0 bytes, expected some")
    return found


def _read_block(reader: ByteReader, what: str, limits: Limits) -> bytes:
    size = reader.varint(f"the length of {what}")
    limits.check_metadata(size)
    return reader.take(size, what)


def _read_all_metadata(
    reader: ByteReader, count: int, limits: Limits
) -> dict[int, dict[str, bytes]]:
    stream = zlib.decompressobj()
    try:
        found = stream.decompress(
            _read_block(reader, "the metadata", limits), limits.metadata_bytes + 1
        )
    except zlib.error as e:
        raise CorruptError(f"the metadata of a group are damaged ({e}); get the file again") from e
    limits.check_metadata(len(found))
    if not stream.eof or stream.unused_data:
        raise CorruptError("the metadata of a group are no whole zlib stream; get the file again")
    inner = ByteReader(found)
    metadata: dict[int, dict[str, bytes]] = {}
    last = -1
    for _ in range(inner.varint("the images with metadata")):
        place = inner.varint("the place of metadata")
        if not last < place < count:
            raise FormatError(f"metadata of image {place} of {count} behind those of {last}")
        metadata[place] = read_metadata(inner, limits)
        last = place
    if inner.remaining:
        raise FormatError("bytes follow the metadata of a group")
    return metadata


def _check_shared(group: SharedGroup) -> None:
    """Refuse what the layout could carry but the format forbids."""
    if group.mode not in CHAIN_MODES or group.plan not in PLAN_NAMES:
        raise FormatError(
            f"a group of {group.mode} images by {group.plan!r}: expected {CHAIN_MODES}, a plan"
        )
    if group.grey and group.mode != "RGB":
        raise FormatError(f"a group of {group.mode} images that are grey, expected RGB")
    for metadata in group.metadata.values():
        check_metadata(metadata)
        if metadata.keys() & {ADAPTATION, COLOR_SET, TILES}:
            raise FormatError(
                "colours, tiles or adaptation of one image of a group, expected of all or none"
            )
    if not group.labels.keys() <= set(group.chains):
        raise FormatError("a group tells the class of an image that is no chain")
    if bool(group.chains) != bool(group.payload):
        raise FormatError(
            f"a group of {len(group.chains)} chains has {len(group.payload)} bytes of words"
        )
    if not group.chains and (any(group.model) or group.float_arithmetic or group.adaptation):
        raise FormatError("a group names or adapts a model that no image uses")
