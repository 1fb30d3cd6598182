"""The way from the bytes of a file, or a stream of them, to its parts."""

from collections.abc import Collection
from dataclasses import replace
from itertools import accumulate
from typing import BinaryIO

from diffcodec.container.header import read_header
from diffcodec.container.parts import MOST_DRAW, Container, Tile
from diffcodec.container.primitives import (
    CHAIN_BIT,
    CRC_BYTES,
    DRAW_BIT,
    LABEL_BIT,
    MOST_CODER,
    OUTLIERS_BIT,
    PREVIEW_BIT,
    SMALLEST_PART_BYTES,
    ByteReader,
    coder_of,
    part_crc,
)
from diffcodec.container.rules import (
    check_container,
    check_header,
    check_preview,
    check_tile,
)
from diffcodec.errors import CorruptError, FormatError, TruncatedError
from diffcodec.limits import DEFAULT_LIMITS, Limits

LEFT_OUT = Tile("raw", b"")  # in the place of a tile that is not read


def parse(source: bytes | BinaryIO, limits: Limits = DEFAULT_LIMITS) -> Container:
    """Read a file into its parts; the payloads stay coded.

    Args:
        source: the whole file, or a stream of it.
        limits: the sizes to accept.

    Raises:
        FormatError: not a diffcodec file, or one that breaks a rule of the format.
        UnsupportedFileError: a file of another version, or that needs what is not known here.
        LimitError: it is over a limit.
        TruncatedError: the data ends before the file does.
        CorruptError: a part does not match its checksum.

    Guarantees: raises nothing else, whatever the bytes; needs memory in proportion to them,
    not to the sizes that they claim.
    """
    reader = FileReader(source, limits)
    while reader.more_layers:
        reader.read_layer()
    reader.read_tiles()
    return reader.container


class FileReader:
    """Reads a file part by part, from a stream as its bytes come.

    Args:
        source: the bytes of a file or of its beginning, or a stream of them.
        limits: the sizes to accept.

    Attributes:
        container: what has been read: complete only after :meth:`read_tiles`.
        cursor: where the next part begins.
        wanted: numbers of the tiles to read, if not all are: the others are left out, and of what
            they hold nothing is checked. Their payloads are empty.
        is_cut: whether of the last layer that was read only the beginning has come.

    All methods raise what :func:`parse` raises. After an error what was read before is good still.
    """

    def __init__(self, source: bytes | BinaryIO, limits: Limits = DEFAULT_LIMITS):
        self.limits, self.cursor = limits, ByteReader(source)
        self.header = read_header(self.cursor, limits)
        self.container = self.header.container
        self.wanted: Collection[int] | None = None
        self.is_cut = False

    @property
    def more_layers(self) -> bool:
        """Whether a layer comes next."""
        layers = self.container.layers
        return layers is not None and len(layers.payloads) < len(layers.timesteps)

    def read_layer(self, may_be_cut: bool = False) -> tuple[bytes, ...]:
        """The next layer's payloads, by tile.

        Args:
            may_be_cut: where the file ends within the layer, take what has come of it.
        """
        layers = self.container.layers
        assert layers is not None
        section, start = len(layers.payloads), self.cursor.position
        try:
            payload = self._read_section(section)
        except TruncatedError:
            if not may_be_cut or self.wanted is not None:
                raise
            self.cursor.position = start
            payload = self._read_beginning(section)
            if not any(payload):
                raise
            self.is_cut = True
        layers = replace(layers, payloads=(*layers.payloads, payload))
        self.container = replace(self.container, layers=layers)
        check_header(self.container)
        return payload

    def read_tiles(self) -> None:
        """The tiles, after all layers, and the end of the file."""
        if self.container.has_tiles:
            contents = self._read_section(self.container.layer_count)
            tiles = tuple(
                self.parse_tile(*part) if self.wants(part[0]) else LEFT_OUT
                for part in enumerate(contents)
            )
            self.container = replace(self.container, tiles=tiles)
        if self.wanted is not None:
            check_header(self.container)
            for index in self.wanted if self.container.tiles else ():
                check_tile(self.container.tiles[index], f"tile {index + 1}", self.container)
            return
        if remaining := self.cursor.remaining:
            raise FormatError(f"{remaining} bytes follow the last part, expected none")
        check_container(self.container)

    def _read_section(self, section: int) -> tuple[bytes, ...]:
        """The contents of a layer, or of the tiles."""
        where = self.name(section)
        self.cursor.need(self.header.tile_count * SMALLEST_PART_BYTES, where)
        lengths = self.read_lengths(section)
        if self.wanted is None:
            self.cursor.need(sum(lengths) + len(lengths) * CRC_BYTES, where)
        return tuple(
            self.read_part(section, *part) if self.wants(part[0]) else self._skip_part(part[1])
            for part in enumerate(lengths)
        )

    def _read_beginning(self, section: int) -> tuple[bytes, ...]:
        """What has come of a section; no checksum guards the last part that has, a beginning."""
        contents: list[bytes] = []
        for tile, length in enumerate(self.read_lengths(section)):
            came = self.cursor.remaining_up_to(length + CRC_BYTES)
            if came == length + CRC_BYTES:
                contents.append(self.read_part(section, tile, length))
            else:
                contents.append(self.cursor.take(min(length, came), self.name(section, tile)))
        return tuple(contents)

    def wants(self, tile: int) -> bool:
        """Whether a tile is to be read."""
        return self.wanted is None or tile in self.wanted

    def _skip_part(self, length: int) -> bytes:
        self.cursor.skip(length + CRC_BYTES)
        return b""

    def name(self, section: int, tile: int | None = None) -> str:
        """A section, or one of its parts, in words."""
        layers, count = self.container.layer_count, self.header.tile_count
        layer = f"layer {section + 1} of {layers}" if section < layers else ""
        if tile is None:
            return layer or ("the tile" if count == 1 else f"the {count} tiles")
        return ", ".join(filter(None, (layer, f"tile {tile + 1} of {count}")))

    def read_lengths(self, section: int) -> list[int]:
        """Bytes of the content of each part of a section."""
        what = f"the lengths of {self.name(section)}"
        return [self.cursor.varint(what) for _ in range(self.header.tile_count)]

    def read_part(self, section: int, tile: int, length: int) -> bytes:
        """The content of a part that matches its checksum."""
        where = self.name(section, tile)
        content = self.cursor.take(length, where)
        computed = part_crc(self.header.data, section, tile, content)
        stored = self.cursor.u32(f"the checksum of {where}")
        if stored != computed:
            raise CorruptError(
                f"{where} or the header is damaged: its checksum is {computed:08x}, the file says "
                f"{stored:08x}; get the file again"
            )
        return content

    def parse_tile(self, index: int, content: bytes) -> Tile:
        """The fields of a tile, from the content of its part."""
        where = self.name(self.container.layer_count, index)
        try:
            return _read_tile(ByteReader(content), where, self.header.has_marks, self.limits)
        except TruncatedError as e:
            raise FormatError(f"{where} has {len(content)} bytes, too few for its fields") from e


