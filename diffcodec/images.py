"""Images as the codec sees them: samples and metadata, from and to Pillow, numpy and files.

An image is coded as its samples (:func:`pixels`) and its metadata (:func:`get_metadata`), and comes
back the same in mode, size, samples, palette, ICC profile, EXIF, resolution and transparency.
Nothing else is kept: no XMP, text or gamma, and of a TIFF's tags only the profile and resolution.

Pixels are never converted silently. An EXIF orientation stays metadata and rotates nothing, except
that Pillow itself applies the orientation of a TIFF.
"""

import io
import math
import struct
import warnings
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from numbers import Real
from os import PathLike
from pathlib import Path, PurePath
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin, UnidentifiedImageError

from diffcodec.errors import (
    CorruptError,
    DiffcodecError,
    FormatError,
    LimitError,
    UnsupportedError,
)
from diffcodec.limits import DEFAULT_LIMITS, Limits

MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")
MAX_DPI = 1e7  # more does not fit into a PNG

READ_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "QOI", "TIFF", "WEBP")
EXACT_MODES = {  # what each format gives back with the same mode and samples
    "PNG": MODES,
    "TIFF": ("1", "L", "LA", "RGB", "RGBA", "I;16"),
    "WEBP": ("RGB", "RGBA"),
    "BMP": ("1", "L", "RGB"),
    "PPM": ("1", "L", "RGB"),
}
WEBP_MAX_SIDE = 16383

_SUFFIXES = {
    ".png": "PNG",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".webp": "WEBP",
    ".bmp": "BMP",
    ".ppm": "PPM",
    ".pgm": "PPM",
    ".pbm": "PPM",
}
_SAVE_OPTIONS: dict[str, dict[str, Any]] = {
    "TIFF": {"compression": "tiff_adobe_deflate"},
    "WEBP": {"lossless": True, "exact": True},
}
_ARRAY_MODES = {
    ("bool", 1): "1",
    ("uint8", 1): "L",
    ("uint8", 2): "LA",
    ("uint8", 3): "RGB",
    ("uint8", 4): "RGBA",
    ("uint16", 1): "I;16",
}
_PALETTE_MODES = {3: "RGB", 4: "RGBA"}  # by channels


@contextmanager
def strict_pillow(max_pixels: int) -> Iterator[None]:
    """Pillow without its warnings, and with an error for files of more than ``max_pixels``.

    Sets Pillow's global limit meanwhile, so it is not for several threads at once.
    """
    limit = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = max_pixels
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def read_image(
    source: str | PathLike[str] | IO[bytes], limits: Limits = DEFAULT_LIMITS
) -> Image.Image:
    """The image in a file, loaded, with nothing in ``info`` but the metadata that is kept.

    Args:
        source: a path, or a stream open for reading bytes.
        limits: the sizes to accept.

    Raises:
        DiffcodecError: the file cannot be read.
        FormatError: it is not a whole image in one of ``READ_FORMATS``.
        LimitError: it is over a limit.
        UnsupportedError: it is animated, or its pixels would have to be converted.
    """
    if isinstance(source, (str, PathLike)):
        name, read = str(source), Path(source).read_bytes
    else:
        name, read = str(getattr(source, "name", "the stream")), source.read
    try:
        data = read()
    except (OSError, ValueError) as error:  # ValueError: a closed stream, a NUL in the path
        reason = getattr(error, "strerror", None) or error
        raise DiffcodecError(f"cannot read {name}: {reason}") from error
    try:
        with strict_pillow(limits.pixels):
            return as_image(Image.open(io.BytesIO(data), formats=READ_FORMATS), limits)
    except DiffcodecError as error:
        raise type(error)(f"{name}: {error}") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise LimitError(
            f"{name}: more than {limits.pixels} pixels; raise the limit pixels, or split the image"
        ) from error
    except UnidentifiedImageError as error:
        known = ", ".join(READ_FORMATS)
        raise FormatError(f"{name}: no image found in {known}; convert it to PNG") from error
    except Exception as error:  # Pillow's plug-ins raise almost anything on damaged files
        raise FormatError(f"{name}: damaged or cut short ({error}); get a whole copy") from error


