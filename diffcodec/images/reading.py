"""Images from files."""

from os import PathLike
from pathlib import Path, PurePath
from typing import IO

from PIL import Image, UnidentifiedImageError

from diffcodec.errors import DiffcodecError, FormatError, LimitError
from diffcodec.images import png
from diffcodec.images.endings import end_of_image
from diffcodec.images.formats import READ_FORMATS, SUFFIXES
from diffcodec.images.modes import as_image
from diffcodec.images.opening import beyond_pillows_limit, known_formats, open_image, webp_size
from diffcodec.limits import DEFAULT_LIMITS, Limits


def read_image(
    source: str | PathLike[str] | IO[bytes],
    limits: Limits = DEFAULT_LIMITS,
    *,
    frame: int | None = None,
    in_shell: bool = False,
) -> Image.Image:
    """The image in a file, loaded, with nothing in ``info`` but the metadata that is kept.

    What the file has beside that is named in ``info["not_kept"]``, if there is any.

    Args:
        source: a path, or a stream open for reading bytes.
        limits: the sizes to accept.
        frame: which of several to take, the first is 0.
        in_shell: whether advice is for users of the command line, not of Python.

    Raises:
        DiffcodecError: the file cannot be read.
        FormatError: it is not a whole image in one of ``READ_FORMATS``.
        LimitError: it is over a limit.
        UnsupportedError: it has several frames, not that frame, or pixels to be converted.
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
        fields = {}
        if data.startswith(png.SIGNATURE):
            parts = png.split(data, limits.metadata_bytes)
            data, fields = parts.pixels, parts.fields
        image = open_image(data, READ_FORMATS)
        image.info.update(fields)
        if behind := len(data) - end_of_image(data, str(image.format)):
            image.info["not_kept"] = (f"{behind} bytes behind the end of the {image.format}",)
        limits.check_image(*image.size)
        with beyond_pillows_limit(image.width * image.height):
            return as_image(image, limits, frame=frame, in_shell=in_shell)
    except DiffcodecError as error:
        raise type(error)(f"{name}: {error}") from error
    except Image.DecompressionBombError as error:  # a frame that is larger than its image
        raise LimitError(f"{name}: {error} Split the image") from error
    except UnidentifiedImageError as error:
        raise FormatError(f"{name}: {_describe_unknown(data, name)}") from error
    except Exception as error:  # Pillow's plug-ins raise almost anything on damaged files
        raise FormatError(f"{name}: damaged or cut short ({error}); get a whole copy") from error


def _describe_unknown(data: bytes, name: str) -> str:
    """Why there is no image in a file, and what to do."""
    if not data:
        return "an empty file, expected an image; get a whole copy"
    for format in known_formats(data, READ_FORMATS):
        if format in ("TIFF", "BMP"):  # which have many kinds
            return (
                f"a {format} that is damaged, or of a kind that Pillow does not read, such as of "
                "64-bit floats or a camera's raw: get a whole copy, or convert it to PNG"
            )
        return f"damaged {format}: its header is wrong; get a whole copy"
    found = f"no image found in {', '.join(READ_FORMATS)}"
    if expected := SUFFIXES.get(PurePath(name).suffix.lower()):
        return (
            f"damaged {expected}, or another kind of file: it begins with {data[:8].hex(' ')}; "
            f"get a whole copy ({found})"
        )
    return f"{found}; convert it to PNG"
