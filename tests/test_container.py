import io
import struct
import subprocess
import sys
import time
import tracemalloc
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

import pytest
from damage import flipped
from hypothesis import example, given, settings
from hypothesis import strategies as st

import diffcodec.container
from diffcodec.container.parts import (
    ADAPTATION,
    CHAIN_MODES,
    CODERS,
    COLOR_SET,
    METADATA_NAMES,
    MODES,
    MOST_DRAW,
    PLAN_NAMES,
    TILES,
    Box,
    Container,
    Layers,
    Tile,
    tile_grid,
)
from diffcodec.container.primitives import varint
from diffcodec.container.reader import FileReader, parse
from diffcodec.container.salvage import Damage, Salvage, salvage
from diffcodec.container.writer import pack
from diffcodec.errors import (
    CorruptError,
    DiffcodecError,
    FormatError,
    LimitError,
    TruncatedError,
    UnsupportedFileError,
)
from diffcodec.limits import Limits

ROOT = Path(__file__).parents[1]

# The example of docs/format.md. The CRC is gzip's.
GOLDEN_BYTES = bytes.fromhex(
    "89444643 01 65 ac02 05 a1b2c3d4"  # RGB with metadata and marks, 300 x 5
    "01 03696363 020102"
    "0b 11 020101 01020305060708 8d1d1cc5"
)
GOLDEN = Container(
    mode="RGB",
    width=300,
    height=5,
    model=bytes.fromhex("a1b2c3d4"),
    whole=False,
    metadata={"icc": b"\x01\x02"},
    tiles=(Tile("default", bytes([1, 2, 3, 5, 6, 7, 8]), marks=(1, 2)),),
)
GOLDEN_HEADER_BYTES = 21

# No metadata, no marks, two tiles of which one is no chain.
PLAIN = Container(
    mode="L",
    width=600,
    height=1,
    model=b"\1\2\3\4",
    whole=False,
    metadata={},
    tiles=(Tile("raw", b"abc", pixel_crc=200), Tile("fast", b"01234567")),
)
PLAIN_HEADER_BYTES = 13

# Two layers and an exact tile. The first CRC is gzip's.
LAYERED_BYTES = bytes.fromhex(
    "89444643 01 0d ac02 05 a1b2c3d4"  # RGB with layers, 300 x 5
    "11 03 0c 08 00  02 aabb 7b2a2245  01 cc 9eaeb641  05 11 01020304 2eb2ae47"
)
PARTS_OF_LAYERED = ((0, 18), (18, 25), (25, 31), (31, None))
LAYERED = replace(
    GOLDEN,
    metadata={},
    tiles=(Tile("default", bytes([1, 2, 3, 4])),),
    layers=Layers("default", (12, 8, 0), ((b"\xaa\xbb",), (b"\xcc",))),
)
PREVIEWED = replace(  # a tile with a preview of its own
    GOLDEN,
    metadata={},
    tiles=(Tile("default", bytes([1, 2, 3, 4]), preview=12, preview_payload=b"\xaa\xbb"),),
)
OUTLYING = replace(  # a chain and a plain coder, both with outliers
    PLAIN,
    tiles=(replace(PLAIN.tiles[0], outliers=b"\0"), replace(PREVIEWED.tiles[0], outliers=b"ab")),
)
DRAWN = replace(  # by other draws of the shared randomness, one with a preview too
    PLAIN, tiles=(replace(PLAIN.tiles[1], draw=9), replace(PREVIEWED.tiles[0], draw=255))
)
LOSSY = replace(  # two tiles, two layers
    PLAIN,
    tiles=(),
    layers=Layers("fast", (300, 4), ((b"", b"abc"), (b"\0" * 200, b"")), 300),
    pixel_crc=0x12345678,
)

quick = settings(deadline=None, max_examples=100)
by_value = pytest.mark.parametrize(
    "container",
    [GOLDEN, PLAIN, LAYERED, LOSSY, PREVIEWED, DRAWN, OUTLYING],
    ids=["golden", "plain", "layered", "lossy", "previewed", "drawn", "outlying"],
)


