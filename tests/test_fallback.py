"""The plain coders give every image back exactly, and never take more than WebP or the samples."""

import struct
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from samples import SIZES, make_image, saved

from diffcodec.codec import tiles
from diffcodec.codec.tiles import Fallback, fallback_tiles, smaller_tile
from diffcodec.coding.bits_back import EncodedTile
from diffcodec.container.parts import MODES, Box, Tile
from diffcodec.errors import CorruptError, UnsupportedError
from diffcodec.images import fallback, source_planes
from diffcodec.images.color_sets import CONVERSIONS, ColorSet, conversion
from diffcodec.images.fallback import decode_fallback, encode_fallback, least_left
from diffcodec.images.outliers import Found
from diffcodec.images.source_planes import from_planes, to_halved, to_planes

PHOTO = Path(__file__).parent.parent / "examples" / "kodim23.png"
CODERS = ("webp", "png", "raw")


def assert_comes_back(image: Image.Image) -> tuple[str, bytes]:
    coder, payload = encode_fallback(image)
    back = decode_fallback(coder, payload, image.mode, image.size)
    assert (back.mode, back.size, back.tobytes()) == (image.mode, image.size, image.tobytes())
    assert back.info == {}
    return coder, payload


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("levels", [2, 256])
def test_every_mode_and_size_comes_back(mode, size, levels):
    assert_comes_back(make_image(mode, size, levels, seed=0))


@given(
    st.sampled_from(list(MODES)),
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.sampled_from([2, 4, 256]),
    st.integers(0, 2**32 - 1),
)
def test_any_image_comes_back(mode, size, levels, seed):
    assert_comes_back(make_image(mode, size, levels, seed))


@pytest.mark.parametrize("mode", MODES)
def test_webp_codes_every_mode(mode):
    flat = Image.new(mode, (64, 64), 0 if mode in ("1", "L", "P", "I;16") else None)
    coder, payload = assert_comes_back(flat)
    assert coder == "webp"
    assert len(payload) < 100


@pytest.mark.parametrize("mode", MODES)
def test_png_codes_every_mode_beyond_the_sides_of_webp(mode):
    image = make_image(mode, (16384, 2), 2, seed=0)
    image.paste(0 if mode in ("1", "L", "P", "I;16") else (0,) * len(mode), (8, 0, 16384, 2))
    coder, _ = assert_comes_back(image)
    assert coder == "png"


def test_noise_is_coded_raw():
    coder, payload = assert_comes_back(make_image("RGB", (32, 32), 256, seed=0))
    assert (coder, len(payload)) == ("raw", 32 * 32 * 3)


def test_hidden_color_under_alpha_zero_comes_back():
    for mode in ("LA", "RGBA"):
        image = make_image(mode, (64, 64), 2, seed=0)
        for alpha in (0, 255):  # WebP has no alpha channel where all is opaque
            image.putalpha(Image.new("L", image.size, alpha))
            assert assert_comes_back(image)[0] == "webp"


def test_metadata_changes_nothing():
    image = make_image("P", (40, 40), 4, seed=0)
    payload = encode_fallback(image)
    image.putpalette(bytes(range(12)))
    image.info.update(transparency=1, icc_profile=b"icc", exif=b"exif", dpi=(1, 2))
    assert encode_fallback(image) == payload
    keyed = make_image("L", (40, 40), 4, seed=0)
    keyed.info["transparency"] = 0
    assert_comes_back(keyed)


