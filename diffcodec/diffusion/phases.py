"""Variables in the four phases of the 2 x 2 grid: x given z_1, and z_s given z_t.

Pixels of a phase know those of the phases before. Everything is relative to what the U-Net says of
the variable without that context: in units of its standard deviation from its mean.

x has mixtures of discretized logistics, as in PixelCNN++ (Salimans et al. 2017, section 2.1), here
truncated to the M integers that z_1 leaves of a sample. z_1 has a Gaussian's masses over the bins
of its lattice, as without context. Within a pixel of these two Co knows Y, Cg both: the error of
luma shifts the mean of Co, those of both the mean of Cg.

Of z_s above, context sharpens the posterior of x to ``N(xhat + sqrt(v) m, v exp(2 l))``; the
transition then is p(z_s | z_t) as ever.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Generic, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from diffcodec.arrays import Array
from diffcodec.diffusion.color import Numbers
from diffcodec.diffusion.process import (
    LOG2_E,
    Gaussian,
    discretized_gaussian_bits,
    p_first,
    p_reverse,
)

PHASES = ((0, 0), (1, 1), (0, 1), (1, 0))  # row and column in each square of 2 x 2, in their order
LEAST_STD = 0.3  # grey levels, added to the posterior's
LARGEST_ERROR = 6.0  # that a network sees, in units
ERROR_STEPS = 128  # of a unit, where it sees integers
PLANES = (6, 3, 4, 4)  # that phases are told of x, of z_1, of those above and of lossy files'
# The neighbours of a sample whose averages phases of x are told: beside it, above and below, at its
# corners.
NEIGHBOURS = (((0, -1), (0, 1)), ((-1, 0), (1, 0)), ((-1, -1), (-1, 1), (1, -1), (1, 1)))
ERROR_LIMIT = round(ERROR_STEPS * LARGEST_ERROR)  # of these
LOG_SCALES = (-5.0, 3.0)  # what they are clipped to

Images = Float[Tensor, "batch 3 height width"]
Parameters = Float[Tensor, "batch parameters rows columns"]
Samples = Float[Tensor, "batch 3 rows columns"]


def unit_of(std: Numbers) -> Numbers:
    """What errors of x are measured in, by the posterior's standard deviation."""
    return std + LEAST_STD


def first_unit(variance: Numbers, steps: Numbers, sqrt: Callable[[Numbers], Numbers]) -> Numbers:
    """What errors of z_1 are measured in: a Gaussian's width with that of a bin."""
    return sqrt(variance + steps * steps / 12)


def expected_x(
    mean: Numbers, v: Numbers, sqrt: Callable[[Numbers], Numbers]
) -> tuple[Numbers, Numbers]:
    """The mean of x without context, and its unit, by the posterior of x given z_1."""
    return mean, unit_of(sqrt(v))


def expected_z_1(
    xhat: Numbers,
    v: Numbers,
    z_2: Numbers,
    sigmas: tuple[Numbers, Numbers],
    steps: Numbers,
    sqrt: Callable[[Numbers], Numbers],
) -> tuple[Numbers, Numbers]:
    """The mean of z_1 without context, and its unit, by the posterior of x given z_2.

    Args:
        xhat, v: of the posterior.
        z_2: which it is given.
        sigmas: sigma_1 and sigma_2, by channel.
        steps: M by channel.
        sqrt: of such numbers.
    """
    mean, variance = p_first(xhat, v, z_2, *sigmas, steps)
    return mean, first_unit(variance, steps, sqrt)


def expected_z(
    xhat: Numbers,
    v: Numbers,
    z_t: Numbers,
    sigmas: tuple[Numbers, Numbers],
    sqrt: Callable[[Numbers], Numbers],
) -> tuple[Numbers, Numbers]:
    """The mean of z_s without context, and its unit, by the posterior of x given z_t.

    Args:
        xhat, v: of the posterior.
        z_t: which it is given.
        sigmas: sigma_s and sigma_t, by channel.
        sqrt: of such numbers.
    """
    mean, variance = p_reverse(xhat, v, z_t, *sigmas)
    return mean, sqrt(variance)