@st.composite
def tiles(
    draw: st.DrawFn,
    coders: Sequence[str],
    timesteps: int,
    may_have_preview: bool,
    may_have_outliers: bool,
) -> Tile:
    coder = draw(st.sampled_from(coders))
    outliers = draw(st.binary(max_size=20)) if may_have_outliers else b""
    if coder not in PLAN_NAMES:
        crc = draw(st.integers(0, 2**32 - 1))
        return Tile(coder, draw(st.binary(max_size=200)), crc, outliers=outliers)
    payload = draw(st.binary(max_size=160))
    words = -(-len(payload) // 4)
    marks = draw(st.lists(st.integers(0, words), min_size=timesteps, max_size=timesteps))
    tile = Tile(coder, payload, marks=tuple(sorted(marks)), outliers=outliers)
    if not may_have_preview:
        return tile
    label = draw(st.none() | st.integers(0, 300))
    tile = replace(tile, draw=draw(st.integers(0, MOST_DRAW)), label=label)
    if draw(st.booleans()):
        return tile
    preview, content = draw(st.integers(2, 2**10)), draw(st.binary(max_size=40))
    return replace(tile, preview=preview, preview_payload=content)


@st.composite
def containers(draw: st.DrawFn) -> Container:
    width, height = draw(st.integers(1, 1100)), draw(st.integers(1, 1100))
    plain = tuple(name for name in CODERS if name not in PLAN_NAMES)
    layers = draw(st.none() | st.builds(Layers, st.sampled_from(PLAN_NAMES), stops(), st.just(())))
    mode = draw(st.sampled_from(CHAIN_MODES if layers else list(MODES)))
    whole = layers is None and draw(st.booleans())
    told = draw(st.none() | st.integers(46, 63)) if not whole else None
    count = 1 if whole else len(tile_grid(width, height, 8 * told if told else None))
    chains = (layers.plan,) if layers else PLAN_NAMES if mode in CHAIN_MODES else ()
    tile = tiles(
        (*plain, *chains),
        timesteps=draw(st.integers(0, 4)),
        may_have_preview=not layers,
        may_have_outliers=mode in CHAIN_MODES,
    )
    drawn = tuple(draw(st.lists(tile, min_size=count, max_size=count)))
    if layers is not None:
        payload = st.tuples(*([st.binary(max_size=20)] * count))
        number = len(layers.timesteps)
        payloads = draw(st.lists(payload, min_size=number, max_size=number))
        label = draw(st.none() | st.integers(0, 300))
        layers = replace(layers, payloads=tuple(payloads), label=label)
        drawn = drawn if layers.is_exact else ()
    uses_model = layers is not None or any(tile.plan for tile in drawn)
    ruled = {TILES, ADAPTATION} if uses_model else {TILES, ADAPTATION, COLOR_SET}
    known = [name for name in METADATA_NAMES if name not in ruled]
    if layers is not None and not layers.is_exact:
        layers = replace(layers, is_part=draw(st.booleans()))
    names = st.sampled_from(known) | st.from_regex(r"\A[a-z][A-Za-z0-9-]{0,9}\Z")
    metadata = draw(st.dictionaries(names, st.binary(max_size=200)))
    ends_with_layer = layers is not None and not layers.is_exact
    return Container(
        mode=mode,
        width=width,
        height=height,
        model=draw(st.binary(min_size=4, max_size=4)) if uses_model else bytes(4),
        pixel_crc=draw(st.integers(0, 2**32 - 1)) if ends_with_layer else 0,
        whole=whole,
        metadata=metadata | ({TILES: bytes([told])} if told else {}),
        tiles=drawn,
        float_arithmetic=uses_model and draw(st.booleans()),
        layers=layers,
    )


def stops() -> st.SearchStrategy[tuple[int, ...]]:
    """Falling timesteps; a last 0 is not alone and not behind 1."""
    numbers = st.sets(st.integers(0, 300), min_size=1, max_size=4)
    falling = numbers.map(lambda s: tuple(sorted(s, reverse=True)))
    return falling.filter(lambda s: s[0] > 0 and s[-2:] != (1, 0))


def header(mode: int = 2, width: bytes = b"\5", height: bytes = b"\5", model: int = 0) -> bytes:
    return b"\x89DFC\1" + bytes([mode]) + width + height + struct.pack("<I", model)


def raw(content: bytes = b"") -> bytes:
    """The content of a tile that is coded so, with a checksum of 0."""
    return b"\0" + bytes(4) + content


def file(head: bytes, *contents: bytes) -> bytes:
    """A file of one tile with right CRCs, whatever its fields say: a part of each section."""
    parts = [head]
    for section, content in enumerate(contents):
        crc = zlib.crc32(head + struct.pack("<II", section, 0) + content)
        parts += [varint(len(content)), content, struct.pack("<I", crc)]
    return b"".join(parts)


def check_refused_or_sound(data: bytes) -> None:
    try:
        container = parse(data)
    except DiffcodecError:
        return
    assert parse(pack(container)) == container


# Layout


@pytest.mark.parametrize(
    ("container", "data", "block"), [(GOLDEN, GOLDEN_BYTES, 1), (LAYERED, LAYERED_BYTES, 3)]
)
def test_golden_bytes_are_those_of_the_documented_examples(
    container: Container, data: bytes, block: int
) -> None:
    assert pack(container) == data
    assert parse(data) == container
    example = (ROOT / "docs/format.md").read_text(encoding="utf-8").split("```")[block]
    assert bytes.fromhex("".join(line.split("#")[0] for line in example.splitlines())) == data


@by_value
@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_streams_are_read_as_bytes_are(container: Container, chunk: int) -> None:
    class Slow(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            return super().read(chunk if size is None else min(size, chunk))

    assert parse(Slow(pack(container))) == container
    for data in (pack(container)[:-1], pack(container) + b"\0"):
        with pytest.raises(FormatError):
            parse(Slow(data))


def test_layers_are_read_before_what_follows() -> None:
    reader = FileReader(LAYERED_BYTES[:29])
    assert reader.read_layer() == (b"\xaa\xbb",)
    assert reader.container.layers == replace(LAYERED.layers, payloads=((b"\xaa\xbb",),))
    with pytest.raises(TruncatedError, match="layer 2 of 2"):
        reader.read_layer()


def test_layers_out_of_place_or_there_twice() -> None:
    head, first, second, tile = (LAYERED_BYTES[slice(*s)] for s in PARTS_OF_LAYERED)
    assert head + first + second + tile == LAYERED_BYTES
    with pytest.raises(CorruptError, match="layer 1 of 2"):
        parse(head + second + first + tile)
    for parts in ((first, first, second, tile), (first, second, second, tile)):
        with pytest.raises(FormatError):
            parse(head + b"".join(parts))
    with pytest.raises(FormatError):
        parse(LAYERED_BYTES + tile)


def test_float_arithmetic_is_bit_7_of_the_mode() -> None:
    data = pack(replace(GOLDEN, float_arithmetic=True))
    assert data[:-4] == GOLDEN_BYTES[:5] + b"\xe5" + GOLDEN_BYTES[6:-4]  # and another CRC
    assert parse(data) == replace(GOLDEN, float_arithmetic=True)
    assert not parse(GOLDEN_BYTES).float_arithmetic


@quick
@given(containers())
def test_round_trip(container: Container) -> None:
    data = pack(container)
    assert parse(data) == container
    assert pack(parse(data)) == data


@pytest.mark.parametrize(("length", "overhead"), [(125, 18), (127, 19), (16382, 19), (16383, 20)])
def test_overhead_of_one_small_chain_tile(length: int, overhead: int) -> None:
    tile = Tile("default", bytes(length))
    assert len(pack(Container("RGB", 32, 32, b"\1\2\3\4", False, {}, (tile,)))) == (
        overhead + length
    )


def test_header_file_helper_makes_valid_files() -> None:
    assert parse(file(header(), raw(b"x"))).tiles == (Tile("raw", b"x"),)


# The tile grid


@quick
@given(st.integers(1, 5000), st.integers(1, 5000), st.sampled_from([96, 104, 376, 512]))
@example(1017, 512, 512)  # rounding edges down would make a part of 513
@example(193, 289, 96)
def test_tiles_cover_every_pixel_once_in_raster_order(width: int, height: int, most: int) -> None:
    boxes = tile_grid(width, height, most)
    rows = sorted({(box.top, box.height) for box in boxes})
    columns = sorted({(box.left, box.width) for box in boxes})
    for parts, side in ((rows, height), (columns, width)):
        assert [start for start, _ in parts] == list(accumulate([0, *(n for _, n in parts[:-1])]))
        assert sum(n for _, n in parts) == side
        assert all(1 <= n <= most for _, n in parts)
        assert all(n >= 64 for _, n in parts[1:-1])  # what is shown of two borders lies apart
        assert all(start % 8 == 0 for start, _ in parts)
        assert len(parts) == -(-side // most)
    assert boxes == [Box(x, y, w, h) for y, h in rows for x, w in columns]


@pytest.mark.parametrize(
    ("side", "parts"),
    [(1, [1]), (512, [512]), (513, [264, 249]), (1017, [512, 505]), (1025, [344, 344, 337])],
)
def test_parts_of_a_side(side: int, parts: list[int]) -> None:
    assert [box.width for box in tile_grid(side, 1)] == parts
    assert [box.height for box in tile_grid(1, side)] == parts


def test_whole_is_one_box() -> None:
    container = Container("L", 5000, 3000, bytes(4), True, {}, (Tile("webp", b""),))
    assert container.boxes() == [Box(0, 0, 5000, 3000)]
    assert parse(pack(container)).boxes() == container.boxes()
    assert len(replace(container, whole=False).boxes()) == 60


@pytest.mark.parametrize("told", [b"", b"\0", b"\x0b", b"\x40", b"\xff", b"\x10\0"])
def test_other_sides_of_tiles_are_refused(told: bytes) -> None:
    tiles = (Tile("raw", b""),) * 6
    good = Container("L", 300, 200, bytes(4), False, {TILES: b"\x0e"}, tiles)
    assert good.tile_side == 112
    assert parse(pack(good)) == good
    for bad in (replace(good, metadata={TILES: told}), replace(good, whole=True, tiles=tiles[:1])):
        with pytest.raises(FormatError, match="side"):
            pack(bad)
    written = pack(good).replace(b"Tiles\1\x0e", b"Tiles" + bytes([len(told)]) + told)
    with pytest.raises(FormatError, match="side"):
        parse(written)


# Damage


@by_value
def test_every_cut_is_a_truncation(container: Container) -> None:
    data = pack(container)
    for size in range(1, len(data)):
        with pytest.raises(TruncatedError, match=f"found {size} bytes"):
            parse(data[:size])


@by_value
def test_every_bit_flip_is_detected(container: Container) -> None:
    data = pack(container)
    for bit in range(8 * len(data)):
        with pytest.raises(DiffcodecError):
            parse(flipped(data, bit))


def test_damaged_payload_names_its_tile() -> None:
    data = pack(PLAIN)
    for position, tile in ((len(data) - 5, 2), (PLAIN_HEADER_BYTES + 3, 1)):
        data = flipped(data, 8 * position)
        with pytest.raises(CorruptError, match=f"tile {tile} of 2"):
            parse(data)


def test_damage_to_a_tile_leaves_the_checksums_of_others() -> None:
    data = pack(PLAIN)
    other = pack(replace(PLAIN, tiles=(Tile("raw", b"xyz"), PLAIN.tiles[1])))
    assert data != other
    assert data[-13:] == other[-13:]  # the second tile: coder, 8 of payload, CRC


def test_tiles_of_another_header_do_not_fit() -> None:
    data, other = pack(PLAIN), pack(replace(PLAIN, model=b"1234"))
    with pytest.raises(CorruptError):
        parse(data[:PLAIN_HEADER_BYTES] + other[PLAIN_HEADER_BYTES:])


@by_value
def test_bytes_after_the_last_tile(container: Container) -> None:
    with pytest.raises(FormatError, match="1 bytes follow"):
        parse(pack(container) + b"\0")


@quick
@given(st.binary(max_size=300))
def test_arbitrary_bytes_raise_only_our_errors(data: bytes) -> None:
    with pytest.raises(DiffcodecError):
        parse(data)


@quick
@given(st.integers(0, 255), st.binary(max_size=300), st.binary(max_size=100))
def test_arbitrary_content_raises_only_our_errors(mode: int, rest: bytes, record: bytes) -> None:
    # Right magic, version and CRC, so that the checks behind them are reached.
    for data in (b"\x89DFC\1" + bytes([mode]) + rest, file(header(mode), record)):
        check_refused_or_sound(data)


@quick
@given(st.lists(st.tuples(st.integers(0, len(GOLDEN_BYTES) - 1), st.integers(0, 255)), min_size=1))
def test_mutated_files_raise_only_our_errors(edits: list[tuple[int, int]]) -> None:
    data = bytearray(GOLDEN_BYTES)
    for index, value in edits:
        data[index] = value
    if data == GOLDEN_BYTES:
        return
    with pytest.raises(DiffcodecError):
        parse(bytes(data))
    head, content = data[:GOLDEN_HEADER_BYTES], data[GOLDEN_HEADER_BYTES + 1 : -4]
    check_refused_or_sound(file(bytes(head), bytes(content)))  # CRC made right again


# Rules


@pytest.mark.parametrize(
    ("version", "error", "message"),
    [
        (0, FormatError, "version is 0, expected 1"),
        (2, UnsupportedFileError, "version 2, .*a newer diffcodec"),
    ],
)
def test_other_versions(version: int, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        parse(GOLDEN_BYTES[:4] + bytes([version]) + GOLDEN_BYTES[5:])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the data is empty"),
        (b"\x89PNG\r\n\x1a\n", "starts with the bytes 89 50 4e 47, expected 89 44 46"),
        (file(header(mode=0x82), raw()), "float arithmetic, but no tile is a chain"),
        (file(header(mode=0), b"\0"), "unknown image mode: 0"),
        (file(header(mode=8), b"\0"), "unknown image mode: 0"),
        (file(header(width=b"\0")), "0 x 5 pixels"),
        (file(header(height=b"\0")), "5 x 0 pixels"),
        (file(header(width=b"\x85\0"), b"\0"), "shortest form"),
        (file(header(width=b"\x80\x80\x80\x80\x80\1"), b"\0"), "longer than 5 bytes"),
        (file(header(model=1), raw()), "model that no tile uses"),
        (file(header(), b""), "tile 1 of 1 has 0 bytes, too few"),
        (file(header(), b"\x80"), "coder of tile 1 of 1 is 128, expected at most 127"),
        (file(header(), b"\x40\0\0\0\0\0"), "the outliers of tile 1 of 1 take no byte"),
        (file(header(), b"\x40\0\0\0\0\2a"), "too few for its fields"),
        (file(header(), b"\0abc"), "tile 1 of 1 has 4 bytes, too few"),
        (file(header(mode=3, model=1), b"\x10"), "of a LA image is a chain"),
        (file(header(0x42, model=1), b"\x10\0abcd"), "expected at least one"),
        (file(header(0x42, model=1), b"\x10\2\1\1abcd"), "not in order within its 1 words"),
        (file(header(0x0A, model=1) + b"\x10\0"), "has no layers"),
        (file(header(0x0A, model=1) + b"\x10\1\0"), "has no layers"),
        (file(header(0x0A, model=1) + b"\0\1\2abcd", b""), "layers by 'raw'"),
        (file(header(0x0A, model=1) + b"\x10\2\2\2abcd", b"", b""), "they must fall"),
        (file(header(0x0A, model=1) + b"\x10\2\0\2abcd", b"", b""), "they must fall"),
        (file(header(0x0A, model=1) + b"\x10\2\1\0", b"", raw()), "tiles follow timestep 1"),
        (file(header(0x0B, model=1) + b"\x10\1\2abcd", b""), "layers of a LA image"),
        (file(header(0x1A, model=1) + b"\x10\1\2abcd", b""), "layers of a L image in one tile"),
        (file(header(0x0A, model=1) + b"\x10\2\2\0", b"", b"\x11"), "'default' below prev"),
        (file(header(0x22) + b"\0", b"\0"), "claims 0 metadata entries"),
        (file(header(0x22) + b"\1\6Colors\1\1", raw()), "set of colours, but no tile is a chain"),
        (file(header(0x22) + b"\1\0\0", raw()), "metadata name '', expected a letter"),
        (file(header(0x22) + b"\1\3a_c\0", raw()), "metadata name 'a_c', expected a letter"),
        (file(header(0x22) + b"\1\3-bc\0", raw()), "metadata name '-bc', expected a letter"),
        (file(header(0x22) + b"\1\1\xff\0", raw()), "metadata name"),
        (file(header(0x22) + b"\2\3icc\0\3icc\0", raw()), "out of order or there twice"),
        (file(header(0x22) + b"\2\3icc\0\4exif\0", raw()), "out of order or there twice"),
        (file(header(model=1), b"\x14\0"), "the draw of tile 1 of 1 is 0, expected 1 to 255"),
    ],
)
def test_broken_rules(data: bytes, message: str) -> None:
    with pytest.raises(FormatError, match=message) as caught:
        parse(data)
    assert caught.type is FormatError


def test_the_draw_of_a_tile() -> None:
    data = pack(DRAWN)
    assert data[PLAIN_HEADER_BYTES + 2 :][:2] == bytes([0x14, 9])  # coder 20
    assert parse(data) == DRAWN
    below_previews = replace(LAYERED, tiles=(replace(LAYERED.tiles[0], draw=1),))
    with pytest.raises(FormatError, match="of its own below previews"):
        pack(below_previews)
    content = pack(DRAWN)[PLAIN_HEADER_BYTES + 2 :]
    assert content.index(bytes([0x1D, 255, 12, 2])) > 0  # coder 29: a draw and a preview


def test_the_class_of_a_tile_and_of_layers() -> None:
    labelled = replace(PLAIN, tiles=(PLAIN.tiles[0], replace(DRAWN.tiles[0], label=130)))
    assert bytes([0x34, 9, 130, 1]) in pack(labelled)  # coder 20 with a class
    assert parse(pack(labelled)) == labelled
    assert bytes([0x30, 172, 2, 2, 172, 2, 4]) in pack(LOSSY)  # plan 16 with a class, two layers
    with pytest.raises(FormatError, match="class of its own below previews"):
        pack(replace(LAYERED, tiles=(replace(LAYERED.tiles[0], label=0),)))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (file(header(), b"\5"), "unknown coder of tile 1 of 1: 5"),
        (file(header(), b"\x20\1"), "unknown coder of tile 1 of 1: 32"),
        (file(header(model=1), b"\x13"), "unknown coder of tile 1 of 1: 19"),
        (file(header(model=1), b"\x17\1"), "unknown coder of tile 1 of 1: 19"),
        (file(header(0x0A, model=1) + b"\x14\1\2", b""), "unknown plan of the layers: 20"),
        (file(header(0x22) + b"\1\3Abc\0", raw()), "needs 'Abc', which this"),
    ],
)
def test_what_a_newer_writer_may_use_is_unsupported(data: bytes, message: str) -> None:
    with pytest.raises(UnsupportedFileError, match=message):
        parse(data)