def example(kind: str) -> Image.Image:
    y, x = np.mgrid[:96, :96]
    noise = np.random.default_rng(0).integers(0, 256, (96, 96, 3))
    values = {
        "flat": np.full((96, 96, 3), 77),
        "noise": noise,
        "checkerboard": np.repeat((x + y)[..., None] % 2 * 255, 3, axis=2),
        "gradient": np.stack([x, y, x + y], axis=-1),
        "screenshot": np.where(
            (x // 7 * y // 11 % 5 == 0)[..., None], (20, 30, 60), (250, 250, 240)
        ),
        "photograph": np.stack([x, y, x + y], axis=-1) + noise // 32,
    }
    return Image.fromarray(values[kind].astype(np.uint8))


@pytest.mark.parametrize(
    "kind", ["flat", "noise", "checkerboard", "gradient", "screenshot", "photograph"]
)
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_never_larger_than_webp_or_raw(kind, mode):
    image = example(kind).convert(mode)
    _, payload = encode_fallback(image)
    assert len(payload) <= len(image.tobytes())
    assert len(payload) <= len(saved(image, "WEBP", lossless=True, exact=True).getvalue())


def test_each_webp_setting_wins_somewhere(monkeypatch):
    # Pillow's default in colour, the slower one in grey, the slowest on a palette.
    color = example("photograph")
    kinds = {"RGB": color, "L": color.convert("L"), "P": color.quantize(64)}
    best = {mode: len(assert_comes_back(image)[1]) for mode, image in kinds.items()}
    monkeypatch.setattr(fallback, "WEBP_PALETTE_MAX_PIXELS", 96 * 96 - 1)
    assert len(encode_fallback(kinds["P"])[1]) > best["P"]
    for mode, other in (("RGB", (6, 90)), ("L", (4, 80))):
        monkeypatch.setattr(fallback, "WEBP_SETTINGS", (other,))
        assert len(encode_fallback(kinds[mode])[1]) > best[mode]


def test_no_table_stays_beside_the_chains_of_a_large_image(monkeypatch):
    image = from_planes(make_image("RGB", (64, 48), 256, seed=0), "jfif")
    found, everything = Found(image, ColorSet("jfif")), [Box(0, 0, *image.size)]
    tables = source_planes._sources.cache_info
    with fallback_tiles(image, found, everything) as [coded]:
        coded.result()
    assert tables().currsize == 1
    monkeypatch.setattr(tiles, "FORGETFUL_PIXELS", 64 * 48)
    with fallback_tiles(image, found, everything) as [coded]:
        coded.result()
        end = time.monotonic() + 60
        while tables().currsize and time.monotonic() < end:
            time.sleep(0.01)
        assert not tables().currsize


@pytest.mark.parametrize("name", CONVERSIONS)
def test_any_image_of_a_conversion_has_planes(name):
    """Clipped colours too, which have several sources."""
    planes = make_image("RGB", (300, 200), 256, seed=0)
    image = from_planes(planes, name)
    assert from_planes(to_planes(image, name), name).tobytes() == image.tobytes()
    rule, (u, y, v) = conversion(name), map(int, planes.getpixel((7, 5)))
    sums = rule.red[v], rule.green_u[u] + rule.green_v[v], rule.blue[u]
    expected = tuple(min(max(int(rule.luma[y] + each) >> 16, 0), 255) for each in sums)
    assert image.getpixel((7, 5)) == expected


@pytest.mark.parametrize(("size", "inner"), [((96, 96), b"RIFF"), ((16384, 2), b"\x89PNG")])
def test_a_converted_image_is_coded_as_its_planes(size, inner):
    planes = example("photograph").point(lambda value: value // 2 + 80).resize(size)
    image = from_planes(planes, "jfif")
    _, plain = encode_fallback(image)
    coder, payload = encode_fallback(image, "jfif")
    assert (coder, payload[0], payload[1:5]) == ("planes", CONVERSIONS["jfif"], inner)
    assert len(payload) < 0.9 * len(plain)
    assert decode_fallback(coder, payload, "RGB", size).tobytes() == image.tobytes()
    for other, data in (("L", payload), ("RGB", b""), ("RGB", payload[1:]), ("RGB", b"\1")):
        with pytest.raises((CorruptError, UnsupportedError), match=r"planes|damaged"):
            decode_fallback("planes", data, other, size)


def frame(size: tuple[int, int], begins: tuple[int, int], name: str) -> Image.Image:
    """A part of an image of 4:2:0 whose chroma was repeated; any colours, clipped ones too."""
    luma, half = (make_image("RGB", each, 256, seed) for each, seed in ((size, 1), ((60, 60), 2)))
    left, top = begins
    whole = half.point(lambda value: value // 4 + 96).resize((120, 120), Image.Resampling.NEAREST)
    u, v, _ = whole.crop((left, top, left + size[0], top + size[1])).split()
    y = luma.getchannel("G").point(lambda value: value // 4 + 150)
    return from_planes(Image.merge("RGB", (u, y, v)), name)


@pytest.mark.parametrize("name", ["photoycc", "bt709-420"])
@given(
    st.tuples(st.integers(2, 90), st.integers(2, 90)).filter(lambda size: size[0] * size[1] > 255),
    st.tuples(st.integers(0, 1), st.integers(0, 1)),
    st.booleans(),
)
def test_repeated_chroma_is_coded_once(name, size, begins, changed):
    """Wherever squares begin; and pixels of another chroma than the rest of their square's."""
    image = frame(size, begins, name)
    if changed:
        image.putpixel((1, 1), frame((90, 90), begins, name).getpixel((30, 30)))
    coder, payload = encode_fallback(image, name)
    assert decode_fallback(coder, payload, "RGB", size).tobytes() == image.tobytes()
    if min(size) > 30:
        assert (coder, payload[1]) == ("planes-420", begins[0] + 2 * begins[1])
        assert len(payload) < 0.9 * len(encode_fallback(image)[1])


def test_other_images_are_not_taken_for_such():
    image = from_planes(make_image("RGB", (90, 60), 256, seed=0), "jfif")
    for converted in (image, image.crop((0, 0, 1, 60)), image.crop((0, 0, 90, 1))):
        assert to_halved(converted, to_planes(converted, "jfif"), "jfif") is None


def test_damaged_planes_of_420_are_refused():
    image = frame((40, 40), (1, 0), "jfif-420")
    coder, good = encode_fallback(image, "jfif-420")
    assert (coder, good.count(b"RIFF")) == ("planes-420", 2)
    image.putpixel((9, 9), (255, 255, 255))
    coder, good = encode_fallback(image, "jfif-420")
    assert (coder, good.count(b"RIFF")) == ("planes-420", 3)
    added = good.rindex(b"RIFF")
    parts = (Image.new("L", (40, 40)).convert("RGB"), Image.new("RGB", (21, 20), (1, 2, 3)))
    files = [saved(part, "WEBP", lossless=True).getvalue() for part in parts]
    three = good[:2] + bytes(map(len, files)) + b"".join(files)
    for data, message in (
        (good[:1], "ends early"),
        (good[: len(good) // 2], "ends early|damaged"),
        (good[:1] + b"\4" + good[2:], "begin at 4"),
        (good[:1] + b"\0" + good[2:], "size"),
        (good[:added] + b"RIFF", "damaged"),
        (three, "three channels"),
    ):
        with pytest.raises(CorruptError, match=message):
            decode_fallback(coder, data, "RGB", image.size)


# --- refusals


@given(
    st.sampled_from(CODERS),
    st.sampled_from(list(MODES)),
    st.tuples(st.integers(0, 9), st.integers(0, 9)),
    st.binary(max_size=90),
)
def test_arbitrary_payloads_raise_only_our_error(coder, mode, size, payload):
    header = {"webp": b"RIFF", "png": b"\x89PNG\r\n\x1a\n", "raw": b""}[coder]
    for data in (payload, header + payload):
        try:
            image = decode_fallback(coder, data, mode, size)
        except CorruptError:
            continue
        assert (image.mode, image.size) == (mode, size)


@given(st.sampled_from(["webp", "png"]), st.data())
def test_mutated_payloads_raise_only_our_error(coder, data):
    image = Image.new("RGB", (12, 9), (1, 2, 3))
    payload = bytearray(saved(image, coder, lossless=True).getvalue())
    position = data.draw(st.integers(0, len(payload) - 1))
    noise = data.draw(st.binary(min_size=1, max_size=8))
    payload[position : position + len(noise)] = noise
    with suppress(CorruptError):
        assert decode_fallback(coder, bytes(payload), "RGB", (12, 9)).size == (12, 9)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("coder", CODERS)
def test_cut_payloads_are_refused(coder, mode):
    size = (16384, 2) if coder == "png" else (24, 24)
    image = make_image(mode, size, 256, seed=0)
    if coder != "raw":
        image.paste(0 if mode in ("1", "L", "P", "I;16") else (0,) * len(mode), (2, 0, *size))
    chosen, payload = encode_fallback(image)
    if chosen != coder:
        assert (coder, mode) == ("raw", "1")
        return
    for length in range(0, len(payload) // 2, len(payload) // 9 + 1):
        with pytest.raises(CorruptError):
            decode_fallback(coder, payload[:length], mode, size)


def test_size_and_mode_must_match():
    image = make_image("RGB", (24, 20), 2, seed=0)
    coder, payload = encode_fallback(image)
    assert coder == "webp"
    for size in ((20, 24), (24, 21), (0, 20), (2**20, 2**20)):
        with pytest.raises(CorruptError, match=r"found|damaged"):
            decode_fallback(coder, payload, "RGB", size)
    for mode in ("1", "L", "P", "I;16"):  # its channels differ
        with pytest.raises(CorruptError, match=f"mode {'L' if mode == 'P' else mode} does not"):
            decode_fallback(coder, payload, mode, (24, 20))
    rgba = encode_fallback(make_image("RGBA", (24, 20), 2, seed=0))
    assert rgba[0] == "webp"
    with pytest.raises(CorruptError, match="mode RGBA"):
        decode_fallback(*rgba, "RGB", (24, 20))
    grey = encode_fallback(make_image("L", (24, 20), 4, seed=0))
    with pytest.raises(CorruptError, match="mode 1 does not"):
        decode_fallback(*grey, "1", (24, 20))


def test_a_png_must_have_the_mode():
    data = saved(Image.new("L", (3, 2))).getvalue()
    assert decode_fallback("png", data, "P", (3, 2)).mode == "P"
    for mode in ("1", "LA", "RGB", "RGBA", "I;16"):
        with pytest.raises(CorruptError, match="png of mode L"):
            decode_fallback("png", data, mode, (3, 2))


ANIMATED = {"save_all": True, "append_images": [Image.new("RGB", (3, 2), 200)], "lossless": True}


@pytest.mark.parametrize(
    ("coder", "format", "options", "message"),
    [
        ("webp", "PNG", {}, "damaged webp"),
        ("png", "WEBP", {}, "damaged png"),
        ("png", "GIF", {}, "damaged png"),
        ("webp", "WEBP", {"lossless": False}, "damaged webp"),
        ("webp", "WEBP", ANIMATED, "damaged webp"),
        ("png", "PNG", ANIMATED, "expected one"),
    ],
)
def test_each_coder_takes_one_image_of_its_own_kind_only(coder, format, options, message):
    data = saved(Image.new("RGB", (3, 2)), format, **options).getvalue()
    with pytest.raises(CorruptError, match=message):
        decode_fallback(coder, data, "RGB", (3, 2))


@pytest.mark.parametrize("coder", ["webp", "png"])
def test_a_payload_that_claims_another_size_costs_nothing(coder, monkeypatch):
    """Not even Pillow's look at it, which takes memory for the image that a WebP claims."""
    bomb = bytearray(saved(Image.new("RGB", (3, 2)), coder, lossless=True).getvalue())
    if coder == "webp":
        bomb[21:25] = (2**28 - 1).to_bytes(4, "little")  # 16384 x 16384
    else:
        bomb[16:24] = struct.pack(">2I", 2**31 - 1, 2**31 - 1)
    monkeypatch.setattr(fallback, "open_image", None)
    for data in (bytes(bomb), bytes(bomb[:25])):
        with pytest.raises(
            CorruptError, match=r"of size \(\d{5,}, \d{5,}\), expected one of \(3, 2"
        ):
            decode_fallback(coder, data, "RGB", (3, 2))
    with pytest.raises(CorruptError, match="damaged"):
        decode_fallback(coder, bytes(bomb[:23]), "RGB", (3, 2))


def test_raw_must_have_the_length():
    assert decode_fallback("raw", b"\xff\x80", "1", (9, 1)).tobytes() == b"\xff\x80"
    for payload in (b"", b"\xff", b"\xff\x80\x00"):
        with pytest.raises(CorruptError, match="expected 2"):
            decode_fallback("raw", payload, "1", (9, 1))


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (-1, -1)])
def test_empty_images_are_refused(size):
    with pytest.raises(CorruptError, match="some pixels"):
        decode_fallback("raw", b"", "L", size)


def test_unknown_coders_and_modes_are_refused():
    with pytest.raises(UnsupportedError, match="bzip2"):
        decode_fallback("bzip2", b"", "L", (1, 1))
    with pytest.raises(UnsupportedError, match="CMYK"):
        decode_fallback("raw", bytes(4), "CMYK", (1, 1))
    with pytest.raises(UnsupportedError, match="CMYK"):
        encode_fallback(Image.new("CMYK", (1, 1)))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("levels", [2, 5, 256])
def test_what_the_first_setting_makes_is_little_more_than_the_least(mode, levels):
    image = make_image(mode, (64, 48), levels, seed=1)
    quick, best = (len(encode_fallback(image, None, thorough)[1]) for thorough in (False, True))
    assert best <= quick and least_left(image.mode, image.width * image.height) * quick <= best


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_it_is_less_where_photographs_are_large(mode):
    photo = Image.open(PHOTO).convert(mode)
    large, small = photo.crop((100, 100, 324, 324)), photo.crop((100, 100, 164, 164))
    shares = [least_left(mode, image.width * image.height) for image in (large, small)]
    assert shares == [0.94 if mode == "RGB" else 0.9, 0.9]
    assert least_left(mode, 1 << 20, "jfif") == 0.9
    for image in (large, small):
        quick, best = (len(encode_fallback(image, None, all_)[1]) for all_ in (False, True))
        assert best <= quick and least_left(image.mode, image.width * image.height) * quick <= best


def test_all_settings_are_tried_where_one_may_be_the_best():
    tried = []
    quick, best = Tile("webp", bytes(100)), Tile("webp", bytes(95))
    offered = Fallback(quick, b"", lambda: tried.append(1) or best, 0.9 * quick.size)

    def smaller(words):
        chain = words and EncodedTile(np.ones(words, np.uint32), 0, (), ())
        return smaller_tile(offered, chain, "fast")

    assert smaller(20).coder == "fast" and not tried  # 80 bytes
    assert smaller(25).coder == "fast" and len(tried) == 1
    assert smaller(26) is best
    assert smaller(None) is best
