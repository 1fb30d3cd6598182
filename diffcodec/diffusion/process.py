"""The mathematics of the chain: one equation, one function, named as DDPM names it.

Notation. ``x`` is the image (integers, per channel), ``z_t`` the noisy image at timestep t,
``sigma_t`` the noise level in grey levels (increasing in t), s < t any earlier level. Arguments
broadcast; tensors are [batch, channel, height, width]; ``sigma`` may differ by channel. The
relation to DDPM's ``x_t`` in [-1, 1] is in :mod:`diffcodec.diffusion.schedule`.

Functions made of ``+ - * /`` alone are exact IEEE arithmetic in a fixed order, so that encoder and
decoder use them, with float64 arrays; training uses the same ones with tensors. Those with a
logarithm or an error function serve training and reports.
"""

import math
from typing import Generic, NamedTuple

import torch
from torch import Tensor

from diffcodec.diffusion.color import ColorDomain, Numbers, channels

LOG2_E = math.log2(math.e)
MIN_STD_BINS = 0.25  # least width of a Gaussian on a lattice after the correction of its variance


class Gaussian(NamedTuple, Generic[Numbers]):
    """A diagonal Gaussian: per-element mean and variance."""

    mean: Numbers
    variance: Numbers


def dithered_quantise(x: Numbers, dither: Numbers, steps: Numbers) -> tuple[Numbers, Numbers]:
    """First level: ``k = floor((x + d) / M)``, ``z_1 = M k + (M - 1) / 2 - d``.

    Args:
        x: integers, as floats.
        dither: d in 0..M-1, same shape.
        steps: M per channel.

    Returns:
        z_1 and the remainder ``x + d - M k`` in 0..M-1.
    """
    k = (x + dither) // steps
    return steps * k + (steps - 1) / 2 - dither, x + dither - steps * k


def q_sample(x: Numbers, sigma: Numbers, noise: Numbers) -> Numbers:
    """Forward process: a sample of ``q(z_t | x) = N(x, sigma_t^2)`` (DDPM eq. 4)."""
    return x + sigma * noise


def q_posterior(x: Numbers, z_t: Numbers, sigma_s: Numbers, sigma_t: Numbers) -> Gaussian[Numbers]:
    """Posterior ``q(z_s | z_t, x) = N(r z_t + (1 - r) x, sigma_s^2 (1 - r))`` (DDPM eqs. 6-7).

    ``r = sigma_s^2 / sigma_t^2``.
    """
    r = (sigma_s * sigma_s) / (sigma_t * sigma_t)
    return Gaussian(r * z_t + (1 - r) * x, sigma_s * sigma_s * (1 - r))


def p_excess(v: Numbers, sigma_s: Numbers, sigma_t: Numbers) -> Numbers:
    """What not knowing x adds to the posterior's variance, ``W = (1 - r)^2 v``."""
    r = (sigma_s * sigma_s) / (sigma_t * sigma_t)
    return (1 - r) * (1 - r) * v


def p_reverse(
    xhat: Numbers, v: Numbers, z_t: Numbers, sigma_s: Numbers, sigma_t: Numbers
) -> Gaussian[Numbers]:
    """Reverse transition ``p(z_s | z_t) = N(r z_t + (1-r) xhat, Q + (1-r)^2 v)``.

    The posterior at the predicted ``xhat``, widened by the predicted variance ``v`` of x
    (Improved DDPM learns this variance; here it follows from v in closed form for any s < t).
    """
    mean, variance = q_posterior(xhat, z_t, sigma_s, sigma_t)
    return Gaussian(mean, variance + p_excess(v, sigma_s, sigma_t))


def p_first(
    xhat: Numbers, v: Numbers, z_2: Numbers, sigma_1: Numbers, sigma_2: Numbers, steps: Numbers
) -> Gaussian[Numbers]:
    """Reverse transition to the first level: of z_1 on its known lattice, given z_2.

    There z_1 is a function of x, and z_2 is noise around z_1. Taking ``N(z_2; x, sigma_2^2)``
    out of N(xhat, v) leaves what the surroundings say of x, ``N(m_0, v_0)``; a bin has the mass
    ``N(z_1; m_0, v_0 + M^2 / 12)``, and z_2 adds ``N(z_2; z_1, sigma_2^2 - sigma_1^2)``.
    The variance is the one whose mass over a bin of width M is to be taken.
    """
    width = steps * steps / 12
    square = sigma_2 * sigma_2
    # Precision and mean times precision of N(m_0, v_0); none where v is not below sigma_2^2.
    precision = (1 / v - 1 / square).clip(min=1e-6)
    centre = (xhat / v - z_2 / square) / precision
    wide = 1 / (1 / precision + width)
    noise = 1 / (square - sigma_1 * sigma_1)
    mean = z_2 + (centre - z_2) * (wide / (wide + noise))
    return Gaussian(mean, (1 / (wide + noise) - width).clip(min=steps * steps / 64))


def p_prior(domain: ColorDomain, sigma_top: Numbers) -> Gaussian[Numbers]:
    """Prior ``p(z_T)``: Gaussian around the domain's centre with the data's variance added."""
    std = channels(domain.data_std, sigma_top)
    return Gaussian(channels(domain.center, sigma_top), sigma_top * sigma_top + std * std)


def on_lattice(p: Gaussian[Numbers], spacing: Numbers) -> Gaussian[Numbers]:
    """The Gaussian whose masses over bins of this width stand for the density of p.

    Integrating over a bin adds ``spacing^2 / 12`` to the variance, which is taken off it first.
    """
    floor = (MIN_STD_BINS * spacing) * (MIN_STD_BINS * spacing)
    return Gaussian(p.mean, (p.variance - spacing * spacing / 12).clip(min=floor))


def predict_x_from_eps(z_t: Tensor, sigma_t: Tensor, eps: Tensor) -> Tensor:
    """Posterior mean of x from the epsilon-model's output (DDPM eq. 9): ``z_t - sigma_t eps``."""
    return z_t - sigma_t * eps


def gaussian_kl_bits(q: Gaussian[Tensor], p: Gaussian[Tensor]) -> Tensor:
    """KL(q || p) of two diagonal Gaussians, in bits per element."""
    ratio = q.variance / p.variance
    squared = (q.mean - p.mean) ** 2 / p.variance
    return (0.5 * LOG2_E) * (ratio + squared - 1 - torch.log(ratio))


def log_bin_mass(mean: Tensor, variance: Tensor, centre: Tensor, width: Tensor | float) -> Tensor:
    """Natural logarithm of the mass that N(mean, variance) puts on a bin.

    Accurate, with a useful gradient, however far the bin lies in the tail.
    """
    std = variance.sqrt()
    # Both ends on the left tail, where the logarithm of the cdf keeps its relative precision.
    distance = (centre - mean).abs()
    near: Tensor = torch.special.log_ndtr((width / 2 - distance) / std)
    far: Tensor = torch.special.log_ndtr((-width / 2 - distance) / std)
    return near + torch.log(-torch.expm1((far - near).clamp_max(-1e-6)))


def discretized_gaussian_bits(
    x: Tensor, mean: Tensor, variance: Tensor, width: Tensor | float = 1.0
) -> Tensor:
    """Code length of x under the Gaussian discretized to bins of the width (DDPM eq. 13)."""
    return -LOG2_E * log_bin_mass(mean, variance, x, width)


def to_bits_per_dimension(bits: Tensor) -> Tensor:
    """Mean over all but the batch: bits per dimension (subpixel) of each image, [batch]."""
    return bits.flatten(1).mean(1)
