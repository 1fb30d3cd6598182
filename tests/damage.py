"""Damaged files for tests: mutations that know the fields, and checksums made right again.

Written against the reader itself, so that a change of the layout needs no change here: what the
reader takes field by field is traced, and where it checks a CRC the right one is put in.
"""

import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple
from unittest import mock

from diffcodec import Limits
from diffcodec.container import primitives, writer
from diffcodec.container.parts import (
    CODERS,
    METADATA_NAMES,
    MODES,
    PLAN_NAMES,
    Container,
    Layers,
    Tile,
)
from diffcodec.container.reader import FileReader, parse
from diffcodec.container.writer import pack
from diffcodec.errors import DiffcodecError

GOLDEN = Path(__file__).parent / "golden"
MODEL = GOLDEN / "model.safetensors"
LIMITS = Limits(pixels=1 << 12)  # so that an input takes milliseconds
NUMBERS = (*range(9), 15, 16, 17, 31, 32, 33, 63, 64, 127, 128, 255, 256, 511, 512, 513)
LARGE_NUMBERS = tuple(2**k + d for k in (14, 16, 20, 28, 31, 32, 34) for d in (-1, 0, 1))

Mutate = Callable[[bytes], bytes]


class Field(NamedTuple):
    """Where the reader took a number or a string of bytes."""

    kind: str  # "varint" or "bytes"
    start: int
    stop: int


def flipped(data: bytes, bit: int) -> bytes:
    """The same but for one bit, the lowest of the first byte being number 0."""
    damaged = bytearray(data)
    damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)


def traced(data: bytes) -> list[Field]:
    """The fields of a file, as far as it can be read."""
    fields: list[Field] = []
    reader_class = primitives.ByteReader
    varint, take = reader_class.varint, reader_class.take

    def traced_take(reader, count, part):
        taken = take(reader, count, part)
        if reader.data is data:  # and not the content of a tile
            fields.append(Field("bytes", reader.position - count, reader.position))
        return taken

    def traced_varint(reader, part):
        start, before = reader.position, len(fields)
        number = varint(reader, part)
        if reader.data is data:
            fields[before:] = [Field("varint", start, reader.position)]
        return number

    with (
        mock.patch.object(reader_class, "take", traced_take),
        mock.patch.object(reader_class, "varint", traced_varint),
        suppress(DiffcodecError),
    ):
        parse(data)
    return fields


def repaired(data: bytes) -> bytes:
    """The same with every CRC made right that the reader comes to."""
    out = bytearray(data)

    def repair(self, section, tile, length):
        content = self.cursor.take(length, "a part")
        crc = primitives.part_crc(self.header.data, section, tile, content)
        self.cursor.take(4, "a checksum")
        out[self.cursor.position - 4 : self.cursor.position] = crc.to_bytes(4, "little")
        return content

    with mock.patch.object(FileReader, "read_part", repair), suppress(DiffcodecError):
        parse(data)
    return bytes(out)


def pack_unchecked(parts: Container) -> bytes:
    """As ``pack``, also of what it would refuse as far as it can be written."""
    with mock.patch.object(writer, "check_container", lambda _: None):
        return pack(parts)


def mutated(data: bytes, rng: random.Random, mutate: Mutate | None = None) -> bytes:
    """A mutation of a file: of its bytes, of one field or of one payload; mostly with right CRCs.

    Args:
        data: a file, or what a mutation has left of it.
        rng: what to do.
        mutate: of strings of bytes; a few random edits if it is not given.
    """
    mutate = mutate or (lambda part: edited(part, rng))
    kind = rng.randrange(8)
    if kind == 0:
        return mutate(data)
    if kind == 1:
        return repaired(mutate(data))
    if kind < 5:
        return repaired(with_other_field(data, rng, mutate))
    return with_other_part(data, rng, mutate)