def as_image(source: Image.Image | NDArray[Any], limits: Limits = DEFAULT_LIMITS) -> Image.Image:
    """A plain, loaded Pillow image in one of ``MODES``, without converting any pixel.

    Args:
        source: a Pillow image, or an array: bool [height, width] (mode 1), uint8 [height, width]
            or [height, width, 1 to 4] (L, LA, RGB, RGBA), uint16 [height, width] (I;16).
        limits: the sizes to accept.

    Raises:
        FormatError: a lazily opened file is damaged.
        LimitError: it is over a limit.
        UnsupportedError: another mode or array, an empty image, several frames, or a file not yet
            loaded whose samples Pillow would reduce.
    """
    image = source if isinstance(source, Image.Image) else _from_array(source)
    if image.mode not in MODES:
        raise UnsupportedError(
            f"found mode {image.mode}, expected one of {', '.join(MODES)}: {_advice(image.mode)}"
        )
    if min(image.size) < 1:
        raise UnsupportedError(f"found an empty image of size {image.size}, expected some pixels")
    limits.check_image(image.width, image.height)
    _refuse_conversion(image)
    try:
        frames = getattr(image, "n_frames", 1)
        image.load()
    except Exception as error:  # see read_image
        raise FormatError(f"damaged or cut short ({error}); get a whole copy") from error
    if frames != 1:
        raise UnsupportedError(
            f"found {frames} frames, expected one: choose it with image.seek(i) and image.copy()"
        )
    return image if type(image) is Image.Image else _plain(image)


def _from_array(array: NDArray[Any]) -> Image.Image:
    if not isinstance(array, np.ndarray):
        raise UnsupportedError(
            f"found {type(array).__name__}, expected a Pillow image or a numpy array"
        )
    channels = array.shape[2] if array.ndim == 3 else 1
    mode = _ARRAY_MODES.get((array.dtype.name, channels))
    if mode is None or array.ndim not in (2, 3):
        raise UnsupportedError(
            f"found an array {array.dtype.name} {list(array.shape)}, expected uint8 "
            "[height, width] or [height, width, 1 to 4], uint16 or bool [height, width]: "
            "scale and cast it"
        )
    if 0 in array.shape:
        raise UnsupportedError(f"found an empty array {list(array.shape)}, expected some pixels")
    height, width = array.shape[:2]
    if mode == "1":
        array = np.packbits(array.reshape(height, width), axis=1)
    elif mode == "I;16":
        array = array.astype("<u2")
    return Image.frombytes(mode, (width, height), array.tobytes())


def _advice(mode: str) -> str:
    if mode.startswith(("I", "F")):
        return "pass an array of uint16, for example numpy.asarray(image).astype('uint16')"
    if mode == "LAB":
        return "convert it to RGB by its profiles, with PIL.ImageCms"
    return f"convert it, for example image.convert('{'RGBA' if 'A' in mode.upper() else 'RGB'}')"


def _refuse_conversion(image: Image.Image) -> None:
    """Refuse a file not yet loaded that Pillow would load with fewer bits or channels."""
    tiles = getattr(image, "tile", None)
    found = ""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        tags = image.tag_v2
        if max(tags.get(TiffImagePlugin.BITSPERSAMPLE, (1,))) > 8 and image.mode != "I;16":
            found = "more than 8 bits a sample"
        elif tags.get(TiffImagePlugin.SAMPLESPERPIXEL, 1) != len(image.getbands()):
            found = "unused channels"
        elif 1 in tags.get(TiffImagePlugin.EXTRASAMPLES, ()):
            found = "premultiplied alpha"
    elif tiles and image.format == "PNG":
        if ";16" in tiles[0][3] and image.mode != "I;16":
            found = "16 bits a sample"
    elif tiles and image.format == "PPM":
        arguments = tiles[0][3]  # the raw mode, or with it the largest value
        if isinstance(arguments, tuple) and arguments[1] > 255:
            found = "more than 8 bits a sample"
    if found:
        raise UnsupportedError(
            f"found {found} in a {image.format} of mode {image.mode}, which Pillow would convert: "
            "convert the file to 8 bits a sample (16 only in grey) with plain or no alpha first"
        )


def _plain(image: Image.Image) -> Image.Image:
    """A copy detached from its file, with only the metadata that is kept."""
    plain = image.copy()
    plain.info = dict(_kept(image).items())
    return plain


def pixels(image: Image.Image) -> bytes:
    """The samples, as Pillow's ``tobytes``: rows from the top, channels interleaved.

    Mode 1 is packed to bits, each row padded to a byte; I;16 is little-endian; P is the indices.
    """
    return image.tobytes()


def pixel_crc(image: Image.Image) -> int:
    """CRC-32 of :func:`pixels`."""
    return zlib.crc32(pixels(image))