def test_damage_to_critical_metadata_is_damage() -> None:
    data = file(header(0x22) + b"\1\3Abc\0", raw())
    with pytest.raises(CorruptError):
        parse(flipped(data, 8 * len(data) - 1))


def test_ancillary_metadata_is_kept() -> None:
    data = file(header(0x22) + b"\2\3abc\1x\3icc\0", raw())
    assert parse(data).metadata == {"abc": b"x", "icc": b""}
    assert pack(parse(data)) == data


def test_marks_flag_allows_tiles_that_are_no_chain() -> None:
    assert parse(file(header(0x42), raw(b"x"))).tiles == (Tile("raw", b"x"),)


CHAIN = PLAIN.tiles[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mode": "CMYK"}, "'CMYK' is not one of"),
        ({"width": 0}, "0 x 1 pixels"),
        ({"width": 2**35, "whole": True, "tiles": (CHAIN,)}, "does not fit"),
        ({"model": b"abc"}, "expected 4 bytes"),
        ({"pixel_crc": 1}, "of the image is 1, expected 0 bits"),
        ({"tiles": (replace(CHAIN, pixel_crc=1), CHAIN)}, "of tile 1 of 2 is 1, expected 0 bits"),
        ({"tiles": (Tile("raw", b"", 2**32), CHAIN)}, "expected 32 bits"),
        ({"tiles": (Tile("raw", b"", -1), CHAIN)}, "expected 32 bits"),
        ({"metadata": {"x_y": b""}}, "metadata name 'x_y'"),
        ({"metadata": {256 * "x": b""}}, "metadata name 'xxx"),
        ({"metadata": {f"x{i}": b"" for i in range(256)}}, "256 metadata entries"),
        ({"mode": "RGBA"}, "tile 2 of 2 of a RGBA image is a chain"),
        ({"tiles": (CHAIN,)}, "1 tiles, expected 2"),
        ({"tiles": (Tile("raw", b""), Tile("png", b""))}, "model that no tile uses"),
        (
            {"model": bytes(4), "tiles": 2 * (Tile("raw", b""),), "float_arithmetic": True},
            "float arithmetic, but no tile is a chain",
        ),
        ({"tiles": (CHAIN, Tile("jpeg", b""))}, "'jpeg' is not one of"),
        ({"tiles": (Tile("raw", b"", marks=(1,)), CHAIN)}, "only a chain"),
        ({"tiles": (Tile("raw", b"", preview=2), CHAIN)}, "only a chain"),
        ({"tiles": (Tile("raw", b"", draw=1), CHAIN)}, "only a chain"),
        ({"tiles": (Tile("raw", b"", label=0), CHAIN)}, "only a chain"),
        ({"tiles": (CHAIN, replace(CHAIN, label=-1))}, "does not fit"),
        (
            {"mode": "P", "tiles": 2 * (Tile("raw", b"", outliers=b"a"),), "model": bytes(4)},
            "tile 1 of 2 of a P image has outliers",
        ),
        ({"tiles": (replace(CHAIN, draw=256), CHAIN)}, "the draw 256, expected 0 to 255"),
        ({"tiles": (replace(CHAIN, draw=-1), CHAIN)}, "the draw -1, expected 0 to 255"),
        ({"tiles": (CHAIN, replace(CHAIN, preview=1))}, "is at 1, expected at least 2"),
        ({"tiles": (CHAIN, replace(CHAIN, preview_payload=b"a"))}, "without a preview"),
        ({"tiles": (CHAIN, replace(CHAIN, marks=(1,)))}, "tile 1 of 2 has no step marks"),
        ({"tiles": 2 * (replace(CHAIN, marks=(2, 1)),)}, "not in order"),
        ({"tiles": 2 * (replace(CHAIN, marks=(3,)),)}, "not in order"),
        ({"tiles": 2 * (replace(CHAIN, marks=(-1,)),)}, "not in order"),
        ({"layers": Layers("fast", (3,), ((b"", b""),))}, "2 tiles, expected 0"),
        ({"layers": Layers("fast", (3, 0), ())}, "0 layers, expected 1"),
        ({"layers": Layers("fast", (3, 0), ((b"",),))}, "other than 2 tiles"),
        ({"layers": Layers("fast", (0, 3), ((b"", b""),))}, "must fall"),
        ({"layers": Layers("fast", (3, -1, 0), 2 * ((b"", b""),))}, "does not fit|must fall"),
        ({"layers": Layers("png", (3, 0), ((b"", b""),))}, "layers by 'png'"),
        ({"layers": Layers("best", (3, 0), ((b"", b""),))}, "tile 2 of 2 is 'fast' below previews"),
    ],
)
def test_pack_refuses_what_parse_would(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(FormatError, match=message):
        pack(replace(PLAIN, **changes))


# Limits


HUGE_CLAIMS = {
    "pixels": (header(width=varint(2**31), height=varint(2**31)), LimitError),
    "side": (header(width=varint(2**34)), LimitError),
    "pixels at the limit": (header(width=b"\x80\x80\1", height=b"\x80\x80\1"), TruncatedError),
    "metadata": (header(0x22) + b"\1\3icc" + varint(2**34), LimitError),
    "metadata entries": (header(0x22) + b"\xff\1a\0", DiffcodecError),
    "timesteps": (header(0x0A) + b"\x10" + varint(10**6), LimitError),
    "a timestep": (header(0x0A) + b"\x10\1" + varint(10**6), LimitError),
    "marks": (file(header(0x42, model=1), b"\x10" + varint(10**6)), LimitError),
    "payload": (header() + varint(2**34), TruncatedError),
    "layer": (header(0x0A) + b"\x10\1\1" + varint(2**34), TruncatedError),
    "tiles": (header(0x0A, b"\x80\x80\1", b"\x80\x80\1") + b"\x10\1\1", TruncatedError),
}


@pytest.mark.parametrize("read", [parse, salvage])
@pytest.mark.parametrize(("claim", "error"), HUGE_CLAIMS.values(), ids=HUGE_CLAIMS)
def test_huge_claims_are_refused_at_once(
    claim: bytes, error: type[DiffcodecError], read: Callable[[bytes], object]
) -> None:
    data = claim if claim[5] == 0x42 else claim.ljust(64, b"\1")
    tracemalloc.start()
    start = time.process_time()
    with pytest.raises(error):
        read(data)
    seconds = time.process_time() - start
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seconds < 0.05
    assert peak_bytes < 2**20


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (Limits(pixels=1499), "300 x 5 pixels = 1500, the limit is 1499; raise the limit pixels"),
        (Limits(side=299), "limit of a side is 299; raise the limit side"),
        (Limits(tiles=0), "1 tiles, the limit is 0; raise the limit tiles"),
        (Limits(timesteps=1), "claims 2 timesteps, the limit is 1; raise the limit timesteps"),
        (Limits(metadata_bytes=1), "2 bytes, the limit is 1; raise the limit metadata_bytes"),
    ],
)
def test_limits(limits: Limits, message: str) -> None:
    with pytest.raises(LimitError, match=message):
        parse(GOLDEN_BYTES, limits)
    exactly = Limits(pixels=1500, side=300, tiles=1, timesteps=2, metadata_bytes=2)
    assert parse(GOLDEN_BYTES, exactly) == GOLDEN