def edited(data: bytes, rng: random.Random) -> bytes:
    """A few bytes changed, inserted, deleted or doubled."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(out) + 1)
        kind = rng.randrange(5)
        if kind == 0 and place < len(out):
            out[place] ^= 1 << rng.randrange(8)
        elif kind == 1 and place < len(out):
            out[place] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        elif kind == 2:
            out[place:place] = bytes(rng.randrange(256) for _ in range(rng.randint(1, 8)))
        elif kind == 3:
            del out[place : place + rng.randint(1, 16)]
        else:
            out[place:place] = out[place : place + rng.randint(1, 32)]
    return bytes(out)


def other_number(number: int, rng: random.Random) -> int:
    """Near a number, a small one or a large one; within a varint."""
    kind = rng.randrange(4)
    if kind == 0:
        other = number + rng.choice((-4, -2, -1, 1, 2, 4))
    elif kind == 1:
        other = number * rng.choice((2, 3, 256))
    else:
        other = rng.choice(NUMBERS if kind == 2 else LARGE_NUMBERS)
    return min(max(other, 0), 2**35 - 1)


def with_other_field(data: bytes, rng: random.Random, mutate: Mutate) -> bytes:
    """One or two fields replaced; lengths that speak of them stay as they are."""
    for _ in range(rng.randint(1, 2)):
        fields = traced(data)
        if not fields:
            return mutate(data)
        kind, start, stop = rng.choice(fields)
        old = data[start:stop]
        if kind == "varint":
            number = sum((byte & 0x7F) << 7 * i for i, byte in enumerate(old))
            new = primitives.varint(other_number(number, rng))
        else:
            new = mutate(old)
            if rng.randrange(2):
                new = new[: len(old)].ljust(len(old), b"\0")
        data = data[:start] + new + data[stop:]
    return data


def with_other_part(data: bytes, rng: random.Random, mutate: Mutate) -> bytes:
    """A payload or metadata value, a header field or the order of parts changed; lengths fit."""
    try:
        parts = parse(data)
        return pack_unchecked(other_container(parts, rng, mutate))
    except DiffcodecError:
        return repaired(mutate(data))


def other_container(parts: Container, rng: random.Random, mutate: Mutate) -> Container:
    choices: list[Callable[[], Container]] = [
        lambda: replace(parts, mode=rng.choice(list(MODES))),
        lambda: replace(parts, width=other_number(parts.width, rng) % 600 + 1),
        lambda: replace(parts, height=other_number(parts.height, rng) % 600 + 1),
        lambda: replace(parts, float_arithmetic=not parts.float_arithmetic),
        lambda: replace(parts, whole=not parts.whole),
        lambda: replace(parts, metadata=other_metadata(parts.metadata, rng, mutate)),
    ]
    if parts.tiles:
        choices += 6 * [lambda: replace(parts, tiles=other_tiles(parts.tiles, rng, mutate))]
    if parts.layers:
        layers = parts.layers
        choices += 6 * [lambda: replace(parts, layers=other_layers(layers, rng, mutate))]
    return rng.choice(choices)()


def other_metadata(metadata, rng: random.Random, mutate: Mutate) -> dict[str, bytes]:
    name = rng.choice((*METADATA_NAMES, "other", "Needed"))
    return {**metadata, name: mutate(metadata.get(name, b"\3\0\0\0"))}


def other_tiles(tiles: tuple[Tile, ...], rng: random.Random, mutate: Mutate) -> tuple[Tile, ...]:
    index = rng.randrange(len(tiles))
    tile = tiles[index]
    kind = rng.randrange(10)
    if kind == 0:
        tile = replace(tile, coder=rng.choice(list(CODERS)))
    elif kind == 1:
        tile = replace(tile, pixel_crc=other_number(tile.pixel_crc, rng) % 2**32)
    elif kind == 2:
        tile = tiles[rng.randrange(len(tiles))]
    elif kind == 3 and tile.preview:
        payload = mutate(tile.preview_payload)
        tile = replace(tile, preview=rng.choice((tile.preview, 2, 9)), preview_payload=payload)
    elif kind == 3:
        tile = replace(tile, marks=tuple(sorted(other_number(n, rng) for n in (*tile.marks, 0))))
    elif kind == 9:
        tile = replace(tile, label=rng.choice((None, other_number(tile.label or 0, rng))))
    elif kind == 8:
        tile = replace(tile, outliers=mutate(tile.outliers or tile.payload[:40]))
    else:
        tile = replace(tile, payload=mutate(tile.payload))
    return (*tiles[:index], tile, *tiles[index + 1 :])


def other_layers(layers: Layers, rng: random.Random, mutate: Mutate) -> Layers:
    kind = rng.randrange(9)
    if kind == 0:
        return replace(layers, plan=rng.choice(PLAN_NAMES), is_part=rng.random() < 0.5)
    if kind == 8:
        return replace(layers, label=rng.choice((None, other_number(layers.label or 0, rng))))
    if kind == 1:
        stops = list(layers.stops)
        stops[rng.randrange(len(stops))] = rng.randrange(10)
        return replace(layers, stops=tuple(stops))
    if kind == 2 and len(layers.stops) > 1:
        return replace(layers, stops=layers.stops[:-1], payloads=layers.payloads[:-1])
    payloads = [list(layer) for layer in layers.payloads]
    layer = rng.choice(payloads)
    if layer:
        tile = rng.randrange(len(layer))
        layer[tile] = mutate(layer[tile])
    return replace(layers, payloads=tuple(map(tuple, payloads)))
