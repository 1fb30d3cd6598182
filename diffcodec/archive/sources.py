"""What archives are read from: files, and by fsspec whatever answers to ranges of bytes."""

from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from diffcodec.archive.records import Source
from diffcodec.errors import DiffcodecError


@dataclass(frozen=True)
class LocalSource:
    """A file, opened for each read: so threads and forked processes do not disturb each other."""

    path: Path

    @property
    def size(self) -> int:
        """See :class:`Source`."""
        try:
            return self.path.stat().st_size
        except (OSError, ValueError) as e:  # ValueError: a NUL in the path
            raise _unreadable(self.path, e) from e

    def read(self, offset: int, size: int) -> bytes:
        """See :class:`Source`."""
        try:
            with self.path.open("rb", buffering=0) as file:
                end = self.size
                file.seek(offset)
                return _all_of(file, min(size, max(end - offset, 0)))
        except (OSError, ValueError) as e:
            raise _unreadable(self.path, e) from e


@dataclass(frozen=True)
class RemoteSource:
    """A file of one of fsspec's file systems, of which only what is needed is read."""

    url: str
    system: Any
    path: str

    @property
    def size(self) -> int:
        """See :class:`Source`."""
        try:
            return int(self.system.size(self.path))
        except Exception as e:  # each file system has its own
            raise _unreadable(self.url, e) from e

    def read(self, offset: int, size: int) -> bytes:
        """See :class:`Source`."""
        try:
            data: bytes = self.system.cat_file(self.path, start=offset, end=offset + size)
        except Exception as e:
            raise _unreadable(self.url, e) from e
        return data


def open_source(path: str | PathLike[str]) -> Source:
    """A file by its path, or by a URL such as ``s3://bucket/name.dfca``.

    Raises:
        DiffcodecError: fsspec, which URLs take, is not there or does not know them.
        TypeError: it is neither.
    """
    if not isinstance(path, (str, PathLike)):
        raise TypeError(f"path: found {type(path).__name__}, expected a path or a URL")
    if "://" not in fspath(path):
        return LocalSource(Path(path))
    try:
        from fsspec.core import url_to_fs

        system, inner = url_to_fs(fspath(path))
    except (ImportError, ValueError) as e:
        raise DiffcodecError(
            f"cannot open {path}: {e}; pip install 'diffcodec[remote]', and what fsspec needs for "
            "this kind of URL"
        ) from e
    return RemoteSource(fspath(path), system, inner)


def _all_of(file: Any, size: int) -> bytes:
    """So many bytes: the system gives at most 2 GiB at once."""
    pieces = []
    while size > 0 and (piece := file.read(size)):
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)


def _unreadable(name: object, error: Exception) -> DiffcodecError:
    reason = getattr(error, "strerror", None) or error
    return DiffcodecError(f"cannot read {name}: {reason}; check the path")
