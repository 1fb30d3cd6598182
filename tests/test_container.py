import io
import struct
import subprocess
import sys
import time
import tracemalloc
import zlib
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from diffcodec.container import (
    CHAIN_CODERS,
    CODERS,
    MAX_METADATA_BYTES,
    METADATA_NAMES,
    MODES,
    TILE_SIDE,
    Box,
    Container,
    FileReader,
    Layers,
    Tile,
    pack,
    parse,
    tile_grid,
)
from diffcodec.errors import (
    CorruptError,
    DiffcodecError,
    FormatError,
    LimitError,
    TruncatedError,
    UnsupportedError,
)

ROOT = Path(__file__).parents[1]

# The example of docs/format.md. The CRC is gzip's.
GOLDEN_BYTES = bytes.fromhex(
    "89444643 00 65 ac02 05 a1b2c3d4 78563412"  # RGB with metadata and marks, 300 x 5
    "01 03696363 020102"
    "11 03 020101 08 0102030405060708 b4157b53"
)
GOLDEN = Container(
    mode="RGB",
    width=300,
    height=5,
    model=bytes.fromhex("a1b2c3d4"),
    pixel_crc=0x12345678,
    whole=False,
    metadata={"icc": b"\x01\x02"},
    tiles=(Tile("default", bytes([1, 2, 3, 4, 5, 6, 7, 8]), seed_words=3, marks=(1, 2)),),
)
GOLDEN_TILE_START = 27  # where the header ends

# No metadata, no marks, two tiles of which one is no chain.
PLAIN = Container(
    mode="L",
    width=600,
    height=1,
    model=b"\1\2\3\4",
    pixel_crc=0,
    whole=False,
    metadata={},
    tiles=(Tile("raw", b"abc"), Tile("fast", b"01234567", seed_words=200)),
)
PLAIN_HEADER_BYTES = 17

# Two layers and an exact tile. The first CRC is gzip's.
LAYERED_BYTES = bytes.fromhex(
    "89444643 00 0d ac02 05 a1b2c3d4 78563412"  # RGB with layers, 300 x 5
    "11 03 0c 08 00  02 aabb 4b765288  01 cc 4e99e611  11 03 04 01020304 a6e46563"
)
LAYERED = replace(
    GOLDEN,
    metadata={},
    tiles=(Tile("default", bytes([1, 2, 3, 4]), seed_words=3),),
    layers=Layers("default", (12, 8, 0), ((b"\xaa\xbb",), (b"\xcc",))),
)
LOSSY = replace(
    PLAIN,
    tiles=(),
    layers=Layers("fast", (300, 4), ((b"", b"abc"), (b"\0" * 200, b""))),
)

quick = settings(deadline=None, max_examples=100)
by_value = pytest.mark.parametrize(
    "container", [GOLDEN, PLAIN, LAYERED, LOSSY], ids=["golden", "plain", "layered", "lossy"]
)


@st.composite
def tiles(draw: st.DrawFn, timesteps: int) -> Tile:
    coder = draw(st.sampled_from(list(CODERS.values())))
    if coder not in CHAIN_CODERS:
        return Tile(coder, draw(st.binary(max_size=200)))
    words = draw(st.integers(0, 40))
    payload = draw(st.binary(min_size=4 * words, max_size=4 * words))
    marks = draw(st.lists(st.integers(0, words), min_size=timesteps, max_size=timesteps))
    return Tile(coder, payload, draw(st.integers(0, 2**35 - 1)), tuple(sorted(marks)))


@st.composite
def containers(draw: st.DrawFn) -> Container:
    width, height = draw(st.integers(1, 1100)), draw(st.integers(1, 1100))
    whole = draw(st.booleans())
    count = 1 if whole else len(tile_grid(width, height))
    tile = tiles(timesteps=draw(st.integers(0, 4)))
    drawn = tuple(draw(st.lists(tile, min_size=count, max_size=count)))
    layers = draw(
        st.none() | st.builds(Layers, st.sampled_from(CHAIN_CODERS), stops(), st.just(()))
    )
    if layers is not None:
        payload = st.tuples(*([st.binary(max_size=20)] * count))
        number = len(layers.timesteps)
        payloads = draw(st.lists(payload, min_size=number, max_size=number))
        layers = replace(layers, payloads=tuple(payloads))
        drawn = drawn if layers.is_exact else ()
    uses_model = layers is not None or any(tile.coder in CHAIN_CODERS for tile in drawn)
    return Container(
        mode=draw(st.sampled_from(list(MODES.values()))),
        width=width,
        height=height,
        model=draw(st.binary(min_size=4, max_size=4)) if uses_model else bytes(4),
        pixel_crc=draw(st.integers(0, 2**32 - 1)),
        whole=whole,
        metadata=draw(st.dictionaries(st.sampled_from(METADATA_NAMES), st.binary(max_size=200))),
        tiles=drawn,
        float_arithmetic=uses_model and draw(st.booleans()),
        layers=layers,
    )


