"""The container: the layout of a file, byte by byte, without the meaning of its payloads.

``docs/format.md`` is the normative description. Pure Python: reading a file loads no numerics.
"""

import re
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import accumulate, chain, pairwise
from typing import BinaryIO, NamedTuple

from diffcodec.errors import CorruptError, FormatError, TruncatedError, UnsupportedFileError
from diffcodec.limits import DEFAULT_LIMITS, Limits

MAGIC = b"\x89DFC"
VERSION = 1
MODES = {1: "1", 2: "L", 3: "LA", 4: "P", 5: "RGB", 6: "RGBA", 7: "I;16"}
CODERS = {0: "raw", 1: "webp", 2: "png", 16: "fast", 17: "default", 18: "best"}
CHAIN_CODERS = ("fast", "default", "best")
CHAIN_MODES = ("L", "RGB")
METADATA_NAMES = ("dpi", "exif", "icc", "palette", "transparency")

TILE_SIDE = 512
MOST_DRAW = 255  # of the shared randomness, beyond the first
LEAST_PREVIEW = 2  # timestep of previews that tiles follow: below z_1 there is no chain left

_MODE, _LAYERS, _WHOLE, _METADATA, _MARKS, _FLOAT = 0x07, 0x08, 0x10, 0x20, 0x40, 0x80
_CHAIN_BIT, _PREVIEW_BIT, _DRAW_BIT, _MOST_CODER = 0x10, 0x08, 0x04, 0x1F  # of a coder's number
_NAME = re.compile("[A-Za-z][A-Za-z0-9-]*")  # of a metadata entry
_LONGEST_NAME, _MOST_ENTRIES = 255, 255
_CRC_BYTES = 4
_SMALLEST_PART_BYTES = 5  # a length of one byte, no content, CRC
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
        marks: for timesteps T, T-1, ..., 1, or those below a preview, the payload words that
            reaching it takes; chains only.
        preview: the timestep of a preview of the tile's own, or 0; chains only.
        preview_payload: what leads there, coded as a layer.
        draw: which seed and dither of the shared randomness the chain takes; chains only.
    """

    coder: str
    payload: bytes
    seed_words: int = 0
    marks: tuple[int, ...] = ()
    preview: int = 0
    preview_payload: bytes = b""
    draw: int = 0


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
        metadata: byte strings by name: those of ``METADATA_NAMES``, and others that begin with a
            small letter, which decoding ignores.
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
    """What is whole of a damaged file; see :func:`salvage`.

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


# --- writing --------------------------------------------------------------------------------------


def pack(container: Container) -> bytes:
    """The bytes of a file. ``parse(pack(container)) == container``.

    Raises:
        FormatError: the container breaks a rule of the format.
        UnsupportedFileError: it has metadata that must not be ignored, and are not known here.
        LimitError: its metadata are more than readers accept by default.
    """
    _check(container)
    DEFAULT_LIMITS.check_metadata(sum(map(len, container.metadata.values())))
    has_marks = any(tile.marks for tile in container.tiles)
    header = _pack_header(container, has_marks)
    sections = [*(container.layers.payloads if container.layers else ())]
    if container.tiles:
        sections.append(tuple(_pack_tile(tile, has_marks) for tile in container.tiles))
    parts = [header]
    for number, section in enumerate(sections):
        parts += [_varint(len(content)) for content in section]
        for tile, content in enumerate(section):
            parts += [content, struct.pack("<I", _part_crc(header, number, tile, content))]
    return b"".join(parts)


def _pack_header(container: Container, has_marks: bool) -> bytes:
    flags = _number(MODES, container.mode) | (_WHOLE if container.whole else 0)
    flags |= _LAYERS if container.layers else 0
    flags |= (_METADATA if container.metadata else 0) | (_MARKS if has_marks else 0)
    flags |= _FLOAT if container.float_arithmetic else 0
    header = bytearray(MAGIC + bytes([VERSION, flags]))
    header += _varint(container.width) + _varint(container.height)
    header += container.model + struct.pack("<I", container.pixel_crc)
    if container.metadata:
        header.append(len(container.metadata))
    for name, value in sorted(container.metadata.items()):
        header += bytes([len(name)]) + name.encode("ascii") + _varint(len(value)) + value
    if container.layers:
        stops = container.layers.stops
        header.append(_number(CODERS, container.layers.plan))
        header += b"".join(map(_varint, (len(stops), *stops)))
    return bytes(header)


