"""Bits in the order of the file, and the codes made of them."""

import numpy as np

from diffcodec.arrays import Bits, Integers

MOST_QUOTIENT = 32  # of a Rice code; what lies farther out is moved here
MOST_STRETCH = 48  # stages are scaled by 2^(k / 8), |k| at most this


class EarlyEndError(ValueError):
    """The data end before what is wanted of them."""

    def __init__(self, wanted: int, left: int):
        super().__init__(f"the data end early: {wanted} bits wanted, {left} left")


class BitWriter:
    """Bits in the order of the file."""

    def __init__(self) -> None:
        self._parts: list[Bits] = []
        self.count = 0

    def write(self, bits: Bits) -> None:
        """Append zeros and ones."""
        self._parts.append(bits)
        self.count += len(bits)

    def bits(self) -> Bits:
        """All bits."""
        return np.concatenate([np.zeros(0, np.uint8), *self._parts])

    def to_bytes(self) -> bytes:
        """All bits, the first the highest of its byte; the last byte is filled up with zeros."""
        return np.packbits(self.bits()).tobytes()


class BitReader:
    """Inverse of :class:`BitWriter`."""

    def __init__(self, data: bytes | Bits):
        if isinstance(data, bytes):
            data = np.unpackbits(np.frombuffer(data, dtype=np.uint8))
        self._bits: Bits = data
        self.position = 0

    @property
    def left(self) -> int:
        """Bits that follow."""
        return len(self._bits) - self.position

    def read(self, count: int) -> Bits:
        """The next bits.

        Raises:
            EarlyEndError: there are not so many.
        """
        if count > self.left:
            raise EarlyEndError(count, self.left)
        self.position += count
        return self._bits[self.position - count : self.position]


def stretch_code(change: int) -> Bits:
    """0; or 1, the sign, and the magnitude less one in unary."""
    if not change:
        return np.zeros(1, np.uint8)
    return np.array([1, change < 0, *[1] * (abs(change) - 1), 0], np.uint8)


def read_stretch_change(reader: BitReader) -> int:
    """Inverse of :func:`stretch_code`.

    Raises:
        ValueError: if the data end, or the change is larger than from one end to the other.
    """
    if not reader.read(1)[0]:
        return 0
    sign = -1 if reader.read(1)[0] else 1
    for magnitude in range(1, 2 * MOST_STRETCH + 1):
        if not reader.read(1)[0]:
            return sign * magnitude
    raise ValueError(f"the stretch changes by more than {2 * MOST_STRETCH}")


def rice_code(values: Integers, parameter: Integers) -> Bits:
    """Signed integers, [n]: first their low bits, ``parameter`` each, then the rest in unary.

    Value by value and plane by plane; a quotient of MOST_QUOTIENT needs no end.
    """
    folded = np.where(values < 0, -2 * values - 1, 2 * values)
    parts = [
        (folded[parameter > bit] >> bit & 1).astype(np.uint8)
        for bit in range(int(parameter.max(initial=0)))
    ]
    quotient = folded >> parameter
    for plane in range(MOST_QUOTIENT):
        quotient = quotient[quotient >= plane]
        parts.append((quotient > plane).astype(np.uint8))
    return np.concatenate(parts)


def read_rice_code(reader: BitReader, parameter: Integers) -> Integers:
    """Inverse of :func:`rice_code`."""
    folded = np.zeros(len(parameter), dtype=np.int64)
    for bit in range(int(parameter.max(initial=0))):
        here = parameter > bit
        folded[here] |= reader.read(int(here.sum())).astype(np.int64) << bit
    left = np.arange(len(parameter))
    for _ in range(MOST_QUOTIENT):
        left = left[reader.read(len(left)) > 0]
        folded[left] += np.int64(1) << parameter[left]
    return np.where(folded & 1, -(folded + 1) // 2, folded // 2)
