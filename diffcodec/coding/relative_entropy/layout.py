"""Where the dimensions of a step lie on the trellis."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int8, Int64, UInt32

from diffcodec.arrays import Array, Int8s, Integers, Words
from diffcodec.coding.randomness import RELATIVE_ENTROPY, random_words

UNIT = 1 << 24  # of expected bits
OFFSETS = 16  # stages begin at so many rows in turn
_LOG_STEPS = 4096


def round30(values: Array) -> Array:
    """Round to multiples of 2^-30, which every maths library agrees on."""
    rounded: Array = np.rint(values * 2.0**30) / 2.0**30
    return rounded


_LOG = round30(np.log2(1 + np.arange(_LOG_STEPS + 1) / _LOG_STEPS))


def half_log2(ratio: Float64[Array, " n"]) -> Int64[Integers, " n"]:
    """``0.5 log2(ratio)``, ratio >= 1, in units of 2^-24; from a table, within two units."""
    mantissa, exponent = np.frexp(ratio)  # ratio = 2 mantissa 2^(exponent - 1)
    position = (2 * mantissa - 1) * _LOG_STEPS
    k = np.minimum(position.astype(np.int64), _LOG_STEPS - 1)
    log = _LOG[k] + (position - k) * (_LOG[k + 1] - _LOG[k])
    bits: Integers = np.rint((exponent - 1 + log) * (UNIT / 2)).astype(np.int64)
    return bits


class Key(NamedTuple):
    """What a step draws its shared randomness with."""

    tile: int
    timestep: int

    def words(self, kind: int, count: int) -> UInt32[Words, " count"]:
        """Uniform words of one of four kinds."""
        return random_words(RELATIVE_ENTROPY, self.tile, count, self.timestep << 2 | kind)


class Layout(NamedTuple):
    """Where the dimensions lie on the trellis. Arrays by place, [n], but for order."""

    order: Int64[Integers, " n"]  # the dimension at each place
    stage: Int64[Integers, " n"]  # increasing
    row: Int64[Integers, " n"]  # of the codebook
    sign: Int8[Int8s, " n"]  # of its noise
    stages: int  # bits of the path


def make_layout(bits: Int64[Integers, " n"], key: Key, stages: int) -> Layout:
    """Cut the dimensions, in pseudo-random order, into stages of equal expected bits.

    A dimension of several bits comes last in those it is worth, so that they all tell of it.

    Args:
        bits: expected of each dimension, in units of 2^-24.
        key: of the step.
        stages: bits of the path.
    """
    n = len(bits)
    # By random words; each carries its index, so that none are equal and any sort will do.
    tagged = np.arange(n, dtype=np.uint64)
    tagged |= key.words(0, n).astype(np.uint64) << np.uint64(32)
    order = (np.sort(tagged) & np.uint64(0xFFFFFFFF)).astype(np.int64)
    stage = np.zeros(n, dtype=np.int64)
    if stages:
        quotient, remainder = divmod(int(bits.sum()), stages)
        j = np.arange(1, stages, dtype=np.int64)
        ends = j * quotient + j * remainder // stages
        stage = np.searchsorted(ends, np.cumsum(bits[order]) - 1, side="right")
    first = np.searchsorted(stage, np.arange(max(stages, 1)))
    row = np.arange(n) - first[stage] + stage % OFFSETS
    sign = 1 - 2 * (key.words(1, n) & np.uint32(1)).astype(np.int8)
    return Layout(order, stage, row, sign, stages)
