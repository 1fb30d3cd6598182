"""Colours that cannot occur: found exactly over all pixels, and told in a few bytes."""

import io
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from PIL import Image, features

from bench.__main__ import main
from diffcodec.errors import DiffcodecError, FormatError, UnsupportedFileError
from diffcodec.images import color_sets
from diffcodec.images.color_sets import (
    CONVERSIONS,
    ColorSet,
    conversion,
    find_color_set,
    reaches,
    triples,
)

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.png"))
REACHED = {  # the first that reaches an image is taken: that of fewer triples
    **{"grey": 256, "photoycc": 2_142_443, "bt601": 2_955_887, "webp": 2_956_203},
    **{"bt601-420": 2_956_219, "avif-limited": 2_980_276, "bt709": 3_047_877},
    **{"bt709-420": 3_048_052, "avif": 4_259_106, "jfif": 4_261_968, "jfif-420": 4_263_238},
}


def converted(name: str, yuv: NDArray[np.integer]) -> NDArray[np.uint8]:
    """Samples [..., 3] of Y, U, V as a conversion shows them."""
    rule = conversion(name)
    y, u, v = (yuv[..., i] for i in range(3))
    chroma = rule.red[v], rule.green_u[u] + rule.green_v[v], rule.blue[u]
    return np.clip((np.stack(chroma, -1) + rule.luma[y][..., None]) >> 16, 0, 255).astype(np.uint8)


def noise(*shape: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def test_a_conversion_reaches_so_many_triples() -> None:
    assert set(REACHED) == set(CONVERSIONS)
    assert {name: int(triples(name).sum()) for name in REACHED} == REACHED
    assert list(color_sets._RULES) == sorted(REACHED, key=lambda name: REACHED[name])


@pytest.mark.parametrize("name", CONVERSIONS)
def test_a_sample_has_one_chroma_at_most(name: str) -> None:
    rule = conversion(name)
    if name != "grey":
        assert min(np.diff(rule.red).min(), np.diff(rule.blue).min()) >= 1 << 16


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_kodak_was_photoycc(path: Path) -> None:
    image = Image.open(path)
    assert find_color_set(image) == ColorSet("photoycc")
    assert find_color_set(image.resize((300, 200))) is None
    image.putpixel((9, 7), (1, 200, 1))
    assert find_color_set(image) is None


@pytest.mark.parametrize("subsampling", [0, 2], ids=["444", "420"])
@pytest.mark.parametrize("quality", [75, 90, 95])
def test_a_decoded_jpeg_is_found(quality: int, subsampling: int) -> None:
    stream = io.BytesIO()
    photograph = Image.open(EXAMPLES[0]).resize((320, 200))
    photograph.save(stream, "JPEG", quality=quality, subsampling=subsampling)
    assert find_color_set(Image.open(stream)) == ColorSet("jfif")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("webp", {"format": "WEBP", "quality": 60}),
        ("webp", {"format": "WEBP", "quality": 95}),
        ("avif", {"format": "AVIF", "subsampling": "4:2:0", "speed": 10}),
        ("avif", {"format": "AVIF", "subsampling": "4:4:4", "speed": 10}),
        ("avif-limited", {"format": "AVIF", "range": "limited", "speed": 10}),
    ],
)
def test_a_decoded_lossy_file_is_found(name: str, options: dict[str, Any]) -> None:
    if not features.check(options["format"].lower()):
        pytest.skip(f"this Pillow reads no {options['format']}")
    stream = io.BytesIO()
    Image.open(EXAMPLES[0]).resize((320, 200)).save(stream, **options)
    assert find_color_set(Image.open(stream)) == ColorSet(name)


@pytest.mark.parametrize("name", CONVERSIONS)
def test_a_pixel_outside_is_seen(name: str) -> None:
    rgb = converted(name, noise(40, 40, 3))
    assert ColorSet(name).allowed(rgb.transpose(2, 0, 1)).all()
    assert find_color_set(Image.fromarray(rgb)) == ColorSet(name)
    r, g, b = np.unravel_index(np.flatnonzero(~triples(name))[123_456], (256,) * 3)
    rgb[39, 39] = r, g, b
    found = find_color_set(Image.fromarray(rgb))
    assert found is None or found.conversion != name


def test_integers_outside_of_bytes_cannot_occur() -> None:
    rgb = np.array([-1, 0, 255, 256, 511, -256, 1 << 40]).reshape(-1, 1, 1, 1).repeat(3, 1)
    for colors in (ColorSet("jfif"), ColorSet(None, (bytes([0xFF]) * 32,))):
        assert colors.allowed(rgb)[:, 0, 0].tolist() == [0, 1, 1, 0, 0, 0, 0]
        assert colors.allowed(np.int8([-1, 1])[:, None, None, None].repeat(3, 1)).sum() == 1


@pytest.mark.parametrize("shape", [(300, 200), (300, 200, 3)], ids=["L", "RGB"])
def test_noise_has_no_set(shape: tuple[int, ...]) -> None:
    assert find_color_set(Image.fromarray(noise(*shape))) is None


def values(occur: NDArray[np.bool_]) -> tuple[bytes, ...]:
    return tuple(np.packbits(row, bitorder="little").tobytes() for row in occur)


@st.composite
def drawn_sets(draw: st.DrawFn) -> tuple[ColorSet, int]:
    channels = draw(st.sampled_from([1, 3]))
    name = draw(st.sampled_from([None, *CONVERSIONS])) if channels == 3 else None
    occur = draw(arrays(np.bool_, (channels, 256)).filter(lambda a: a.any(1).all() and not a.all()))
    return ColorSet(name, values(occur)), channels


