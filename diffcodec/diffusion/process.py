"""The mathematics of the chain: one equation, one function, named as DDPM names it.

Notation. ``x`` is the image (integers, per channel), ``z_t`` the noisy image at timestep t,
``sigma_t`` the noise level in grey levels (increasing in t), s < t any earlier level. Arguments
broadcast; tensors are [batch, channel, height, width]; ``sigma`` may differ by channel. The
relation to DDPM's ``x_t`` in [-1, 1] is in :mod:`diffcodec.diffusion.schedule`.

Functions made of ``+ - * /`` alone are exact IEEE arithmetic in a fixed order, so that encoder and
decoder may use them; those with a logarithm or an error function serve training and reports.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

LOG2_E = math.log2(math.e)


class Gaussian(NamedTuple):
    """A diagonal Gaussian: per-element mean and variance."""

    mean: Tensor
    variance: Tensor


def q_sample(x: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
    """Forward process: a sample of ``q(z_t | x) = N(x, sigma_t^2)`` (DDPM eq. 4)."""
    return x + sigma * noise


def q_posterior(x: Tensor, z_t: Tensor, sigma_s: Tensor, sigma_t: Tensor) -> Gaussian:
    """Posterior ``q(z_s | z_t, x) = N(r z_t + (1 - r) x, sigma_s^2 (1 - r))`` (DDPM eqs. 6-7).

    ``r = sigma_s^2 / sigma_t^2``.
    """
    r = (sigma_s * sigma_s) / (sigma_t * sigma_t)
    return Gaussian(r * z_t + (1 - r) * x, sigma_s * sigma_s * (1 - r))


def p_reverse(xhat: Tensor, v: Tensor, z_t: Tensor, sigma_s: Tensor, sigma_t: Tensor) -> Gaussian:
    """Reverse transition ``p(z_s | z_t) = N(r z_t + (1-r) xhat, Q + (1-r)^2 v)``.

    The posterior at the predicted ``xhat``, widened by the predicted variance ``v`` of x
    (Improved DDPM learns this variance; here it follows from v in closed form for any s < t).
    """
    r = (sigma_s * sigma_s) / (sigma_t * sigma_t)
    posterior = q_posterior(xhat, z_t, sigma_s, sigma_t)
    return Gaussian(posterior.mean, posterior.variance + (1 - r) * (1 - r) * v)


def p_first(
    xhat: Tensor, v: Tensor, z_2: Tensor, sigma_1: Tensor, sigma_2: Tensor, steps: Tensor
) -> Gaussian:
    """Reverse transition to the first level: of z_1 on its known lattice, given z_2.

    There z_1 is a function of x, and z_2 is noise around z_1. Taking ``N(z_2; x, sigma_2^2)``
    out of N(xhat, v) leaves what the surroundings say of x, ``N(m_0, v_0)``; a bin has the mass
    ``N(z_1; m_0, v_0 + M^2 / 12)``, and z_2 adds ``N(z_2; z_1, sigma_2^2 - sigma_1^2)``.
    The variance is the one whose mass over a bin of width M is to be taken.
    """
    width = steps * steps / 12
    square = sigma_2 * sigma_2
    # Precision and mean times precision of N(m_0, v_0); none where v is not below sigma_2^2.
    precision = (1 / v - 1 / square).clamp(min=1e-6)
    centre = (xhat / v - z_2 / square) / precision
    wide = 1 / (1 / precision + width)
    noise = 1 / (square - sigma_1 * sigma_1)
    mean = z_2 + (centre - z_2) * (wide / (wide + noise))
    return Gaussian(mean, torch.maximum(1 / (wide + noise) - width, steps * steps / 64))


def predict_x_from_eps(z_t: Tensor, sigma_t: Tensor, eps: Tensor) -> Tensor:
    """Posterior mean of x from the epsilon-model's output (DDPM eq. 9): ``z_t - sigma_t eps``."""
    return z_t - sigma_t * eps


def gaussian_kl_bits(q: Gaussian, p: Gaussian) -> Tensor:
    """KL(q || p) of two diagonal Gaussians, in bits per element."""
    ratio = q.variance / p.variance
    squared = (q.mean - p.mean) ** 2 / p.variance
    return (0.5 * LOG2_E) * (ratio + squared - 1 - torch.log(ratio))


def expected_step_bits(v: Tensor, sigma_s: Tensor, sigma_t: Tensor) -> Tensor:
    """Expected KL of the step t -> s, ``0.5 log2(1 + (1-r)^2 v / Q)``, in bits per element."""
    r = (sigma_s * sigma_s) / (sigma_t * sigma_t)
    return 0.5 * torch.log2(1 + (1 - r) * v / (sigma_s * sigma_s))


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
