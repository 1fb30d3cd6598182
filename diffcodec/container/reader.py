"""From the bytes, or a stream of them, to the parts."""

from dataclasses import replace
from itertools import accumulate, chain
from typing import BinaryIO

from diffcodec.container.parts import (
    MAGIC,
    MOST_DRAW,
    VERSION,
    Container,
    Damage,
    Layers,
    Salvage,
    Tile,
    tile_count,
)
from diffcodec.container.primitives import (
    CHAIN_BIT,
    CRC_BYTES,
    DRAW_BIT,
    FLOAT_BIT,
    LAYERS_BIT,
    MARKS_BIT,
    METADATA_BIT,
    MODE_BITS,
    MOST_CODER,
    PREVIEW_BIT,
    SMALLEST_PART_BYTES,
    WHOLE_BIT,
    ByteReader,
    coder_of,
    mode_of,
    part_crc,
)
from diffcodec.container.rules import check_container, check_header, check_preview, check_tile
from diffcodec.errors import CorruptError, FormatError, TruncatedError, UnsupportedFileError
from diffcodec.limits import DEFAULT_LIMITS, Limits


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
        reader = self._reader = ByteReader(source)
        _read_magic(reader)
        _check_version(reader.u8("the version"))
        flags = reader.u8("the image mode")
        mode = mode_of(flags & MODE_BITS)
        whole, self._has_marks = bool(flags & WHOLE_BIT), bool(flags & MARKS_BIT)
        width, height = reader.varint("the width"), reader.varint("the height")
        self._tile_count = tile_count(width, height, whole)
        limits.check_image(width, height)
        limits.check_tiles(self._tile_count)
        model = reader.take(4, "the model's identity")
        pixel_crc = reader.u32("the checksum of the pixels")
        metadata = _read_metadata(reader, limits) if flags & METADATA_BIT else {}
        layers = _read_layers(reader, limits) if flags & LAYERS_BIT else None
        self._header = bytes(reader.data[: reader.position])
        self.limits = limits
        self.container = Container(
            *(mode, width, height, model, pixel_crc, whole, metadata, ()),
            float_arithmetic=bool(flags & FLOAT_BIT),
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
        check_header(self.container)
        return payload

    def read_tiles(self) -> None:
        """The tiles, after all layers, and the end of the file."""
        if self._has_tiles:
            contents = self._read_section(self._layer_count)
            tiles = (self._read_tile(*part) for part in enumerate(contents))
            self.container = replace(self.container, tiles=tuple(tiles))
        if remaining := self._reader.remaining:
            raise FormatError(f"{remaining} bytes follow the last part, expected none")
        check_container(self.container)

    def salvage(self) -> Salvage:
        """Instead of the other methods: see :func:`salvage`."""
        count = self._layer_count + self._has_tiles
        sections = [self._salvage_section(i, is_last=i + 1 == count) for i in range(count)]
        errors = [part for part in chain(*sections) if isinstance(part, FormatError)]
        if len(errors) == count * self._tile_count:
            raise errors[0]
        check_header(self.container)
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
                check_tile(tile, self._where(self._layer_count, index), self.container)
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
        self._reader.need(self._tile_count * SMALLEST_PART_BYTES, where)
        lengths = self._read_lengths(section)
        self._reader.need(sum(lengths) + len(lengths) * CRC_BYTES, where)
        return tuple(self._read_part(section, *part) for part in enumerate(lengths))

    def _read_part(self, section: int, tile: int, length: int) -> bytes:
        reader, where = self._reader, self._where(section, tile)
        content = reader.take(length, where)
        computed = part_crc(self._header, section, tile, content)
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
        starts = list(accumulate((n + CRC_BYTES for n in lengths), initial=first))
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
            return self._read_fields(ByteReader(content), where)
        except TruncatedError as e:
            raise FormatError(f"{where} has {len(content)} bytes, too few for its fields") from e

    def _read_fields(self, reader: "ByteReader", where: str) -> Tile:
        number = reader.u8(f"the coder of {where}")
        if number > MOST_CODER:
            raise FormatError(f"the coder of {where} is {number}, expected at most {MOST_CODER}")
        flags = number & (PREVIEW_BIT | DRAW_BIT) if number & CHAIN_BIT else 0
        coder = coder_of(number ^ flags, f"coder of {where}")
        seed_words = preview = draw = 0
        marks: tuple[int, ...] = ()
        preview_payload = b""
        if flags & DRAW_BIT:
            draw = reader.u8(f"the draw of {where}")
            if draw == 0:
                raise FormatError(f"the draw of {where} is 0, expected 1 to {MOST_DRAW}")
        if number & CHAIN_BIT:
            seed_words = reader.varint(f"the seed words of {where}")
            if self._has_marks:
                marks = _read_marks(reader, f"the step marks of {where}", self.limits)
        if flags & PREVIEW_BIT:
            what = f"the preview of {where}"
            preview = reader.varint(what)
            self.limits.check_timesteps(preview)
            check_preview(preview, where)
            preview_payload = reader.take(reader.varint(what), what)
        payload = reader.take(reader.remaining, where)
        return Tile(coder, payload, seed_words, marks, preview, preview_payload, draw)


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
        raise UnsupportedFileError(
            f"the file is of format version {version}, a draft that was never released: encode "
            "the image again"
        )
    if version > VERSION:
        raise UnsupportedFileError(
            f"the file is of format version {version}, this diffcodec reads version {VERSION}: "
            "a newer diffcodec is needed"
        )


def _read_metadata(reader: "ByteReader", limits: Limits) -> dict[str, bytes]:
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
    plan = coder_of(reader.u8("the plan of the layers"), "plan of the layers")
    count = reader.varint(what)
    limits.check_timesteps(count)
    reader.need(count, what)
    stops = tuple(reader.varint(what) for _ in range(count))
    limits.check_timesteps(max(stops, default=0))
    if stops in ((), (0,)):
        raise FormatError("the file has no layers, expected at least one")
    return Layers(plan, stops, ())


def _read_marks(reader: "ByteReader", part: str, limits: Limits) -> tuple[int, ...]:
    count = reader.varint(part)
    if count == 0:
        raise FormatError(f"{part} are none, expected at least one")
    limits.check_timesteps(count)
    return tuple(accumulate(reader.varint(part) for _ in range(count)))
