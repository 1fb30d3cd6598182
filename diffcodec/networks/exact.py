"""How large a convolution's sums can become: while they stay below 2^24, float32 is exact."""

import os
from collections.abc import Iterable

import torch
from torch import Tensor

from diffcodec.errors import ModelMismatchError

EXACT_LIMIT = 2**24  # float32 holds every integer up to here


def largest_sum(weight: Tensor, low: float, high: float) -> float:
    """Largest magnitude of any partial sum of a convolution, in the weight's own arithmetic.

    Args:
        weight: [out, ...], of any type.
        low, high: the least and the greatest input; 0 is between them.
    """
    return _largest_sum(*_sums_by_sign(weight), low, high)


def _sums_by_sign(weight: Tensor) -> tuple[Tensor, Tensor]:
    """The sums of the positive and of the negative weights, by output channel."""
    w = weight.flatten(1)
    return w.clamp_min(0).sum(1), -w.clamp_max(0).sum(1)


def _largest_sum(positive: Tensor, negative: Tensor, low: float, high: float) -> float:
    upper = positive * high - negative * low
    lower = positive * low - negative * high
    return torch.maximum(upper.abs(), lower.abs()).max().item()


def check_exact(name: str, weight: Tensor, ranges: Iterable[tuple[int, int]]) -> None:
    """Refuse a convolution whose sums may leave float32's exact integers.

    Args:
        name: of the convolution.
        weight: its integers.
        ranges: the lowest and the highest integer of its input, at each noise level.

    Raises:
        ModelMismatchError: with the largest sum, or if the weights are no integers.
    """
    if weight.is_floating_point():
        raise ModelMismatchError(f"{name}: its weights are {weight.dtype}, expected integers")
    by_sign = _sums_by_sign(weight.long())
    found = max(_largest_sum(*by_sign, low, high) for low, high in set(ranges))
    if found >= EXACT_LIMIT:
        raise ModelMismatchError(
            f"{name}: a partial sum can reach {found}, and only sums below {EXACT_LIMIT} are "
            "exact; quantise it to fewer bits"
        )


def may_round_float32() -> bool:
    """Whether the user lets torch or oneDNN take float32 for numbers of fewer bits.

    Processors with AMX then do: of inputs and weights 8 bits are left, also of convolutions.
    """
    modes = [os.environ.get(f"{name}_DEFAULT_FPMATH_MODE") for name in ("ONEDNN", "DNNL")]
    if any(mode and mode.upper() != "STRICT" for mode in modes):
        return True
    backends, onednn = torch.backends, torch.backends.mkldnn
    places = (backends, onednn, *(getattr(onednn, name, None) for name in ("conv", "matmul")))
    precisions = {getattr(place, "fp32_precision", "none") for place in places}
    return not precisions <= {"none", "ieee"}
