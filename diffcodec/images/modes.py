"""The kinds of image that are coded exactly."""

import math
import zlib

import numpy as np
from PIL import Image, TiffImagePlugin

from diffcodec.arrays import AnyArray
from diffcodec.container.parts import MODES
from diffcodec.errors import FormatError, UnsupportedError
from diffcodec.images.metadata import kept_fields
from diffcodec.limits import DEFAULT_LIMITS, Limits

_ARRAY_MODES = {
    ("bool", 1): "1",
    ("uint8", 1): "L",
    ("uint8", 2): "LA",
    ("uint8", 3): "RGB",
    ("uint8", 4): "RGBA",
    ("uint16", 1): "I;16",
}


def as_image(source: Image.Image | AnyArray, limits: Limits = DEFAULT_LIMITS) -> Image.Image:
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


def _from_array(array: AnyArray) -> Image.Image:
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
    plain.info = dict(kept_fields(image).items())
    return plain


def pixel_crc(image: Image.Image) -> int:
    """CRC-32 of the samples, as Pillow's ``tobytes``: rows from the top, channels interleaved.

    Mode 1 is packed to bits, each row padded to a byte; I;16 is little-endian; P is the indices.
    """
    return zlib.crc32(image.tobytes())


def psnr(shown: Image.Image | AnyArray, image: Image.Image | AnyArray) -> float:
    """Peak signal-to-noise ratio over all samples in dB; infinite where they are equal."""
    rows = list(zip(np.asarray(shown), np.asarray(image), strict=True))  # for less memory
    error = sum(float(np.mean(np.subtract(a, b, dtype=np.float64) ** 2)) for a, b in rows)
    error /= len(rows)
    return 10 * math.log10(255**2 / error) if error else math.inf
