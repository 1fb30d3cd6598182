"""Which integers of the colour domain can occur together, and tables restricted to these."""

import math
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, UInt8

from diffcodec.arrays import Array, Bytes, Integers
from diffcodec.compiled import compiled, works

MARGIN = 32  # beyond the domain on each side, where nothing can; as many as a sample's candidates
LEAST_COMPILED = 1024  # samples that the compiled loop is for


class ColorVolume(NamedTuple):
    """Which colours can occur, [y, co, cg] or [r, g, b], with ``MARGIN`` around the domain.

    Attributes:
        bits: one of each colour, the lowest of a byte first.
        shape: of the flags that they stand for.
        lowest: the integer of each channel at index 0.
    """

    bits: UInt8[Bytes, " n"]
    shape: tuple[int, int, int]
    lowest: tuple[int, int, int]

    def places(self, x: Sequence[Array]) -> Integers:
        """Where colours stand in the flattened flags; those outside the domain in the margin.

        Args:
            x: a channel each, integers, the lowest of candidates that follow it.
        """
        place: Integers = np.zeros(x[0].shape, dtype=np.int64)
        for channel, low, size in zip(x, self.lowest, self.shape, strict=True):
            inside = np.clip(channel - low, 0, size - MARGIN).astype(np.int64)
            place = place * size + inside
        return place

    def restricted(
        self, channel: int, tables: Sequence[Float64[Array, "m n"]], lowest: Sequence[Array]
    ) -> Float64[Array, "m n"]:
        """The first table, each candidate times the probability that the others make a colour.

        Columns in which nothing can occur, which no encoder writes, stay as they are.

        Args:
            channel: of the first table.
            tables: of a channel's candidates and of those of all coded channels after it.
            lowest: the first candidate of these channels, and the values of those before, [n].
        """
        strides = [math.prod(self.shape[c + 1 :]) for c in range(channel, 3)]
        index = self.places(lowest)
        if len(index) >= LEAST_COMPILED and _loop_works():
            return _by_loop(self.bits, index, strides, tables)
        return _by_arrays(self.bits, index, strides, tables)


def _by_arrays(
    bits: Bytes, index: Integers, strides: Sequence[int], tables: Sequence[Array]
) -> Array:
    """The first table restricted; strides of the flags by channel, from each of an index on."""
    own, *after = tables
    weights = np.stack(
        [
            row * _share(bits, index + k * strides[0], strides[1:], after)
            for k, row in enumerate(own)
        ]
    )
    return np.where(weights.any(axis=0), weights, own)


def _share(bits: Bytes, index: Integers, strides: Sequence[int], tables: Sequence[Array]) -> Array:
    """The probability of those candidates from an index on that can occur."""
    if not tables:
        flags: Array = ((bits[index >> 3] >> (index & 7)) & 1).astype(np.float64)
        return flags
    total = np.zeros(index.shape)
    for k, row in enumerate(tables[0]):
        total = total + row * _share(bits, index + k * strides[0], strides[1:], tables[1:])
    return total


def _by_loop(
    bits: Bytes, index: Integers, strides: Sequence[int], tables: Sequence[Array]
) -> Array:
    """The same, the tables of channels that there are not made of a sure candidate."""
    sure = np.ones((1, len(index)))
    own, second, third = (*map(np.ascontiguousarray, tables), sure, sure)[:3]
    out = np.empty_like(own)
    compiled(_fill)(bits, index, (*strides, 0, 0)[:3], own, second, third, out)
    return out


def _fill(
    bits: Bytes,
    index: Integers,
    strides: tuple[int, int, int],
    own: Array,
    second: Array,
    third: Array,
    out: Array,
) -> None:
    """Fill the restricted table, sample by sample."""
    for i in range(len(index)):
        possible = False
        for j in range(len(own)):
            share = 0.0
            for k in range(len(second)):
                first = index[i] + j * strides[0] + k * strides[1]
                inner = 0.0
                for m in range(len(third)):
                    place = first + m * strides[2]
                    flag = (bits[place >> 3] >> (place & 7)) & 1
                    inner = inner + third[m, i] * flag
                share = share + second[k, i] * inner
            out[j, i] = own[j, i] * share
            possible = possible or out[j, i] != 0
        if not possible:
            for j in range(len(own)):
                out[j, i] = own[j, i]


@cache
def _loop_works() -> bool:
    """Whether there is a compiler and the compiled loop gives what NumPy gives, bit for bit."""

    def is_exact() -> bool:
        rng = np.random.default_rng(0)
        bits, index = rng.integers(4, size=200).astype(np.uint8), rng.integers(900, size=50)
        tables, strides = list(rng.random((3, 8, 50))), [81, 9, 1]
        return all(
            np.array_equal(_by_loop(*given), _by_arrays(*given))
            for given in ((bits, index, strides[c:], tables[c:]) for c in range(3))
        )

    return works(is_exact)
