"""EDM's scalings of a network's input and output (Karras et al. 2022, table 1)."""

import math
from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from diffcodec.arrays import Array

T = TypeVar("T", Tensor, Array)


class Scaling(NamedTuple, Generic[T]):
    """The scalings by channel: ``xhat = c_skip z + c_out F(z / total, c_noise)``, z centred."""

    c_skip: T
    c_out: T
    total: T  # 1 / c_in, the deviation of z_t: dividing by it is one rounding less


def scaling(s: T, data_std: T, sqrt: Callable[[T], T]) -> Scaling[T]:
    """The factors at noise s, in one exact operation after another if the root is.

    ``c_skip = d^2 / (s^2 + d^2)``, ``c_out = s d / sqrt(s^2 + d^2)``,
    ``c_in = 1 / sqrt(s^2 + d^2)``, d the deviation of the data. NumPy's root is IEEE's, that of
    torch may be off by the last bit.
    """
    total = sqrt(s * s + data_std * data_std)
    return Scaling(data_std * data_std / (total * total), s * data_std / total, total)


def c_noise(sigma: Tensor) -> Tensor:
    """What the noise embedding is of: 0 at the noise level 1, 1 at 1000 (EDM has ln(sigma) / 4)."""
    return torch.log(sigma) / math.log(1000.0)