def test_limit_of_layers() -> None:
    with pytest.raises(LimitError, match="claims 12 timesteps, the limit is 11"):
        parse(LAYERED_BYTES, Limits(timesteps=11))
    assert parse(LAYERED_BYTES, Limits(timesteps=12)) == LAYERED


def test_limit_of_pixels_can_be_raised() -> None:
    data = pack(Container("L", 2**14, 2**14 + 1, bytes(4), True, {}, (Tile("raw", b""),)))
    with pytest.raises(LimitError, match="limit is 268435456; raise the limit pixels"):
        parse(data)
    assert parse(data, Limits(pixels=2**29)).width == 2**14


def test_metadata_limit_holds_for_the_sum() -> None:
    half = bytes(2**25)
    with pytest.raises(LimitError, match="metadata"):
        pack(replace(PLAIN, metadata={"icc": half, "exif": half + b"\0"}))
    at_limit = replace(PLAIN, metadata={"icc": half, "exif": half})
    assert parse(pack(at_limit)) == at_limit
    size = b"\x80\x80\x80\x10"  # 32 MiB
    head = header(0x22) + b"\2\4exif" + size + half + b"\3icc\x81" + size[1:]
    with pytest.raises(LimitError, match="metadata"):
        parse(head)


def test_the_container_needs_nothing_but_python() -> None:
    names = [module.name for module in iter_modules(diffcodec.container.__path__)]
    code = (
        "import sys\nbefore = set(sys.modules)\n"
        f"from diffcodec.container import {', '.join(names)}\nprint(*set(sys.modules) - before)"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)
    loaded = {name.split(".")[0] for name in run.stdout.decode().split()}
    assert "reader" in names
    assert loaded - sys.stdlib_module_names == {"diffcodec"}


