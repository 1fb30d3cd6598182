"""PNG files of every kind: those of PngSuite, and more of what can be wrong with one."""

import io
import struct
import zipfile
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import diffcodec
from diffcodec.codec.jobs import Choices
from diffcodec.errors import FormatError, UnsupportedError
from diffcodec.images.metadata import apply_metadata, get_metadata
from diffcodec.images.png import SIGNATURE
from diffcodec.images.reading import read_image
from diffcodec.images.writing import write_image

imagecodecs = pytest.importorskip("imagecodecs")  # libpng, to see the pixels by other eyes

# All 175, by Willem van Schaik, who lets them be copied for any purpose: the notice is inside.
with zipfile.ZipFile(Path(__file__).parent / "PngSuite.zip") as archive:
    SUITE = {
        name.removesuffix(".png"): archive.read(name)
        for name in archive.namelist()
        if name.endswith(".png")
    }
BROKEN = {
    **dict.fromkeys(("xs1n0g01", "xs2n0g01", "xs4n0g01", "xs7n0g01"), "it begins with"),
    **dict.fromkeys(("xcrn0g04", "xlfn0g04"), "it begins with"),  # line ends were changed
    **dict.fromkeys(("xc1n0g08", "xc9n2c08"), "its header is wrong"),  # color type 1, 9
    **dict.fromkeys(("xd0n2c08", "xd3n2c08", "xd9n2c08"), "its header is wrong"),  # 0, 3, 99 bits
    "xhdn0g08": "the checksum of its chunk 'IHDR' is wrong",
    "xcsn0g01": "the checksum of its chunk 'IDAT' is wrong",
    "xdtn0g01": "it has no chunk 'IDAT'",
}
# Pillow would reduce them to 8 bits; grey is read in full.
DEEP = {name for name in SUITE if name.endswith("16") and name[-4:-2] != "0g"}


def chunk(name: bytes, content: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(name + content))
    return struct.pack(">I", len(content)) + name + content + checksum


def described(data: bytes) -> Counter[bytes]:
    """The chunks that are no pixels, each as a whole; of grey the transparent level in 8 bits."""
    position, found = len(SIGNATURE), Counter()
    bits, color = data[24:26]
    while position < len(data):
        length = int.from_bytes(data[position : position + 4])
        name = data[position + 4 : position + 8]
        content = data[position + 8 : position + 8 + length]
        position += 12 + length
        if name in (b"tRNS", b"bKGD") and color == 0 and bits < 8:
            level = int.from_bytes(content) * 255 // ((1 << bits) - 1)
            content = level.to_bytes(2)
        if name not in (b"IHDR", b"PLTE", b"IDAT", b"IEND"):
            found[name + content] += 1
    return found


def test_the_suite_is_whole():
    assert len(SUITE) == 175
    assert len(DEEP) == 20
    assert BROKEN.keys() == {name for name in SUITE if name.startswith("x")}


def test_what_is_right_in_the_suite_comes_back(tiny, capfd):
    """The samples as libpng reads them, and every chunk beside them."""
    model = diffcodec.load_model(tiny)
    names = [name for name in SUITE if name not in BROKEN.keys() | DEEP]
    images = [read_image(io.BytesIO(SUITE[name])) for name in names]
    alone = Choices(seed_share=2, seed_words=1 << 20)  # no previews, which take their time
    files = list(diffcodec.encode_many(images, model, "fast", choices=alone))
    for name, coded in zip(names, files, strict=True):
        stream = io.BytesIO()
        write_image(diffcodec.decode(coded, model=model), stream)
        before, after = (imagecodecs.png_decode(data) for data in (SUITE[name], stream.getvalue()))
        assert (before.shape, before.dtype) == (after.shape, after.dtype), name
        assert np.array_equal(before, after), name
        assert described(SUITE[name]) == described(stream.getvalue()), name
    capfd.readouterr()  # libpng's word on interlacing


@pytest.mark.parametrize("name", sorted(DEEP))
def test_what_would_lose_bits_is_refused(name):
    with pytest.raises(UnsupportedError, match="found 16 bits a sample in a PNG"):
        read_image(io.BytesIO(SUITE[name]))


@pytest.mark.parametrize(("name", "reason"), sorted(BROKEN.items()))
def test_what_is_broken_in_the_suite_is_refused(name, reason):
    stream = io.BytesIO(SUITE[name])
    stream.name = f"{name}.png"
    with pytest.raises(FormatError, match=rf"^{name}\.png: damaged PNG.*{reason}.*a whole copy"):
        read_image(stream)


# --- what the suite does not have


def with_transparency(name: str, content: bytes) -> bytes:
    """A file of the suite whose tRNS is another, or the first."""
    head, _, body = SUITE[name].partition(chunk(b"IDAT", b"")[4:8])
    return head[:-4] + chunk(b"tRNS", content) + head[-4:] + b"IDAT" + body


TRANSPARENT = [
    *(
        (f"basn3p0{bits}", alphas)
        for bits in (1, 2, 4, 8)
        for alphas in (b"\0", b"\x80", b"\xff\0")
    ),
    *((f"basn0g{bits:02}", b"\0\1") for bits in (1, 2, 4, 8, 16)),
    ("basn2c08", b"\0\1\0\1\0\1"),
]


@pytest.mark.parametrize(("name", "content"), TRANSPARENT)
def test_transparency_of_every_depth_comes_back(name, content):
    data = with_transparency(name, content)
    image = read_image(io.BytesIO(data))
    decoded = Image.frombytes(image.mode, image.size, image.tobytes())
    apply_metadata(decoded, get_metadata(image))
    stream = io.BytesIO()
    write_image(decoded, stream)
    assert np.array_equal(imagecodecs.png_decode(data), imagecodecs.png_decode(stream.getvalue()))
    assert described(data) == described(stream.getvalue())


GOOD = SUITE["basn0g08"]


@pytest.mark.parametrize(
    "data",
    [
        *(bytes([*GOOD[:i], GOOD[i] ^ 0x20, *GOOD[i + 1 :]]) for i in range(8)),  # signature
        GOOD.replace(b"\n", b"\r\n"),
        SIGNATURE + chunk(b"IHDR", GOOD[16:27] + b"\1\0") + GOOD[33:],  # filters
        GOOD[:-16] + b"\0\0\0\0" + GOOD[-12:],  # checksum of the data
        GOOD[:33] + GOOD[-12:],  # no data
        GOOD[:-12],  # no end
        b"",
    ],
)
def test_broken_files_are_refused_as_damaged(data):
    stream = io.BytesIO(data)
    stream.name = "a.png"
    with pytest.raises(FormatError, match=r"a\.png: .*(damaged|empty|cut short)"):
        read_image(stream)
