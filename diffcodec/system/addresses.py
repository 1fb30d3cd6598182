"""Addresses that fsspec opens, beside paths, and what goes wrong in reading either."""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast
from urllib.parse import unquote, urlsplit

from diffcodec.errors import DiffcodecError

AHEAD_BYTES = 1 << 16  # that are read beyond what is needed, where each reading is a request
TIMEOUT_SECONDS = 30  # without an answer of a web server
EACH_SYSTEMS_OWN = (Exception,)  # errors of file systems
_ADDRESS = re.compile("[a-z][a-z0-9+.-]+://")


def is_address(data: Any) -> bool:
    """Whether this is an address that fsspec opens, and no path."""
    return isinstance(data, str) and _ADDRESS.match(data) is not None


def name_of(source: str) -> str:
    """The name of a file by its path, or by its address without what is asked of a server."""
    return Path(unquote(urlsplit(source).path) if is_address(source) else source).name


def file_system(address: str) -> tuple[Any, str]:
    """fsspec's file system for an address, and the path in it.

    Raises:
        DiffcodecError: fsspec is not there or does not know such addresses.
    """
    try:
        from fsspec.core import url_to_fs

        options = {}
        if address.startswith(("http://", "https://")):
            from aiohttp import ClientTimeout

            waiting = ClientTimeout(
                total=None, sock_connect=TIMEOUT_SECONDS, sock_read=TIMEOUT_SECONDS
            )
            options["client_kwargs"] = {"timeout": waiting}
        found: tuple[Any, str] = url_to_fs(address, **options)
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
    with reading(address, errors=EACH_SYSTEMS_OWN):
        stream = files.open(path, "rb", block_size=AHEAD_BYTES, cache_type="readahead")
    with stream:
        yield cast(BinaryIO, _RemoteStream(address, stream))


class _RemoteStream(io.RawIOBase):
    """A stream whose failures name its address, whatever kind its file system raises."""

    def __init__(self, address: str, stream: Any):
        self.address, self.stream = address, stream

    def read(self, size: int | None = -1) -> bytes:
        with reading(self.address, errors=EACH_SYSTEMS_OWN):
            data: bytes = self.stream.read(-1 if size is None else size)
        return data

    def seekable(self) -> bool:
        return bool(self.stream.seekable())

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        with reading(self.address, errors=EACH_SYSTEMS_OWN):
            return int(self.stream.seek(offset, whence))


@contextmanager
def reading(
    name: object, *, errors: tuple[type[Exception], ...] = (OSError, ValueError, ImportError)
) -> Iterator[None]:
    """What cannot be opened or read raises an error of ours."""
    try:
        yield
    except errors as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        if not is_address(name):
            raise DiffcodecError(f"cannot read {name}: {reason}; check the path") from error
        if isinstance(error, FileNotFoundError):
            cause = error.__cause__ or error  # fsspec raises it whatever a server answers
            is_missing = isinstance(cause, FileNotFoundError) or getattr(cause, "status", 0) == 404
            reason = "there is no such file" if is_missing else str(cause)
        elif isinstance(error, TimeoutError):
            reason = f"no answer for {TIMEOUT_SECONDS} seconds"
        raise DiffcodecError(f"cannot read {name}: {reason}; check the address") from error