def expected_of(
    which: int,
    xhat: Numbers,
    v: Numbers,
    z: Numbers,
    sigmas: tuple[Numbers, Numbers],
    steps: Numbers,
    sqrt: Callable[[Numbers], Numbers],
) -> tuple[Numbers, Numbers]:
    """The mean of a variable without context, and its unit, by the posterior of x given z.

    Args:
        which: 0 for x, 1 for z_1, 2 for z_s above, 3 for z_s of lossy files.
        xhat, v: of the posterior.
        z: the variable above it.
        sigmas: of the variable, if it is not x, and of z, by channel.
        steps: M by channel.
        sqrt: of such numbers.
    """
    if which == 0:
        return expected_x(xhat, v, sqrt)
    if which == 1:
        return expected_z_1(xhat, v, z, sigmas, steps, sqrt)
    return expected_z(xhat, v, z, sigmas, sqrt)


def told_planes(
    which: int,
    variable: Array,
    mean: Array,
    unit: Array,
    number: int,
    sigmas: tuple[float, float] | None = None,
) -> Array:
    """What a phase is told: :func:`told_in_units` as integers of ``1 / ERROR_STEPS``.

    Args:
        which: see :func:`told_in_units`, as of the other arguments.
        variable, mean, unit: likewise.
        number: likewise.
        sigmas: noise levels s and t of a step above z_1.
    """
    length = 0.0 if sigmas is None else math.log(sigmas[1] / sigmas[0])
    planes = told_in_units(which, variable, mean, unit, number, length)
    planes *= ERROR_STEPS
    return np.rint(planes, out=planes)


def told_in_units(
    which: int, variable: Numbers, mean: Numbers, unit: Numbers, number: int, length: Any = 0.0
) -> Numbers:
    """What a phase is told, clipped to ``LARGEST_ERROR``.

    The errors of the mean where the variable is known before, else 0. Of x three planes more, how
    far the averages of a sample's :func:`neighbours` are from its own mean: in its square of 2 x 2
    the first in the place of phase 0, the others in those of phases 1 and 2. Of steps above z_1 a
    fourth plane, how far they go.

    Args:
        which: 0 for x, 1 for z_1, 2 for z_s above, 3 for z_s of lossy files.
        variable: of which phases before are known, [..., 3, height, width].
        mean, unit: what is expected of it, likewise.
        number: of the phase.
        length: ln(sigma_t / sigma_s) of a step, of all or [..., 1, 1].

    Returns:
        [..., PLANES[which], height, width], the sides rounded up to even ones.
    """
    *batch, _, height, width = variable.shape
    planes = _zeros((*batch, PLANES[which], height + height % 2, width + width % 2), mean)
    if which >= 2:
        step = planes[..., 3, :height, :width]
        step[:] = length
        step[:] = step.clip(-LARGEST_ERROR, LARGEST_ERROR)

    def tell(first: int, place: int, errors: Numbers) -> None:
        slots = of_phase(planes[..., first : first + 3, :, :], place)
        told: Numbers = errors.clip(-LARGEST_ERROR, LARGEST_ERROR)
        slots[..., : errors.shape[-2], : errors.shape[-1]] = told

    for before in range(number):
        z, expected, unit_before = (of_phase(field, before) for field in (variable, mean, unit))
        tell(0, before, (z - expected) / unit_before)
    if which == 0 and number:
        own_mean, own_unit = of_phase(mean, number), of_phase(unit, number)
        for place, average in enumerate(neighbours(variable, number)):
            if average is not None:
                tell(3, place, (average - own_mean) / own_unit)
    return planes


def neighbours(variable: Numbers, number: int) -> list[Numbers | None]:
    """The averages of the ``NEIGHBOURS`` of each sample of a phase, None where they come after it.

    Of two at the image's border that are opposite each other one is there, and stands for both.
    """
    height, width = variable.shape[-2:]
    edged = _mirrored(variable)
    row, column = PHASES[number]
    ends = 2 * len(range(row, height, 2)), 2 * len(range(column, width, 2))

    def average(around: Sequence[tuple[int, int]]) -> Numbers:
        total: Numbers = 0 * variable[..., row::2, column::2]
        for down, right in around:
            top, left = 1 + row + down, 1 + column + right
            total = total + edged[..., top : top + ends[0] : 2, left : left + ends[1] : 2]
        return total / len(around)

    def is_known(down: int, right: int) -> bool:
        place = (row + down) % 2, (column + right) % 2
        return place in PHASES[:number] and place[0] < height and place[1] < width

    return [average(each) if is_known(*each[0]) else None for each in NEIGHBOURS]


