"""PNG of the kinds that PngSuite (by Willem van Schaik) has, made here: read exactly or refused."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from diffcodec.errors import FormatError, UnsupportedError
from diffcodec.images.metadata import apply_metadata, get_metadata
from diffcodec.images.png import SIGNATURE
from diffcodec.images.reading import read_image
from diffcodec.images.writing import write_image

DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
KINDS = [(color, bits) for color, depths in DEPTHS.items() for bits in depths]
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2))
ADAM7 = (*PASSES, (0, 1, 1, 2))  # x, y, and the steps between


def chunk(name: bytes, content: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(name + content))
    return struct.pack(">I", len(content)) + name + content + checksum


def rows(samples: np.ndarray, bits: int) -> bytes:
    """Unfiltered rows of samples [height, width, channels]."""
    flat = samples.reshape(len(samples), -1)
    if bits == 16:
        packed = flat.astype(">u2").view(np.uint8)
    else:
        digits = (flat[:, :, None] >> np.arange(bits - 1, -1, -1)) & 1
        packed = np.packbits(digits.reshape(len(flat), -1).astype(np.uint8), axis=1)
    return b"".join(b"\0" + row.tobytes() for row in packed)


def make_png(color, bits, size=(32, 32), interlaced=False, extra=b"", pieces=1):
    """A PNG and its samples."""
    width, height = size
    generator = np.random.default_rng(0)
    samples = generator.integers(0, 1 << bits, (height, width, CHANNELS[color]))
    data = rows(samples, bits)
    if interlaced:
        parts = (samples[y::dy, x::dx] for x, y, dx, dy in ADAM7)
        data = b"".join(rows(part, bits) for part in parts if part.size)
    coded = zlib.compress(data)
    step = -(-len(coded) // pieces)
    header = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, interlaced)
    palette = chunk(b"PLTE", generator.bytes(3 << bits)) if color == 3 else b""
    body = b"".join(chunk(b"IDAT", coded[i : i + step]) for i in range(0, len(coded), step))
    png = SIGNATURE + chunk(b"IHDR", header) + palette + extra + body + chunk(b"IEND", b"")
    return png, samples


def check(data: bytes, samples: np.ndarray, color: int, bits: int) -> None:
    """It reads as its samples, goes through a file, and looks as Pillow shows it."""
    if bits == 16 and color:
        with pytest.raises(UnsupportedError, match="16 bits a sample"):
            read_image(io.BytesIO(data))
        return
    image = read_image(io.BytesIO(data))
    scale = 255 // ((1 << bits) - 1) if color == 0 and bits < 8 else 1
    read = np.asarray(image).astype(int).reshape(samples.shape)
    assert np.array_equal(read * (255 if image.mode == "1" else 1), samples * scale)
    decoded = Image.frombytes(image.mode, image.size, image.tobytes())
    apply_metadata(decoded, get_metadata(image))
    stream = io.BytesIO()
    write_image(decoded, stream)
    stream.seek(0)
    back = Image.open(stream)
    shown = Image.open(io.BytesIO(data))
    assert (back.mode, back.tobytes()) == (shown.mode, shown.tobytes())
    if image.mode != "I;16" and not (bits in (2, 4) and "transparency" in shown.info):
        assert back.convert("RGBA").tobytes() == shown.convert("RGBA").tobytes()


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize(("color", "bits"), KINDS)
def test_every_color_type_and_depth(color, bits, interlaced):
    check(*make_png(color, bits, interlaced=interlaced), color, bits)


@pytest.mark.parametrize("side", [1, 2, 3, 4, 5, 6, 7, 8, 9, 32, 40])
@pytest.mark.parametrize("interlaced", [False, True])
def test_odd_sizes(side, interlaced):
    check(*make_png(3, 4, (side, side + 1), interlaced), 3, 4)


@pytest.mark.parametrize("pieces", [1, 2, 4, 10**6])
def test_image_data_in_pieces(pieces):
    check(*make_png(0, 16, pieces=pieces), 0, 16)
    check(*make_png(2, 8, pieces=pieces), 2, 8)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_transparent_palettes(bits):
    for alphas in (b"\0", b"\x80", b"\xff\0", b"\0\0\xff"[: 1 << bits]):
        check(*make_png(3, bits, extra=chunk(b"tRNS", alphas)), 3, bits)


@pytest.mark.parametrize(("color", "bits"), [(0, 1), (0, 8), (0, 16), (2, 8)])
def test_transparent_colors(color, bits):
    content = struct.pack(f">{CHANNELS[color]}H", *[1] * CHANNELS[color])
    check(*make_png(color, bits, extra=chunk(b"tRNS", content)), color, bits)


@pytest.mark.parametrize("level", range(10))
def test_filters_and_levels_of_compression(level):
    for mode in ("L", "RGB", "RGBA"):
        image = Image.effect_noise((32, 32), 20).convert(mode)
        stream = io.BytesIO()
        image.save(stream, "PNG", compress_level=level)
        stream.seek(0)
        assert read_image(stream).tobytes() == image.tobytes()


GOOD = make_png(0, 8)[0]


def with_header(place: int, value: int) -> bytes:
    header = bytearray(GOOD[16:29])
    header[place] = value
    return SIGNATURE + chunk(b"IHDR", bytes(header)) + GOOD[33:]


@pytest.mark.parametrize(
    "data",
    [
        *(bytes([*GOOD[:i], GOOD[i] ^ 0x20, *GOOD[i + 1 :]]) for i in range(8)),  # signature
        GOOD.replace(b"\r\n", b"\n", 1),
        GOOD.replace(b"\r\n", b"\r", 1),
        GOOD.replace(b"\n", b"\r\n"),
        *(with_header(8, bits) for bits in (0, 3, 99)),  # depth
        *(with_header(9, color) for color in (1, 5, 9)),  # color type
        with_header(11, 1),  # filters
        GOOD[:29] + b"\0\0\0\0" + GOOD[33:],  # checksum of the header
        GOOD[:-16] + b"\0\0\0\0" + GOOD[-12:],  # checksum of the data
        GOOD[:33] + GOOD[-12:],  # no data
        b"",
    ],
)
def test_broken_files_are_refused_as_damaged(data):
    stream = io.BytesIO(data)
    stream.name = "a.png"
    with pytest.raises(FormatError, match=r"a\.png: .*(damaged|empty|cut short)"):
        read_image(stream)
