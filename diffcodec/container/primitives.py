"""Numbers and checksums in bytes."""

import io
import struct
import zlib
from collections.abc import Mapping
from typing import BinaryIO

from diffcodec.container.parts import CODERS, MODES
from diffcodec.errors import DiffcodecError, FormatError, TruncatedError, UnsupportedFileError

MODE_BITS = 0x07  # of the header's mode; the other bits are flags
LAYERS_BIT, WHOLE_BIT, METADATA_BIT, MARKS_BIT, FLOAT_BIT = 0x08, 0x10, 0x20, 0x40, 0x80
# Of a coder's number.
OUTLIERS_BIT, LABEL_BIT, CHAIN_BIT, PREVIEW_BIT, DRAW_BIT = 0x40, 0x20, 0x10, 0x08, 0x04
MOST_CODER = 0x7F
PART_BIT = 0x40  # of the plan of layers
CRC_BYTES = 4
SMALLEST_PART_BYTES = 5  # a length of one byte, no content, CRC
_VARINT_BYTES = 5
_CHUNK_BYTES = 1 << 16  # read at once from a file, whatever length it claims


def part_crc(header: bytes, section: int, tile: int, content: bytes) -> int:
    """The CRC of a part covers the header and its place too."""
    return zlib.crc32(content, zlib.crc32(struct.pack("<II", section, tile), zlib.crc32(header)))


def word_count(payload: bytes) -> int:
    """How many words of 32 bits a chain's payload has; the first may be shorter."""
    return -(-len(payload) // 4)


def mode_of(number: int) -> str:
    """The name of an image mode."""
    names = {mode.number: name for name, mode in MODES.items()}
    if number not in names:
        raise FormatError(f"unknown image mode: {number}, expected one of {names}")
    return names[number]


def coder_of(number: int, what: str, coders: Mapping[str, int] = CODERS) -> str:
    """The name of a coder; one that is not known may be a newer release's."""
    for name, known in coders.items():
        if known == number:
            return name
    raise UnsupportedFileError(
        f"unknown {what}: {number}, expected one of {coders}; a newer diffcodec may know it"
    )


def varint(value: int) -> bytes:
    """LEB128, unsigned, in the fewest bytes: 7 bits a byte, low bits first."""
    if not 0 <= value < 1 << 7 * _VARINT_BYTES:
        raise FormatError(f"{value} does not fit the format, expected 0 to 2^{7 * _VARINT_BYTES}-1")
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def read_stream(stream: BinaryIO, size: int = -1) -> bytes:
    """Bytes of a stream.

    Raises:
        DiffcodecError: it cannot be read.
        TypeError: it is no binary stream.
    """
    try:
        data = stream.read(size)
    except OSError as error:
        reason = error.strerror or error
        raise DiffcodecError(f"cannot read the stream: {reason}; open it for reading") from error
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise TypeError(
            f"the stream gives {type(data).__name__}, expected bytes: open it in mode 'rb'"
        )
    return bytes(data)


def seek_stream(stream: BinaryIO, count: int) -> bool:
    """Leave out bytes of a stream, if it can."""
    try:
        if not stream.seekable():
            return False
        stream.seek(count, io.SEEK_CUR)
    except (AttributeError, OSError):
        return False
    return True


class ByteReader:
    """A cursor over bytes or a stream; every read that passes its end is a TruncatedError."""

    def __init__(self, source: bytes | BinaryIO) -> None:
        self.data = source if isinstance(source, bytes) else bytearray()
        self._stream = None if isinstance(source, bytes) else source
        self.position = 0
        self._before = 0  # bytes of a stream before those at hand

    @property
    def remaining(self) -> int:
        """Bytes that follow; of a stream whether any do."""
        self.prepare(1)
        return len(self.data) - self.position

    def remaining_up_to(self, count: int) -> int:
        """How many bytes follow, but no more than so many."""
        self.prepare(count)
        return min(count, len(self.data) - self.position)

    def skip_to_end(self) -> None:
        """Leave out what follows, of bytes."""
        self.position = len(self.data)

    def prepare(self, count: int) -> None:
        """Have so many bytes at hand, if the stream has them."""
        while self._stream is not None and (missing := count + self.position - len(self.data)) > 0:
            chunk = read_stream(self._stream, min(missing, _CHUNK_BYTES))
            if not chunk:
                break
            self.data += chunk

    def skip(self, count: int) -> None:
        """Leave out the next bytes, which a stream that can seek does not read."""
        beyond = self.position + count - len(self.data)
        if self._stream is None:
            self.position += count
        elif beyond > 0 and seek_stream(self._stream, beyond):
            self._before += self.position + count
            self.data, self.position = bytearray(), 0
        else:
            self.prepare(count)
            self.position += count

    def need(self, count: int, part: str) -> None:
        """Refuse to go on where fewer bytes are left."""
        self.prepare(count)
        if count > len(self.data) - self.position:
            raise TruncatedError(
                f"the file ends early, in {part}: found {self._before + len(self.data)} bytes, "
                f"expected at least {self._before + self.position + count}; get the whole file "
                "again"
            )

    def take(self, count: int, part: str) -> bytes:
        """The next bytes."""
        self.need(count, part)
        self.position += count
        return bytes(self.data[self.position - count : self.position])

    def u8(self, part: str) -> int:
        """A byte."""
        return self.take(1, part)[0]

    def u32(self, part: str) -> int:
        """Four bytes, little-endian."""
        return int.from_bytes(self.take(4, part), "little")

    def varint(self, part: str) -> int:
        """Seven bits a byte, the lowest first."""
        value = 0
        for i in range(_VARINT_BYTES):
            byte = self.u8(part)
            value |= (byte & 0x7F) << 7 * i
            if byte < 0x80:
                if byte == 0 and i > 0:
                    raise FormatError(f"{part}: a number is not in its shortest form")
                return value
        raise FormatError(f"{part}: a number is longer than {_VARINT_BYTES} bytes")
