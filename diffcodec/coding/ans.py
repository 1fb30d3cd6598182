"""The entropy coder: a stack of bits (asymmetric numeral systems, Duda 2013) from constriction.

The only module that imports constriction. Everything handed to it is checked first, since it
panics on a standard deviation of 0 and takes NaN silently.
"""

import math

import constriction
import numpy as np
from jaxtyping import Float64, Int32, UInt32

from diffcodec.arrays import Array, Int32s, Words, round_significant

_model = constriction.stream.model
_STEPS_PER_UNIT, _TAIL = 256, 9
# Phi(-k / 256); in so many bits every maths library gives the same. SciPy's takes a while to load.
_LOWER_TAIL = round_significant(
    np.array(
        [
            math.erfc(k / _STEPS_PER_UNIT / math.sqrt(2)) / 2
            for k in range(_TAIL * _STEPS_PER_UNIT + 1)
        ]
    ),
    bits=30,
)


def lower_tail(u: Float64[Array, "*shape"]) -> Float64[Array, "*shape"]:
    """Phi(-u) for u >= 0 by linear interpolation; exact arithmetic, the same on every machine."""
    position = np.minimum(u, _TAIL - 2.0**-20) * _STEPS_PER_UNIT
    index: Array = np.floor(position)
    k = index.astype(np.int64)
    return _LOWER_TAIL[k] + (position - index) * (_LOWER_TAIL[k + 1] - _LOWER_TAIL[k])


def truncated_gaussian(
    mean: Float64[Array, " n"], std: Float64[Array, " n"], count: int
) -> Float64[Array, "n {count}"]:
    """Discretized Gaussian truncated to the integers 0..count-1, as a table."""
    edges = (np.arange(count + 1) - 0.5 - mean[:, None]) / std[:, None]  # [n, count + 1]
    tail = lower_tail(np.abs(edges))
    below = np.where(edges < 0, tail, 1 - tail)
    above = np.where(edges < 0, 1 - tail, tail)
    # A bin on the upper side by its upper tails, where they keep their relative precision.
    upper = edges[:, :-1] > 0
    mass = np.where(upper, above[:, :-1] - above[:, 1:], below[:, 1:] - below[:, :-1])
    # Out of the table's reach all that is known is the nearer end: 1e-12 keeps it decided.
    nearest = np.clip(np.rint(mean), 0, count - 1)[:, None] == np.arange(count)
    mass = np.maximum(mass, np.where(nearest, 1e-12, 1e-18))
    total = mass[:, 0]
    for j in range(1, count):
        total = total + mass[:, j]
    return mass / total[:, None]


class Stack:
    """Last in, first out: ``push`` adds symbols, ``pop`` under the same model takes them back.

    Guarantee: any sequence of operations is undone by the inverse operations in reverse order.
    """

    def __init__(self, words: UInt32[Words, " words"]):
        """Start from words, the top last; the last word must not be zero."""
        if words.size == 0 or words[-1] == 0:
            raise ValueError("the stack needs words, the last of them not zero")
        self._coder = constriction.stream.stack.AnsCoder(np.ascontiguousarray(words))

    @property
    def height(self) -> int:
        """Words on the stack."""
        return int(self._coder.num_words())

    @property
    def bits(self) -> int:
        """Bits on the stack, without the zeros on top."""
        return int(self._coder.num_valid_bits())

    def words(self) -> UInt32[Words, " words"]:
        """The whole stack, top last."""
        return np.asarray(self._coder.get_compressed(), dtype=np.uint32)

    def push_gaussian(
        self,
        symbols: Float64[Array, " n"],
        mean: Float64[Array, " n"],
        std: Float64[Array, " n"],
        radius: int,
    ) -> bool:
        """Push integers under the discretized Gaussian on ``radius`` bins around ``rint(mean)``.

        Args:
            symbols: integers, [n].
            mean, std: of each symbol's Gaussian, in bins, [n]; finite, std > 0.
            radius: symbols farther than this from the rounded mean have no code.

        Returns:
            False, with nothing pushed, if some symbol has no code.
        """
        centre = _check(mean, std)
        offsets = symbols - centre
        if offsets.size and not (np.max(np.abs(offsets)) <= radius):  # also false for NaN
            return False
        model = _model.QuantizedGaussian(-radius, radius)
        self._coder.encode_reverse(offsets.astype(np.int32), model, mean - centre, std)
        return True

    def pop_gaussian(
        self, mean: Float64[Array, " n"], std: Float64[Array, " n"], radius: int
    ) -> Float64[Array, " n"]:
        """Inverse of :meth:`push_gaussian`."""
        centre = _check(mean, std)
        model = _model.QuantizedGaussian(-radius, radius)
        offsets = np.asarray(self._coder.decode(model, mean - centre, std), dtype=np.float64)
        return centre + offsets

    def push_categorical(self, symbols: Int32[Int32s, " n"], table: Float64[Array, "n m"]) -> None:
        """Push integers 0..m-1, each under its row of probabilities."""
        self._coder.encode_reverse(symbols, _model.Categorical(perfect=False), _check_table(table))

    def pop_categorical(self, table: Float64[Array, "n m"]) -> Int32[Int32s, " n"]:
        """Inverse of :meth:`push_categorical`."""
        model = _model.Categorical(perfect=False)
        return np.asarray(self._coder.decode(model, _check_table(table)), dtype=np.int32)


def _check(mean: Float64[Array, " n"], std: Float64[Array, " n"]) -> Float64[Array, " n"]:
    """Reject what constriction would panic on or take silently; returns ``rint(mean)``."""
    if mean.size and not (np.max(np.abs(mean)) < 2**29):  # also false for NaN
        raise ValueError("a mean is not finite or beyond 2^29 bins")
    if std.size and not (np.min(std) >= 1e-6 and np.max(std) < 2**30):
        raise ValueError("a standard deviation is not within 1e-6..2^30 bins")
    centre: Array = np.rint(mean)
    return centre


def _check_table(table: Float64[Array, "n m"]) -> Float64[Array, "n m"]:
    if not (np.all(table >= 0) and np.all(table <= 1)):
        raise ValueError("a probability is not within 0..1")
    return np.ascontiguousarray(table)
