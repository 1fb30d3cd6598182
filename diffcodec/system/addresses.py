"""Addresses that fsspec opens, beside paths, and what goes wrong in reading either."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

from diffcodec.errors import DiffcodecError

AHEAD_BYTES = 1 << 16  # that are read beyond what is needed, where each reading is a request
_ADDRESS = re.compile("[a-z][a-z0-9+.-]+://")


def is_address(data: Any) -> bool:
    """Whether this is an address that fsspec opens, and no path."""
    return isinstance(data, str) and _ADDRESS.match(data) is not None


def file_system(address: str) -> tuple[Any, str]:
    """fsspec's file system for an address, and the path in it.

    Raises:
        DiffcodecError: fsspec is not there or does not know such addresses.
    """
    try:
        from fsspec.core import url_to_fs

        found: tuple[Any, str] = url_to_fs(address)
    except (OSError, ValueError, ImportError) as error:
        raise DiffcodecError(
            f"cannot read {address}: {error}; pip install 'diffcodec[remote]', and what fsspec "
            "needs for this kind of address, or give a path"
        ) from error
    return found


@contextmanager
def opened_address(address: str) -> Iterator[BinaryIO]:
    """A stream of what is at an address, of which little more is read than is asked for."""
    files, path = file_system(address)
    with reading(address):
        stream = files.open(path, "rb", block_size=AHEAD_BYTES, cache_type="readahead")
    with stream:
        yield stream


@contextmanager
def reading(
    name: object, *, errors: tuple[type[Exception], ...] = (OSError, ValueError, ImportError)
) -> Iterator[None]:
    """What cannot be opened or read raises an error of ours."""
    try:
        yield
    except errors as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or error
        raise DiffcodecError(f"cannot read {name}: {reason}; check the path") from error