def _pack_tile(tile: Tile, has_marks: bool) -> bytes:
    flags = (_PREVIEW_BIT if tile.preview else 0) | (_DRAW_BIT if tile.draw else 0)
    fields = bytearray([_number(CODERS, tile.coder) | flags])
    if tile.draw:
        fields.append(tile.draw)
    if tile.coder in CHAIN_CODERS:
        fields += _varint(tile.seed_words)
        if has_marks:
            increments = [b - a for a, b in pairwise((0, *tile.marks))]
            fields += b"".join(map(_varint, (len(increments), *increments)))
    if tile.preview:
        fields += _varint(tile.preview) + _varint(len(tile.preview_payload)) + tile.preview_payload
    return bytes(fields) + tile.payload


def _part_crc(header: bytes, section: int, tile: int, content: bytes) -> int:
    """The CRC of a part covers the header and its place too."""
    return zlib.crc32(content, zlib.crc32(struct.pack("<II", section, tile), zlib.crc32(header)))


# --- reading --------------------------------------------------------------------------------------


def parse(data: bytes, limits: Limits = DEFAULT_LIMITS) -> Container:
    """Read a file into its parts; the payloads stay coded.

    Args:
        data: the whole file.
        limits: the sizes to accept.

    Raises:
        FormatError: not a diffcodec file, or one that breaks a rule of the format.
        UnsupportedFileError: a file of another version, or that needs what is not known here.
        LimitError: it is over a limit.
        TruncatedError: the data ends before the file does.
        CorruptError: a part does not match its checksum.

    Guarantees: raises nothing else, whatever the bytes; needs memory in proportion to ``data``,
    not to the sizes that it claims.
    """
    reader = FileReader(data, limits)
    while reader.more_layers:
        reader.read_layer()
    reader.read_tiles()
    return reader.container


def salvage(data: bytes, limits: Limits = DEFAULT_LIMITS) -> Salvage:
    """What is whole of a file that is damaged or cut: every part that matches its checksum.

    Raises:
        FormatError: nothing of it is whole, or the header is not; or what is whole breaks a rule.
        UnsupportedFileError, LimitError: see :func:`parse`.
    """
    return FileReader(data, limits).salvage()


