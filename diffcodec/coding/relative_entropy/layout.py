"""Where the dimensions of a step lie on the trellis."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from diffcodec.arrays import Array, Integers
from diffcodec.coding.randomness import random_words

MOST_STRETCH = 48  # stages are scaled by 2^(k / 8), |k| at most this
UNIT = 1 << 24  # of expected bits
_LOG_STEPS = 4096


def _round30(values: Array) -> Array:
    """To multiples of 2^-30, which every maths library agrees on."""
    rounded: Array = np.rint(values * 2.0**30) / 2.0**30
    return rounded


_LOG = _round30(np.log2(1 + np.arange(_LOG_STEPS + 1) / _LOG_STEPS))
STRETCH = _round30(2.0 ** (np.arange(-MOST_STRETCH, MOST_STRETCH + 1) / 8))


def half_log2(ratio: Array) -> Integers:
    """``0.5 log2(ratio)``, ratio >= 1, in units of 2^-24; from a table, within two units."""
    mantissa, exponent = np.frexp(ratio)  # ratio = 2 mantissa 2^(exponent - 1)
    position = (2 * mantissa - 1) * _LOG_STEPS
    k = np.minimum(position.astype(np.int64), _LOG_STEPS - 1)
    log = _LOG[k] + (position - k) * (_LOG[k + 1] - _LOG[k])
    bits: Integers = np.rint((exponent - 1 + log) * (UNIT / 2)).astype(np.int64)
    return bits


RELATIVE_ENTROPY = 4  # purpose of the shared randomness
START = 3  # further stages, since a path begins at one known state
OFFSETS = 16  # stages begin at so many sequences in turn


class Key(NamedTuple):
    """What a step draws its shared randomness with."""

    tile: int
    timestep: int

    def words(self, kind: int, count: int) -> NDArray[np.uint32]:
        """Uniform words of one of four kinds."""
        return random_words(RELATIVE_ENTROPY, self.tile, count, self.timestep << 2 | kind)


class Layout(NamedTuple):
    """Where the dimensions lie on the trellis. Arrays by place, [n], but for order."""

    order: Integers  # the dimension at each place
    stage: Integers  # increasing
    row: Integers  # of the codebook
    sign: NDArray[np.int8]  # of its noise
    stages: int  # bits of the path


def count_stages(bits: float, rate: float) -> int:
    """Stages of a path that is worth so many bits."""
    return round(bits * rate + min(bits, START))


def stretched_stages(bits: Integers, rate: float, stretch: int) -> int:
    """Stages of a step; see :func:`make_layout`."""
    return count_stages(int(bits.sum()) / UNIT * float(STRETCH[stretch + MOST_STRETCH]), rate)


def make_layout(bits: Integers, key: Key, rate: float, stretch: int = 0) -> Layout:
    """Cut the dimensions, in pseudo-random order, into stages of equal expected bits.

    A dimension of several bits comes last in those it is worth, so that they all tell of it.

    Args:
        bits: expected of each dimension, in units of 2^-24, [n].
        key: of the step.
        rate: stages per bit.
        stretch: bits are 2^(stretch / 8) times the expected ones.
    """
    n, total = len(bits), int(bits.sum())
    stages = stretched_stages(bits, rate, stretch)
    # By random words; each carries its index, so that none are equal and any sort will do.
    tagged = np.arange(n, dtype=np.uint64)
    tagged |= key.words(0, n).astype(np.uint64) << np.uint64(32)
    order = (np.sort(tagged) & np.uint64(0xFFFFFFFF)).astype(np.int64)
    stage = np.zeros(n, dtype=np.int64)
    if stages:
        quotient, remainder = divmod(total, stages)
        j = np.arange(1, stages, dtype=np.int64)
        ends = j * quotient + j * remainder // stages
        ordered = bits[order]
        stage = np.searchsorted(ends, np.cumsum(ordered) - 1, side="right")
    first = np.searchsorted(stage, np.arange(max(stages, 1)))
    row = np.arange(n) - first[stage] + stage % OFFSETS
    sign = 1 - 2 * (key.words(1, n) & np.uint32(1)).astype(np.int8)
    return Layout(order, stage, row, sign, stages)
