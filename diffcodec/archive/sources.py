"""What archives are read from: files, and by fsspec whatever answers to ranges of bytes."""

from dataclasses import dataclass, field
from functools import cached_property
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from diffcodec.archive.records import Source
from diffcodec.errors import DiffcodecError
from diffcodec.system.addresses import EACH_SYSTEMS_OWN, file_system, is_address, reading


@dataclass(frozen=True)
class LocalSource:
    """A file, opened for each read: so threads and forked processes do not disturb each other.

    Attributes:
        path: as it is named in messages.
        file: the same from wherever the process goes.
    """

    path: Path
    file: Path = field(init=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "file", self.path.absolute())

    @property
    def size(self) -> int:
        """See :class:`Source`."""
        with reading(self.path):
            return self.file.stat().st_size

    def read(self, offset: int, size: int) -> bytes:
        """See :class:`Source`."""
        with reading(self.path), self.file.open("rb", buffering=0) as file:
            left = self.size - offset
            if left <= 0:
                return b""
            file.seek(offset)
            return _all_of(file, min(size, left))


@dataclass(frozen=True)
class RemoteSource:
    """A file of one of fsspec's file systems, of which only what is needed is read."""

    url: str
    system: Any
    path: str

    @cached_property
    def size(self) -> int:
        """See :class:`Source`; asked for once."""
        with reading(self.url, errors=EACH_SYSTEMS_OWN):
            return int(self.system.size(self.path))

    def read(self, offset: int, size: int) -> bytes:
        """See :class:`Source`. Servers refuse a range that begins at the end or behind it."""
        end = min(offset + size, self.size)
        if offset >= end:
            return b""
        with reading(self.url, errors=EACH_SYSTEMS_OWN):
            data: bytes = self.system.cat_file(self.path, start=offset, end=end)
        if len(data) > size:
            raise DiffcodecError(f"{self.url}: its server gives no parts of files; download it")
        return data


def open_source(path: str | PathLike[str]) -> Source:
    """A file by its path, or by a URL such as ``s3://bucket/name.dfca``.

    Raises:
        DiffcodecError: fsspec, which URLs take, is not there or does not know them.
        TypeError: it is neither.
    """
    if not isinstance(path, (str, PathLike)):
        raise TypeError(f"path: found {type(path).__name__}, expected a path or a URL")
    address = fspath(path)
    if not is_address(address):
        return LocalSource(Path(path))
    return RemoteSource(address, *file_system(address))


def _all_of(file: Any, size: int) -> bytes:
    """So many bytes: the system gives at most 2 GiB at once."""
    pieces = []
    while size > 0 and (piece := file.read(size)):
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)