class FileReader:
    """Reads a file part by part, from a stream as its bytes come.

    ``container`` is what has been read: complete only after :meth:`read_tiles`.

    Args:
        source: the bytes of a file or of its beginning, or a stream of them.
        limits: the sizes to accept.

    All methods raise what :func:`parse` raises. After an error what was read before is good still.
    """

    def __init__(self, source: bytes | BinaryIO, limits: Limits = DEFAULT_LIMITS):
        reader = self._reader = _Reader(source)
        _read_magic(reader)
        _check_version(reader.u8("the version"))
        flags = reader.u8("the image mode")
        mode = _name(MODES, flags & _MODE, "image mode")
        whole, self._has_marks = bool(flags & _WHOLE), bool(flags & _MARKS)
        width, height = reader.varint("the width"), reader.varint("the height")
        self._tile_count = _tile_count(width, height, whole)
        limits.check_image(width, height)
        limits.check_tiles(self._tile_count)
        model = reader.take(4, "the model's identity")
        pixel_crc = reader.u32("the checksum of the pixels")
        metadata = _read_metadata(reader, limits) if flags & _METADATA else {}
        layers = _read_layers(reader, limits) if flags & _LAYERS else None
        self._header = bytes(reader.data[: reader.position])
        self.limits = limits
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

    @property
    def _layer_count(self) -> int:
        layers = self.container.layers
        return len(layers.timesteps) if layers else 0

    @property
    def _has_tiles(self) -> bool:
        layers = self.container.layers
        return layers is None or layers.is_exact

    def read_layer(self) -> tuple[bytes, ...]:
        """The next layer's payloads, by tile."""
        layers = self.container.layers
        assert layers is not None
        payload = self._read_section(len(layers.payloads))
        layers = replace(layers, payloads=(*layers.payloads, payload))
        self.container = replace(self.container, layers=layers)
        _check_header(self.container)
        return payload

    def read_tiles(self) -> None:
        """The tiles, after all layers, and the end of the file."""
        if self._has_tiles:
            contents = self._read_section(self._layer_count)
            tiles = (self._read_tile(*part) for part in enumerate(contents))
            self.container = replace(self.container, tiles=tuple(tiles))
        if remaining := self._reader.remaining:
            raise FormatError(f"{remaining} bytes follow the last part, expected none")
        _check(self.container)

    def salvage(self) -> Salvage:
        """Instead of the other methods: see :func:`salvage`."""
        count = self._layer_count + self._has_tiles
        sections = [self._salvage_section(i, is_last=i + 1 == count) for i in range(count)]
        errors = [part for part in chain(*sections) if isinstance(part, FormatError)]
        if len(errors) == count * self._tile_count:
            raise errors[0]
        _check_header(self.container)
        boxes = self.container.boxes()
        damage = [
            Damage(self._where(section, tile), tile, boxes[tile], str(part))
            for section, parts in enumerate(sections)
            for tile, part in enumerate(parts)
            if isinstance(part, FormatError)
        ]
        if remaining := self._reader.remaining:
            reason = f"{remaining} bytes follow the last part, expected none"
            damage.append(Damage("the end of the file", None, None, reason))
        whole = [
            tuple(None if isinstance(part, FormatError) else part for part in section)
            for section in sections
        ]
        tiles: list[Tile | None] = []
        for index, content in enumerate(whole[self._layer_count] if self._has_tiles else ()):
            tile = None if content is None else self._read_tile(index, content)
            if tile is not None:
                _check_tile(tile, self._where(self._layer_count, index), self.container)
            tiles.append(tile)
        return Salvage(
            self.container, tuple(whole[: self._layer_count]), tuple(tiles), tuple(damage)
        )

    def _where(self, section: int, tile: int | None = None) -> str:
        """A section, or one of its parts, in words."""
        layers, count = self._layer_count, self._tile_count
        layer = f"layer {section + 1} of {layers}" if section < layers else ""
        if tile is None:
            return layer or f"the {count} tiles"
        return ", ".join(filter(None, (layer, f"tile {tile + 1} of {count}")))

    def _read_lengths(self, section: int) -> list[int]:
        """Bytes of the content of each part of a section."""
        what = f"the lengths of {self._where(section)}"
        return [self._reader.varint(what) for _ in range(self._tile_count)]

    def _read_section(self, section: int) -> tuple[bytes, ...]:
        """The contents of a layer, or of the tiles."""
        where = self._where(section)
        self._reader.need(self._tile_count * _SMALLEST_PART_BYTES, where)
        lengths = self._read_lengths(section)
        self._reader.need(sum(lengths) + len(lengths) * _CRC_BYTES, where)
        return tuple(self._read_part(section, *part) for part in enumerate(lengths))

    def _read_part(self, section: int, tile: int, length: int) -> bytes:
        reader, where = self._reader, self._where(section, tile)
        content = reader.take(length, where)
        computed = _part_crc(self._header, section, tile, content)
        stored = reader.u32(f"the checksum of {where}")
        if stored != computed:
            raise CorruptError(
                f"{where} or the header is damaged: its checksum is {computed:08x}, the file says "
                f"{stored:08x}; get the file again"
            )
        return content

    def _salvage_section(self, section: int, is_last: bool) -> list[bytes | FormatError]:
        """The contents, or why there are none.

        Parts are looked for where the lengths before them say, and of the last section also where
        those behind do: one wrong length, or bytes that are missing or too many, cost one part.
        """
        reader = self._reader
        try:
            lengths = self._read_lengths(section)
        except FormatError as e:
            reader.skip_to_end()
            return [e] * self._tile_count
        first = reader.position
        starts = list(accumulate((n + _CRC_BYTES for n in lengths), initial=first))
        shift = len(reader.data) - starts[-1] if is_last else 0
        parts = []
        for tile, (start, length) in enumerate(zip(starts[:-1], lengths, strict=True)):
            part: bytes | FormatError
            for position in dict.fromkeys((start + shift, start)):
                try:
                    reader.position = max(position, first)
                    part = self._read_part(section, tile, length)
                    break
                except FormatError as e:
                    part = e
            parts.append(part)
        if not is_last:
            reader.position = starts[-1]
        elif isinstance(parts[-1], FormatError):
            reader.skip_to_end()
        return parts

    def _read_tile(self, index: int, content: bytes) -> Tile:
        """The fields of a tile that matches its checksum."""
        where = self._where(self._layer_count, index)
        try:
            return self._read_fields(_Reader(content), where)
        except TruncatedError as e:
            raise FormatError(f"{where} has {len(content)} bytes, too few for its fields") from e

    def _read_fields(self, reader: "_Reader", where: str) -> Tile:
        number = reader.u8(f"the coder of {where}")
        if number > _MOST_CODER:
            raise FormatError(f"the coder of {where} is {number}, expected at most {_MOST_CODER}")
        flags = number & (_PREVIEW_BIT | _DRAW_BIT) if number & _CHAIN_BIT else 0
        coder = _coder(number ^ flags, f"coder of {where}")
        seed_words = preview = draw = 0
        marks: tuple[int, ...] = ()
        preview_payload = b""
        if flags & _DRAW_BIT:
            draw = reader.u8(f"the draw of {where}")
            if draw == 0:
                raise FormatError(f"the draw of {where} is 0, expected 1 to {MOST_DRAW}")
        if number & _CHAIN_BIT:
            seed_words = reader.varint(f"the seed words of {where}")
            if self._has_marks:
                marks = _read_marks(reader, f"the step marks of {where}", self.limits)
        if flags & _PREVIEW_BIT:
            what = f"the preview of {where}"
            preview = reader.varint(what)
            self.limits.check_timesteps(preview)
            _check_preview(preview, where)
            preview_payload = reader.take(reader.varint(what), what)
        payload = reader.take(reader.remaining, where)
        return Tile(coder, payload, seed_words, marks, preview, preview_payload, draw)


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


