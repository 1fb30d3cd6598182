"""Qualities of images, and how curves and averages of them are compared.

PSNR is over all samples of an RGB image, infinite where it is exact. SSIM and MS-SSIM are those of
torchmetrics. LPIPS is left out: no package carries the weights of its backbone.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import bjontegaard
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import bootstrap
from torchmetrics.functional.image import (
    multiscale_structural_similarity_index_measure as ms_ssim,
)
from torchmetrics.functional.image import structural_similarity_index_measure as ssim

from diffcodec.arrays import Array
from diffcodec.images.modes import psnr

MS_SSIM_SIDE = 176  # that torchmetrics asks for
SSIM_SIDE = 6  # the same
RESAMPLES = 2000
FEWEST = 5  # images that an interval is drawn from


class Interval(NamedTuple):
    """A mean and its 95 % interval over images, by the bootstrap (BCa); NaN of too few images."""

    mean: float
    low: float
    high: float

    def text(self, digits: int, unit: str = "") -> str:
        """The interval alone, or nothing."""
        if math.isnan(self.low):
            return ""
        return f"{self.low:.{digits}f} to {self.high:.{digits}f}{unit}"


def similarity_name(size: tuple[int, int]) -> str:
    """The name of the similarity that an image is large enough for, named as CompressAI does."""
    return "ms-ssim-rgb" if min(size) >= MS_SSIM_SIDE else "ssim-rgb"


def qualities(shown: NDArray[np.uint8], image: NDArray[np.uint8]) -> dict[str, float]:
    """``psnr-rgb`` in dB, and ``ms-ssim-rgb`` or, of small images, ``ssim-rgb``."""
    height, width = image.shape[:2]
    name = similarity_name((width, height))
    found = {"psnr-rgb": psnr(shown, image), name: 1.0}
    if not math.isinf(found["psnr-rgb"]):
        preds, target = (
            torch.from_numpy(a.transpose(2, 0, 1)[None].astype(np.float32)) for a in (shown, image)
        )
        measure = ms_ssim if name == "ms-ssim-rgb" else ssim
        with torch.inference_mode():
            value = measure(preds, target, data_range=255.0)
        assert isinstance(value, torch.Tensor)
        found[name] = float(value)
    return found


def interval(values: Sequence[float]) -> Interval:
    """The mean of values and its interval."""
    data = np.asarray(values, np.float64)
    mean = float(data.mean())
    if len(data) < FEWEST or np.ptp(data) == 0:
        return Interval(mean, math.nan, math.nan)
    rng = np.random.default_rng(0)
    found = bootstrap((data,), np.mean, n_resamples=RESAMPLES, rng=rng).confidence_interval
    return Interval(mean, float(found.low), float(found.high))


def ratio_interval(ours: Sequence[float], theirs: Sequence[float]) -> Interval:
    """The ratio of two sums and its interval, images drawn in pairs."""
    pairs = (np.asarray(ours, np.float64), np.asarray(theirs, np.float64))
    ratio = float(pairs[0].sum() / pairs[1].sum())
    if len(pairs[0]) < FEWEST or np.ptp(pairs[0] / pairs[1]) == 0:
        return Interval(ratio, math.nan, math.nan)

    def statistic(a: Array, b: Array, axis: int = -1) -> Array:
        quotient: Array = a.sum(axis) / b.sum(axis)
        return quotient

    rng = np.random.default_rng(0)
    found = bootstrap(
        pairs, statistic, paired=True, n_resamples=RESAMPLES, rng=rng
    ).confidence_interval
    return Interval(ratio, float(found.low), float(found.high))


def rising(rate: Sequence[float], quality: Sequence[float]) -> tuple[Array, Array]:
    """The points of a curve that more bits make better, by rate; infinite qualities left out."""
    kept: list[tuple[float, float]] = []
    for r, q in sorted(zip(rate, quality, strict=True)):
        if math.isfinite(q) and r > 0 and (not kept or (q > kept[-1][1] and r > kept[-1][0])):
            kept.append((r, q))
    points = np.array(kept).reshape(-1, 2)
    return points[:, 0], points[:, 1]


def bd_rate(
    anchor: tuple[Sequence[float], Sequence[float]], test: tuple[Sequence[float], Sequence[float]]
) -> float:
    """Bjontegaard delta rate of two curves (rates, qualities): percent of bits over the anchor's.

    Piecewise cubic (PCHIP) over the qualities that both reach; NaN if that is no range.
    """
    (rate_a, quality_a), (rate_b, quality_b) = rising(*anchor), rising(*test)
    if min(len(rate_a), len(rate_b)) < 2:
        return math.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # curves that hardly overlap
        return float(
            bjontegaard.bd_rate(
                rate_a,
                quality_a,
                rate_b,
                quality_b,
                method="pchip",
                require_matching_points=False,
                min_overlap=0,
            )
        )


def rate_at(rate: Sequence[float], quality: Sequence[float]) -> Callable[[float], float]:
    """The rate of a curve at a quality, geometric between its points; NaN beyond them."""
    r, q = rising(rate, quality)

    def at(wanted: float) -> float:
        if len(r) == 0 or not q[0] <= wanted <= q[-1]:
            return math.nan
        return float(np.exp(np.interp(wanted, q, np.log(r))))

    return at


def quality_at(rate: Sequence[float], quality: Sequence[float]) -> Callable[[float], float]:
    """The quality of a curve at a rate, linear in log rate between its points; NaN beyond them."""
    r, q = rising(rate, quality)

    def at(wanted: float) -> float:
        if len(r) == 0 or not r[0] <= wanted <= r[-1]:
            return math.nan
        return float(np.interp(np.log(wanted), np.log(r), q))

    return at
