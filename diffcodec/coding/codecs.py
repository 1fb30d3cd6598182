"""Distributions over arrays as codecs: a push onto the stack, and the pop that inverts it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from jaxtyping import Float64

from diffcodec.arrays import Array, Flags
from diffcodec.coding.ans import Stack
from diffcodec.coding.color_volume import ColorVolume


class Allowed(Protocol):
    """Which colours can occur."""

    def __call__(self, x: Array) -> Flags:
        """Whether those of integers of the colour domain can, [3, height, width]."""
        ...

    @property
    def volume(self) -> ColorVolume:
        """The same of the whole domain."""
        ...


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
        table: the candidates' probabilities but for a factor of each row, [values, M].
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


def restricted(
    tables: Sequence[Float64[Array, "n m"]],
    lowest: Float64[Array, "3 height width"],
    x: Float64[Array, "3 height width"],
    allowed: Allowed,
) -> Float64[Array, "n m"]:
    """The last channel's table, restricted to what can occur with the channels after it.

    Rows in which nothing can, which no encoder writes, stay as they are.

    Args:
        tables: of the candidates of the first channels, one after another.
        lowest: the first candidate of each value.
        x: the values, of which the channels after those of the tables are looked at.
        allowed: which colours can occur.
    """
    weights = np.stack(_weights(tables, lowest, x.copy(), allowed), axis=-1)
    return np.where(weights.any(axis=-1, keepdims=True), weights, tables[-1])


def _weights(
    tables: Sequence[Array], lowest: Array, x: Array, allowed: Allowed
) -> list[Float64[Array, " n"]]:
    """The last table's candidates' weights: p of each and of what can occur before it; changes x.

    Sums go over the candidates from the first, so that they are the same on every machine.
    """
    *before, table = tables
    weights = []
    for k in range(table.shape[1]):
        x[len(before)] = lowest[len(before)] + k
        share = sum(_weights(before, lowest, x, allowed)) if before else allowed(x).ravel()
        weights.append(table[:, k] * share)
    return weights
