"""The container: the layout of a file, byte by byte, without the meaning of its payloads.

``docs/format.md`` is the normative description. Pure Python: reading a header loads no numerics.
"""

import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import BinaryIO, NamedTuple

from diffcodec.errors import (
    CorruptError,
    FormatError,
    LimitError,
    TruncatedError,
    UnsupportedError,
)

MAGIC = b"\x89DFC"
VERSION = 0
MODES = {1: "1", 2: "L", 3: "LA", 4: "P", 5: "RGB", 6: "RGBA", 7: "I;16"}
CODERS = {0: "raw", 1: "webp", 2: "png", 16: "fast", 17: "default", 18: "best"}
CHAIN_CODERS = ("fast", "default", "best")
METADATA_NAMES = ("dpi", "exif", "icc", "palette", "transparency")

TILE_SIDE = 512
MAX_PIXELS = 2**28
MAX_METADATA_BYTES = 64 * 2**20

_MODE, _LAYERS, _WHOLE, _METADATA, _MARKS, _FLOAT = 0x07, 0x08, 0x10, 0x20, 0x40, 0x80
_SMALLEST_TILE_BYTES = 6  # coder, a length of one byte, no payload, CRC
_VARINT_BYTES = 5
_WORD_BYTES = 4  # of a chain's payload
_CHUNK_BYTES = 1 << 16  # read at once from a file, whatever length it claims
_EDGE_MULTIPLE = 8  # divides TILE_SIDE, so that rounding edges up keeps every side within it


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
        coder: a name in ``CODERS``.
        payload: the coder's bytes; of a chain, 32-bit little-endian words in decoding order.
        seed_words: shared-seed 32-bit words that the chain consumed; 0 for other coders.
        marks: for timesteps T, T-1, ..., 1 the payload words that reaching it takes; chains only.
    """

    coder: str
    payload: bytes
    seed_words: int = 0
    marks: tuple[int, ...] = ()


@dataclass(frozen=True)
class Layers:
    """The previews of a file, from the coarsest on.

    Attributes:
        plan: of all tiles, a name in ``CHAIN_CODERS``.
        stops: the timesteps that the layers reach, falling; a last 0 says that tiles follow, which
            hold the exact image.
        payloads: by layer and tile; of a file that is read in part, those that are there.
    """

    plan: str
    stops: tuple[int, ...]
    payloads: tuple[tuple[bytes, ...], ...]

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
        pixel_crc: CRC-32 of the image's samples, in the layout of PIL's ``tobytes``; if the file
            ends with a layer, of the image that the decoder shows then.
        whole: one tile covers the whole image, whatever its size.
        metadata: byte strings by name, the names from ``METADATA_NAMES``.
        tiles: in the order of :meth:`boxes`; none if the file ends with a layer.
        float_arithmetic: the model was evaluated in floating point; only if there is a model.
        layers: previews, if the file has any.
    """

    mode: str
    width: int
    height: int
    model: bytes
    pixel_crc: int
    whole: bool
    metadata: Mapping[str, bytes]
    tiles: tuple[Tile, ...]
    float_arithmetic: bool = False
    layers: Layers | None = None

    @property
    def uses_model(self) -> bool:
        """Whether decoding it takes a model."""
        chains = any(tile.coder in CHAIN_CODERS for tile in self.tiles)
        return self.layers is not None or chains

    def boxes(self) -> list[Box]:
        """The rectangle of each tile, in raster order."""
        if self.whole:
            return [Box(0, 0, self.width, self.height)]
        return tile_grid(self.width, self.height)


def tile_grid(width: int, height: int) -> list[Box]:
    """Cut an image into tiles of nearly equal sides, at most ``TILE_SIDE``, in raster order.

    A side n has k = ceil(n / 512) parts with edges at i n / k, rounded up to a multiple of 8.
    """
    columns, rows = list(pairwise(_edges(width))), list(pairwise(_edges(height)))
    return [Box(x, y, right - x, bottom - y) for y, bottom in rows for x, right in columns]


