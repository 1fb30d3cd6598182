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

import math
from collections.abc import Callable
from dataclasses import dataclass

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
LOWEST_STEP = math.sqrt(SECOND_SIGMA[0] * SECOND_SIGMA[1] * TRAINING_RATIO)  # above the first jump
END_SHARE = 3 / 16  # of a training batch at the first level, and as many at the second
SAMPLING_POWER = 1.5  # of the strata over log sigma: above 1, more samples where the bits are
VARIANCES = ("learned", "fixed-small", "fixed-large")
HYBRID_WEIGHT = 0.001  # lambda, of the bound in bits per dimension


@dataclass(frozen=True)
class Share:
    """Every ``count``-th image of a batch from ``index`` on: what one process or pass works on."""

    index: int = 0
    count: int = 1

    @property
    def rows(self) -> slice:
        """As an index into the batch."""
        return slice(self.index, None, self.count)

    def size(self, end: int) -> int:
        """How many of the first ``end`` images of the batch it has."""
        return len(range(self.index, end, self.count))


WHOLE = Share()


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
    u = torch.rand(shape, generator=generator, device=generator.device)
    return torch.floor(u * channels(domain.dither, u))


@dataclass(frozen=True)
class NoisyImages:
    """A share of a batch, each image at one noise level: the first, the second or a step's.

    Attributes:
        x: integers of the colour domain as floats, [images, 3, height, width].
        z_1, remainder: first level of each.
        z: what the model sees.
        sigma: its level, [images].
        density: what makes the steps' levels uniform over log sigma, [images]; 1 at the ends.
        ends: where the images at the first and at the second level end.
        sizes: how many of the whole batch are at the first level, the second and above.
    """

    color: str
    x: Tensor
    z_1: Tensor
    remainder: Tensor
    z: Tensor
    sigma: Tensor
    density: Tensor
    ends: tuple[int, int]
    sizes: tuple[int, int, int]

    def bits(self, xhat: Tensor, v: Tensor, variance: str) -> Tensor:
        """The share's part of the batch's code length, in bits per dimension."""
        domain = DOMAINS[self.color]
        multipliers, steps = channels(domain.noise_multipliers, xhat), channels(domain.dither, xhat)
        first_sigma = FIRST_SIGMA * multipliers
        sigma_t = self.sigma[:, None, None, None] * multipliers
        z_1, z = self.z_1, self.z
        a, b = self.ends
        p_1 = p_first(xhat[a:b], v[a:b], z[a:b], first_sigma, sigma_t[a:b], steps)
        sigma_s = sigma_t[b:] / TRAINING_RATIO
        noise_s, noise_t = above(sigma_s, first_sigma), above(sigma_t[b:], first_sigma)
        q = q_posterior(z_1[b:], z[b:], noise_s, noise_t)
        p = p_reverse(xhat[b:], step_variance(v[b:], variance), z[b:], sigma_s, sigma_t[b:])
        count = math.log(MAX_SIGMA / LOWEST_STEP) / math.log(TRAINING_RATIO)
        bits = (
            remainder_bits(self.remainder[:a], z_1[:a], xhat[:a], v[:a], steps),
            discretized_gaussian_bits(z_1[a:b], *p_1, steps),
            self.density[b:, None, None, None] * count * gaussian_kl_bits(q, p),
        )
        parts = zip(bits, self.sizes, strict=True)
        return torch.stack([to_bits_per_dimension(part).sum() / size for part, size in parts]).sum()

    def squared_error(self, xhat: Tensor) -> Tensor:
        """The share's part of the mean squared error of epsilon, steps uniform over log sigma."""
        sigma_t = self.sigma[:, None, None, None] * channels(
            DOMAINS[self.color].noise_multipliers, xhat
        )
        error = to_bits_per_dimension(((xhat - self.x) / sigma_t) ** 2)
        return (self.density * error).sum() / sum(self.sizes)


def add_noise(x: Tensor, color: str, generator: torch.Generator, share: Share) -> NoisyImages:
    """Draw noise levels and noise for a batch, and apply those of its share to x.

    ``END_SHARE`` of the batch is at the first level, as much at the second, somewhere in
    ``SECOND_SIGMA``, the rest above, with sigma stratified over log sigma.
    """
    domain = DOMAINS[color]
    device, rows = generator.device, share.rows
    multipliers, steps = channels(domain.noise_multipliers, x), channels(domain.dither, x)
    batch = share.count * x.shape[0]
    first = second = int(batch * END_SHARE)
    rest = batch - first - second
    low, high = SECOND_SIGMA
    strata = torch.arange(rest, device=device)
    strata = (strata + torch.rand(rest, generator=generator, device=device)) / rest
    position = strata**SAMPLING_POWER
    weight = SAMPLING_POWER * strata ** (SAMPLING_POWER - 1)
    uniform = torch.rand(second, generator=generator, device=device)
    sigma = torch.cat(
        [
            torch.full((first,), FIRST_SIGMA, device=device),
            low * (high / low) ** uniform,
            LOWEST_STEP * torch.exp(position * math.log(MAX_SIGMA / LOWEST_STEP)),
        ]
    )[rows]
    density = torch.cat([torch.ones(first + second, device=device), weight])[rows]
    shape = torch.Size((batch, *x.shape[1:]))
    dither = draw_dither(shape, domain, generator)[rows]
    z_1, remainder = dithered_quantise(x, dither, steps)
    noise = torch.randn(shape, generator=generator, device=device)[rows]
    sigma_t = sigma[:, None, None, None] * multipliers
    z = q_sample(z_1, above(sigma_t, FIRST_SIGMA * multipliers), noise)
    ends = share.size(first), share.size(first + second)
    return NoisyImages(
        color, x, z_1, remainder, z, sigma, density, ends, sizes=(first, second, rest)
    )


