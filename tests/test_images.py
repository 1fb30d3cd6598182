"""Images and metadata come back the same, or are refused; nothing is converted silently."""

import io
import re
import struct
import sys
import tracemalloc
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np
import pytest
import torch
from damage import flipped
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms
from samples import SIZES, make_image, saved

from diffcodec.container.parts import MODES
from diffcodec.errors import (
    CorruptError,
    DiffcodecError,
    FormatError,
    LimitError,
    UnsupportedError,
)
from diffcodec.images import fallback
from diffcodec.images.formats import EXACT_MODES, save_format
from diffcodec.images.metadata import apply_metadata, get_metadata
from diffcodec.images.modes import as_image, pixel_crc
from diffcodec.images.opening import webp_size
from diffcodec.images.reading import read_image
from diffcodec.images.writing import write_image
from diffcodec.limits import Limits

ICC = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
DPI = (2835 * 0.0254, 11811 * 0.0254)  # whole pixels per metre, as a PNG holds


def exif_bytes(orientation: int = 6) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010F] = "a camera"
    return exif.tobytes()


def written(image: Image.Image, format: str = "PNG") -> Image.Image:
    stream = io.BytesIO()
    write_image(image, stream, format)
    stream.seek(0)
    return read_image(stream)


def rebuilt(image: Image.Image) -> Image.Image:
    """An image made anew from its samples and metadata only."""
    new = Image.frombytes(image.mode, image.size, image.tobytes())
    apply_metadata(new, get_metadata(image))
    return new


def assert_same(image: Image.Image, other: Image.Image) -> None:
    assert (image.mode, image.size) == (other.mode, other.size)
    assert image.tobytes() == other.tobytes()
    assert image.getpalette(None) == other.getpalette(None)
    for name in ("icc_profile", "exif", "dpi", "transparency"):
        assert image.info.get(name) == other.info.get(name), name


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_and_size_comes_back(mode, size):
    image = make_image(mode, size)
    image.info.update(icc_profile=ICC, exif=exif_bytes(), dpi=DPI)
    assert_same(rebuilt(image), image)
    assert_same(written(image), image)
    assert_same(written(rebuilt(written(image))), image)


@pytest.mark.parametrize(
    ("mode", "transparency"),
    [
        ("P", 0),
        ("P", 255),
        ("P", b"\x00\x80\xff"),
        ("P", bytes(range(256))),
        ("1", 255),
        ("L", 200),
        ("I;16", 65535),
        ("RGB", (1, 2, 65535)),
    ],
)
def test_transparency_is_kept(mode, transparency):
    image = make_image(mode, (9, 7))
    image.info["transparency"] = transparency
    assert_same(rebuilt(image), image)
    assert_same(written(image), image)


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_transparency_is_no_metadata_where_there_is_alpha(mode):
    image = make_image(mode, (9, 7))
    for stale in ((1, 2, 3), 0, ()):
        image.info["transparency"] = stale
        assert get_metadata(image) == {}
        assert_same(written(image), make_image(mode, (9, 7)))


@pytest.mark.parametrize("colors", [0, 1, 2, 3, 16, 17, 256])
@pytest.mark.parametrize("channels", ["RGB", "RGBA"])
def test_palettes_of_every_length(colors, channels):
    image = Image.frombytes("P", (colors or 1, 1), bytes(range(colors)) or b"\0")
    image.putpalette(bytes(range(colors % 256)) * len(channels), channels)
    assert_same(rebuilt(image), image)
    back = written(image)
    assert back.tobytes() == image.tobytes()
    if colors:
        assert back.convert("RGBA").tobytes() == image.convert("RGBA").tobytes()


def test_indices_beyond_a_short_palette_survive_a_png():
    image = Image.frombytes("P", (4, 1), bytes([0, 1, 17, 200]))
    image.putpalette(bytes([9, 8, 7, 6, 5, 4]))
    back = written(image)
    assert back.tobytes() == image.tobytes()
    assert back.getpalette()[:6] == [9, 8, 7, 6, 5, 4]
    assert image.getpalette() == [9, 8, 7, 6, 5, 4]  # and the caller's image is left alone