def psnr(shown: Image.Image | NDArray[Any], image: Image.Image | NDArray[Any]) -> float:
    """Peak signal-to-noise ratio over all samples in dB; infinite where they are equal."""
    rows = list(zip(np.asarray(shown), np.asarray(image), strict=True))  # for less memory
    error = sum(float(np.mean(np.subtract(a, b, dtype=np.float64) ** 2)) for a, b in rows)
    error /= len(rows)
    return 10 * math.log10(255**2 / error) if error else math.inf


def _kept(image: Image.Image) -> dict[str, Any]:
    """The part of ``info`` that is kept, by Pillow's names.

    Text chunks of a PNG land in ``info`` under names of their own choosing: hence the checks.
    """
    info = image.info
    kept: dict[str, Any] = {
        name: info[name]
        for name in ("icc_profile", "exif")
        if isinstance(info.get(name), bytes) and info[name]
    }
    dpi = info.get("dpi")
    if isinstance(dpi, tuple) and _is_resolution(dpi):
        kept["dpi"] = (float(dpi[0]), float(dpi[1]))
    if _is_transparency(info.get("transparency"), image.mode):
        kept["transparency"] = info["transparency"]
    return kept


def _is_resolution(dpi: tuple[Any, ...]) -> bool:
    return len(dpi) == 2 and all(isinstance(v, Real) and 0 < float(v) <= MAX_DPI for v in dpi)


def _is_transparency(value: object, mode: str) -> bool:
    """Whether it is a transparent colour, or the alphas of a palette, as Pillow has for a mode."""
    if mode == "P" and isinstance(value, bytes):
        return 1 <= len(value) <= 256
    channels = value if isinstance(value, tuple) else (value,)
    expected = {"1": 1, "L": 1, "P": 1, "I;16": 1, "RGB": 3}.get(mode)
    largest = 255 if mode == "P" else 65535
    return len(channels) == expected and all(
        isinstance(channel, int) and 0 <= channel <= largest for channel in channels
    )


def get_metadata(image: Image.Image) -> dict[str, bytes]:
    """What else than the samples is kept, each item as bytes.

    Returns:
        ``icc`` and ``exif``: the bytes as Pillow has them, compressed by zlib.
        ``dpi``: horizontal and vertical, float64, little-endian.
        ``palette``: 3 (RGB) or 4 (RGBA) in one byte, and the colours. Always there in mode P.
        ``transparency``: ``b`` and the alphas of the palette, or ``i`` and the transparent index,
        grey level or colour in uint16, little-endian.

    Raises:
        LimitError: an item is over the limit of readers.
        UnsupportedError: the palette is neither RGB nor RGBA.
    """
    kept = _kept(image)
    metadata = {}
    for key, name in (("icc", "icc_profile"), ("exif", "exif")):
        if name in kept:
            DEFAULT_LIMITS.check_metadata(len(kept[name]))
            metadata[key] = zlib.compress(kept[name], 9)
    if "dpi" in kept:
        metadata["dpi"] = struct.pack("<2d", *kept["dpi"])
    if image.mode == "P":
        mode = image.palette.mode if image.palette else "RGB"
        if mode not in _PALETTE_MODES.values():
            raise UnsupportedError(f"found a palette in {mode}: use image.convert('RGB')")
        metadata["palette"] = bytes([len(mode), *(image.getpalette(mode) or [])])
    if "transparency" in kept:
        metadata["transparency"] = _pack_transparency(kept["transparency"])
    return metadata


def _pack_transparency(value: bytes | int | tuple[int, ...]) -> bytes:
    if isinstance(value, bytes):
        return b"b" + value
    channels = value if isinstance(value, tuple) else (value,)
    return b"i" + struct.pack(f"<{len(channels)}H", *channels)


def _unpack_transparency(data: bytes) -> bytes | int | tuple[int, ...] | None:
    if data[:1] == b"b":
        return data[1:]
    if data[:1] != b"i" or len(data) not in (3, 7):
        return None
    channels = struct.unpack(f"<{len(data) // 2}H", data[1:])
    return channels if len(channels) == 3 else int(channels[0])


