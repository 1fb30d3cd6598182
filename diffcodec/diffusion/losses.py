"""What training minimises: the code length, or the losses of DDPM and Improved DDPM."""

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from diffcodec.diffusion.bound import (
    PhasedModel,
    PosteriorModel,
    Quantiser,
    above,
    draw_dither,
    fix_variance,
    quantiser_of,
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
from diffcodec.diffusion.quantiser import first_sigma
from diffcodec.diffusion.schedule import GREY_LEVELS_PER_UNIT

SECOND_RATIOS = (2.0, 4.15)  # of the second level to the first, within which plans put it
MAX_SIGMA = 800.0
TRAINING_RATIO = 1.3  # sigma_t / sigma_s of a training step, about 24 levels
PHASED_RATIOS = (1.3, 4.0)  # the same of steps in phases, which are fewer and longer
END_SHARES = (3 / 16, 3 / 16, 0)  # of a training batch at the first level and at the second
PHASED_SHARES = (7 / 16, 4 / 16, 1 / 16)  # in phases, which hold most bits; and of lossy files
LOSSY_SIGMA = 1.2  # the lowest of a step of these
LOSSY_WEIGHT = 0.5  # of their bits, lest they outweigh those of exact files
SAMPLING_POWER = 1.5  # of the strata over log sigma: above 1, more samples where the bits are
HYBRID_WEIGHT = 0.001  # lambda, of the bound in bits per dimension


def second_sigmas(quantiser: int) -> tuple[float, float]:
    """Range in which plans put their second level, above a first of M steps for luma."""
    low, high = SECOND_RATIOS
    return low * first_sigma(quantiser), high * first_sigma(quantiser)


def lowest_step(quantiser: int) -> float:
    """The lowest sigma_t of a training step, above the jump to the first level."""
    low, high = second_sigmas(quantiser)
    return math.sqrt(low * high * TRAINING_RATIO)


@dataclass(frozen=True)
class Share:
    """Every ``count``-th image of a batch from ``index`` on: what one process or pass works on."""

    index: int = 0
    count: int = 1

    @property
    def rows(self) -> slice:
        """The share as an index into the batch."""
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
        first: the first level, M for luma ``quantiser``.
        z_1, remainder: first level of each.
        z: what the model sees.
        sigma: its level, [images].
        density: what makes the steps' levels uniform over log sigma, [images]; 1 at the ends.
        ends: where the images at the first, at the second level and above it end; the others are
            those of lossy files.
        sizes: how many of the whole batch are at the first level, the second and elsewhere.
    """

    color: str
    quantiser: int
    x: Tensor
    first: Quantiser
    z_1: Tensor
    remainder: Tensor
    z: Tensor
    sigma: Tensor
    density: Tensor
    ends: tuple[int, int, int]
    sizes: tuple[int, int, int]

    @property
    def is_lossy(self) -> Bool[Tensor, " images"]:
        """Which images are at the noise levels of lossy files."""
        return torch.arange(len(self.z), device=self.z.device) >= self.ends[2]

    @property
    def noise(self) -> Float[Tensor, "images 3 1 1"]:
        """The noise of each channel of each image above the first level."""
        return self.sigma[:, None, None, None] * channels(
            DOMAINS[self.color].noise_multipliers, self.z
        )

    def remainder_bits(self, xhat: Tensor, v: Tensor) -> Tensor:
        """The bits of x given z_1 of the images at the first level, by their posterior alone."""
        a, steps = self.ends[0], self.first.steps
        most = max(DOMAINS[self.color].quantiser_steps(self.quantiser))
        fields = self.remainder[:a], self.z_1[:a], xhat[:a], v[:a]
        return remainder_bits(*fields, steps, most)

    def first_bits(self, xhat: Tensor, v: Tensor) -> Tensor:
        """The bits of z_1 of the images at the second level, by the posterior of all images."""
        rows, (steps, sigma_1) = slice(*self.ends[:2]), self.first
        p = p_first(xhat[rows], v[rows], self.z[rows], sigma_1, self.noise[rows], steps)
        return discretized_gaussian_bits(self.z_1[rows], *p, steps)

    def step_bits(self, xhat: Tensor, v: Tensor, variance: str) -> Tensor:
        """The bits of images above the second level, by their posterior, the last rows given."""
        rows, sigma_1 = slice(self.ends[1], None), self.first.sigma
        z_1, z, sigma_t = self.z_1[rows], self.z[rows], self.noise[rows]
        xhat, v = xhat[len(xhat) - len(z) :], v[len(v) - len(z) :]
        sigma_s = sigma_t / TRAINING_RATIO
        q = q_posterior(z_1, z, above(sigma_s, sigma_1), above(sigma_t, sigma_1))
        p = p_reverse(xhat, step_variance(v, variance), z, sigma_s, sigma_t)
        count = math.log(MAX_SIGMA / lowest_step(self.quantiser)) / math.log(TRAINING_RATIO)
        return self.density[rows, None, None, None] * count * gaussian_kl_bits(q, p)

    def phased_step_bits(
        self, phased: PhasedModel, generator: torch.Generator, share: Share
    ) -> Float[Tensor, "rest 3 height width"]:
        """The same in phases, of steps of random lengths; of lossy files in the last images.

        The noise of those is around x, that of the others around z_1.
        """
        rows, lossy = slice(self.ends[1], None), self.is_lossy
        given = torch.where(lossy[:, None, None, None], self.x, self.z_1)[rows]
        away = self.first.sigma * ~lossy[:, None, None, None][rows]
        z, sigma, sigma_t = (field[rows] for field in (self.z, self.sigma, self.noise))
        batch, device = share.count * len(self.z), generator.device
        uniform = torch.rand(batch, generator=generator, device=device)[share.rows][rows]
        noise = torch.randn((batch, *z.shape[1:]), generator=generator, device=device)
        low, high = PHASED_RATIOS
        least = torch.full_like(sigma, second_sigmas(self.quantiser)[0])
        least = least.masked_fill(lossy[rows], first_sigma(2))
        length = math.log(low) + uniform * math.log(high / low)
        length = torch.minimum(length, torch.log(sigma / least))
        below = sigma * torch.exp(-length)
        sigma_s = sigma_t * (below / sigma)[:, None, None, None]
        q = q_posterior(given, z, above(sigma_s, away), above(sigma_t, away))
        z_s = q.mean + q.variance.sqrt() * noise[share.rows][rows]
        xhat, v = phased.refined(z_s, z, below, sigma, lossy[rows])
        p = p_reverse(xhat, v, z, sigma_s, sigma_t)
        count = math.log(MAX_SIGMA / lowest_step(self.quantiser)) / length
        return (self.density[rows] * count)[:, None, None, None] * gaussian_kl_bits(q, p)

    def bits(self, xhat: Tensor, v: Tensor, variance: str) -> Float[Tensor, ""]:
        """The share's part of the batch's code length by the posterior of all images."""
        steps = self.step_bits(xhat, v, variance)
        return self.mean(self.remainder_bits(xhat, v), self.first_bits(xhat, v), steps)

    def mean(self, *bits: Tensor) -> Float[Tensor, ""]:
        """The share's part of the batch's code length, in bits per dimension.

        Args:
            bits: of the images at the first level, at the second, and of those above.
        """
        parts = zip(bits, self.sizes, strict=True)
        return torch.stack([to_bits_per_dimension(part).sum() / size for part, size in parts]).sum()

    def squared_error(self, xhat: Tensor) -> Tensor:
        """The share's part of the mean squared error of epsilon, steps uniform over log sigma."""
        error = to_bits_per_dimension(((xhat - self.x) / self.noise) ** 2)
        return (self.density * error).sum() / sum(self.sizes)


def add_noise(
    x: Float[Tensor, "images 3 height width"],
    color: str,
    generator: torch.Generator,
    share: Share,
    quantiser: int,
    shares: tuple[float, float, float] = END_SHARES,
) -> NoisyImages:
    """Draw noise levels and noise for a batch, and apply those of its share to x.

    Shares of the batch are at the first level, at the second, somewhere in ``second_sigmas``, and
    at those of lossy files, half of them below the second; the rest above, with sigma stratified
    over log sigma.
    """
    domain = DOMAINS[color]
    device, rows = generator.device, share.rows
    level = quantiser_of(domain, quantiser, x)
    batch = share.count * x.shape[0]
    first, second, lossy = (int(batch * end) for end in shares)
    rest = batch - first - second - lossy
    low, high = second_sigmas(quantiser)
    strata = torch.arange(rest, device=device)
    strata = (strata + torch.rand(rest, generator=generator, device=device)) / rest
    position = strata**SAMPLING_POWER
    weight = SAMPLING_POWER * strata ** (SAMPLING_POWER - 1)
    uniform = torch.rand(second, generator=generator, device=device)
    lowest = lowest_step(quantiser)
    below = torch.rand(lossy, generator=generator, device=device)
    sigma = torch.cat(
        [
            torch.full((first,), first_sigma(quantiser), device=device),
            low * (high / low) ** uniform,
            lowest * torch.exp(position * math.log(MAX_SIGMA / lowest)),
            LOSSY_SIGMA * (MAX_SIGMA / LOSSY_SIGMA) ** (below * below),
        ]
    )[rows]
    weight = weight * (rest + lossy) / rest
    density = torch.cat(
        [
            torch.ones(first + second, device=device),
            weight,
            torch.full((lossy,), LOSSY_WEIGHT, device=device),
        ]
    )[rows]
    shape = torch.Size((batch, *x.shape[1:]))
    dither = draw_dither(shape, level.steps, generator)[rows]
    z_1, remainder = dithered_quantise(x, dither, level.steps)
    noise = torch.randn(shape, generator=generator, device=device)[rows]
    ends = share.size(first), share.size(first + second), share.size(batch - lossy)
    sizes = first, second, rest + lossy
    noisy = NoisyImages(
        color, quantiser, x, level, z_1, remainder, z_1, sigma, density, ends, sizes
    )
    around = above(noisy.noise, level.sigma)
    around[: ends[0]] = 0
    z = q_sample(z_1, around, noise)
    z[ends[2] :] = q_sample(x, noisy.noise, noise)[ends[2] :]
    return replace(noisy, z=z)


def code_length_loss(
    model: PosteriorModel,
    x: Float[Tensor, "images 3 height width"],
    color: str,
    generator: torch.Generator,
    share: Share = WHOLE,
    variance: str = "learned",
    quantiser: int = 2,
    phased: PhasedModel | None = None,
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
        quantiser: M of luma at the first level.
        phased: codes in phases; by default the posterior does, all at once.

    Returns:
        Scalar, differentiable.
    """
    shares = PHASED_SHARES if phased else END_SHARES
    noisy = add_noise(x, color, generator, share, quantiser, shares)
    model = fix_variance(model, color, variance)
    if phased is None:
        return noisy.bits(*model(noisy.z, noisy.sigma), variance)
    a, b, _ = noisy.ends
    z_1 = noisy.z_1
    return noisy.mean(
        phased.remainder_bits(x[:a], z_1[:a]),
        phased.first_bits(z_1[a:b], noisy.z[a:b], noisy.sigma[a:b]),
        noisy.phased_step_bits(phased, generator, share),
    )


def simple_loss(
    model: PosteriorModel,
    x: Float[Tensor, "images 3 height width"],
    color: str,
    generator: torch.Generator,
    share: Share = WHOLE,
    variance: str = "learned",
    quantiser: int = 2,
) -> Float[Tensor, ""]:
    """DDPM's L_simple (eq. 14): mean squared error of epsilon, sigma uniform in log.

    See :func:`code_length_loss`. The variance has no gradient from it, whichever it is.
    """
    strata = _strata(x, generator, share)
    return _epsilon_error(model, x, color, generator, share, _uniform_in_log(strata, quantiser))


def v_loss(
    model: PosteriorModel,
    x: Float[Tensor, "images 3 height width"],
    color: str,
    generator: torch.Generator,
    share: Share = WHOLE,
    variance: str = "learned",
    quantiser: int = 2,
) -> Float[Tensor, ""]:
    """Squared error of v (Salimans and Ho 2022, section 4), sigma uniform in log.

    That of epsilon times ``1 + u^2``, u the noise in DDPM's unit; see :func:`simple_loss`.
    """
    sigma = _uniform_in_log(_strata(x, generator, share), quantiser)
    return _epsilon_error(model, x, color, generator, share, sigma, 1 + (sigma * _unit(color)) ** 2)


def flow_matching_loss(
    model: PosteriorModel,
    x: Float[Tensor, "images 3 height width"],
    color: str,
    generator: torch.Generator,
    share: Share = WHOLE,
    variance: str = "learned",
    quantiser: int = 2,
    noise: Float[Tensor, "images 3 height width"] | None = None,
) -> Float[Tensor, ""]:
    """Flow matching's loss on the straight path (Lipman et al. 2023, eq. 23), its t uniform.

    Squared error of the velocity ``eps - x``, with ``u = t / (1 - t)``: that of epsilon times
    ``(1 + u)^2``; see :func:`simple_loss`. With a ``noise`` for each image instead of a drawn one,
    that from which a flow leads to it, it is rectified flow's reflow (Liu et al. 2023, eq. 1).
    """
    strata = _strata(x, generator, share)
    ends = (sigma * _unit(color) for sigma in (first_sigma(quantiser), MAX_SIGMA))
    low, high = (u / (1 + u) for u in ends)
    t = low + (high - low) * strata
    u = t / (1 - t)
    sigma = u / _unit(color)
    return _epsilon_error(model, x, color, generator, share, sigma, (1 + u) ** 2, noise)


def _strata(x: Tensor, generator: torch.Generator, share: Share) -> Tensor:
    """A number from 0 to 1 for each image of the whole batch, one in each part of it."""
    batch, device = share.count * x.shape[0], generator.device
    drawn = torch.rand(batch, generator=generator, device=device)
    return (torch.arange(batch, device=device) + drawn) / batch


def _uniform_in_log(strata: Tensor, quantiser: int) -> Tensor:
    lowest = first_sigma(quantiser)
    return lowest * torch.exp(strata * math.log(MAX_SIGMA / lowest))


def _unit(color: str) -> float:
    """What a noise level of 1 is in DDPM's unit, by the volume of the noise of all channels."""
    multipliers = DOMAINS[color].noise_multipliers
    return float(math.prod(multipliers) ** (1 / len(multipliers)) / GREY_LEVELS_PER_UNIT)


def _epsilon_error(
    model: PosteriorModel,
    x: Tensor,
    color: str,
    generator: torch.Generator,
    share: Share,
    sigma: Tensor,
    weight: Tensor | None = None,
    noise: Tensor | None = None,
) -> Tensor:
    """The share's part of the mean squared error of epsilon at the noise levels of a batch."""
    batch, rows = len(sigma), share.rows
    sigma_t = sigma[rows, None, None, None] * channels(DOMAINS[color].noise_multipliers, x)
    if noise is None:
        shape = torch.Size((batch, *x.shape[1:]))
        noise = torch.randn(shape, generator=generator, device=generator.device)[rows]
    z = q_sample(x, sigma_t, noise)
    xhat, _ = model(z, sigma[rows])
    error = to_bits_per_dimension(((z - xhat) / sigma_t - noise) ** 2)
    return (error if weight is None else weight[rows] * error).sum() / batch


def hybrid_loss(
    model: PosteriorModel,
    x: Float[Tensor, "images 3 height width"],
    color: str,
    generator: torch.Generator,
    share: Share = WHOLE,
    variance: str = "learned",
    quantiser: int = 2,
) -> Float[Tensor, ""]:
    """Improved DDPM's L_hybrid (eq. 16), ``L_simple + lambda L_vlb``; see :func:`code_length_loss`.

    One evaluation serves both. L_vlb guides the variance only: its gradient stops at the mean.
    """
    noisy = add_noise(x, color, generator, share, quantiser)
    xhat, v = fix_variance(model, color, variance)(noisy.z, noisy.sigma)
    bits = noisy.bits(xhat.detach(), v, variance)
    return noisy.squared_error(xhat) + HYBRID_WEIGHT * bits
