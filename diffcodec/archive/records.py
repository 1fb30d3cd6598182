"""An archive byte by byte: its first bytes, the records behind them, and the ends that find these.

No numerics. A record carries its own place, length and checksums; what lies between records, which
an append that was cut short has left, belongs to nothing.
"""

import struct
import zlib
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple, Protocol

from diffcodec.errors import CorruptError, FormatError, TruncatedError, UnsupportedFileError

SUFFIX = ".dfca"
MAGIC = b"\x89DFCA"
VERSION = 1
HEADER = MAGIC + bytes([VERSION])
MARK = b"\x89DF"
GROUP, PAGE, MODEL, ROOT, END = b"G", b"P", b"M", b"R", b"Z"
HEAD = struct.Struct("<3scQI")  # mark, kind, length of the content, CRC
HEAD_BYTES, CRC_BYTES = HEAD.size, 4
TAIL = struct.Struct("<QI4s")  # where the root lies, CRC, mark
_LAST_BYTES, _SEARCH_BYTES = 1 << 10, 1 << 20  # read to find the root, first and then
_MOST_TAILS = 1000  # that tell of no root, behind the one that is found


class Place(NamedTuple):
    """Where a record lies, and how long it is in all."""

    offset: int
    size: int


class Source(Protocol):
    """What an archive is read from."""

    @property
    def size(self) -> int:
        """Bytes that there are now."""
        ...

    def read(self, offset: int, size: int) -> bytes:
        """Bytes from a place on; fewer if there are no more."""
        ...


def check_header(source: Source) -> None:
    """Refuse what is no archive.

    Raises:
        FormatError, UnsupportedFileError: it is none, or of another version.
    """
    found = source.read(0, len(HEADER))
    if not found.startswith(MAGIC):
        start = f"it starts with the bytes {found.hex(' ')}" if found else "it is empty"
        raise FormatError(f"not an archive of diffcodec: {start}, expected {MAGIC.hex(' ')}")
    if found != HEADER:
        raise UnsupportedFileError(
            f"the archive is of version {found[len(MAGIC) :].hex() or 'none'}, this diffcodec "
            f"reads version {VERSION}: a newer diffcodec may be needed"
        )


def record(kind: bytes, offset: int, content: bytes) -> bytes:
    """The bytes of a record that is to lie at a place."""
    head = record_head(kind, offset, len(content))
    return b"".join((head, content, _crc(offset, content)))


def record_head(kind: bytes, offset: int, size: int) -> bytes:
    """What stands before the content of a record of so many bytes."""
    head = struct.pack("<3scQ", MARK, kind, size)
    return head + _crc(offset, head)


def read_record(source: Source, kind: bytes, place: Place, what: str) -> bytes:
    """The content of a record.

    Raises:
        CorruptError, TruncatedError: it is not there as it was written.
    """
    data = source.read(place.offset, place.size)
    if len(data) < place.size:
        raise TruncatedError(f"the archive ends early, in {what}; get the whole file again")
    content = data[HEAD_BYTES:-CRC_BYTES]
    if data != record(kind, place.offset, content):
        raise CorruptError(f"{what} does not match its checksum; get the file again")
    return content


def next_record(source: Source, start: int) -> tuple[bytes, Place] | None:
    """The kind and place of the record at a place; None if there is none with a whole head."""
    data = source.read(start, HEAD_BYTES)
    if len(data) < HEAD_BYTES:
        return None
    mark, kind, size, _ = HEAD.unpack(data)
    if mark != MARK or data != record_head(kind, start, size):
        return None
    return kind, Place(start, HEAD_BYTES + size + CRC_BYTES)


def tail(root: int) -> bytes:
    """The end of an archive: where its root lies."""
    offset = struct.pack("<Q", root)
    return b"".join((offset, _crc(root, offset), MARK, END))


def find_root(source: Source) -> tuple[Place, bytes]:
    """The last root that is whole, and its content; behind it nothing counts.

    Raises:
        CorruptError: there is none, or it is behind more tails without a root, or more bytes of
            damaged roots, than an archive can have.
    """
    damaged = 0
    for place in islice(_roots(source), _MOST_TAILS):
        if next_record(source, place.offset) != (ROOT, place):
            continue
        try:
            return place, read_record(source, ROOT, place, "the index")
        except FormatError:
            damaged += place.size
        if damaged > source.size:  # they lie across each other
            break
    raise CorruptError("the archive has no whole index; get the file again")


def _roots(source: Source) -> Iterator[Place]:
    """Where tails say that roots lie, the last first."""
    end, size = source.size, _LAST_BYTES
    while end >= len(HEADER) + TAIL.size:
        start = max(len(HEADER), end - size)
        data = source.read(start, end - start)
        found = len(data)
        while (found := data.rfind(MARK + END, 0, found + len(MARK))) >= 0:
            first = found + len(MARK + END) - TAIL.size
            last = data[max(first, 0) : first + TAIL.size]
            root = TAIL.unpack(last)[0] if first >= 0 else 0
            if last == tail(root) and len(HEADER) <= root < start + first:
                yield Place(root, start + first - root)
            found -= 1
        if start == len(HEADER):
            break
        end, size = start + TAIL.size, _SEARCH_BYTES  # a tail may lie across the edge


def _crc(offset: int, data: bytes) -> bytes:
    return struct.pack("<I", zlib.crc32(data, zlib.crc32(struct.pack("<Q", offset))))