def _edges(side: int) -> list[int]:
    parts = _ceil_divide(side, TILE_SIDE)
    inner = (_ceil_divide(i * side, parts * _EDGE_MULTIPLE) for i in range(1, parts))
    return [0, *(edge * _EDGE_MULTIPLE for edge in inner), side]


def _tile_count(width: int, height: int, whole: bool) -> int:
    # The length of boxes() by arithmetic: the sides may be a hostile file's claim.
    if width < 1 or height < 1:
        raise FormatError(f"the image is {width} x {height} pixels, expected at least 1 x 1")
    return 1 if whole else _ceil_divide(width, TILE_SIDE) * _ceil_divide(height, TILE_SIDE)


def _ceil_divide(a: int, b: int) -> int:
    return -(-a // b)


def pack(container: Container) -> bytes:
    """The bytes of a file. ``parse(pack(container)) == container``.

    Raises:
        FormatError: the container breaks a rule of the format.
        LimitError: its metadata is over ``MAX_METADATA_BYTES``.
    """
    _check(container)
    has_marks = any(tile.marks for tile in container.tiles)
    flags = _number(MODES, container.mode) | (_WHOLE if container.whole else 0)
    flags |= _LAYERS if container.layers else 0
    flags |= (_METADATA if container.metadata else 0) | (_MARKS if has_marks else 0)
    flags |= _FLOAT if container.float_arithmetic else 0
    header = bytearray(MAGIC + bytes([VERSION, flags]))
    header += _varint(container.width) + _varint(container.height)
    header += container.model + struct.pack("<I", container.pixel_crc)
    if container.metadata:
        header += _varint(len(container.metadata))
    for name, value in sorted(container.metadata.items()):
        header += bytes([len(name)]) + name.encode("ascii") + _varint(len(value)) + value
    payloads: tuple[tuple[bytes, ...], ...] = ()
    if container.layers:
        stops = container.layers.stops
        header += bytes([_number(CODERS, container.layers.plan)])
        header += b"".join(map(_varint, (len(stops), *stops)))
        payloads = container.layers.payloads

    parts = [bytes(header)]
    for index, payload in enumerate(payloads):
        layer = b"".join([*(_varint(len(part)) for part in payload), *payload])
        parts += [layer, struct.pack("<I", zlib.crc32(layer, _part_crc_start(header, index)))]
    for index, tile in enumerate(container.tiles, len(payloads)):
        fields = bytearray([_number(CODERS, tile.coder)])
        if tile.coder in CHAIN_CODERS:
            fields += _varint(tile.seed_words)
            if has_marks:
                increments = [b - a for a, b in pairwise((0, *tile.marks))]
                fields += b"".join(map(_varint, (len(increments), *increments)))
        fields += _varint(len(tile.payload))
        crc = zlib.crc32(tile.payload, zlib.crc32(fields, _part_crc_start(header, index)))
        parts += [bytes(fields), tile.payload, struct.pack("<I", crc)]
    return b"".join(parts)


def parse(data: bytes, max_pixels: int = MAX_PIXELS) -> Container:
    """Read a file into its parts; the payloads stay coded.

    Args:
        data: the whole file.
        max_pixels: the largest image to accept, width times height.

    Raises:
        FormatError: not a diffcodec file, or one that breaks a rule of the format.
        UnsupportedError: a file of a newer version.
        LimitError: the image is over ``max_pixels``, the metadata over ``MAX_METADATA_BYTES``.
        TruncatedError: the data ends before the file does.
        CorruptError: a tile does not match its checksum.

    Guarantees: raises nothing else, whatever the bytes; needs memory in proportion to ``data``,
    not to the sizes that it claims.
    """
    reader = FileReader(data, max_pixels)
    while reader.more_layers:
        reader.read_layer()
    reader.read_tiles()
    return reader.container


class FileReader:
    """Reads a file part by part, from a stream as its bytes come.

    ``container`` is what has been read: complete only after :meth:`read_tiles`.

    Args:
        source: the bytes of a file or of its beginning, or a stream of them.
        max_pixels: the largest image to accept, width times height.

    All methods raise what :func:`parse` raises. After an error what was read before is good still.
    """

    def __init__(self, source: bytes | BinaryIO, max_pixels: int = MAX_PIXELS):
        reader = self._reader = _Reader(source)
        _read_magic(reader)
        version = reader.u8("the version")
        if version > VERSION:
            raise UnsupportedError(
                f"the file is of format version {version}, this diffcodec reads version {VERSION}: "
                "a newer diffcodec is needed"
            )
        flags = reader.u8("the image mode")
        mode = _name(MODES, flags & _MODE, "image mode")
        whole, self._has_marks = bool(flags & _WHOLE), bool(flags & _MARKS)
        width, height = reader.varint("the width"), reader.varint("the height")
        self._tile_count = _tile_count(width, height, whole)
        if width * height > max_pixels:
            raise LimitError(
                f"the image is {width} x {height} = {width * height} pixels, the limit is "
                f"{max_pixels}: raise max_pixels if you trust the file"
            )
        model = reader.take(4, "the model's identity")
        pixel_crc = reader.u32("the checksum of the pixels")
        metadata = _read_metadata(reader) if flags & _METADATA else {}
        layers = _read_layers(reader) if flags & _LAYERS else None
        self._header = bytes(reader.data[: reader.position])
        self.container = Container(
            *(mode, width, height, model, pixel_crc, whole, metadata, ()),
            float_arithmetic=bool(flags & _FLOAT),
            layers=layers,
        )

    @property
    def more_layers(self) -> bool:
        """Whether a layer comes next."""
        layers = self.container.layers
        return layers is not None and len(layers.payloads) < len(layers.timesteps)

    def read_layer(self) -> tuple[bytes, ...]:
        """The next layer's payloads, by tile."""
        layers, reader = self.container.layers, self._reader
        assert layers is not None
        index, start = len(layers.payloads), reader.position
        where = f"layer {index + 1} of {len(layers.timesteps)}"
        reader.need(self._tile_count, where)
        sizes = [reader.varint(f"the lengths of {where}") for _ in range(self._tile_count)]
        reader.need(sum(sizes), where)
        payload = tuple(reader.take(size, where) for size in sizes)
        _check_crc(reader, where, start, _part_crc_start(self._header, index))
        layers = replace(layers, payloads=(*layers.payloads, payload))
        self.container = replace(self.container, layers=layers)
        _check_header(self.container)
        return payload

    def read_tiles(self) -> None:
        """The tiles, after all layers, and the end of the file."""
        reader, count, layers = self._reader, self._tile_count, self.container.layers
        before = len(layers.payloads) if layers else 0
        if layers is None or layers.is_exact:
            reader.need(count * _SMALLEST_TILE_BYTES, f"the {count} tiles")
            tiles = []
            for index in range(count):
                where = f"tile {index + 1} of {count}"
                crc_start = _part_crc_start(self._header, before + index)
                tiles.append(_read_tile(reader, where, crc_start, self._has_marks))
            self.container = replace(self.container, tiles=tuple(tiles))
        if reader.remaining:
            raise FormatError(
                f"{reader.remaining} bytes follow the last {'tile' if layers is None else 'part'}, "
                "expected none"
            )
        _check(self.container)


def _part_crc_start(header: bytes | bytearray, index: int) -> int:
    """The state from which the CRC of a layer or tile goes on: it covers header and place too."""
    return zlib.crc32(struct.pack("<I", index), zlib.crc32(header))


def _check_crc(reader: "_Reader", where: str, start: int, crc_start: int) -> None:
    """Read a CRC and hold it against the bytes from ``start`` on."""
    computed = zlib.crc32(reader.data[start : reader.position], crc_start)
    stored = reader.u32(f"the checksum of {where}")
    if stored != computed:
        raise CorruptError(
            f"{where} or the header is damaged: its checksum is {computed:08x}, the file says "
            f"{stored:08x}; get the file again"
        )


def _read_magic(reader: "_Reader") -> None:
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


def _read_metadata(reader: "_Reader") -> dict[str, bytes]:
    count = reader.varint("the number of metadata entries")
    if not 1 <= count <= len(METADATA_NAMES):
        raise FormatError(
            f"the file claims {count} metadata entries, expected 1 to {len(METADATA_NAMES)}"
        )
    metadata: dict[str, bytes] = {}
    total = 0
    for _ in range(count):
        raw_name = reader.take(reader.u8("a metadata name"), "a metadata name")
        name = raw_name.decode("ascii", "backslashreplace")
        if metadata and name <= max(metadata):
            raise FormatError(f"the metadata name {name!r} is out of order or there twice")
        size = reader.varint(f"the length of metadata {name!r}")
        total += size
        _check_metadata_size(total)
        metadata[name] = reader.take(size, f"metadata {name!r}")
    return metadata


def _read_layers(reader: "_Reader") -> Layers:
    """What the header says of the layers."""
    plan = _name(CODERS, reader.u8("the plan of the layers"), "plan of the layers")
    count = reader.varint("the timesteps of the layers")
    reader.need(count, "the timesteps of the layers")
    stops = tuple(reader.varint("the timesteps of the layers") for _ in range(count))
    if stops in ((), (0,)):
        raise FormatError("the file has no layers, expected at least one")
    return Layers(plan, stops, ())


def _read_tile(reader: "_Reader", where: str, crc_start: int, has_marks: bool) -> Tile:
    start = reader.position
    coder = _name(CODERS, reader.u8(f"the coder of {where}"), f"coder of {where}")
    seed_words = 0
    marks: tuple[int, ...] = ()
    if coder in CHAIN_CODERS:
        seed_words = reader.varint(f"the seed words of {where}")
        if has_marks:
            marks = _read_marks(reader, f"the step marks of {where}")
    payload = reader.take(reader.varint(f"the length of {where}"), f"the payload of {where}")
    _check_crc(reader, where, start, crc_start)
    return Tile(coder, payload, seed_words, marks)


def _read_marks(reader: "_Reader", part: str) -> tuple[int, ...]:
    count = reader.varint(part)
    if count == 0:
        raise FormatError(f"{part} are none, expected at least one")
    return tuple(accumulate(reader.varint(part) for _ in range(count)))


def _check_header(container: Container) -> None:
    """The rules that do not hang on what follows the header."""
    _number(MODES, container.mode)
    if len(container.model) != 4:
        raise FormatError(f"the model's identity is {container.model!r}, expected 4 bytes")
    if not 0 <= container.pixel_crc < 2**32:
        raise FormatError(f"the pixels' CRC is {container.pixel_crc}, expected 32 bits")
    for name in container.metadata:
        if name not in METADATA_NAMES:
            raise FormatError(f"unknown metadata {name!r}, expected one of {METADATA_NAMES}")
    _check_metadata_size(sum(map(len, container.metadata.values())))
    layers = container.layers
    if layers:
        if layers.plan not in CHAIN_CODERS:
            raise FormatError(f"layers by {layers.plan!r}, expected one of {CHAIN_CODERS}")
        if not layers.timesteps or any(a <= b for a, b in pairwise((*layers.stops, -1))):
            raise FormatError(f"layers that reach the timesteps {layers.stops}: they must fall")


def _check(container: Container) -> None:
    """Refuse what the layout could carry but the format forbids; both directions call it."""
    _check_header(container)
    layers = container.layers
    tile_count = _tile_count(container.width, container.height, container.whole)
    if layers:
        if any(len(payload) != tile_count for payload in layers.payloads):
            raise FormatError(f"a layer has other than {tile_count} tiles")
        if len(layers.payloads) != len(layers.timesteps):
            raise FormatError(
                f"there are {len(layers.payloads)} layers, expected {len(layers.timesteps)}"
            )
        if not layers.is_exact:
            tile_count = 0
    if len(container.tiles) != tile_count:
        raise FormatError(f"there are {len(container.tiles)} tiles, expected {tile_count}")
    if not container.uses_model:
        if any(container.model):
            raise FormatError("the file names a model that no tile uses, expected 4 zero bytes")
        if container.float_arithmetic:
            raise FormatError("the file names float arithmetic, but no tile is a chain")
    has_marks = any(tile.marks for tile in container.tiles)
    for index, tile in enumerate(container.tiles):
        _check_tile(tile, f"tile {index + 1} of {tile_count}", has_marks)


def _check_tile(tile: Tile, where: str, has_marks: bool) -> None:
    _number(CODERS, tile.coder)
    if tile.coder not in CHAIN_CODERS:
        if tile.seed_words or tile.marks:
            raise FormatError(f"{where} is {tile.coder!r}: only a chain has seed words and marks")
        return
    if len(tile.payload) % _WORD_BYTES:
        raise FormatError(
            f"{where} has a payload of {len(tile.payload)} bytes, expected a multiple of "
            f"{_WORD_BYTES}"
        )
    if has_marks and not tile.marks:
        raise FormatError(f"{where} has no step marks, but other tiles have")
    words = len(tile.payload) // _WORD_BYTES
    if any(b < a for a, b in pairwise((0, *tile.marks, words))):
        raise FormatError(f"the step marks of {where} are not in order within its {words} words")


def _check_metadata_size(size: int) -> None:
    if size > MAX_METADATA_BYTES:
        raise LimitError(f"the metadata is {size} bytes, the limit is {MAX_METADATA_BYTES}")


def _name(table: Mapping[int, str], number: int, what: str) -> str:
    if number not in table:
        raise FormatError(f"unknown {what}: {number}, expected one of {table}")
    return table[number]


def _number(table: Mapping[int, str], name: str) -> int:
    for number, known in table.items():
        if known == name:
            return number
    raise FormatError(f"{name!r} is not one of {list(table.values())}")


def _varint(value: int) -> bytes:
    """LEB128, unsigned, in the fewest bytes: 7 bits a byte, low bits first."""
    if not 0 <= value < 1 << 7 * _VARINT_BYTES:
        raise FormatError(f"{value} does not fit the format, expected 0 to 2^{7 * _VARINT_BYTES}-1")
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


class _Reader:
    """A cursor over bytes or a stream; every read that passes its end is a TruncatedError."""

    def __init__(self, source: bytes | BinaryIO) -> None:
        self.data = source if isinstance(source, bytes) else bytearray()
        self._stream = None if isinstance(source, bytes) else source
        self.position = 0

    @property
    def remaining(self) -> int:
        """Bytes that follow; of a stream whether any do."""
        self.prepare(1)
        return len(self.data) - self.position

    def prepare(self, count: int) -> None:
        """Have so many bytes at hand, if the stream has them."""
        while self._stream is not None and (missing := count + self.position - len(self.data)) > 0:
            chunk = self._stream.read(min(missing, _CHUNK_BYTES))
            if not chunk:
                break
            self.data += chunk

    def need(self, count: int, part: str) -> None:
        self.prepare(count)
        if count > len(self.data) - self.position:
            raise TruncatedError(
                f"the file ends early, in {part}: found {len(self.data)} bytes, expected at least "
                f"{self.position + count}; get the whole file again"
            )

    def take(self, count: int, part: str) -> bytes:
        self.need(count, part)
        self.position += count
        return bytes(self.data[self.position - count : self.position])

    def u8(self, part: str) -> int:
        return self.take(1, part)[0]

    def u32(self, part: str) -> int:
        return int.from_bytes(self.take(4, part), "little")

    def varint(self, part: str) -> int:
        value = 0
        for i in range(_VARINT_BYTES):
            byte = self.u8(part)
            value |= (byte & 0x7F) << 7 * i
            if byte < 0x80:
                if byte == 0 and i > 0:
                    raise FormatError(f"{part}: a number is not in its shortest form")
                return value
        raise FormatError(f"{part}: a number is longer than {_VARINT_BYTES} bytes")