@pytest.mark.parametrize("transparency", [5, bytes([0, 1, 2, 3, 4, 5])])
def test_transparency_beyond_a_short_palette_survives_a_png(transparency):
    image = Image.frombytes("P", (2, 1), bytes([0, 1]))
    image.putpalette(bytes([9, 8, 7, 6, 5, 4]))
    image.info["transparency"] = transparency
    assert written(image).info["transparency"] == transparency


def test_hidden_color_under_alpha_zero_is_kept():
    image = make_image("RGBA", (16, 16))
    image.putalpha(Image.new("L", (16, 16), 0))
    for format in ("PNG", "WEBP", "TIFF"):
        assert written(image, format).tobytes() == image.tobytes()


def test_sixteen_bits_over_the_full_range():
    grey = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    image = as_image(grey)
    assert image.mode == "I;16"
    assert image.tobytes() == grey.astype("<u2").tobytes()
    assert written(image).tobytes() == grey.astype("<u2").tobytes()
    assert as_image(grey.astype(">u2")).tobytes() == grey.astype("<u2").tobytes()


@pytest.mark.parametrize(("format", "modes"), EXACT_MODES.items())
def test_formats_keep_exactly_what_they_claim(format, modes):
    for mode in MODES:
        for size in SIZES:
            image = make_image(mode, size)
            if mode == "RGBA":
                image.putpixel((0, 0), (1, 2, 3, 4))
            if mode in modes:
                back = written(image, format)
                assert (back.mode, back.tobytes()) == (mode, image.tobytes())
            else:
                with pytest.raises(UnsupportedError, match="write PNG"):
                    write_image(image, io.BytesIO(), format)


@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF", "BMP", "PPM"])
def test_metadata_that_each_format_keeps(format):
    image = make_image("RGB", (9, 7))
    image.info.update(icc_profile=ICC, exif=exif_bytes(), dpi=DPI, compression="jpeg")
    back = written(image, format)
    assert back.tobytes() == image.tobytes()
    assert (back.info.get("icc_profile") == ICC) == (format in ("PNG", "WEBP", "TIFF"))
    assert (back.getexif().get(0x0112) == 6) == (format in ("PNG", "WEBP"))
    assert ("dpi" in back.info) == (format in ("PNG", "TIFF", "BMP"))


def test_images_that_a_format_would_change_are_refused():
    opaque = make_image("RGB", (5, 5)).convert("RGBA")
    with pytest.raises(UnsupportedError, match=r"opaque.*write PNG"):
        write_image(opaque, io.BytesIO(), "WEBP")
    with pytest.raises(UnsupportedError, match=r"16383.*write PNG"):
        write_image(Image.new("RGB", (16384, 1)), io.BytesIO(), "WEBP")
    keyed = make_image("RGB", (5, 5))
    keyed.info["transparency"] = (1, 2, 3)
    with pytest.raises(UnsupportedError, match=r"transparent.*write PNG"):
        write_image(keyed, io.BytesIO(), "TIFF")
    with pytest.raises(UnsupportedError, match="write PNG"):
        write_image(keyed, io.BytesIO(), "JPEG")


def test_formats_by_suffix():
    assert save_format("a/b.PNG") == "PNG"
    assert {save_format(f"x{s}") for s in (".tif", ".tiff")} == {"TIFF"}
    assert {save_format(f"x{s}") for s in (".ppm", ".pgm", ".pbm")} == {"PPM"}
    for path in ("photo", ".png", "a.gif"):
        with pytest.raises(UnsupportedError, match=re.escape("write .png")):
            save_format(path)


# --- arrays and Pillow images


@pytest.mark.parametrize(
    ("shape", "dtype", "mode"),
    [
        ((3, 5), np.uint8, "L"),
        ((3, 5, 1), np.uint8, "L"),
        ((3, 5, 2), np.uint8, "LA"),
        ((3, 5, 3), np.uint8, "RGB"),
        ((3, 5, 4), np.uint8, "RGBA"),
        ((3, 5), np.uint16, "I;16"),
        ((3, 11), np.bool_, "1"),
    ],
)
def test_arrays_become_images(shape, dtype, mode):
    array = np.random.default_rng(0).integers(0, 2, shape).astype(dtype)
    for source in (array, np.asfortranarray(array), array[::-1, ::-1]):
        image = as_image(source)
        assert (image.mode, image.size) == (mode, (shape[1], shape[0]))
        assert np.array_equal(np.asarray(image).reshape(shape), source)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((3, 5), np.float32),
        np.zeros((3, 5), np.int32),
        np.zeros((3, 5, 5), np.uint8),
        np.zeros((3, 5, 3), np.uint16),
        np.zeros((3, 5, 3), np.bool_),
        np.zeros((1, 3, 5, 3), np.uint8),
        np.zeros(3, np.uint8),
        np.zeros((), np.uint8),
        np.zeros((0, 5, 3), np.uint8),
        np.zeros((3, 5, 0), np.uint8),
    ],
)
def test_other_arrays_are_refused(array):
    with pytest.raises(UnsupportedError, match="expected"):
        as_image(array)


