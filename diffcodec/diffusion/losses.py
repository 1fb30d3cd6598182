"""What training minimises: the code length, or the losses of DDPM and Improved DDPM."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from diffcodec.diffusion.bound import (
    FIRST_SIGMA,
    PosteriorModel,
    above,
    draw_dither,
    fix_variance,
    remainder_bits,
    step_variance,
)
from diffcodec.diffusion.color import DOMAINS, channels
from diffcodec.diffusion.process import (
    discretized_gaussian_bits,
    dithered_quantise,
    gaussian_kl_bits,
    p_first,
    p_reverse,
    q_posterior,
    q_sample,
    to_bits_per_dimension,
)

SECOND_SIGMA = (1.0, 2.5)  # range in which plans put their second level
MAX_SIGMA = 800.0
TRAINING_RATIO = 1.3  # sigma_t / sigma_s of a training step, about 24 levels
LOWEST_STEP = math.sqrt(SECOND_SIGMA[0] * SECOND_SIGMA[1] * TRAINING_RATIO)  # above the first jump
END_SHARE = 3 / 16  # of a training batch at the first level, and as many at the second
SAMPLING_POWER = 1.5  # of the strata over log sigma: above 1, more samples where the bits are
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
        multipliers, steps = (
            channels(domain.noise_multipliers, xhat),
            channels(domain.quantiser_steps, xhat),
        )
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


def add_noise(
    x: Float[Tensor, "images 3 height width"], color: str, generator: torch.Generator, share: Share
) -> NoisyImages:
    """Draw noise levels and noise for a batch, and apply those of its share to x.

    ``END_SHARE`` of the batch is at the first level, as much at the second, somewhere in
    ``SECOND_SIGMA``, the rest above, with sigma stratified over log sigma.
    """
    domain = DOMAINS[color]
    device, rows = generator.device, share.rows
    multipliers, steps = channels(domain.noise_multipliers, x), channels(domain.quantiser_steps, x)
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
    x: Float[Tensor, "images 3 height width"],
    color: str,
    generator: torch.Generator,
    share: Share = WHOLE,
    variance: str = "learned",
) -> Float[Tensor, ""]:
    """Stratified one-sample estimate of the codec's code length, in bits per dimension.

    Args:
        model: gives xhat and v.
        x: integers of the colour domain as floats: the share's images.
        color: of x.
        generator: on the device of x; at the same state for every share of a batch.
        share: which images of the batch x holds. The losses of all shares add up to the batch's. A
            batch has at least 8 images, each share as many as the others.
        variance: one of ``variances.VARIANCES``.

    Returns:
        Scalar, differentiable.
    """
    noisy = add_noise(x, color, generator, share)
    return noisy.bits(*fix_variance(model, color, variance)(noisy.z, noisy.sigma), variance)


def simple_loss(
    model: PosteriorModel,
    x: Float[Tensor, "images 3 height width"],
    color: str,
    generator: torch.Generator,
    share: Share = WHOLE,
    variance: str = "learned",
) -> Float[Tensor, ""]:
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
    x: Float[Tensor, "images 3 height width"],
    color: str,
    generator: torch.Generator,
    share: Share = WHOLE,
    variance: str = "learned",
) -> Float[Tensor, ""]:
    """Improved DDPM's L_hybrid (eq. 16), ``L_simple + lambda L_vlb``; see :func:`code_length_loss`.

    One evaluation serves both. L_vlb guides the variance only: its gradient stops at the mean.
    """
    noisy = add_noise(x, color, generator, share)
    xhat, v = fix_variance(model, color, variance)(noisy.z, noisy.sigma)
    bits = noisy.bits(xhat.detach(), v, variance)
    return noisy.squared_error(xhat) + HYBRID_WEIGHT * bits