def code_length_loss(
    model: PosteriorModel,
    x: Tensor,
    color: str,
    generator: torch.Generator,
    share: Share = WHOLE,
    variance: str = "learned",
) -> Tensor:
    """Stratified one-sample estimate of the codec's code length, in bits per dimension.

    Args:
        model: gives xhat and v.
        x: integers of the colour domain as floats, [images, 3, height, width]: the share's images.
        color: of x.
        generator: on the device of x; at the same state for every share of a batch.
        share: which images of the batch x holds. The losses of all shares add up to the batch's. A
            batch has at least 8 images, each share as many as the others.
        variance: one of ``VARIANCES``.

    Returns:
        Scalar, differentiable.
    """
    noisy = add_noise(x, color, generator, share)
    return noisy.bits(*fix_variance(model, color, variance)(noisy.z, noisy.sigma), variance)


def simple_loss(
    model: PosteriorModel,
    x: Tensor,
    color: str,
    generator: torch.Generator,
    share: Share = WHOLE,
    variance: str = "learned",
) -> Tensor:
    """DDPM's L_simple (eq. 14): mean squared error of epsilon, sigma uniform in log.

    See :func:`code_length_loss`. The variance has no gradient from it, whichever it is.
    """
    device, rows = generator.device, share.rows
    multipliers = channels(DOMAINS[color].noise_multipliers, x)
    batch = share.count * x.shape[0]
    strata = torch.rand(batch, generator=generator, device=device)
    strata = (torch.arange(batch, device=device) + strata) / batch
    sigma = (FIRST_SIGMA * torch.exp(strata * math.log(MAX_SIGMA / FIRST_SIGMA)))[rows]
    sigma_t = sigma[:, None, None, None] * multipliers
    shape = torch.Size((batch, *x.shape[1:]))
    noise = torch.randn(shape, generator=generator, device=device)[rows]
    z = q_sample(x, sigma_t, noise)
    xhat, _ = model(z, sigma)
    return to_bits_per_dimension(((z - xhat) / sigma_t - noise) ** 2).sum() / batch


def hybrid_loss(
    model: PosteriorModel,
    x: Tensor,
    color: str,
    generator: torch.Generator,
    share: Share = WHOLE,
    variance: str = "learned",
) -> Tensor:
    """Improved DDPM's L_hybrid (eq. 16), ``L_simple + lambda L_vlb``; see :func:`code_length_loss`.

    One evaluation serves both. L_vlb guides the variance only: its gradient stops at the mean.
    """
    noisy = add_noise(x, color, generator, share)
    xhat, v = fix_variance(model, color, variance)(noisy.z, noisy.sigma)
    bits = noisy.bits(xhat.detach(), v, variance)
    return noisy.squared_error(xhat) + HYBRID_WEIGHT * bits


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
    x: Tensor,
    color: str,
    plan: Plan,
    generator: torch.Generator,
    variance: str = "learned",
    coded: int = 3,
) -> Tensor:
    """Monte Carlo estimate of the bound of a plan, per part, in bits per dimension.

    Args:
        model: gives xhat and v.
        x: integers of the colour domain as floats, [batch, 3, height, width].
        color: of x.
        plan: its levels count.
        generator: on the device of x.
        variance: one of ``VARIANCES``.
        coded: leading channels that count: 3, or 1 for grey images in a domain with luma.

    Returns:
        [batch, T + 1]: the remainder, p(z_1 | z_2), the steps upward, and the prior last.
    """
    model = fix_variance(model, color, variance)
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
            z = z + tau * torch.randn(x.shape, generator=generator, device=generator.device)
        sigma = torch.full((x.shape[0],), plan.levels[t], dtype=x.dtype, device=x.device)
        xhat, v = model(z, sigma)
        if t == 0:
            bits = remainder_bits(remainder, z_1, xhat, v, steps)
        elif t == 1:
            p_1 = p_first(xhat, v, z, levels[0], sigma_t, steps)
            bits = discretized_gaussian_bits(z_1, *p_1, steps)
        else:
            sigma_s = levels[t - 1]
            q = q_posterior(z_1, z, above(sigma_s, levels[0]), above(sigma_t, levels[0]))
            p = p_reverse(xhat, step_variance(v, variance), z, sigma_s, sigma_t)
            bits = gaussian_kl_bits(q, p)
        parts.append(to_bits_per_dimension(bits[:, :coded]))
    top = levels[-1]
    prior = prior_distribution(domain, top)
    q_top = Gaussian(z_1, (above(top, levels[0]) ** 2).expand_as(x))
    parts.append(to_bits_per_dimension(gaussian_kl_bits(q_top, prior)[:, :coded]))
    return torch.stack(parts, 1)


def prior_distribution(domain: ColorDomain, sigma_top: Tensor) -> Gaussian:
    """p(z_T): Gaussian around the domain's centre with the data's variance added."""
    std = channels(domain.data_std, sigma_top)
    return Gaussian(channels(domain.center, sigma_top), sigma_top**2 + std**2)
