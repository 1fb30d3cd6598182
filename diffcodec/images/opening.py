"""Files opened by Pillow's plug-ins: ``Image.open`` without its limit of pixels.

Pillow's limit and Python's filters of warnings hold for the whole process, and so for the
application too; what Pillow warns of is for the application to hear.
"""

import io
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from PIL import Image, UnidentifiedImageError
from PIL.ImageFile import ImageFile

from diffcodec.forks import held_in_forks

_PREFIX_BYTES = 16  # by which plug-ins know their files
_lock = held_in_forks()


@contextmanager
def beyond_pillows_limit(pixels: int) -> Iterator[None]:
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


def known_formats(data: bytes, formats: Sequence[str]) -> Iterator[str]:
    """The formats, of those given, whose files begin so."""
    for name in formats:
        if name not in Image.OPEN:
            Image.init()
        accept = Image.OPEN[name][1]
        if accept is None or accept(data[:_PREFIX_BYTES]) is True:
            yield name


def open_image(data: bytes, formats: Sequence[str]) -> ImageFile:
    """``Image.open`` without Pillow's limit of pixels: look at the size before loading them.

    Raises:
        UnidentifiedImageError: it is in none of the formats.
        Exception: almost any, by Pillow's plug-ins on damaged data.
    """
    width, height = webp_size(data)
    for name in known_formats(data, formats):
        try:
            with beyond_pillows_limit(width * height):
                return Image.OPEN[name][0](io.BytesIO(data), "")
        except (SyntaxError, IndexError, TypeError, struct.error):  # as Image.open has it
            continue
    raise UnidentifiedImageError(f"no image found in {', '.join(formats)}")