def _mirrored(field: Numbers) -> Numbers:
    """A field with a sample more at each end: the last but one, which is of the same phase."""
    *batch, height, width = field.shape
    edged = _zeros((*batch, height + 2, width + 2), field)
    edged[..., 1:-1, 1:-1] = field
    edged[..., 0, :], edged[..., -1, :] = edged[..., min(2, height), :], edged[..., -3, :]
    edged[..., 0], edged[..., -1] = edged[..., min(2, width)], edged[..., -3]
    return edged


def _zeros(shape: Sequence[int], like: Numbers) -> Numbers:
    zeros: Numbers = like.new_zeros(shape) if isinstance(like, Tensor) else np.zeros(shape)
    return zeros


def mixture_parameters(components: int) -> int:
    """How many parameters a pixel has: weights, means, log scales by channel, and three shifts."""
    return 9 * components + 3


GAUSSIAN_PARAMETERS = 9  # of a pixel: means, log scales and three shifts
REFINED_PARAMETERS = 6  # of a pixel: shifts of the mean of x, log scales


def of_phase(field: Numbers, number: int) -> Numbers:
    """The samples of a phase, [..., height, width] -> [..., rows, columns]."""
    row, column = PHASES[number]
    samples: Numbers = field[..., row::2, column::2]
    return samples


class Mixtures(NamedTuple, Generic[Numbers]):
    """The parameters of one phase by what they are, in units.

    ``coupling`` are of luma in Co, of luma in Cg, of Co in Cg.
    """

    weights: Numbers  # logarithms, not normalised, [batch, 3, components, rows, columns]
    means: Numbers  # likewise
    log_scales: Numbers  # likewise
    coupling: Numbers  # [batch, 3, rows, columns]


def mixtures(parameters: Numbers) -> Mixtures[Numbers]:
    """What a phase's network predicts, taken apart; of arrays and of tensors alike."""
    batch, count, *size = parameters.shape
    k = (count - 3) // 9
    split = parameters[:, : 9 * k].reshape(batch, 3, 3, k, *size)
    return Mixtures(split[:, :, 0], split[:, :, 1], split[:, :, 2], parameters[:, 9 * k :])


class Gaussians(NamedTuple, Generic[Numbers]):
    """The parameters of one phase of z_1, in units, [batch, 3, rows, columns] each."""

    means: Numbers
    log_scales: Numbers
    coupling: Numbers


def gaussians(parameters: Numbers) -> Gaussians[Numbers]:
    """What a phase's network predicts of z_1, taken apart; of arrays and of tensors alike."""
    return Gaussians(parameters[:, :3], parameters[:, 3:6], parameters[:, 6:])


def refined(
    xhat: Numbers,
    v: Numbers,
    parameters: Numbers,
    sqrt: Callable[[Numbers], Numbers],
    exp: Callable[[Numbers], Numbers],
) -> tuple[Numbers, Numbers]:
    """Mean and variance of x given also z_s of the phases before, of the pixels of a phase.

    Args:
        xhat, v: given z_t alone, [batch, 3, rows, columns].
        parameters: of the phase.
        sqrt: of variances.
        exp: of log scales, which it clips.
    """
    std = sqrt(v)
    return xhat + std * parameters[:, :3], (std * exp(parameters[:, 3:])) ** 2


def channel_shift(channel: int, coupling: Numbers, errors: Sequence[Numbers]) -> Numbers:
    """What the errors of the channels before add to a channel's mean, in units.

    Args:
        channel: 0, 1 or 2.
        coupling: of Y in Co, of Y in Cg, of Co in Cg, [batch, 3, rows, columns].
        errors: of the channels before, [batch, rows, columns] each.
    """
    shift: Numbers = 0 * coupling[:, 0]
    for i in range(channel):
        shift = shift + coupling[:, channel - 1 + i] * errors[i]
    return shift


class Phased(NamedTuple):
    """What a network predicts of a variable: without context, and by phase given those before."""

    mean: Images
    unit: Images  # what its errors are measured in
    parameters: list[Parameters]  # of every phase


def log_mass(low: Tensor, high: Tensor) -> Tensor:
    """``log(F(high) - F(low))`` of the standard logistic distribution, accurate in both tails."""
    flip = low + high > 0
    upper, lower = torch.where(flip, -low, high), torch.where(flip, -high, low)
    far = F.logsigmoid(lower) - F.logsigmoid(upper)
    return F.logsigmoid(upper) + torch.log1p(-torch.exp(far.clamp(max=-1e-6)))