@pytest.mark.parametrize("source", [[[1, 2], [3, 4]], None, b"bytes", 5, Image])
def test_what_is_no_image_is_named(source):
    with pytest.raises(TypeError, match=f"found {type(source).__name__}, expected the path of"):
        as_image(source)


def test_a_masked_array_is_refused():
    array = np.ma.masked_less(np.arange(12, dtype=np.uint8).reshape(3, 4), 5)
    with pytest.raises(UnsupportedError, match=r"masked.*\.filled\("):
        as_image(array)
    assert as_image(array.filled(0)).size == (4, 3)


def test_an_array_over_a_limit_is_refused_before_it_is_copied():
    """It may be mapped from a file that is larger than the memory."""
    large = np.broadcast_to(np.uint8(0), (4000, 4000, 3))
    tracemalloc.start()
    with pytest.raises(LimitError):
        as_image(large, Limits(pixels=1000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_tensors_become_images(channels):
    tensor = torch.arange(channels * 15, dtype=torch.uint8).reshape(channels, 3, 5)
    array = tensor.permute(1, 2, 0).numpy()
    assert_same(as_image(tensor), as_image(array))


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(3, 5, 5),
        torch.zeros(5, 5, 3, dtype=torch.uint8),
        torch.zeros(5, 5, dtype=torch.uint8),
        torch.zeros(1, 3, 5, 5, dtype=torch.uint8),
        torch.zeros(3, 0, 5, dtype=torch.uint8),
        torch.zeros(3, 5, 5, dtype=torch.uint8, device="meta"),
        torch.zeros(3, 5, 5, dtype=torch.uint8).to_sparse(),
    ],
)
def test_other_tensors_are_refused(tensor):
    with pytest.raises(UnsupportedError, match="found"):
        as_image(tensor)


def test_a_closed_image_is_refused():
    plain = make_image("RGB", (4, 4))
    plain.close()
    opened = Image.open(saved(make_image("RGB", (4, 4))))
    opened.close()
    for image in (plain, opened):
        with pytest.raises(UnsupportedError, match="closed image, expected an open one"):
            as_image(image)


@pytest.mark.parametrize("format", ["PNG", "PPM"])
def test_16_bits_that_pillow_has_reduced_are_found_while_the_file_is_there(format, tmp_path):
    path = tmp_path / "a.img"
    rows = zlib.compress(b"\0" + bytes(range(12)))
    header = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)
    png = png_chunks((b"IHDR", header), (b"IDAT", rows), (b"IEND", b"")).getvalue()
    path.write_bytes(png if format == "PNG" else b"P6 2 1 65535 " + bytes(range(12)))
    image = Image.open(path)
    image.load()
    with pytest.raises(UnsupportedError, match=r"16 bits|more than 8 bits"):
        as_image(image)
    make_image("RGB", (2, 1)).save(path, format)
    assert as_image(image).mode == "RGB"  # another file by now
    path.unlink()
    assert as_image(image).mode == "RGB"


@pytest.mark.parametrize(
    ("mode", "advice"),
    [
        ("CMYK", "convert('RGB')"),
        ("YCbCr", "convert('RGB')"),
        ("HSV", "convert('RGB')"),
        ("LAB", "ImageCms"),
        ("RGBX", "convert('RGB')"),
        ("PA", "convert('RGBA')"),
        ("RGBa", "convert('RGBA')"),
        ("I", "numpy.asarray(image).astype('uint16')"),
        ("F", "numpy.rint(65535 * numpy.asarray(image))"),
    ],
)
def test_other_modes_are_refused_with_advice(mode, advice):
    with pytest.raises(UnsupportedError, match=re.escape(advice)):
        as_image(Image.new(mode, (2, 2)))
    with pytest.raises(UnsupportedError, match="magick IN") as caught:
        as_image(Image.new(mode, (2, 2)), in_shell=True)
    assert "numpy" not in str(caught.value)
    assert "image.convert" not in str(caught.value)