def stops() -> st.SearchStrategy[tuple[int, ...]]:
    """Falling timesteps, not 0 alone."""
    numbers = st.sets(st.integers(0, 300), min_size=1, max_size=4)
    return numbers.map(lambda s: tuple(sorted(s, reverse=True))).filter(lambda s: s[0] > 0)


def header(mode: int = 2, width: bytes = b"\5", height: bytes = b"\5", model: int = 0) -> bytes:
    return b"\x89DFC\0" + bytes([mode]) + width + height + struct.pack("<II", model, 0)


def file(head: bytes, *records: bytes) -> bytes:
    """A file with right CRCs, whatever its fields say."""
    crcs = (
        struct.pack("<I", zlib.crc32(head + struct.pack("<I", index) + record))
        for index, record in enumerate(records)
    )
    return head + b"".join(record + crc for record, crc in zip(records, crcs, strict=True))


def check_refused_or_sound(data: bytes) -> None:
    try:
        container = parse(data)
    except DiffcodecError:
        return
    assert parse(pack(container)) == container


# Layout


def test_golden_bytes() -> None:
    assert pack(GOLDEN) == GOLDEN_BYTES
    assert parse(GOLDEN_BYTES) == GOLDEN


def test_golden_bytes_of_layers() -> None:
    assert pack(LAYERED) == LAYERED_BYTES
    assert parse(LAYERED_BYTES) == LAYERED


def test_documented_example_of_layers() -> None:
    block = (ROOT / "docs/format.md").read_text(encoding="utf-8").split("```")[3]
    data = bytes.fromhex("".join(line.split("#")[0] for line in block.splitlines()))
    assert data == LAYERED_BYTES