def test_swapped_tiles_are_found() -> None:
    tiles = (Tile("raw", bytes(300)), Tile("raw", bytes([1]) * 300))
    data = pack(replace(PLAIN, model=bytes(4), tiles=tiles))
    size = 1 + 4 + 300 + 4  # coder, checksum, payload, CRC
    start, first, second = data[: -2 * size], data[-2 * size : -size], data[-size:]
    assert second[5:-4] == tiles[1].payload
    with pytest.raises(CorruptError, match="tile 1 of 2"):
        parse(start + second + first)


# Damaged files

LARGE = Container(  # six tiles in two rows, two layers
    "RGB",
    1100,
    600,
    b"\1\2\3\4",
    False,
    {"icc": b"x"},
    tuple(Tile("fast", 16 * bytes([i])) for i in range(1, 7)),
    layers=Layers("fast", (9, 5, 0), 2 * (tuple(bytes([i]) * (20 + i) for i in range(6)),)),
)
LARGE_TILES = replace(LARGE, layers=None)
PART_BYTES = 1 + 16 + 4  # of a tile: coder, payload, CRC


def lost_tiles(found: Salvage) -> list[int]:
    return [i for i, tile in enumerate(found.tiles) if tile is None]


@by_value
def test_nothing_is_lost_of_a_whole_file(container: Container) -> None:
    payloads = container.layers.payloads if container.layers else ()
    layers = replace(container.layers, payloads=()) if container.layers else None
    header = replace(container, tiles=(), layers=layers)
    assert salvage(pack(container)) == Salvage(header, payloads, container.tiles, ())