def test_empty_and_huge_images_are_refused():
    with pytest.raises(UnsupportedError, match="empty"):
        as_image(Image.new("RGB", (0, 5)))
    limits = Limits(pixels=12, side=12)
    assert as_image(Image.new("RGB", (3, 4)), limits).size == (3, 4)
    with pytest.raises(LimitError, match="limit is 12; raise the limit pixels"):
        as_image(Image.new("RGB", (7, 2)), limits)
    with pytest.raises(LimitError, match="limit of a side is 12"):
        as_image(Image.new("RGB", (1, 13)), limits)


def test_an_opened_file_is_loaded_and_detached():
    opened = Image.open(saved(make_image("RGB", (4, 4)), "TIFF", compression="tiff_lzw", dpi=DPI))
    image = as_image(opened)
    assert type(image) is Image.Image
    assert image.info == {"dpi": pytest.approx(DPI)}
    plain = make_image("RGB", (4, 4))
    assert as_image(plain) is plain


# --- files


def test_reading_from_a_path_and_from_a_stream_is_the_same(tmp_path):
    image = make_image("RGB", (9, 7))
    image.info.update(icc_profile=ICC, exif=exif_bytes(), dpi=DPI)
    path = tmp_path / "a.png"
    with path.open("wb") as stream:
        write_image(image, stream)
    assert_same(read_image(path), image)
    assert_same(read_image(str(path)), image)
    with path.open("rb") as stream:
        assert_same(read_image(stream), image)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_exif_orientation_is_kept_and_not_applied(format):
    image = Image.new("RGB", (9, 7), (10, 200, 30))
    exif = exif_bytes(6)
    read = read_image(saved(image, format, exif=exif, icc_profile=ICC))
    assert read.size == (9, 7)
    for back in (rebuilt(read), written(read)):
        assert back.getexif()[0x0112] == 6
        assert back.info["icc_profile"] == ICC
    assert rebuilt(read).info["exif"] == read.info["exif"]


def test_jpeg_resolution_is_kept():
    read = read_image(saved(make_image("L", (9, 7)), "JPEG", dpi=(72, 300)))
    assert read.info["dpi"] == (72, 300)
    assert rebuilt(read).info["dpi"] == (72, 300)


def test_text_that_poses_as_metadata_is_not_taken_for_it():
    # Pillow files PNG text under its own keyword, next to what it knows itself.
    from PIL import PngImagePlugin

    text = PngImagePlugin.PngInfo()
    for name in ("dpi", "icc_profile", "transparency", "Comment"):
        text.add_text(name, "72")
    text.add_itxt("exif", "72")
    read = read_image(saved(make_image("RGB", (9, 7)), pnginfo=text))
    assert set(read.info) == {"png_chunks"}
    assert len(read.info["png_chunks"]) == 5
    image = make_image("RGB", (9, 7))
    junk = {"dpi": ("a", None), "icc_profile": "x", "transparency": (1, 2), "exif": 5}
    image.info.update(junk)
    assert get_metadata(image) == {}
    assert_same(written(image), make_image("RGB", (9, 7)))


@pytest.mark.parametrize("dpi", [(0, 72), (float("nan"), 72), (float("inf"), 72), (72,), "72", 72])
def test_a_senseless_resolution_is_dropped(dpi):
    image = make_image("L", (3, 3))
    image.info["dpi"] = dpi
    assert get_metadata(image) == {}


def png_chunks(*chunks: tuple[bytes, bytes]) -> io.BytesIO:
    data = b"\x89PNG\r\n\x1a\n"
    for name, content in chunks:
        data += struct.pack(">I", len(content)) + name + content
        data += struct.pack(">I", zlib.crc32(name + content))
    return io.BytesIO(data)