def _check_version(version: int) -> None:
    if version < VERSION:
        raise UnsupportedFileError(
            f"the file is of format version {version}, a draft that was never released: encode "
            "the image again"
        )
    if version > VERSION:
        raise UnsupportedFileError(
            f"the file is of format version {version}, this diffcodec reads version {VERSION}: "
            "a newer diffcodec is needed"
        )


def _read_metadata(reader: "_Reader", limits: Limits) -> dict[str, bytes]:
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


def _read_layers(reader: "_Reader", limits: Limits) -> Layers:
    """What the header says of the layers."""
    what = "the timesteps of the layers"
    plan = _coder(reader.u8("the plan of the layers"), "plan of the layers")
    count = reader.varint(what)
    limits.check_timesteps(count)
    reader.need(count, what)
    stops = tuple(reader.varint(what) for _ in range(count))
    limits.check_timesteps(max(stops, default=0))
    if stops in ((), (0,)):
        raise FormatError("the file has no layers, expected at least one")
    return Layers(plan, stops, ())


def _read_marks(reader: "_Reader", part: str, limits: Limits) -> tuple[int, ...]:
    count = reader.varint(part)
    if count == 0:
        raise FormatError(f"{part} are none, expected at least one")
    limits.check_timesteps(count)
    return tuple(accumulate(reader.varint(part) for _ in range(count)))


# --- rules ----------------------------------------------------------------------------------------


