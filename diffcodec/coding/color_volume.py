"""Which integers of the colour domain can occur together, and tables restricted to these."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64

from diffcodec.arrays import Array, Flags, Integers

MARGIN = 32  # beyond the domain on each side, where nothing can; as many as a sample's candidates


class ColorVolume(NamedTuple):
    """Flags of all colours, [y, co, cg] or [r, g, b], with ``MARGIN`` around the domain.

    Attributes:
        flags: whether each can occur.
        lowest: the integer of each channel at index 0.
    """

    flags: Bool[Flags, "a b c"]
    lowest: tuple[int, int, int]

    def places(self, x: Sequence[Array]) -> Integers:
        """Where colours stand in the flattened flags; those outside the domain in the margin.

        Args:
            x: a channel each, integers, the lowest of candidates that follow it.
        """
        place: Integers = np.zeros(x[0].shape, dtype=np.int64)
        for channel, low, size in zip(x, self.lowest, self.flags.shape, strict=True):
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
        strides = [math.prod(self.flags.shape[c + 1 :]) for c in range(channel, 3)]
        index = self.places(lowest)
        own, *after = tables
        weights = np.stack(
            [
                row * self._share(after, index + k * strides[0], strides[1:])
                for k, row in enumerate(own)
            ]
        )
        return np.where(weights.any(axis=0), weights, own)

    def _share(self, tables: Sequence[Array], index: Integers, strides: Sequence[int]) -> Array:
        """The probability of those candidates from an index on that can occur."""
        if not tables:
            return self.flags.ravel()[index].astype(np.float64)
        total = np.zeros(index.shape)
        for k, row in enumerate(tables[0]):
            total = total + row * self._share(tables[1:], index + k * strides[0], strides[1:])
        return total