@pytest.mark.parametrize("color_type", [2, 4, 6])
def test_png_of_16_bit_color_is_refused(color_type):
    channels = {2: 3, 4: 2, 6: 4}[color_type]
    header = struct.pack(">IIBBBBB", 2, 1, 16, color_type, 0, 0, 0)
    rows = zlib.compress(b"\0" + bytes(2 * 2 * channels))
    stream = png_chunks((b"IHDR", header), (b"IDAT", rows), (b"IEND", b""))
    with pytest.raises(UnsupportedError, match=r"16 bits.*8 bits"):
        read_image(stream)
    stream.seek(0)
    with pytest.raises(UnsupportedError, match=r"16 bits.*8 bits"):
        as_image(Image.open(stream))


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_png_of_few_bits_is_read_in_grey_levels(bits):
    header = struct.pack(">IIBBBBB", 1, 1, bits, 0, 0, 0, 0)
    rows = zlib.compress(b"\0\xff")
    image = read_image(png_chunks((b"IHDR", header), (b"IDAT", rows), (b"IEND", b"")))
    assert image.mode == ("1" if bits == 1 else "L")
    assert image.getpixel((0, 0)) == 255


def tiff(bits: list[int], extra: int | None, sample: bytes) -> io.BytesIO:
    """One pixel of RGB with extra channels, uncompressed."""
    entries = [(256, 3, 1, 1), (257, 3, 1, 1), (259, 3, 1, 1), (262, 3, 1, 2), (277, 3, 1, 0)]
    entries[-1] = (277, 3, 1, len(bits))
    entries += [(278, 3, 1, 1), (279, 4, 1, len(sample))]
    end = 8 + 2 + 12 * (len(entries) + 2 + (extra is not None)) + 4
    entries += [(258, 3, len(bits), end), (273, 4, 1, end + 2 * len(bits))]
    if extra is not None:
        entries.append((338, 3, 1, extra))
    ifd = struct.pack("<H", len(entries))
    ifd += b"".join(struct.pack("<HHII", *entry) for entry in sorted(entries)) + bytes(4)
    return io.BytesIO(
        b"II*\0" + struct.pack("<I", 8) + ifd + struct.pack(f"<{len(bits)}H", *bits) + sample
    )


