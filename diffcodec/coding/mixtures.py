"""Mixtures of logistics as tables of probabilities, in exact arithmetic.

The numbers of :func:`diffcodec.diffusion.phases.mixture_bits`, but for roundings that are the same
on every machine: exponentials and the logistic function come from tables.
"""

from functools import cache

import numpy as np
from jaxtyping import Float64

from diffcodec.arrays import Array, round_significant
from diffcodec.compiled import compiled, works
from diffcodec.diffusion.phases import LOG_SCALES

LOG_STEPS = 64  # of logarithms of weights and scales, for each unit
LEAST_LOG_WEIGHT = -16
STEPS_PER_UNIT, REACH = 64, 20  # of the logistic function
LEAST_MASS = 1e-12  # what is left of every candidate where the table ends
TABLE_BITS = 30  # in so many every maths library gives the same
LEAST_COMPILED = 4096  # samples that the compiled loop is for


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
    """exp of a logarithm that is clipped to ``LOG_SCALES`` and rounded to 64ths."""
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
    given = weights, means, log_scales, low, unit
    if len(low) >= LEAST_COMPILED and _loop_works() and all(map(_is_finite, given)):
        return _by_loop(given, count)
    return _by_arrays(*given, count)


def _is_finite(field: Array) -> bool:
    return bool(np.isfinite(field).all())


@cache
def _loop_works() -> bool:
    """Whether there is a compiler and the compiled loop gives what NumPy gives, bit for bit."""

    def is_exact() -> bool:
        rng = np.random.default_rng(0)
        fields = rng.standard_normal((3, 3, 64)) * np.array([8, 3, 2])[:, None, None]
        low, unit = -9 * rng.random(64), 0.3 + rng.random(64)
        given = fields[0], fields[1], fields[2], low, unit
        return bool(np.array_equal(_by_loop(given, 8), _by_arrays(*given, 8)))

    return works(is_exact)


def _by_loop(given: tuple[Array, ...], count: int) -> Array:
    table = np.empty((count, given[0].shape[1]))
    arrays = [np.ascontiguousarray(field) for field in given]
    compiled(_fill)(*arrays, table, _WEIGHTS, _SCALES, _LOGISTIC)
    return table


def _fill(
    weights: Array,
    means: Array,
    log_scales: Array,
    low: Array,
    unit: Array,
    table: Array,
    exp_weights: Array,
    exp_scales: Array,
    logistics: Array,
) -> None:
    """Fill the table as :func:`_by_arrays`, by samples; the last three are this module's tables."""
    components, n = weights.shape
    share, inverse = np.empty(components), np.empty(components)
    least, most = -LOG_SCALES[1], -LOG_SCALES[0]
    for i in range(n):
        top = weights[0, i]
        for k in range(1, components):
            top = max(top, weights[k, i])
        for k in range(components):
            step = np.rint(max(weights[k, i] - top, float(LEAST_LOG_WEIGHT)) * LOG_STEPS)
            share[k] = exp_weights[int(step - LEAST_LOG_WEIGHT * LOG_STEPS)]
            step = np.rint(min(max(-log_scales[k, i], least), most) * LOG_STEPS)
            inverse[k] = exp_scales[int(step - least * LOG_STEPS)]
        before, total = 0.0, 0.0
        for j in range(len(table) + 1):
            end, below = (low[i] + j) / unit[i], 0.0
            for k in range(components):
                t = (end - means[k, i]) * inverse[k]
                position = (min(max(t, -REACH), REACH - 2.0**-20) + REACH) * STEPS_PER_UNIT
                place = np.floor(position)
                left = logistics[int(place)]
                right = logistics[int(place) + 1]
                below = below + share[k] * (left + (position - place) * (right - left))
            if j:
                mass = max(below - before, 0.0) + LEAST_MASS
                table[j - 1, i] = mass
                total = total + mass
            before = below
        for j in range(len(table)):
            table[j, i] = table[j, i] / total


def _by_arrays(
    weights: Array, means: Array, log_scales: Array, low: Array, unit: Array, count: int
) -> Array:
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
