"""What callers of the library give, held against what it takes."""

import mmap
import warnings
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from io import IOBase
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image

from diffcodec.container.primitives import read_stream
from diffcodec.images.metadata import stripped
from diffcodec.images.modes import as_image
from diffcodec.images.reading import read_image
from diffcodec.limits import Limits
from diffcodec.system.addresses import is_address, opened_address, reading
from diffcodec.values import check_limits, flag

FileLike = str | PathLike[str] | bytes | bytearray | memoryview | mmap.mmap | BinaryIO
_BUFFERS = (bytearray, memoryview, mmap.mmap)


def find_source(image: Any, limits: Limits, strip: bool) -> Image.Image:
    """The image to encode, from a path or what :func:`diffcodec.images.modes.as_image` takes.

    Warns of metadata that the file has and that can't be kept.

    Raises:
        DiffcodecError, TypeError: see :func:`diffcodec.encode`.
    """
    check_limits(limits)
    if isinstance(image, (str, PathLike)):
        source = read_image(image, limits)
    else:
        source = as_image(image, limits)
    if flag("strip", strip):
        return stripped(source)
    if lost := source.info.get("not_kept"):
        warnings.warn(f"not kept of the image's file: {', '.join(lost)}", stacklevel=3)
    return source


def held_source(image: Any, limits: Limits, strip: bool) -> Image.Image:
    """:func:`find_source`, to be coded later: a copy, since callers may draw the next one over it.

    Raises:
        DiffcodecError, TypeError: likewise.
    """
    source = find_source(image, limits, strip)
    return source if isinstance(image, (str, PathLike)) else source.copy()


def each_of(name: str, several: Any) -> Iterator[Any]:
    """Images or files one after another, of which one alone is none.

    Raises:
        TypeError: it is not several.
    """
    one = isinstance(several, (str, bytes, PathLike, Image.Image, IOBase, *_BUFFERS))
    if one or getattr(several, "ndim", 4) < 4 or not isinstance(several, Iterable):
        raise TypeError(
            f"{name}: found {type(several).__name__}, expected a list of {name}, or what else "
            "gives one after another"
        )
    return iter(several)


@contextmanager
def opened(data: Any, in_parts: bool) -> Iterator[bytes | BinaryIO]:
    """A file to decode; see :func:`file_source`.

    Args:
        data: its path or address, bytes or a stream.
        in_parts: whether little of it is to be read: a path is opened then, not read whole.
    """
    if is_address(data):
        with opened_address(data) as stream:
            yield stream
    elif in_parts and isinstance(data, (str, PathLike)):
        with ExitStack() as stack:
            with reading(data):
                found = stack.enter_context(Path(data).open("rb"))
            yield found
    else:
        yield file_source(data)


def file_source(data: Any) -> bytes | BinaryIO:
    """A file to decode, from a path, bytes or a stream of them.

    Raises:
        DiffcodecError: there is no such file.
        TypeError: it is none of these.
    """
    if isinstance(data, bytes):
        return data
    if isinstance(data, _BUFFERS):
        return bytes(memoryview(data))
    if isinstance(data, (str, PathLike)):
        if is_address(data):
            with opened_address(str(data)) as found:
                return read_stream(found)
        with reading(data):
            return Path(data).read_bytes()
    if not callable(getattr(data, "read", None)):
        raise TypeError(
            f"data: found {type(data).__name__}, expected a path, bytes or a binary stream"
        )
    stream: BinaryIO = data
    return stream