def _check_header(container: Container) -> None:
    """The rules that do not hang on what follows the header."""
    _number(MODES, container.mode)
    if len(container.model) != 4:
        raise FormatError(f"the model's identity is {container.model!r}, expected 4 bytes")
    if not 0 <= container.pixel_crc < 2**32:
        raise FormatError(f"the pixels' CRC is {container.pixel_crc}, expected 32 bits")
    if len(container.metadata) > _MOST_ENTRIES:
        raise FormatError(
            f"there are {len(container.metadata)} metadata entries, expected at most "
            f"{_MOST_ENTRIES}"
        )
    for name in container.metadata.keys() - set(METADATA_NAMES):
        _check_unknown_name(name)
    layers = container.layers
    if layers:
        if layers.plan not in CHAIN_CODERS:
            raise FormatError(f"layers by {layers.plan!r}, expected one of {CHAIN_CODERS}")
        if not layers.timesteps or any(a <= b for a, b in pairwise((*layers.stops, -1))):
            raise FormatError(f"layers that reach the timesteps {layers.stops}: they must fall")
        if layers.is_exact and layers.timesteps[-1] < LEAST_PREVIEW:
            raise FormatError(
                f"tiles follow timestep {layers.timesteps[-1]}, expected at least {LEAST_PREVIEW}"
            )
        if container.mode not in CHAIN_MODES or container.whole:
            raise FormatError(
                f"layers of a {container.mode} image{' in one tile' if container.whole else ''}: "
                f"expected a tile grid and mode {' or '.join(CHAIN_MODES)}"
            )


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
        where = f"tile {index + 1} of {tile_count}"
        _check_tile(tile, where, container)
        if has_marks and tile.coder in CHAIN_CODERS and not tile.marks:
            raise FormatError(f"{where} has no step marks, but other tiles have")


def _check_tile(tile: Tile, where: str, container: Container) -> None:
    _number(CODERS, tile.coder)
    if tile.coder not in CHAIN_CODERS:
        if tile.seed_words or tile.marks or tile.preview or tile.draw:
            raise FormatError(
                f"{where} is {tile.coder!r}: only a chain has seed words, marks, preview and draw"
            )
        return
    if tile.preview:
        _check_preview(tile.preview, where)
    elif tile.preview_payload:
        raise FormatError(f"{where} has a preview's payload without a preview")
    if not 0 <= tile.draw <= MOST_DRAW:
        raise FormatError(f"{where} has the draw {tile.draw}, expected 0 to {MOST_DRAW}")
    if container.layers and (tile.preview or tile.draw):
        raise FormatError(f"{where} has a preview or draw of its own below previews, expected none")
    if container.mode not in CHAIN_MODES:
        raise FormatError(f"{where} of a {container.mode} image is a chain, which cannot be")
    if container.layers and tile.coder != container.layers.plan:
        raise FormatError(
            f"{where} is {tile.coder!r} below previews, expected {container.layers.plan!r}"
        )
    if len(tile.payload) % _WORD_BYTES:
        raise FormatError(
            f"{where} has a payload of {len(tile.payload)} bytes, expected a multiple of "
            f"{_WORD_BYTES}"
        )
    words = len(tile.payload) // _WORD_BYTES
    if any(b < a for a, b in pairwise((0, *tile.marks, words))):
        raise FormatError(f"the step marks of {where} are not in order within its {words} words")


def _check_preview(timestep: int, where: str) -> None:
    if timestep < LEAST_PREVIEW:
        raise FormatError(
            f"the preview of {where} is at {timestep}, expected at least {LEAST_PREVIEW}"
        )


# --- numbers --------------------------------------------------------------------------------------


def _name(table: Mapping[int, str], number: int, what: str) -> str:
    if number not in table:
        raise FormatError(f"unknown {what}: {number}, expected one of {table}")
    return table[number]


def _coder(number: int, what: str) -> str:
    if number not in CODERS:
        raise UnsupportedFileError(
            f"unknown {what}: {number}, expected one of {CODERS}; a newer diffcodec may know it"
        )
    return CODERS[number]


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

    def skip_to_end(self) -> None:
        """Leave out what follows, of bytes."""
        self.position = len(self.data)

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