@pytest.mark.parametrize("container", [LARGE, LARGE_TILES], ids=["layers", "tiles"])
@pytest.mark.parametrize("index", range(6))
def test_damage_to_a_tile_costs_that_tile(container: Container, index: int) -> None:
    data = pack(container)
    found = salvage(flipped(data, 8 * (len(data) - PART_BYTES * (6 - index) + 5)))
    assert lost_tiles(found) == [index]
    assert found.tiles[:index] + found.tiles[index + 1 :] == (
        container.tiles[:index] + container.tiles[index + 1 :]
    )
    (damage,) = found.damage
    assert damage == Damage(
        f"tile {index + 1} of 6", index, container.boxes()[index], damage.reason
    )
    assert "its checksum is" in damage.reason


def test_every_damaged_byte_of_the_tiles_costs_at_most_one_tile() -> None:
    """Of the lengths too: those behind a wrong one say where its successors begin."""
    data = pack(LARGE_TILES)
    start = len(data) - 6 * PART_BYTES - 6
    for position in range(start, len(data)):
        found = salvage(flipped(data, 8 * position))
        assert len(found.damage) == 1
        assert len(lost_tiles(found)) == 1


@pytest.mark.parametrize("change", [b"", b"\0\0\0"], ids=["missing", "inserted"])
def test_missing_and_inserted_bytes_cost_one_tile(change: bytes) -> None:
    data = pack(LARGE_TILES)
    for index in range(6):
        position = len(data) - PART_BYTES * (6 - index) + 5
        found = salvage(data[:position] + change + data[position + 1 :])
        assert lost_tiles(found) == [index]
        assert [damage.tile for damage in found.damage] == [index]


