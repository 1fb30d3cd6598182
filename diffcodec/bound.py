"""The variational bound of the chain: the code length that training minimises and files approach.

    bits(x) = -log2 p(x | z_1) - log2 p(z_1 | z_2) + sum_t KL(q(z_s | z_t, x) || p(z_s | z_t))
              + KL(q(z_T | x) || p(z_T))                                (DDPM eq. 5, with z_1 exact)

The first level is a shared-dither quantiser, so z_1 is a function of x and costs no bits back.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from diffcodec.color import DOMAINS, ColorDomain
from diffcodec.diffusion import (
    LOG2_E,
    Gaussian,
    discretized_gaussian_bits,
    gaussian_kl_bits,
    log_bin_mass,
    p_first,
    p_reverse,
    q_posterior,
    q_sample,
    to_bits_per_dimension,
)
from diffcodec.plan import Plan

# (z_t [batch, 3, h, w], sigma_t [batch]) -> posterior mean and variance of x
PosteriorModel = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

FIRST_SIGMA = 0.5
SECOND_SIGMA = (1.0, 2.5)  # range in which plans put their second level
MAX_SIGMA = 800.0
TRAINING_RATIO = 1.3  # sigma_t / sigma_s of a training step, about 24 levels
SAMPLING_POWER = 1.5  # of the strata over log sigma: above 1, more samples where the bits are


def channels(values: tuple[float, ...] | tuple[int, ...], like: Tensor) -> Tensor:
    """Per-channel constants as a tensor [3, 1, 1] that broadcasts over images."""
    return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None, None]


def dithered_quantise(x: Tensor, dither: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
    """First level: ``k = floor((x + d) / M)``, ``z_1 = M k + (M - 1) / 2 - d``.

    Args:
        x: integers, as floats.
        dither: d in 0..M-1, same shape.
        steps: M per channel.

    Returns:
        z_1 and the remainder ``x + d - M k`` in 0..M-1.
    """
    k = torch.floor((x + dither) / steps)
    return steps * k + (steps - 1) / 2 - dither, x + dither - steps * k


def remainder_bits(
    remainder: Tensor, z_1: Tensor, xhat: Tensor, v: Tensor, steps: Tensor
) -> Tensor:
    """Code length of x given z_1: discretized Gaussian truncated to the M candidates."""
    lowest = z_1 - (steps - 1) / 2
    chosen = log_bin_mass(xhat, v, lowest + remainder, 1.0)
    candidates = [
        log_bin_mass(xhat, v, lowest + j, 1.0).masked_fill(j >= steps, -torch.inf)
        for j in range(int(steps.max().item()))
    ]
    return LOG2_E * (torch.logsumexp(torch.stack(candidates), 0) - chosen)


def above(sigma: Tensor, sigma_1: Tensor) -> Tensor:
    """Standard deviation of z_t around z_1: what the noise level adds to the first."""
    return (sigma**2 - sigma_1**2).clamp_min(0).sqrt()


def draw_dither(shape: torch.Size, domain: ColorDomain, generator: torch.Generator) -> Tensor:
    """Uniform dither d in 0..M-1 per sample, as floats."""
    u = torch.rand(shape, generator=generator)
    return torch.floor(u * channels(domain.dither, u))


def code_length_loss(
    model: PosteriorModel, x: Tensor, color: str, generator: torch.Generator
) -> Tensor:
    """Stratified one-sample estimate of the codec's code length, in bits per dimension.

    An eighth of the batch sees the first level (remainder), an eighth the first jump (z_1 given
    z_2), the rest Gaussian steps with sigma stratified over log sigma.

    Args:
        model: gives xhat and v.
        x: integers of the colour domain as floats, [batch, 3, height, width], batch >= 8.

    Returns:
        Scalar, differentiable.
    """
    domain = DOMAINS[color]
    multipliers = channels(domain.noise_multipliers, x)
    steps = channels(domain.dither, x)
    batch = x.shape[0]
    first, second = batch // 8, batch // 8
    rest = batch - first - second
    low, high = SECOND_SIGMA
    lowest = math.sqrt(low * high * TRAINING_RATIO)  # of the steps above the first jump
    span = math.log(MAX_SIGMA / lowest)
    strata = (torch.arange(rest) + torch.rand(rest, generator=generator)) / rest
    position = strata**SAMPLING_POWER
    weight = SAMPLING_POWER * strata ** (SAMPLING_POWER - 1)
    sigma = torch.cat(
        [
            torch.full((first,), FIRST_SIGMA),
            low * (high / low) ** torch.rand(second, generator=generator),
            lowest * torch.exp(position * span),
        ]
    )  # [batch]
    dither = draw_dither(x.shape, domain, generator)
    z_1, remainder = dithered_quantise(x, dither, steps)
    sigma_t = sigma[:, None, None, None] * multipliers
    first_sigma = FIRST_SIGMA * multipliers
    noise = torch.randn(x.shape, generator=generator)
    z = q_sample(z_1, above(sigma_t, first_sigma), noise)
    xhat, v = model(z, sigma)
    a, b = first, first + second
    of_remainder = remainder_bits(remainder[:a], z_1[:a], xhat[:a], v[:a], steps)
    p_1 = p_first(xhat[a:b], v[a:b], z[a:b], first_sigma, sigma_t[a:b], steps)
    of_first_jump = discretized_gaussian_bits(z_1[a:b], *p_1, steps)
    bits = to_bits_per_dimension(of_remainder).mean() + to_bits_per_dimension(of_first_jump).mean()
    sigma_s = sigma_t[b:] / TRAINING_RATIO
    q = q_posterior(z_1[b:], z[b:], above(sigma_s, first_sigma), above(sigma_t[b:], first_sigma))
    p = p_reverse(xhat[b:], v[b:], z[b:], sigma_s, sigma_t[b:])
    count = span / math.log(TRAINING_RATIO)
    kl = to_bits_per_dimension(gaussian_kl_bits(q, p))
    return bits + count * (weight * kl).mean()


def chain_bound_bits(
    model: PosteriorModel, x: Tensor, color: str, plan: Plan, generator: torch.Generator
) -> Tensor:
    """Monte Carlo estimate of the bound of a plan, per part, in bits per dimension.

    Args:
        x: integers of the colour domain as floats, [batch, 3, height, width].

    Returns:
        [batch, T + 1]: the remainder, p(z_1 | z_2), the steps upward, and the prior last.
    """
    domain = DOMAINS[color]
    multipliers = channels(domain.noise_multipliers, x)
    steps = channels(domain.dither, x)
    levels = [s * multipliers for s in plan.levels]
    z_1, remainder = dithered_quantise(x, draw_dither(x.shape, domain, generator), steps)
    parts = []
    z = z_1
    for t, sigma_t in enumerate(levels):
        if t > 0:
            tau = (sigma_t**2 - levels[t - 1] ** 2).sqrt()
            z = z + tau * torch.randn(x.shape, generator=generator)
        xhat, v = model(z, torch.full((x.shape[0],), plan.levels[t], dtype=x.dtype))
        if t == 0:
            bits = remainder_bits(remainder, z_1, xhat, v, steps)
        elif t == 1:
            p_1 = p_first(xhat, v, z, levels[0], sigma_t, steps)
            bits = discretized_gaussian_bits(z_1, *p_1, steps)
        else:
            sigma_s = levels[t - 1]
            q = q_posterior(z_1, z, above(sigma_s, levels[0]), above(sigma_t, levels[0]))
            bits = gaussian_kl_bits(q, p_reverse(xhat, v, z, sigma_s, sigma_t))
        parts.append(to_bits_per_dimension(bits))
    top = levels[-1]
    prior = prior_distribution(domain, top)
    q_top = Gaussian(z_1, (above(top, levels[0]) ** 2).expand_as(x))
    parts.append(to_bits_per_dimension(gaussian_kl_bits(q_top, prior)))
    return torch.stack(parts, 1)


def prior_distribution(domain: ColorDomain, sigma_top: Tensor) -> Gaussian:
    """p(z_T): Gaussian around the domain's centre with the data's variance added."""
    std = channels(domain.data_std, sigma_top)
    return Gaussian(channels(domain.center, sigma_top), sigma_top**2 + std**2)


def simple_loss(model: PosteriorModel, x: Tensor, color: str, generator: torch.Generator) -> Tensor:
    """DDPM's L_simple (eq. 14): mean squared error of epsilon, sigma uniform in log.

    The variance has no gradient from it; add nothing to code length by itself.
    """
    multipliers = channels(DOMAINS[color].noise_multipliers, x)
    batch = x.shape[0]
    strata = (torch.arange(batch) + torch.rand(batch, generator=generator)) / batch
    sigma = FIRST_SIGMA * torch.exp(strata * torch.tensor(MAX_SIGMA / FIRST_SIGMA).log())
    sigma_t = sigma[:, None, None, None] * multipliers
    noise = torch.randn(x.shape, generator=generator)
    z = q_sample(x, sigma_t, noise)
    xhat, _ = model(z, sigma)
    return (((z - xhat) / sigma_t - noise) ** 2).mean()
