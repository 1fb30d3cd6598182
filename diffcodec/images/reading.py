"""Images from files.

Pillow's limit of pixels and Python's filters of warnings hold for the whole process, and so for the
application too. Files are opened by Pillow's plug-ins, which is ``Image.open`` without that limit;
what Pillow warns of is for the application to hear.
"""

import io
import struct
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import IO

from PIL import Image, UnidentifiedImageError
from PIL.ImageFile import ImageFile

from diffcodec.errors import DiffcodecError, FormatError, LimitError
from diffcodec.images.formats import READ_FORMATS
from diffcodec.images.modes import as_image
from diffcodec.limits import DEFAULT_LIMITS, Limits

_PREFIX_BYTES = 16  # by which plug-ins know their files
_lock = threading.Lock()


@contextmanager
def _beyond_pillows_limit(pixels: int) -> Iterator[None]:
    """Keep the plug-ins that look at Pillow's limit themselves from refusing so many pixels.

    By default those over 179 million, so rarely. The limit is lifted then, under a lock, and never
    lowered: what the application opens meanwhile it opens as ever.
    """
    with _lock:
        limit = Image.MAX_IMAGE_PIXELS
        if limit is not None and pixels > 2 * limit:
            Image.MAX_IMAGE_PIXELS = pixels  # not None: others may be between two looks at it
            try:
                yield
            finally:
                Image.MAX_IMAGE_PIXELS = limit
            return
    yield


def webp_size(data: bytes) -> tuple[int, int]:
    """Width and height in the header of a WebP; zeros if there are none.

    The plug-in takes memory for the image as soon as it opens the file.
    """
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP" or len(data) < 25:
        return 0, 0
    if data[12:16] == b"VP8X":  # 24 bits each, less one
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if data[12:16] == b"VP8L":  # 14 bits each, less one, then alpha and version
        fields = int.from_bytes(data[21:25], "little")
        return 1 + (fields & 0x3FFF), 1 + (fields >> 14 & 0x3FFF)
    fields = int.from_bytes(data[26:30], "little")  # 14 bits each, and 2 of scales
    return fields & 0x3FFF, fields >> 16 & 0x3FFF


def open_image(data: bytes, formats: Sequence[str]) -> ImageFile:
    """``Image.open`` without Pillow's limit of pixels: look at the size before loading them.

    Raises:
        UnidentifiedImageError: it is in none of the formats.
        Exception: almost any, by Pillow's plug-ins on damaged data.
    """
    width, height = webp_size(data)
    for name in formats:
        if name not in Image.OPEN:
            Image.init()
        factory, accept = Image.OPEN[name]
        if accept is None or accept(data[:_PREFIX_BYTES]) is True:
            try:
                with _beyond_pillows_limit(width * height):
                    return factory(io.BytesIO(data), "")
            except (SyntaxError, IndexError, TypeError, struct.error):  # as Image.open has it
                continue
    raise UnidentifiedImageError(f"no image found in {', '.join(formats)}")


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
        limits.check_image(*webp_size(data))
        image = open_image(data, READ_FORMATS)
        limits.check_image(*image.size)
        with _beyond_pillows_limit(image.width * image.height):
            return as_image(image, limits)
    except DiffcodecError as error:
        raise type(error)(f"{name}: {error}") from error
    except Image.DecompressionBombError as error:  # a frame that is larger than its image
        raise LimitError(f"{name}: {error} Split the image") from error
    except UnidentifiedImageError as error:
        raise FormatError(f"{name}: {error}; convert it to PNG") from error
    except Exception as error:  # Pillow's plug-ins raise almost anything on damaged files
        raise FormatError(f"{name}: damaged or cut short ({error}); get a whole copy") from error
