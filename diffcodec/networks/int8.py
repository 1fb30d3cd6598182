"""Convolutions of 8-bit integers by oneDNN's kernels, where the processor multiplies them at once.

They give the same exact sums as float32 convolutions, for inputs of a byte in about a quarter of
the time (with AVX-512 VNNI). Inputs of more bits than a byte, up to 12, are two digits of 7, and so
are weights of more bits.
"""

from collections.abc import Sequence
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

DIGIT_BITS = 7
DIGIT = 1 << DIGIT_BITS  # base of the two digits
HIGH_ZERO, LOW_ZERO = 32, 64  # what stands for zero: both digits have a sign
BYTE = 256
LOWEST_INPUT, LARGEST_INPUT = -DIGIT * HIGH_ZERO, DIGIT * HIGH_ZERO - 1
LOWER_DIGITS = (-LOW_ZERO, DIGIT - 1 - LOW_ZERO)
LARGEST_WEIGHT = 127 * DIGIT + LOWER_DIGITS[1]


class ByteConv:
    """A convolution of stride 1 by a weight of one or two digits; sums come as float32."""

    def __init__(self, weight: Tensor):
        """Pack the weight [out, in, k, k]: int8, or int16 of no more than ``LARGEST_WEIGHT``."""
        self._has_digits = weight.dtype == torch.int16
        if self._has_digits:
            high = (weight + LOW_ZERO) >> DIGIT_BITS
            weight = torch.cat([high, weight - DIGIT * high])
        count = len(weight)
        self._padding = [(weight.shape[2] - 1) // 2] * 2
        self._scales, self._zeros = torch.ones(count), torch.zeros(count, dtype=torch.int32)
        self._packed = torch.ops.onednn.qconv_prepack(
            weight.to(torch.int8).contiguous(),
            *(self._scales, 1.0, 0),
            *([1, 1], self._padding, [1, 1], 1),
        )

    def sums(self, digits: Sequence[Tensor], lowest: int) -> list[Tensor]:
        """The sums of integers, by their :func:`digits`, [batch, in, height, width], channels last.

        Args:
            digits: of the integers.
            lowest: that :func:`digits` was given.

        Returns:
            Those of each digit, whose sum is exact where the sums of the integers and those of
            their lower digits are below 2^24.
        """
        if len(digits) == 1:
            return [self.digit_sums(digits[0], -lowest, 1)]
        high, low = digits
        # A power of two as the unit changes no digit of a float.
        return [self.digit_sums(high, HIGH_ZERO, DIGIT), self.digit_sums(low, LOW_ZERO, 1)]

    def digit_sums(self, x: Tensor, zero: int, unit: int) -> Tensor:
        """The sums of ``unit (x - zero)``, x uint8 and unit a power of two."""
        out: Tensor = torch.ops.onednn.qconv_pointwise(
            *(x, float(unit), zero, self._packed, self._scales, self._zeros, None),
            *([1, 1], self._padding, [1, 1], 1),
            *(1.0, 0, torch.float32, "none", [], ""),  # nothing fused
        )
        if self._has_digits:
            high, low = out.chunk(2, 1)
            return torch.mul(high, DIGIT).add_(low)
        return out


def digits(integers: Tensor, lowest: int, highest: int) -> list[Tensor]:
    """The digits of integers of this range, each with its zero, uint8.

    The range is within ``LOWEST_INPUT``..``LARGEST_INPUT``.

    One if the range, which holds 0, has no more than 256 integers; else two, the upper one first.
    """
    if highest - lowest < BYTE:
        return [(integers - lowest).to(torch.uint8)]
    bits = (integers + (DIGIT * HIGH_ZERO + LOW_ZERO)).to(torch.int16)
    return [(bits >> DIGIT_BITS).to(torch.uint8), (bits & (DIGIT - 1)).to(torch.uint8)]


@cache
def kernels_work() -> bool:
    """Whether this torch has the kernels, they pay on this processor, and they are exact here.

    They are tried on the largest products there are and on random ones, at the kernel sizes in use.
    """
    try:
        return bool(torch.cpu._is_vnni_supported()) and all(_is_exact(k) for k in (1, 3))
    except (AttributeError, RuntimeError, TypeError):  # no such operator, or another one
        return False


def _is_exact(kernel: int) -> bool:
    generator = torch.Generator().manual_seed(kernel)
    shape, image = (32, 24, kernel, kernel), (2, 24, 9, 7)
    random = torch.randint(-127, 128, shape, generator=generator)
    for weight in (random, torch.full(shape, 127), torch.full(shape, -127)):
        conv = ByteConv(weight)
        inputs = torch.randint(-4096, 4096, image, generator=generator)
        for x in (inputs, torch.full(image, 4095), torch.full(image, -4096)):
            x = x.contiguous(memory_format=torch.channels_last)  # noqa: PLW2901
            high, low = digits(x, -4096, 4095)
            byte = (x & 255).to(torch.uint8)
            cases = (high, HIGH_ZERO, DIGIT), (low, LOW_ZERO, 1), (byte, 0, 1), (byte, 255, 1)
            for digit, zero, unit in cases:
                found = conv.digit_sums(digit, zero, unit)
                value = unit * (digit.double() - zero)
                expected = F.conv2d(value, weight.double(), padding=kernel // 2)
                if found.dtype != torch.float32 or not torch.equal(found.double(), expected):
                    return False
    return True
