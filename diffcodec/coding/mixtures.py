"""Mixtures of logistics as tables of probabilities, in exact arithmetic.

The numbers of :func:`diffcodec.diffusion.phases.mixture_bits`, but for roundings that are the same
on every machine: exponentials and the logistic function come from tables.
"""

import numpy as np
from jaxtyping import Float64

from diffcodec.arrays import Array, round_significant
from diffcodec.diffusion.phases import LOG_SCALES

LOG_STEPS = 64  # of logarithms of weights and scales, for each unit
LEAST_LOG_WEIGHT = -16
STEPS_PER_UNIT, REACH = 64, 20  # of the logistic function
LEAST_MASS = 1e-12  # what is left of every candidate where the table ends
TABLE_BITS = 30  # in so many every maths library gives the same


def exponentials(low: float, high: float) -> Array:
    """exp(i / 64) for i from 64 low to 64 high."""
    steps = np.arange(low * LOG_STEPS, high * LOG_STEPS + 1)
    return round_significant(np.exp(steps / LOG_STEPS), TABLE_BITS)


def logistic_table() -> Array:
    """1 / (1 + exp(-i / 64)) for i from -1280 to 1280; those above the middle by those below."""
    below = np.arange(-REACH * STEPS_PER_UNIT, 1) / STEPS_PER_UNIT
    half = round_significant(1 / (1 + np.exp(-below)), TABLE_BITS)
    return np.concatenate([half, 1 - half[-2::-1]])


_WEIGHTS = exponentials(LEAST_LOG_WEIGHT, 0)
_EXPONENTIALS = exponentials(*LOG_SCALES)
_SCALES = exponentials(-LOG_SCALES[1], -LOG_SCALES[0])  # of 1 / scale
_LOGISTIC = logistic_table()


def logistic(t: Float64[Array, "*shape"]) -> Float64[Array, "*shape"]:
    """The logistic function by linear interpolation, constant beyond -20 and 20."""
    position = (np.clip(t, -REACH, REACH - 2.0**-20) + REACH) * STEPS_PER_UNIT
    index: Array = np.floor(position)
    k = index.astype(np.int64)
    low: Array = _LOGISTIC[k]
    return low + (position - index) * (_LOGISTIC[k + 1] - low)


def exponential(logarithm: Float64[Array, "*shape"]) -> Float64[Array, "*shape"]:
    """exp of it, clipped to ``LOG_SCALES``, in 64ths."""
    return _exponential(_EXPONENTIALS, logarithm, *LOG_SCALES)


def _exponential(table: Array, logarithm: Array, low: float, high: float) -> Array:
    steps = np.rint(np.clip(logarithm, low, high) * LOG_STEPS) - low * LOG_STEPS
    values: Array = table[steps.astype(np.int64)]
    return values


def mixture_table(
    weights: Float64[Array, "components n"],
    means: Float64[Array, "components n"],
    log_scales: Float64[Array, "components n"],
    low: Float64[Array, " n"],
    unit: Float64[Array, " n"],
    count: int,
) -> Float64[Array, "{count} n"]:
    """Probabilities of integers under mixtures of logistics truncated to them.

    Args:
        weights: logarithms, not normalised.
        means, log_scales: of the logistics, in units.
        low: the lower end of the first candidate, in grey levels from what means count from.
        unit: in grey levels.
        count: candidates, one grey level apart.
    """
    share = _shares(weights)
    inverse = _exponential(_SCALES, -log_scales, -LOG_SCALES[1], -LOG_SCALES[0])
    ends = (low + np.arange(count + 1)[:, None]) / unit  # [count + 1, n]
    below = np.zeros_like(ends)  # what lies below each end
    for k in range(len(weights)):
        below = below + share[k] * logistic((ends - means[k]) * inverse[k])
    mass = np.maximum(below[1:] - below[:-1], 0) + LEAST_MASS
    total = mass[0]
    for j in range(1, count):
        total = total + mass[j]
    table: Array = mass / total
    return table


def mixture_mean(
    weights: Float64[Array, "components n"], means: Float64[Array, "components n"]
) -> Float64[Array, " n"]:
    """The mean of mixtures before they are truncated, in units; weights as above."""
    share = _shares(weights)
    sums = share[0] * means[0], share[0]
    for k in range(1, len(weights)):
        sums = sums[0] + share[k] * means[k], sums[1] + share[k]
    mean: Array = sums[0] / sums[1]
    return mean


def _shares(weights: Array) -> Array:
    """What logarithms of weights stand for, the largest 1."""
    return _exponential(_WEIGHTS, weights - weights.max(0), LEAST_LOG_WEIGHT, 0)
