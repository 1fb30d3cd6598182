"""The variational bound of the chain: the code length that training minimises and files approach.

    bits(x) = -log2 p(x | z_1) - log2 p(z_1 | z_2) + sum_t KL(q(z_s | z_t, x) || p(z_s | z_t))
              + KL(q(z_T | x) || p(z_T))                                (DDPM eq. 5, with z_1 exact)

The first level is a shared-dither quantiser, so z_1 is a function of x and costs no bits back.

The variance v of x given z_t is the model's ("learned") or fixed, as in DDPM (section 3.2) and
Improved DDPM (section 3.1). With "fixed-small" the steps have the posterior's own variance
beta-tilde_t, here ``Q = sigma_s^2 (1 - r)``, so v = 0. With "fixed-large" they have beta_t, which
is right for pixels that are independent Gaussians, so v is the variance of such a pixel given z_t,
``v = sigma_t^2 S^2 / (sigma_t^2 + S^2)``. DDPM takes S = 1 for samples in [-1, 1], this codec the
domain's ``data_std``. The two ends of the chain have no Q and take this v with either.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from diffcodec.diffusion.color import DOMAINS, ColorDomain, channels
from diffcodec.diffusion.plan import Plan
from diffcodec.diffusion.process import (
    LOG2_E,
    Gaussian,
    discretized_gaussian_bits,
    dithered_quantise,
    gaussian_kl_bits,
    log_bin_mass,
    p_first,
    p_prior,
    p_reverse,
    q_posterior,
    to_bits_per_dimension,
)

# (z_t [batch, 3, h, w], sigma_t [batch]) -> posterior mean and variance of x
PosteriorModel = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class PhasedModel(Protocol):
    """Codes variables in phases (:mod:`diffcodec.diffusion.phases`)."""

    def remainder_bits(self, x: Tensor, z_1: Tensor) -> Tensor:
        """Code length of x given z_1, in bits, of every sample; all [batch, 3, height, width]."""
        ...

    def first_bits(self, z_1: Tensor, z_2: Tensor, sigma: Tensor) -> Tensor:
        """Code length of z_1 given z_2 at noise levels sigma [batch], in bits, of every sample."""
        ...

    def refined(
        self, z_s: Tensor, z_t: Tensor, below: Tensor, sigma: Tensor, lossy: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Mean and variance of x given z_t and, at each pixel, z_s of the phases before it.

        Args:
            z_s, z_t: variables above z_1, [batch, 3, height, width].
            below, sigma: their noise levels, [batch].
            lossy: which are of lossy files, [batch]; None if none is.
        """
        ...


def remainder_bits(
    remainder: Tensor,
    z_1: Tensor,
    xhat: Tensor,
    v: Tensor,
    steps: Tensor,
    most: int | None = None,
) -> Tensor:
    """Code length of x given z_1: discretized Gaussian truncated to the M candidates.

    ``most`` is the greatest M, lest a device be waited for.
    """
    lowest = z_1 - (steps - 1) / 2
    chosen = log_bin_mass(xhat, v, lowest + remainder, 1.0)
    candidates = [
        log_bin_mass(xhat, v, lowest + j, 1.0).masked_fill(j >= steps, -torch.inf)
        for j in range(most or int(steps.max().item()))
    ]
    return LOG2_E * (torch.logsumexp(torch.stack(candidates), 0) - chosen)


def above(sigma: Tensor, sigma_1: Tensor) -> Tensor:
    """Standard deviation of z_t around z_1: what the noise level adds to the first."""
    return (sigma**2 - sigma_1**2).clamp_min(0).sqrt()


class Quantiser(NamedTuple):
    """The dithered quantiser of a first level, by channel."""

    steps: Float[Tensor, "3 1 1"]  # M
    sigma: Float[Tensor, "3 1 1"]  # of its noise, in grey levels


def quantiser_of(domain: ColorDomain, quantiser: int, like: Tensor) -> Quantiser:
    """The quantiser of M steps for luma; constants of the type and on the device of ``like``."""
    steps = channels(domain.quantiser_steps(quantiser), like)
    return Quantiser(steps, ((steps * steps - 1) / 12).sqrt())


