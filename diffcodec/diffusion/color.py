"""Colour: the integer domains in which images are diffused.

``ycocg`` is the reversible YCoCg-R transform (Malvar and Sullivan 2003): luma in 0..255, the two
chroma channels in -255..255. ``rgb`` is the identity.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from diffcodec.arrays import Array
from diffcodec.diffusion.quantiser import first_sigma

Numbers = TypeVar("Numbers", Array, torch.Tensor)  # of float64 arrays and of tensors alike
IntArray = TypeVar("IntArray", NDArray[np.int16], NDArray[np.int32], torch.Tensor)


@dataclass(frozen=True)
class ColorDomain:
    """What the model and the codec know of a colour domain, per channel.

    ``quantiser_ratios`` are M of the first level's dithered quantiser as multiples of luma's. The
    noise multipliers are the ratios of its noise, ``sigma_1 = sqrt((M^2 - 1) / 12)``, for M = 2 of
    luma, so that every level is sigma_t times the multiplier: luma keeps sigma_t itself, and the
    noise is about isotropic in RGB.
    """

    quantiser_ratios: tuple[float, float, float]
    center: tuple[float, float, float]  # subtracted before the network and in the prior
    data_std: tuple[float, float, float]  # of photographs; scales the network, widens the prior

    @property
    def noise_multipliers(self) -> tuple[float, float, float]:
        """sigma of each channel as a multiple of the schedule's sigma."""
        first = [first_sigma(m) for m in self.quantiser_steps(2)]
        return (first[0] / first[0], first[1] / first[0], first[2] / first[0])

    def quantiser_steps(self, quantiser: int) -> tuple[int, int, int]:
        """M of each channel, that of luma given; it is even."""
        y, co, cg = (round(ratio * quantiser) for ratio in self.quantiser_ratios)
        return y, co, cg


DOMAINS = {
    "ycocg": ColorDomain((1.0, 2.0, 1.5), (127.5, 0.0, 0.0), (64.0, 32.0, 24.0)),
    "rgb": ColorDomain((1.0, 1.0, 1.0), (127.5, 127.5, 127.5), (64.0, 64.0, 64.0)),
}


def channels(values: Sequence[float], like: Numbers) -> Numbers:
    """Per-channel constants, [3, 1, 1], that broadcast over images of the same kind."""
    if isinstance(like, torch.Tensor):
        if like.device.type == "cpu":
            return torch.tensor(values, dtype=like.dtype)[:, None, None]
        # numbers of the CPU's memory would be waited for
        return torch.stack([like.new_full((), value) for value in values])[:, None, None]
    return np.array(values, dtype=np.float64)[:, None, None]


def rgb_to_ycocg(rgb: IntArray) -> IntArray:
    """YCoCg-R of RGB integers; channels first: [..., 3, height, width]."""
    r, g, b = rgb[..., 0, :, :], rgb[..., 1, :, :], rgb[..., 2, :, :]
    co = r - b
    t = b + (co >> 1)
    cg = g - t
    return _stack((t + (cg >> 1), co, cg))


def ycocg_to_rgb(ycocg: IntArray) -> IntArray:
    """Inverse of :func:`rgb_to_ycocg`, exact."""
    y, co, cg = ycocg[..., 0, :, :], ycocg[..., 1, :, :], ycocg[..., 2, :, :]
    t = y - (cg >> 1)
    g = cg + t
    b = t - (co >> 1)
    return _stack((b + co, g, b))


def _stack(channels: tuple[IntArray, IntArray, IntArray]) -> IntArray:
    if isinstance(channels[0], torch.Tensor):
        return torch.stack(channels, -3)
    return np.stack(channels, -3)


def to_domain(rgb: IntArray, color: str) -> IntArray:
    """RGB integers to the named domain."""
    return rgb_to_ycocg(rgb) if color == "ycocg" else rgb


def from_domain(x: IntArray, color: str) -> IntArray:
    """The named domain's integers back to RGB."""
    return ycocg_to_rgb(x) if color == "ycocg" else x