def test_what_is_whole_of_a_cut_file() -> None:
    data = pack(LARGE_TILES)
    for size in range(1, len(data)):
        whole = max(0, 6 - -(-(len(data) - size) // PART_BYTES))
        if whole == 0:
            with pytest.raises(TruncatedError):
                salvage(data[:size])
            continue
        found = salvage(data[:size])
        assert lost_tiles(found) == list(range(whole, 6))
        assert all("ends early" in damage.reason for damage in found.damage)


def test_damage_to_a_layer_costs_one_tile_of_it() -> None:
    data = pack(LARGE)
    found = salvage(flipped(data, 8 * data.index(21 * b"\1")))
    assert [damage.part for damage in found.damage] == ["layer 1 of 2, tile 2 of 6"]
    assert found.payloads[0][1] is None
    assert found.payloads[1] == LARGE.layers.payloads[1]
    assert found.tiles == LARGE.tiles
    assert found.container.layers.payloads == ()


def test_damage_to_the_lengths_of_a_layer_costs_what_follows() -> None:
    data = pack(LARGE)
    found = salvage(flipped(data, 8 * (data.index(bytes(range(20, 26))) + 2)))
    assert found.payloads[0][:2] == LARGE.layers.payloads[0][:2]
    assert set(found.payloads[0][2:] + found.payloads[1] + found.tiles) == {None}


def test_bytes_behind_the_end_are_damage_of_no_tile() -> None:
    found = salvage(pack(LARGE) + b"abc")
    assert found.tiles == LARGE.tiles
    (damage,) = found.damage
    assert (damage.tile, damage.box) == (None, None)
    assert damage.reason == "3 bytes follow the last part, expected none"


@pytest.mark.parametrize("container", [LARGE, LARGE_TILES], ids=["layers", "tiles"])
def test_a_damaged_header_leaves_nothing(container: Container) -> None:
    data = pack(container)
    for bit in range(8 * 21):  # as far as the header of both goes
        with pytest.raises(DiffcodecError):
            salvage(flipped(data, bit))


def test_a_whole_part_that_breaks_a_rule_is_refused() -> None:
    with pytest.raises(FormatError, match="not in order"):
        salvage(file(header(0x42, model=1), b"\x10\1\2abcd"))
    with pytest.raises(FormatError, match="tiles follow timestep 1"):
        salvage(file(header(0x0A, model=1) + b"\x10\2\1\0", b"", raw()))
    with pytest.raises(UnsupportedFileError, match="coder"):
        salvage(file(header(), b"\5"))


@quick
@given(
    st.lists(st.tuples(st.integers(20, 300), st.integers(0, 255)), max_size=9), st.integers(0, 9)
)
def test_salvage_gives_nothing_that_was_not_there(
    edits: list[tuple[int, int]], inserted: int
) -> None:
    data = bytearray(pack(LARGE))
    for position, value in edits:
        data[position] = value
    position = edits[0][0] if edits else 0
    try:
        found = salvage(bytes(data[:position]) + bytes(inserted) + bytes(data[position:]))
    except DiffcodecError:
        return
    for part, original in zip(
        [*found.payloads, found.tiles], [*LARGE.layers.payloads, LARGE.tiles], strict=True
    ):
        assert all(a is None or a == b for a, b in zip(part, original, strict=True))