def mixture_bits(
    parameters: Parameters, error: Samples, low: Samples, high: Samples, half: Samples
) -> Samples:
    """Code length of one phase under the truncated mixtures, in bits.

    Args:
        parameters: of the phase.
        error: x - mean, in units, as are the others.
        low: the lower end of the M candidates.
        high: their upper end.
        half: half the width of one candidate.
    """
    weights, means, log_scales, coupling = mixtures(parameters)
    shift = _shifts(coupling, error)
    centre, inverse = means + shift[:, :, None], torch.exp(-log_scales.clamp(*LOG_SCALES))

    def log_probability(below: Tensor, above: Tensor) -> Tensor:
        ends = ((end[:, :, None] - centre) * inverse for end in (below, above))
        return torch.logsumexp(F.log_softmax(weights, 2) + log_mass(*ends), 2)

    chosen = log_probability(error - half, error + half)
    return LOG2_E * (log_probability(low, high) - chosen)


def _shifts(coupling: Samples, error: Samples) -> Samples:
    return torch.stack([channel_shift(c, coupling, error.unbind(1)) for c in range(3)], 1)


def first_bits(z_1: Images, predicted: Phased, steps: Tensor) -> Images:
    """Code length of z_1 given z_2, in bits, of every sample.

    Args:
        z_1: of the dithered quantiser.
        predicted: by the network, which was told z_1.
        steps: M by channel, [3, 1, 1].
    """
    bits = torch.empty_like(z_1)
    for number, parameters in enumerate(predicted.parameters):
        z, mean, unit = (of_phase(field, number) for field in (z_1, *predicted[:2]))
        height, width = z.shape[2:]
        told = parameters[:, :, :height, :width]
        of_phase(bits, number)[:] = first_phase_bits(z, mean, unit, told, steps)
    return bits


def first_phase_bits(
    z: Samples, mean: Samples, unit: Samples, parameters: Parameters, steps: Tensor
) -> Samples:
    """Code length of one phase of z_1 given z_2, in bits; see :func:`first_bits`."""
    means, log_scales, coupling = gaussians(parameters)
    centre = mean + unit * (means + _shifts(coupling, (z - mean) / unit))
    scale = unit * clipped_exp(log_scales)
    p = Gaussian(centre, first_variance(scale, steps))
    return discretized_gaussian_bits(z, *p, steps)


def clipped_exp(log_scales: Tensor) -> Tensor:
    """exp of log scales, clipped to ``LOG_SCALES``."""
    return torch.exp(log_scales.clamp(*LOG_SCALES))


def refined_everywhere(
    xhat: Images, v: Images, parameters: Sequence[Parameters]
) -> tuple[Images, Images]:
    """:func:`refined` of all phases, where all of z_s is known."""
    mean, variance = torch.empty_like(xhat), torch.empty_like(v)
    for number, each in enumerate(parameters):
        fields = of_phase(xhat, number), of_phase(v, number)
        height, width = fields[0].shape[2:]
        found = refined(*fields, each[:, :, :height, :width], torch.sqrt, clipped_exp)
        of_phase(mean, number)[:], of_phase(variance, number)[:] = found
    return mean, variance


def first_variance(scale: Numbers, steps: Numbers) -> Numbers:
    """The variance of the density whose masses over bins of M have this standard deviation."""
    variance: Numbers = (scale * scale - steps * steps / 12).clip(min=steps * steps / 64)
    return variance


def phased_bits(x: Images, z_1: Images, predicted: Phased, steps: Tensor) -> Images:
    """Code length of x given z_1, in bits, of every sample.

    Args:
        x: integers of the colour domain as floats.
        z_1: of the dithered quantiser.
        predicted: by the network, which was told x.
        steps: M by channel, [3, 1, 1].
    """
    mean, unit, parameters = predicted
    ends = [(x - mean) / unit, (z_1 - steps / 2 - mean) / unit, (z_1 + steps / 2 - mean) / unit]
    ends.append(0.5 / unit)
    bits = torch.empty_like(x)
    for number, each in enumerate(parameters):
        height, width = of_phase(x, number).shape[2:]
        fields = [of_phase(field, number) for field in ends]
        of_phase(bits, number)[:] = mixture_bits(each[:, :, :height, :width], *fields)
    return bits