def test_the_bytes_of_a_set() -> None:
    even = bytes([0b0101_0101]) * 32  # 0, 2, 4 ...
    assert ColorSet("photoycc").pack() == b"\1"
    assert ColorSet.unpack(b"\2" + zlib.compress(even * 3, 0), 3) == ColorSet("jfif", (even,) * 3)
    grey = ColorSet.unpack(b"\0" + zlib.compress(even), 1)
    assert grey.allowed(np.arange(8).repeat(3).reshape(8, 3, 1, 1)).ravel().tolist() == [1, 0] * 4


@pytest.mark.parametrize(
    ("data", "channels", "said"),
    [
        (b"", 3, "is empty"),
        (b"\xff", 3, "unknown conversion of colours: 255"),
        (b"\1", 1, "conversion photoycc to RGB in an image of 1 channel"),
        (b"\0", 3, "excludes nothing"),
        (b"\1" + zlib.compress(bytes([0xFF]) * 96), 3, "all values of a colour set occur"),
        (b"\0" + zlib.compress(bytes(64) + b"\1" * 32), 3, "leaves a channel no value"),
        (b"\0" + zlib.compress(b"\1" * 32), 3, "found 32 bytes of bits"),
        (b"\0" + zlib.compress(b"\1" * 1000), 3, "found 97 bytes of bits"),
        (b"\0" + zlib.compress(b"\1" * 96) + b"x", 3, "nothing behind"),
        (b"\0zlib", 3, "are damaged"),
    ],
)
def test_what_is_no_set_is_refused(data: bytes, channels: int, said: str) -> None:
    with pytest.raises((FormatError, UnsupportedFileError), match=said):
        ColorSet.unpack(data, channels)


@given(drawn_sets())
def test_a_set_comes_back(drawn: tuple[ColorSet, int]) -> None:
    colors, channels = drawn
    assert ColorSet.unpack(colors.pack(), channels) == colors
    if colors.conversion:
        plain = ColorSet(colors.conversion)
        assert ColorSet.unpack(plain.pack(), channels) == plain


@given(drawn_sets(), st.data())
def test_damage_is_refused_or_another_set(drawn: tuple[ColorSet, int], data: st.DataObject) -> None:
    colors, channels = drawn
    packed = bytearray(colors.pack())
    for end in range(len(packed)):
        if end != 1 or colors.conversion is None:
            with pytest.raises(DiffcodecError):
                ColorSet.unpack(bytes(packed[:end]), channels)
    place = data.draw(st.integers(0, len(packed) - 1))
    packed[place] ^= data.draw(st.integers(1, 255))
    try:
        found = ColorSet.unpack(bytes(packed), channels)
    except DiffcodecError:
        return
    assert found.values == colors.values  # they have a checksum; the conversion's byte has none


@pytest.mark.parametrize("name", CONVERSIONS)
def test_the_quick_look_agrees_with_the_table(name: str) -> None:
    colors = noise(4000, 3).clip(1, 254)
    colors[:256] = np.arange(256).clip(1, 254)[:, None]
    r, g, b = colors.T.astype(np.int64)
    assert list(reaches(conversion(name), colors)) == list(triples(name)[r << 16 | g << 8 | b])


@given(arrays(np.bool_, (3, 256), fill=st.nothing()), st.sampled_from(["L", "RGB"]))
def test_a_stretched_channel_is_found(occur: NDArray[np.bool_], mode: str) -> None:
    occur[:, :2] = True, False
    draw = np.random.default_rng(0)
    planes = [draw.choice(np.flatnonzero(row).astype(np.uint8), (150, 150)) for row in occur]
    image = Image.merge(mode, [Image.fromarray(plane) for plane in planes[: len(mode)]])
    found = find_color_set(image)
    said = values(occur[: len(mode)])
    for place, row in enumerate(occur[: len(mode)]):
        bits = found.values[place] if found and found.values else bytes([0xFF]) * 32
        assert bits in (said[place], bytes([0xFF]) * 32)
        assert bits == said[place] or row.sum() > 200 or row.sum() == 1


def test_both_hold_where_both_do() -> None:
    yuv = noise(200, 200, 3)
    yuv[..., 0] &= 0xF8  # steps of 8 in luma with little chroma leave holes
    yuv[..., 1:] = 128
    rgb = converted("bt601", yuv)
    found = find_color_set(Image.fromarray(rgb))
    assert found
    assert found.conversion == "grey"
    assert found.values == values(np.isin(np.arange(256), rgb)[None].repeat(3, 0))
    assert find_color_set(Image.fromarray(rgb[..., 0])) == ColorSet(None, found.values[:1])


def test_a_few_pixels_are_not_worth_a_set() -> None:
    assert find_color_set(Image.fromarray(converted("jfif", noise(15, 17, 3)))) is None


def test_the_command_prints_sets_and_shares() -> None:
    said = CliRunner().invoke(main, ["color-sets", str(EXAMPLES[0])], catch_exceptions=False).stdout
    rows = [[cell.strip() for cell in line.split("|")] for line in said.splitlines()]
    assert rows[2][3] == "12.77"
    assert rows[3][1:4] == [EXAMPLES[0].name, "photoycc", "all"]
    assert max(map(float, rows[3][4:-1])) < 60
