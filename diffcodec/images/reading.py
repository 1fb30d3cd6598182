"""Images from files."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import IO

from PIL import Image, UnidentifiedImageError

from diffcodec.errors import DiffcodecError, FormatError, LimitError
from diffcodec.images.modes import as_image
from diffcodec.limits import DEFAULT_LIMITS, Limits

READ_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "QOI", "TIFF", "WEBP")


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