def _read_tile(reader: ByteReader, where: str, has_marks: bool, limits: Limits) -> Tile:
    number = reader.u8(f"the coder of {where}")
    if number > MOST_CODER:
        raise FormatError(f"the coder of {where} is {number}, expected at most {MOST_CODER}")
    is_chain = bool(number & CHAIN_BIT)
    chain_flags = PREVIEW_BIT | DRAW_BIT | LABEL_BIT if is_chain else 0
    flags = number & (OUTLIERS_BIT | chain_flags)
    coder = coder_of(number ^ flags, f"coder of {where}")
    crc = preview = draw = outliers = 0
    label = None
    marks: tuple[int, ...] = ()
    preview_payload = b""
    if flags & DRAW_BIT:
        draw = reader.u8(f"the draw of {where}")
        if draw == 0:
            raise FormatError(f"the draw of {where} is 0, expected 1 to {MOST_DRAW}")
    if flags & LABEL_BIT:
        label = reader.varint(f"the class of {where}")
    if not is_chain:
        crc = reader.u32(f"the checksum of the pixels of {where}")
    elif has_marks:
        marks = _read_marks(reader, f"the step marks of {where}", limits)
    if flags & PREVIEW_BIT:
        what = f"the preview of {where}"
        preview = reader.varint(what)
        limits.check_timesteps(preview)
        check_preview(preview, where)
        preview_payload = reader.take(reader.varint(what), what)
    if flags & OUTLIERS_BIT:
        what = f"the outliers of {where}"
        outliers = reader.varint(what)
        if outliers == 0:
            raise FormatError(f"{what} take no byte, expected one at least")
        reader.need(outliers, what)
    return Tile(
        coder,
        reader.take(reader.remaining - outliers, where),
        crc,
        marks,
        preview,
        preview_payload,
        draw,
        label,
        reader.take(outliers, where),
    )


def _read_marks(reader: "ByteReader", part: str, limits: Limits) -> tuple[int, ...]:
    count = reader.varint(part)
    if count == 0:
        raise FormatError(f"{part} are none, expected at least one")
    limits.check_timesteps(count)
    return tuple(accumulate(reader.varint(part) for _ in range(count)))