@by_value
@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_streams_are_read_as_bytes_are(container: Container, chunk: int) -> None:
    class Slow(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            return super().read(chunk if size is None else min(size, chunk))

    reader = FileReader(Slow(pack(container)))
    while reader.more_layers:
        reader.read_layer()
    reader.read_tiles()
    assert reader.container == container
    for data in (pack(container)[:-1], pack(container) + b"\0"):
        with pytest.raises(FormatError):
            reader = FileReader(Slow(data))
            while reader.more_layers:
                reader.read_layer()
            reader.read_tiles()


def test_layers_are_read_before_what_follows() -> None:
    reader = FileReader(LAYERED_BYTES[:29])
    assert reader.read_layer() == (b"\xaa\xbb",)
    assert reader.container.layers == replace(LAYERED.layers, payloads=((b"\xaa\xbb",),))
    with pytest.raises(TruncatedError, match="layer 2 of 2"):
        reader.read_layer()


def test_layers_out_of_place() -> None:
    first, second = LAYERED_BYTES[22:29], LAYERED_BYTES[29:35]
    assert LAYERED_BYTES[:22] + first + second + LAYERED_BYTES[35:] == LAYERED_BYTES
    with pytest.raises(CorruptError, match="layer 1 of 2"):
        parse(LAYERED_BYTES[:22] + second + first + LAYERED_BYTES[35:])


def test_documented_example_is_the_golden_file() -> None:
    block = (ROOT / "docs/format.md").read_text(encoding="utf-8").split("```")[1]
    assert bytes.fromhex("".join(line.split("#")[0] for line in block.splitlines())) == GOLDEN_BYTES


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


@pytest.mark.parametrize(("length", "overhead"), [(124, 23), (128, 24), (16380, 24), (16384, 25)])
def test_overhead_of_one_small_chain_tile(length: int, overhead: int) -> None:
    tile = Tile("default", bytes(length), seed_words=127)
    assert len(pack(Container("RGB", 32, 32, b"\1\2\3\4", 0, False, {}, (tile,)))) == (
        overhead + length
    )


def test_header_file_helper_makes_valid_files() -> None:
    assert parse(file(header(), b"\0\1x")).tiles == (Tile("raw", b"x"),)


# The tile grid


@quick
@given(st.integers(1, 5000), st.integers(1, 5000))
@example(1017, 512)  # rounding edges down would make a part of 513
def test_tiles_cover_every_pixel_once_in_raster_order(width: int, height: int) -> None:
    boxes = tile_grid(width, height)
    rows = sorted({(box.top, box.height) for box in boxes})
    columns = sorted({(box.left, box.width) for box in boxes})
    for parts, side in ((rows, height), (columns, width)):
        assert [start for start, _ in parts] == list(accumulate([0, *(n for _, n in parts[:-1])]))
        assert sum(n for _, n in parts) == side
        assert all(1 <= n <= TILE_SIDE for _, n in parts)
        assert all(start % 8 == 0 for start, _ in parts)
        assert len(parts) == -(-side // 512)
    assert boxes == [Box(x, y, w, h) for y, h in rows for x, w in columns]


@pytest.mark.parametrize(
    ("side", "parts"),
    [(1, [1]), (512, [512]), (513, [264, 249]), (1017, [512, 505]), (1025, [344, 344, 337])],
)
def test_parts_of_a_side(side: int, parts: list[int]) -> None:
    assert [box.width for box in tile_grid(side, 1)] == parts
    assert [box.height for box in tile_grid(1, side)] == parts


def test_whole_is_one_box() -> None:
    container = Container("L", 5000, 3000, bytes(4), 0, True, {}, (Tile("webp", b""),))
    assert container.boxes() == [Box(0, 0, 5000, 3000)]
    assert parse(pack(container)).boxes() == container.boxes()
    assert len(replace(container, whole=False).boxes()) == 60


# Damage


@by_value
def test_every_cut_is_a_truncation(container: Container) -> None:
    data = pack(container)
    for size in range(1, len(data)):
        with pytest.raises(TruncatedError, match=f"found {size} bytes"):
            parse(data[:size])


def test_empty_input_is_not_a_file() -> None:
    with pytest.raises(FormatError, match="empty") as caught:
        parse(b"")
    assert caught.type is FormatError


@by_value
def test_every_bit_flip_is_detected(container: Container) -> None:
    data = pack(container)
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(DiffcodecError):
            parse(bytes(damaged))


def test_damaged_payload_names_its_tile() -> None:
    data = bytearray(pack(PLAIN))
    data[-5] ^= 1
    with pytest.raises(CorruptError, match="tile 2 of 2"):
        parse(bytes(data))
    data[PLAIN_HEADER_BYTES + 2] ^= 1
    with pytest.raises(CorruptError, match="tile 1 of 2"):
        parse(bytes(data))


def test_damage_to_a_tile_leaves_the_checksums_of_others() -> None:
    data = pack(PLAIN)
    other = pack(replace(PLAIN, tiles=(Tile("raw", b"xyz"), PLAIN.tiles[1])))
    assert data != other
    assert data[-16:] == other[-16:]  # the second tile: 4 bytes, 8 of payload, CRC


def test_tiles_of_another_header_do_not_fit() -> None:
    data, other = pack(PLAIN), pack(replace(PLAIN, pixel_crc=1))
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
    for data in (b"\x89DFC\0" + bytes([mode]) + rest, file(header(mode), record)):
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
    head, record = bytes(data[:GOLDEN_TILE_START]), bytes(data[GOLDEN_TILE_START:-4])
    check_refused_or_sound(file(head, record))  # CRC made right again


# Rules


def test_other_files_are_told_by_their_first_bytes() -> None:
    with pytest.raises(FormatError, match="starts with the bytes 89 50 4e 47, expected 89 44 46"):
        parse(b"\x89PNG\r\n\x1a\n")


def test_newer_version() -> None:
    with pytest.raises(UnsupportedError, match="version 1,"):
        parse(GOLDEN_BYTES[:4] + b"\1" + GOLDEN_BYTES[5:])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (file(header(mode=0x82), b"\0\0"), "float arithmetic, but no tile is a chain"),
        (file(header(mode=0), b"\0\0"), "unknown image mode: 0"),
        (file(header(mode=8), b"\0\0"), "unknown image mode: 0"),
        (file(header(width=b"\0")), "0 x 5 pixels"),
        (file(header(height=b"\0")), "5 x 0 pixels"),
        (file(header(width=b"\x85\0"), b"\0\0"), "shortest form"),
        (file(header(width=b"\x80\x80\x80\x80\x80\1"), b"\0\0"), "longer than 5 bytes"),
        (file(header(model=1), b"\0\0"), "model that no tile uses"),
        (file(header(), b"\3\0"), "unknown coder of tile 1 of 1: 3"),
        (file(header(), b"\x10\0\3abc"), "expected a multiple of 4"),
        (file(header(0x42), b"\x10\0\0\4abcd"), "expected at least one"),
        (file(header(0x42), b"\x10\0\2\1\1\4abcd"), "not in order within its 1 words"),
        (file(header(0x0A, model=1) + b"\x10\0"), "has no layers"),
        (file(header(0x0A, model=1) + b"\x10\1\0"), "has no layers"),
        (file(header(0x0A, model=1) + b"\3\1\2", b"\0"), "unknown plan of the layers: 3"),
        (file(header(0x0A, model=1) + b"\0\1\2", b"\0"), "layers by 'raw'"),
        (file(header(0x0A, model=1) + b"\x10\2\2\2", b"\0", b"\0"), "they must fall"),
        (file(header(0x0A, model=1) + b"\x10\2\0\2", b"\0", b"\0"), "they must fall"),
        (file(header(0x22) + b"\0", b"\0\0"), "claims 0 metadata entries"),
        (file(header(0x22) + b"\6", b"\0\0"), "claims 6 metadata entries"),
        (file(header(0x22) + b"\1\3abc\0", b"\0\0"), "unknown metadata 'abc'"),
        (file(header(0x22) + b"\1\1\xff\0", b"\0\0"), "unknown metadata"),
        (file(header(0x22) + b"\2\3icc\0\3icc\0", b"\0\0"), "out of order or there twice"),
        (file(header(0x22) + b"\2\3icc\0\4exif\0", b"\0\0"), "out of order or there twice"),
    ],
)
def test_broken_rules(data: bytes, message: str) -> None:
    with pytest.raises(FormatError, match=message) as caught:
        parse(data)
    assert caught.type is FormatError