def draw_dither(shape: torch.Size, steps: Tensor, generator: torch.Generator) -> Tensor:
    """Uniform dither d in 0..M-1 per sample, as floats."""
    u = torch.rand(shape, generator=generator, device=generator.device)
    return torch.floor(u * steps)


def fix_variance(model: PosteriorModel, color: str, variance: str) -> PosteriorModel:
    """The model, with the variance of independent Gaussian pixels unless it is to be its own."""
    if variance == "learned":
        return model
    domain = DOMAINS[color]

    def fixed(z: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        xhat, _ = model(z, sigma)
        sigma_t = sigma[:, None, None, None] * channels(domain.noise_multipliers, xhat)
        v = gaussian_pixel_variance(sigma_t, channels(domain.data_std, xhat))
        return xhat, v.expand_as(xhat)

    return fixed


def gaussian_pixel_variance(sigma_t: Tensor, std: Tensor) -> Tensor:
    """Variance of x given z_t for ``x ~ N(., std^2)``: gives DDPM's beta_t if std is one unit."""
    return (sigma_t * std) ** 2 / (sigma_t**2 + std**2)


def step_variance(v: Tensor, variance: str) -> Tensor:
    """What widens a Gaussian step."""
    return torch.zeros_like(v) if variance == "fixed-small" else v


def chain_bound_bits(
    model: PosteriorModel,
    x: Float[Tensor, "batch 3 height width"],
    color: str,
    plan: Plan,
    generator: torch.Generator,
    variance: str = "learned",
    coded: int = 3,
    phased: PhasedModel | None = None,
) -> Float[Tensor, "batch parts"]:
    """Monte Carlo estimate of the bound of a plan, per part, in bits per dimension.

    Args:
        model: gives xhat and v.
        x: integers of the colour domain as floats.
        color: of x.
        plan: its levels count.
        generator: on the device of x.
        variance: one of ``variances.VARIANCES``.
        coded: leading channels that count: 3, or 1 for grey images in a domain with luma.
        phased: codes in phases; by default the posterior does, all at once.

    Returns:
        [batch, T + 1]: the remainder, p(z_1 | z_2), the steps upward, and the prior last.
    """
    model = fix_variance(model, color, variance)
    domain = DOMAINS[color]
    multipliers = channels(domain.noise_multipliers, x)
    steps, first_sigma = quantiser_of(domain, plan.quantiser, x)
    levels = [first_sigma, *(s * multipliers for s in plan.levels[1:])]
    z_1, rest = dithered_quantise(x, draw_dither(x.shape, steps, generator), steps)
    parts, z = [], z_1
    for t, sigma_t in enumerate(levels):
        z_s = z
        if t > 0:
            tau = (sigma_t**2 - levels[t - 1] ** 2).sqrt()
            z = z + tau * torch.randn(x.shape, generator=generator, device=generator.device)
        sigma = torch.full((x.shape[0],), plan.levels[t], dtype=x.dtype, device=x.device)
        if t < 2 and phased is not None:
            told = phased.first_bits(z_1, z, sigma) if t else phased.remainder_bits(x, z_1)
            parts.append(to_bits_per_dimension(told[:, :coded]))
            continue
        below = torch.full_like(sigma, plan.levels[t - 1])
        xhat, v = phased.refined(z_s, z, below, sigma) if phased else model(z, sigma)
        if t == 0:
            bits = remainder_bits(rest, z_1, xhat, v, steps)
        elif t == 1:
            p_1 = p_first(xhat, v, z, levels[0], sigma_t, steps)
            bits = discretized_gaussian_bits(z_1, *p_1, steps)
        else:
            sigma_s = levels[t - 1]
            q = q_posterior(z_1, z, above(sigma_s, levels[0]), above(sigma_t, levels[0]))
            p = p_reverse(xhat, step_variance(v, variance), z, sigma_s, sigma_t)
            bits = gaussian_kl_bits(q, p)
        parts.append(to_bits_per_dimension(bits[:, :coded]))
    prior = p_prior(domain, levels[-1])
    q_top = Gaussian(z_1, (above(levels[-1], levels[0]) ** 2).expand_as(x))
    parts.append(to_bits_per_dimension(gaussian_kl_bits(q_top, prior)[:, :coded]))
    return torch.stack(parts, 1)