@pytest.mark.parametrize(
    ("bits", "extra", "found"),
    [
        ([16, 16, 16], None, "more than 8 bits"),
        ([16, 16, 16, 16], 2, "more than 8 bits"),
        ([8, 8, 8, 8], 0, "unused channels"),
        ([8, 8, 8, 8], 1, "premultiplied"),
    ],
)
def test_tiff_that_pillow_would_convert_is_refused(bits, extra, found):
    with pytest.raises(UnsupportedError, match=found):
        read_image(tiff(bits, extra, bytes(sum(bits) // 8)))


@pytest.mark.parametrize(("bits", "extra"), [([8, 8, 8], None), ([8, 8, 8, 8], 2)])
def test_tiff_of_8_bits_is_read(bits, extra):
    assert read_image(tiff(bits, extra, b"abcd"[: len(bits)])).tobytes() == b"abcd"[: len(bits)]


def test_ppm_of_more_than_8_bits_is_refused():
    assert read_image(io.BytesIO(b"P6 1 1 255 abc")).tobytes() == b"abc"
    assert read_image(io.BytesIO(b"P3 1 1 15 0 5 15")).tobytes() == bytes([0, 85, 255])
    for data in (b"P6 1 1 65535 abcdef", b"P3 1 1 256 1 2 3"):
        with pytest.raises(UnsupportedError, match="more than 8 bits"):
            read_image(io.BytesIO(data))


@pytest.mark.parametrize("largest", [65535, 4095])
def test_16_bit_grey_is_read_from_any_format(largest):
    """Pillow scales a PGM whose largest value is another to 65535, as it does to 255."""
    grey = np.arange(12).reshape(3, 4) * 300
    scaled = np.round(grey / largest * 65535).astype(np.uint16)
    pgm = b"P5 4 3 %d " % largest + grey.astype(">u2").tobytes()
    plain = b"P2 4 3 %d " % largest + b" ".join(b"%d" % level for level in grey.ravel())
    for data in (pgm, plain):
        image = read_image(io.BytesIO(data))
        assert image.mode == "I;16"
        assert np.array_equal(np.asarray(image), scaled)


def test_big_endian_grey_is_read():
    grey = np.arange(12, dtype=np.uint16).reshape(3, 4) * 300
    big = Image.frombytes("I;16B", (4, 3), grey.astype(">u2").tobytes())
    for image in (as_image(big), read_image(saved(big, "TIFF"))):
        assert image.mode == "I;16"
        assert np.array_equal(np.asarray(image), grey)


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_several_frames_are_refused(format):
    frames = [Image.new("L", (4, 4), level) for level in (0, 90)]
    stream = saved(frames[0], format, save_all=True, append_images=frames[1:])
    with pytest.raises(UnsupportedError, match="2 frames"):
        read_image(stream)
    with pytest.raises(UnsupportedError, match="2 frames"):
        as_image(Image.open(stream))


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "TIFF", "MPO"])
def test_one_frame_of_several_is_read(format):
    frames = [Image.new("RGB", (16, 16), (level, 0, 90)) for level in (0, 90, 200)]
    stream = saved(frames[0], format, save_all=True, append_images=frames[1:])
    for number in range(3):
        stream.seek(0)
        opened = Image.open(stream)
        opened.seek(number)
        read = read_image(io.BytesIO(stream.getvalue()), frame=number)
        assert read.convert("RGBA").tobytes() == opened.convert("RGBA").tobytes()
    for number in (3, -1):
        with pytest.raises(UnsupportedError, match=rf"no frame {number}, expected 0 to 2"):
            read_image(io.BytesIO(stream.getvalue()), frame=number)
    assert read_image(saved(frames[0]), frame=0).tobytes() == frames[0].tobytes()
    with pytest.raises(UnsupportedError, match="--frame N"):
        read_image(io.BytesIO(stream.getvalue()), in_shell=True)


def grey_tiff(bits: int, photometric: int = 1, sample_format: int = 1) -> io.BytesIO:
    """A TIFF of 4 x 2 samples of so many bits."""
    short = {256: 4, 257: 2, 258: bits, 259: 1, 262: photometric, 273: 134, 277: 1, 278: 2}
    tags = short | {279: bits, 339: sample_format}
    entries = b"".join(struct.pack("<HHIHH", tag, 3, 1, tags[tag], 0) for tag in sorted(tags))
    data = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries.ljust(124, b"\0")
    return io.BytesIO(data + bytes(range(bits)))


def test_grey_of_tiffs_is_what_the_file_means():
    """What Pillow loads as other levels of grey is refused, and what it can't load no damage."""
    assert list(read_image(grey_tiff(8)).tobytes()) == list(range(8))
    assert list(read_image(grey_tiff(8, photometric=0)).tobytes()) == list(range(255, 247, -1))
    assert read_image(grey_tiff(16)).tobytes() == bytes(range(16))
    for found, source in {
        "signed samples": grey_tiff(8, sample_format=2),
        "12 bits a sample": grey_tiff(12),
        "16 bits a sample that are white at 0": grey_tiff(16, photometric=0),
        "mode I": grey_tiff(16, sample_format=2),
        "mode F": grey_tiff(32, sample_format=3),
    }.items():
        with pytest.raises(UnsupportedError, match=f"found {found}"):
            read_image(source)
    with pytest.raises(FormatError, match=r"or of a kind that Pillow does not read.*convert it"):
        read_image(grey_tiff(64, sample_format=3))


def test_gif_of_one_frame_is_read():
    image = make_image("P", (9, 7))
    image.info["transparency"] = 3
    read = read_image(saved(image, "GIF", transparency=3))
    assert read.convert("RGBA").tobytes() == image.convert("RGBA").tobytes()
    assert_same(rebuilt(read), read)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(DiffcodecError, match=r"none\.png: No such file"):
        read_image(tmp_path / "none.png")
    with pytest.raises(DiffcodecError, match="directory"):
        read_image(tmp_path)
    with pytest.raises(DiffcodecError, match="null"):
        read_image("a\0b.png")
    (tmp_path / "text.png").write_bytes(b"no image")
    with pytest.raises(FormatError, match=r"text\.png: damaged PNG, or another kind of file"):
        read_image(tmp_path / "text.png")
    (tmp_path / "text").write_bytes(b"no image")
    with pytest.raises(FormatError, match=r"text: no image found in BMP.*convert it to PNG"):
        read_image(tmp_path / "text")
    (tmp_path / "empty.png").write_bytes(b"")
    with pytest.raises(FormatError, match=r"empty\.png: an empty file"):
        read_image(tmp_path / "empty.png")
    closed = io.BytesIO()
    closed.close()
    for stream in (io.BytesIO(b""), closed, io.BytesIO(b"%!PS-Adobe-3.0 EPSF-3.0\n")):
        with pytest.raises(DiffcodecError):
            read_image(stream)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
def test_cut_files_are_refused(format):
    data = saved(make_image("RGB", (40, 30)), format).getvalue()
    for length in range(0, int(len(data) * 0.9), len(data) // 40):
        with pytest.raises(DiffcodecError):
            read_image(io.BytesIO(data[:length]))


def test_a_png_with_any_sample_damaged_is_refused():
    good = saved(make_image("L", (8, 8)), compress_level=0).getvalue()
    start = good.index(b"IDAT") + 4
    for position in range(start, good.index(b"IEND") - 8):  # up to the chunk's own checksum
        with pytest.raises(FormatError, match="damaged"):
            read_image(io.BytesIO(flipped(good, 8 * position)))


def test_a_file_of_too_many_pixels_is_refused_before_loading():
    limit = Image.MAX_IMAGE_PIXELS
    side = struct.pack(">II", 2**30, 2**30)
    header = side + bytes([8, 0, 0, 0, 0])
    stream = png_chunks((b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b""))
    with pytest.raises(LimitError, match="pixels"):
        read_image(stream)
    limits = Limits(pixels=12)
    assert read_image(saved(make_image("L", (3, 4))), limits).size == (3, 4)
    with pytest.raises(LimitError, match="the limit is 12"):
        read_image(saved(make_image("L", (13, 1))), limits)
    assert limit == Image.MAX_IMAGE_PIXELS
    gif = saved(make_image("L", (3, 4)), "GIF").getvalue()
    place = gif.index(b",") + 5  # of the frame's width and height
    with pytest.raises(LimitError, match="4294836225 pixels"):
        read_image(io.BytesIO(gif[:place] + b"\xff\xff\xff\xff" + gif[place + 4 :]))


@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF", "GIF"])
def test_pillows_own_lower_limit_neither_refuses_nor_warns(format, monkeypatch):
    data = saved(make_image("L", (5, 4)), format).getvalue()
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 8)
    assert read_image(io.BytesIO(data)).size == (5, 4)
    assert Image.MAX_IMAGE_PIXELS == 8


@pytest.mark.parametrize("options", [{"lossless": True}, {"quality": 50}, {"exif": exif_bytes()}])
def test_the_header_of_a_webp_gives_its_size_before_it_is_opened(options):
    data = saved(Image.new("RGB", (300, 17)), "WEBP", **options).getvalue()
    assert webp_size(data) == (300, 17)
    with pytest.raises(LimitError, match="5100, the limit is 5099"):
        read_image(io.BytesIO(data), Limits(pixels=5099))
    assert webp_size(data[:24]) == webp_size(saved(Image.new("RGB", (9, 9))).getvalue()) == (0, 0)


@pytest.mark.parametrize("limit", [1 << 16, 50])
def test_threads_leave_pillow_and_the_warnings_to_the_application(limit, monkeypatch):
    """Small and large images at once, within Pillow's limit, and over it where it is 50 pixels."""
    images = [make_image("P", (side, side)) for side in (6, 250)]
    images[1].paste(0, (0, 0, 250, 250))
    coded = [fallback.encode_fallback(image) for image in images]
    files = [saved(image, "WEBP").getvalue() for image in (images[0].convert("RGB"), images[1])]
    own = saved(Image.new("L", (300, 200)), "PNG")  # of the application
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    before = (limit, list(warnings.filters))

    def decode(thread: int) -> None:
        for turn in range(40):
            image, (coder, payload) = images[(thread + turn) % 2], coded[(thread + turn) % 2]
            back = fallback.decode_fallback(coder, payload, "P", image.size)
            assert back.tobytes() == image.tobytes()
            assert read_image(io.BytesIO(files[turn % 2])).size == images[turn % 2].size
            if limit > 50:
                assert Image.open(io.BytesIO(own.getvalue())).size == (300, 200)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(6) as pool:
            list(pool.map(decode, range(6)))
    finally:
        sys.setswitchinterval(interval)
    assert (Image.MAX_IMAGE_PIXELS, warnings.filters) == before


@given(st.binary(max_size=200), st.sampled_from(sorted(EXACT_MODES)), st.integers(0, 199))
def test_mutated_files_raise_only_our_errors(noise, format, position):
    data = bytearray(saved(Image.new("RGB", (20, 20), (1, 2, 3)), format).getvalue())
    position = min(position, len(data))
    data[position : position + len(noise)] = noise
    with suppress(DiffcodecError):
        read_image(io.BytesIO(data))


# --- metadata


def test_crc_is_of_the_samples():
    assert pixel_crc(Image.frombytes("L", (9, 1), b"123456789")) == 0xCBF43926


def test_packed_metadata_is_as_documented():
    image = make_image("P", (2, 2))
    image.putpalette(bytes([1, 2, 3, 4, 5, 6]))
    image.info.update(icc_profile=b"icc", exif=b"exif", dpi=(72, 300), transparency=1)
    assert get_metadata(image) == {
        "icc": zlib.compress(b"icc", 9),
        "exif": zlib.compress(b"exif", 9),
        "dpi": struct.pack("<2d", 72, 300),
        "palette": bytes([3, 1, 2, 3, 4, 5, 6]),
        "transparency": b"i\1\0",
    }
    image.info["transparency"] = b"\0\x80"
    assert get_metadata(image)["transparency"] == b"b\0\x80"


@pytest.mark.parametrize(
    ("mode", "metadata"),
    [
        ("L", {"icc": b""}),
        ("L", {"icc": b"not zlib"}),
        ("L", {"icc": zlib.compress(b"icc")[:-1]}),
        ("L", {"exif": zlib.compress(b"exif") + b"x"}),
        ("L", {"dpi": b""}),
        ("L", {"dpi": bytes(16)}),
        ("L", {"dpi": struct.pack("<2d", float("nan"), 72)}),
        ("L", {"dpi": struct.pack("<2d", 72, float("inf"))}),
        ("L", {"transparency": b""}),
        ("L", {"transparency": b"i"}),
        ("L", {"transparency": b"i\0"}),
        ("L", {"transparency": b"x\0\0"}),
        ("L", {"transparency": b"b\0\0"}),
        ("L", {"transparency": b"i" + bytes(6)}),
        ("RGB", {"transparency": b"i" + bytes(2)}),
        ("RGBA", {"transparency": b"i" + bytes(6)}),
        ("P", {"palette": b"\3", "transparency": b"i\0\1"}),
        ("P", {"palette": b"\3", "transparency": b"b" + bytes(257)}),
        ("P", {"palette": b"\3", "transparency": b"b"}),
        ("P", {"palette": b""}),
        ("P", {"palette": b"\3\1\2"}),
        ("P", {"palette": b"\5\1\2\3\4\5"}),
        ("P", {"palette": b"\3" + bytes(771)}),
        ("P", {}),
        ("L", {"palette": b"\3\1\2\3"}),
    ],
)
def test_malformed_metadata_is_refused(mode, metadata):
    with pytest.raises(FormatError, match=r"found|damaged|palette"):
        apply_metadata(Image.new(mode, (2, 2)), metadata)


def test_metadata_is_bounded():
    image, limits = Image.new("L", (2, 2)), Limits(metadata_bytes=100)
    apply_metadata(image, {"icc": zlib.compress(bytes(100))}, limits)
    assert image.info["icc_profile"] == bytes(100)
    with pytest.raises(LimitError, match="101 bytes, the limit is 100"):
        apply_metadata(image, {"icc": zlib.compress(bytes(10**6))}, limits)
    image.info["icc_profile"] = bytes(2**26 + 1)
    with pytest.raises(LimitError, match="67108865 bytes"):
        get_metadata(image)


def test_unknown_metadata_is_ignored():
    image = Image.new("L", (2, 2))
    apply_metadata(image, {"gamma": b"\0"})
    assert not image.info


ITEMS = st.sampled_from(["icc", "exif", "dpi", "palette", "transparency"])


@given(st.sampled_from(list(MODES)), st.dictionaries(ITEMS, st.binary(max_size=20)))
def test_arbitrary_metadata_raises_only_our_errors(mode, metadata):
    image = Image.new(mode, (2, 2))
    try:
        apply_metadata(image, metadata)
    except (CorruptError, FormatError):
        return
    assert_same(rebuilt(image), image)