def test_marks_flag_allows_tiles_that_are_no_chain() -> None:
    assert parse(file(header(0x42), b"\0\1x")).tiles == (Tile("raw", b"x"),)


CHAIN = PLAIN.tiles[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mode": "CMYK"}, "'CMYK' is not one of"),
        ({"width": 0}, "0 x 1 pixels"),
        ({"width": 2**35, "whole": True, "tiles": (CHAIN,)}, "does not fit"),
        ({"model": b"abc"}, "expected 4 bytes"),
        ({"pixel_crc": 2**32}, "expected 32 bits"),
        ({"pixel_crc": -1}, "expected 32 bits"),
        ({"metadata": {"xmp": b""}}, "unknown metadata 'xmp'"),
        ({"tiles": (CHAIN,)}, "1 tiles, expected 2"),
        ({"tiles": (Tile("raw", b""), Tile("png", b""))}, "model that no tile uses"),
        (
            {"model": bytes(4), "tiles": 2 * (Tile("raw", b""),), "float_arithmetic": True},
            "float arithmetic, but no tile is a chain",
        ),
        ({"tiles": (CHAIN, Tile("jpeg", b""))}, "'jpeg' is not one of"),
        ({"tiles": (CHAIN, Tile("raw", b"", seed_words=1))}, "only a chain"),
        ({"tiles": (Tile("raw", b"", marks=(1,)), CHAIN)}, "only a chain"),
        ({"tiles": (CHAIN, replace(CHAIN, marks=(1,)))}, "tile 1 of 2 has no step marks"),
        ({"tiles": (CHAIN, replace(CHAIN, payload=b"abc"))}, "multiple of 4"),
        ({"tiles": (CHAIN, replace(CHAIN, seed_words=-1))}, "does not fit"),
        ({"tiles": 2 * (replace(CHAIN, marks=(2, 1)),)}, "not in order"),
        ({"tiles": 2 * (replace(CHAIN, marks=(3,)),)}, "not in order"),
        ({"tiles": 2 * (replace(CHAIN, marks=(-1,)),)}, "not in order"),
        ({"layers": Layers("fast", (3,), ((b"", b""),))}, "2 tiles, expected 0"),
        ({"layers": Layers("fast", (3, 0), ())}, "0 layers, expected 1"),
        ({"layers": Layers("fast", (3, 0), ((b"",),))}, "other than 2 tiles"),
        ({"layers": Layers("fast", (0, 3), ((b"", b""),))}, "must fall"),
        ({"layers": Layers("fast", (3, -1, 0), 2 * ((b"", b""),))}, "does not fit|must fall"),
        ({"layers": Layers("png", (3, 0), ((b"", b""),))}, "layers by 'png'"),
    ],
)
def test_pack_refuses_what_parse_would(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(FormatError, match=message):
        pack(replace(PLAIN, **changes))


# Limits


def test_huge_claims_are_refused_at_once() -> None:
    def varint(n: int) -> bytes:
        return bytes([n >> s & 0x7F | (0x80 if n >> s + 7 else 0) for s in range(0, 35, 7)])

    claims = {
        header(width=varint(2**31), height=varint(2**31)): LimitError,
        header(width=b"\x80\x80\1", height=b"\x80\x80\1"): TruncatedError,  # 2^28, the limit
        header(0x22) + b"\1\3icc" + varint(2**34): LimitError,
        header(0x42, model=1) + b"\x10\0" + varint(2**34): TruncatedError,  # marks
        header() + b"\0" + varint(2**34): TruncatedError,  # payload
        header(0x0A) + b"\x10" + varint(2**34): TruncatedError,  # timesteps
        header(0x0A) + b"\x10\1\1" + varint(2**34): TruncatedError,  # layer
        header(0x0A, b"\x80\x80\1", b"\x80\x80\1") + b"\x10\1\1": TruncatedError,
    }
    for claim, error in claims.items():
        tracemalloc.start()
        start = time.perf_counter()
        with pytest.raises(error) as caught:
            parse(claim.ljust(64, b"\1"))
        seconds = time.perf_counter() - start
        peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert caught.type is error
        assert seconds < 0.05
        assert peak_bytes < 2**20


def test_pixel_limit_can_be_raised() -> None:
    data = pack(Container("L", 2**14, 2**14 + 1, bytes(4), 0, True, {}, (Tile("raw", b""),)))
    with pytest.raises(LimitError, match="limit is 268435456: raise max_pixels"):
        parse(data)
    assert parse(data, max_pixels=2**29).width == 2**14
    assert parse(GOLDEN_BYTES, max_pixels=1500) == GOLDEN
    with pytest.raises(LimitError):
        parse(GOLDEN_BYTES, max_pixels=1499)


def test_metadata_limit_holds_for_the_sum() -> None:
    half = bytes(MAX_METADATA_BYTES // 2)
    with pytest.raises(LimitError, match="metadata"):
        pack(replace(PLAIN, metadata={"icc": half, "exif": half + b"\0"}))
    at_limit = replace(PLAIN, metadata={"icc": half, "exif": half})
    assert parse(pack(at_limit)) == at_limit
    size = b"\x80\x80\x80\x10"  # 32 MiB
    head = header(0x22) + b"\2\4exif" + size + half + b"\3icc\x81" + size[1:]
    with pytest.raises(LimitError, match="metadata"):
        parse(head)


def test_importing_the_container_loads_no_numerics() -> None:
    code = (
        "import sys, diffcodec.container\n"
        "assert not {'torch', 'numpy', 'scipy', 'constriction', 'PIL'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_swapped_tiles_are_found() -> None:
    tiles = (Tile("raw", bytes(300)), Tile("raw", bytes([1]) * 300))
    data = pack(replace(PLAIN, model=bytes(4), tiles=tiles))
    start = len(data) - 2 * (
        len(data) - len(pack(replace(PLAIN, model=bytes(4), tiles=tiles[:1], whole=True)))
    )
    first, second = data[start : (start + len(data)) // 2], data[(start + len(data)) // 2 :]
    assert data == data[:start] + first + second
    with pytest.raises(CorruptError):
        parse(data[:start] + second + first)
