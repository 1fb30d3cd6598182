"""The image given z_1, in the four phases of the 2 x 2 grid: mixtures of discretized logistics.

As PixelCNN++ has them (Salimans et al. 2017, section 2.1), with two differences. A sample is one of
the M integers that z_1 leaves of it, so its mixture is truncated to these. And means and scales
are relative to the posterior of x given z_1 by the U-Net: in units of its standard deviation and
some more, from its mean. Within a pixel the error of luma shifts the means of Co, and those of both
the means of Cg.
"""

from typing import Generic, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from diffcodec.diffusion.color import Numbers
from diffcodec.diffusion.process import LOG2_E

PHASES = ((0, 0), (1, 1), (0, 1), (1, 0))  # row and column in each square of 2 x 2, in their order
LEAST_STD = 0.3  # grey levels, added to the posterior's
LARGEST_ERROR = 6.0  # that a network sees, in units
ERROR_STEPS = 128  # of a unit, where it sees integers
LOG_SCALES = (-5.0, 3.0)  # what they are clipped to

Images = Float[Tensor, "batch 3 height width"]
Parameters = Float[Tensor, "batch parameters rows columns"]
Samples = Float[Tensor, "batch 3 rows columns"]


def unit_of(std: Numbers) -> Numbers:
    """What errors, means and scales are measured in, by the posterior's standard deviation."""
    return std + LEAST_STD


def parameter_count(components: int) -> int:
    """Of a pixel: weights, means and log scales of each channel's logistics, and three shifts."""
    return 9 * components + 3


def of_phase(field: Numbers, number: int) -> Numbers:
    """The samples of a phase, [..., height, width] -> [..., rows, columns]."""
    row, column = PHASES[number]
    samples: Numbers = field[..., row::2, column::2]
    return samples


def known_before(number: int, like: Numbers) -> Numbers:
    """1 where samples lie in phases before the given one, else 0; [height, width] of the field."""
    mask: Numbers = like[(0,) * (like.ndim - 2)] * 0
    for row, column in PHASES[:number]:
        mask[row::2, column::2] = 1
    return mask


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


class Phased(NamedTuple):
    """What a network predicts of x given z_1, and each phase's mixtures given those before."""

    mean: Images  # of the posterior
    unit: Images  # see unit_of
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
    y, co = error[:, 0], error[:, 1]
    a, b, c = coupling.unbind(1)
    shift = torch.stack([torch.zeros_like(y), a * y, b * y + c * co], 1)
    centre, inverse = means + shift[:, :, None], torch.exp(-log_scales.clamp(*LOG_SCALES))

    def log_probability(below: Tensor, above: Tensor) -> Tensor:
        ends = ((end[:, :, None] - centre) * inverse for end in (below, above))
        return torch.logsumexp(F.log_softmax(weights, 2) + log_mass(*ends), 2)

    chosen = log_probability(error - half, error + half)
    return LOG2_E * (log_probability(low, high) - chosen)


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
