"""Distributions over arrays as codecs: a push onto the stack, and the pop that inverts it."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from diffcodec.arrays import Array
from diffcodec.coding.ans import Stack


class Codec(Protocol):
    """The code of an array under a distribution that both sides know.

    Guarantee: on any stack, ``pop`` after ``push`` returns the values, and ``push`` of what ``pop``
    returned restores the stack, to the last bit.
    """

    def push(self, stack: Stack, values: Array) -> bool:
        """Put values on the stack; False, with nothing pushed, if one of them has no code."""
        ...

    def pop(self, stack: Stack) -> Array:
        """Take values off the stack."""
        ...


@dataclass(frozen=True)
class GaussianBins:
    """N(mean, std^2) on the lattice ``spacing n + offset``, by the masses of its bins.

    Attributes:
        mean, std: of the values, and of their shape.
        spacing, offset: of the lattice; they broadcast against the mean.
        radius: how many bins from the mean's own a value may lie.
    """

    mean: Array
    std: Array
    spacing: Array
    offset: Array
    radius: int

    def push(self, stack: Stack, values: Array) -> bool:
        """See :meth:`Codec.push`."""
        symbols = np.rint((values - self.offset) / self.spacing)
        return stack.push_gaussian(symbols.ravel(), *self._in_bins(), self.radius)

    def pop(self, stack: Stack) -> Array:
        """See :meth:`Codec.pop`."""
        symbols = stack.pop_gaussian(*self._in_bins(), self.radius)
        values: Array = self.spacing * symbols.reshape(self.mean.shape) + self.offset
        return values

    def _in_bins(self) -> tuple[Array, Array]:
        mean, std = (self.mean - self.offset) / self.spacing, self.std / self.spacing
        return mean.ravel(), std.ravel()


@dataclass(frozen=True)
class Candidates:
    """Integers of which each is one of M neighbours.

    Attributes:
        lowest: the first candidate of each value, of the values' shape.
        table: the candidates' probabilities, [values, M].
    """

    lowest: Array
    table: Array

    def push(self, stack: Stack, values: Array) -> bool:
        """See :meth:`Codec.push`."""
        symbols = (values - self.lowest).ravel().astype(np.int32)
        stack.push_categorical(symbols, self.table)
        return True

    def pop(self, stack: Stack) -> Array:
        """See :meth:`Codec.pop`."""
        values: Array = self.lowest + stack.pop_categorical(self.table).reshape(self.lowest.shape)
        return values