def apply_metadata(
    image: Image.Image, metadata: Mapping[str, bytes], limits: Limits = DEFAULT_LIMITS
) -> None:
    """Give an image what :func:`get_metadata` took from another of its mode; ignore other items.

    Raises:
        CorruptError: an item is malformed, or does not go with the image's mode.
        FormatError: a palette is missing.
        LimitError: an item is over a limit.
    """
    if (image.mode == "P") != ("palette" in metadata):
        raise FormatError(f"mode {image.mode}: a palette goes with mode P and no other")
    if "icc" in metadata:
        image.info["icc_profile"] = _inflate(metadata["icc"], "icc", limits)
    if "exif" in metadata:
        image.info["exif"] = _inflate(metadata["exif"], "exif", limits)
    if "dpi" in metadata:
        if len(metadata["dpi"]) != 16:
            raise CorruptError(f"found {len(metadata['dpi'])} bytes of dpi, expected 16")
        dpi = struct.unpack("<2d", metadata["dpi"])
        if not _is_resolution(dpi):
            raise CorruptError(f"found a resolution of {dpi} dpi, expected 0 to {MAX_DPI:g}")
        image.info["dpi"] = dpi
    if "palette" in metadata:
        channels, colors = metadata["palette"][:1], metadata["palette"][1:]
        mode = _PALETTE_MODES.get(channels[0] if channels else 0)
        if mode is None or len(colors) % len(mode) or len(colors) > 256 * len(mode):
            raise CorruptError(f"found {len(colors)} bytes of palette, expected 256 RGBA at most")
        image.putpalette(colors, mode)
    if "transparency" in metadata:
        transparency = _unpack_transparency(metadata["transparency"])
        if not _is_transparency(transparency, image.mode):
            raise CorruptError(f"found transparency that does not fit mode {image.mode}")
        image.info["transparency"] = transparency


def _inflate(data: bytes, key: str, limits: Limits) -> bytes:
    decompressor = zlib.decompressobj()
    try:
        content = decompressor.decompress(data, limits.metadata_bytes + 1)
    except zlib.error as error:
        raise CorruptError(f"metadata {key} is damaged: {error}") from error
    limits.check_metadata(len(content))
    if not decompressor.eof or decompressor.unused_data:
        raise CorruptError(f"metadata {key} is damaged: its length is wrong")
    return content


def save_format(path: str | PathLike[str]) -> str:
    """The format to write by a path's suffix, for :func:`write_image`.

    Raises:
        UnsupportedError: no format known to keep pixels exactly has that suffix.
    """
    suffix = PurePath(path).suffix.lower()
    if suffix not in _SUFFIXES:
        raise UnsupportedError(
            f"found suffix '{suffix}', expected one of {', '.join(_SUFFIXES)}, which keep pixels "
            "exactly: write .png"
        )
    return _SUFFIXES[suffix]


def write_image(image: Image.Image, stream: IO[bytes], format: str = "PNG") -> None:
    """Write an image so that :func:`read_image` gives back the same mode and samples.

    Metadata is kept as far as the format can: all of it by PNG, which rounds the resolution to
    pixels per metre, writes a palette as RGB with alphas, and lengthens one shorter than the
    indices need; profile and EXIF by WebP, profile and resolution by TIFF (where Pillow would
    rotate by the EXIF), resolution by BMP, none by PPM.

    Raises:
        UnsupportedError: the format does not keep this image exactly; PNG does.
        OSError: the stream cannot be written.
    """
    image = as_image(image)
    options = _kept(image)
    plain = image.copy()
    plain.info = {}
    lost = ""
    if plain.mode not in EXACT_MODES.get(format, ()):
        lost = f"mode {plain.mode}"
    elif format != "PNG" and "transparency" in options:
        lost = "the transparent colour"
    elif format == "WEBP" and max(plain.size) > WEBP_MAX_SIDE:
        lost = f"sides over {WEBP_MAX_SIDE} pixels"
    elif format == "WEBP" and plain.mode == "RGBA" and _is_opaque(plain):
        lost = "an alpha channel that is opaque throughout"
    if lost:
        raise UnsupportedError(f"{format} does not keep {lost}: write PNG")
    if plain.mode == "P":
        _lengthen_palette(plain, options.get("transparency", 0))
    if format == "TIFF":
        options.pop("exif", None)
    coded = io.BytesIO()  # Pillow seeks in the stream, which standard output cannot
    plain.save(coded, format, **options, **_SAVE_OPTIONS.get(format, {}))
    stream.write(coded.getbuffer())


def _is_opaque(image: Image.Image) -> bool:
    return image.getchannel("A").getextrema() == (255, 255)


def _lengthen_palette(image: Image.Image, transparency: bytes | int) -> None:
    """Give every index a colour: Pillow's PNG cuts the indices to the bits of a short palette."""
    mode = image.palette.mode if image.palette else "RGB"
    palette = bytes(image.getpalette(mode) or [])
    indices = np.frombuffer(image.tobytes(), np.uint8)
    last = len(transparency) - 1 if isinstance(transparency, bytes) else transparency
    missing = max(int(indices.max()), last) + 1 - len(palette) // len(mode)
    if missing > 0:
        image.putpalette(palette + missing * bytes([0, 0, 0, 255][: len(mode)]), mode)
