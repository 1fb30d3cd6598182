"""What the steps between noise levels cost, measured on crops by a model."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor
from tqdm import tqdm

from diffcodec.arrays import Array
from diffcodec.codec.planes import coded_channels
from diffcodec.diffusion.bound import (
    PhasedModel,
    PosteriorModel,
    Quantiser,
    above,
    draw_dither,
    quantiser_of,
    remainder_bits,
)
from diffcodec.diffusion.color import DOMAINS, ColorDomain, channels
from diffcodec.diffusion.losses import second_sigmas
from diffcodec.diffusion.process import (
    LOG2_E,
    Gaussian,
    discretized_gaussian_bits,
    dithered_quantise,
    gaussian_kl_bits,
    on_lattice,
    p_first,
    p_prior,
    p_reverse,
    q_posterior,
    q_sample,
    to_bits_per_dimension,
)
from diffcodec.diffusion.quantiser import first_sigma
from diffcodec.diffusion.schedule import explicit
from diffcodec.errors import DiffcodecError
from diffcodec.planning.costs import Costs
from diffcodec.planning.grid import tabulate_pops

BATCH = 8  # crops that go through the network together
LEAST_MASS = 2.0**-24  # what the entropy coder gives any symbol
POSITIONS = 24  # of each crop at which the effect of lattices is measured
REACH = 12  # levels of the grid that a step may climb


def density_bits(q: Gaussian[Tensor], p: Gaussian[Tensor]) -> Tensor:
    """Cross-entropy of two Gaussians' densities, in bits: ``-E_q log2 p``.

    On a lattice of spacing delta it becomes, where that is fine, ``log2 delta`` bits less.
    """
    squared = (q.variance + (q.mean - p.mean) ** 2) / p.variance
    bits: Tensor = 0.5 * LOG2_E * (squared + torch.log(2 * math.pi * p.variance))
    return bits


def lattice_excess_bits(
    z_1: Float[Tensor, "crops 3 positions 1"],
    z_t: Float[Tensor, "crops 3 positions 1"],
    q: Gaussian[Tensor],
    p: Gaussian[Tensor],
    variances: tuple[Float[Tensor, "3 1 1"], Float[Tensor, "3 1 1"]],
    delta: Float[Tensor, "3 1 1"],
) -> Float[Tensor, "crops 3 positions 1"]:
    """What z_s on a lattice costs beyond ``density_bits(q, p) - log2 delta``.

    The lattice makes ``z_s = z_1 + n + u``, with n Gaussian and the rounding u uniform, so that
    given z_t, u is a truncated Gaussian, and n Gaussian given u. The chain codes z_s by the mass
    of its bin under p, whose variance is corrected for the bin's width
    (:mod:`diffcodec.coding.bits_back`).
    The expectation is by Gauss-Legendre (u) and Gauss-Hermite (n) quadrature.

    Args:
        variances: of z_s around z_1, and of z_t around z_s.
        delta: the lattice's spacing.
    """
    std = on_lattice(p, delta).variance.sqrt()
    drawn, climbed = (variances[0] - delta**2 / 12).clamp_min(1e-6), variances[1]
    distance, total = z_t - z_1, drawn + climbed
    width = (drawn * climbed / total).sqrt()
    bits, weights = torch.zeros_like(q.mean), torch.zeros_like(q.mean)
    for u, rounding_weight in zip(*np.polynomial.legendre.leggauss(3), strict=True):
        rounding = float(u) / 2 * delta
        likelihood = float(rounding_weight) * torch.exp(-((distance - rounding) ** 2) / (2 * total))
        centre = z_1 + rounding + drawn / total * (distance - rounding)
        for n, weight in zip(*np.polynomial.hermite_e.hermegauss(3), strict=True):
            error = (centre + float(n) * width - p.mean).abs()
            mass = torch.special.ndtr((delta / 2 - error) / std)
            mass -= torch.special.ndtr((-delta / 2 - error) / std)
            bits -= float(weight) * likelihood * mass.clamp_min(LEAST_MASS).log2()
            weights += float(weight) * likelihood
    return bits / weights + delta.log2() - density_bits(q, p)


@dataclass(frozen=True)
class FirstLevel:
    """Crops at the first level, above which the costs are measured.

    Attributes:
        x: integers of the colour domain as floats.
        z_1: of the dithered quantiser.
        domain: of x.
        quantiser: of the first level.
        coded: leading channels that count.
        pixels: of each crop at which the effect of lattices is measured.
    """

    x: Float[Tensor, "crops 3 height width"]
    z_1: Float[Tensor, "crops 3 height width"]
    domain: ColorDomain
    quantiser: Quantiser
    coded: int
    pixels: Int64[Tensor, " positions"]

    @property
    def multipliers(self) -> Float[Tensor, "3 1 1"]:
        """Noise of each channel for one grey level of sigma."""
        return channels(self.domain.noise_multipliers, self.x)

    def mean(self, bits: Float[Tensor, "crops 3 *pixels"]) -> Float64[Array, " crops"]:
        """Bits per dimension of each crop."""
        crop_means: Array = to_bits_per_dimension(bits[:, : self.coded]).double().numpy()
        return crop_means

    def some(self, field: Tensor) -> Float[Tensor, "crops 3 positions 1"]:
        """A field at the positions where lattices are measured."""
        return field.expand_as(self.x).flatten(2)[:, :, self.pixels, None]

    def lattice_bits(self, spacings: Array) -> Array:
        """Bits per dimension between a density and its mass on lattices: mean of log2 delta."""
        widths = torch.from_numpy(spacings)[..., None] * self.multipliers.double().flatten()
        bits: Array = widths[..., : self.coded].log2().mean(-1).numpy()
        return bits


def draw_first_level(
    x: Float[Tensor, "crops 3 height width"], color: str, generator: torch.Generator, steps: int
) -> FirstLevel:
    """Draw the dither of M steps for luma, and the positions where lattices are measured."""
    domain = DOMAINS[color]
    quantiser = quantiser_of(domain, steps, x)
    dither = draw_dither(x.shape, quantiser.steps, generator)
    z_1, _ = dithered_quantise(x, dither, quantiser.steps)
    pixels = torch.randperm(x[0, 0].numel(), generator=generator)[:POSITIONS]
    return FirstLevel(x, z_1, domain, quantiser, channels_coded(x, color), pixels)


def measure_costs(
    model: PosteriorModel,
    x: Float[Tensor, "crops 3 height width"],
    color: str,
    levels: Sequence[float],
    spacings: Array,
    generator: torch.Generator,
    reach: int | None = None,
    progress: bool = False,
    quantiser: int = 2,
    phased: PhasedModel | None = None,
) -> Costs:
    """The table of a model, by one evaluation of it per level and crop.

    Args:
        model: gives xhat and v.
        x: crops, integers of the colour domain as floats.
        levels: to choose from, increasing, above sigma_1, [n].
        spacings: of lattices to choose from at each level, [n, k].
        reach: how many levels a step may climb; any number by default.
        progress: whether to show a bar.
        quantiser: M of luma at the first level.
        phased: codes in phases; by default the posterior does, all at once.

    Raises:
        DiffcodecError: if there are no levels or crops, or the levels do not increase.
    """
    check_grid(levels, spacings, len(x), first_sigma(quantiser))
    crops = draw_first_level(x, color, generator, quantiser)
    costs = no_costs(levels, spacings, len(x), quantiser)
    first = first_sigma(quantiser), crops.quantiser.steps
    costs.remainder[:] = crops.mean(lowest_bits(model, phased, x, crops.z_1, *first))
    for j, level in enumerate(tqdm(levels, "noise levels", disable=None if progress else True)):
        noise = torch.randn(x.shape, generator=generator)
        z_t = q_sample(crops.z_1, above(level * crops.multipliers, crops.quantiser.sigma), noise)
        told = phased or batched(model, z_t, level)
        measure_ends(costs, crops, j, z_t, told)
        for i in range(0 if reach is None else max(0, j - reach), j):
            if isinstance(told, tuple):
                posterior = told
            else:
                z_s = draw_below(crops, (levels[i], level), z_t, generator)
                posterior = refined(told, z_s, z_t, levels[i], level)
            measure_step(costs, crops, (i, j), z_t, *posterior)
    return costs


def check_grid(levels: Sequence[float], spacings: Array, crops: int, first: float) -> None:
    """Refuse a grid on which there is nothing to measure.

    Raises:
        DiffcodecError: if there are no levels, lattices or crops, or the levels do not increase.
    """
    if not levels or not crops or spacings.shape[:-1] != (len(levels),) or not spacings.size:
        raise DiffcodecError(
            f"{len(levels)} noise levels, {crops} crops and lattices {spacings.shape}: a search "
            "needs at least one of each, and lattices for every level"
        )
    try:
        explicit([first, *levels])
    except ValueError as e:
        raise DiffcodecError(str(e)) from e


def no_costs(levels: Sequence[float], spacings: Array, crops: int, quantiser: int) -> Costs:
    """The table with its pops alone, all else infinite."""
    n, k = spacings.shape
    return Costs(
        levels=np.array(levels, dtype=np.float64),
        spacings=spacings,
        pops=tabulate_pops(levels, spacings, quantiser),
        remainder=np.full(crops, np.inf),
        jumps=np.full((n, crops), np.inf),
        steps=np.full((n, n, k, crops), np.inf),
        priors=np.full((n, k, crops), np.inf),
        sent=np.full((n, n, crops), np.inf),
        sent_first=np.full((n, crops), np.inf),
        quantiser=quantiser,
    )


def measure_ends(
    costs: Costs,
    crops: FirstLevel,
    j: int,
    z_t: Float[Tensor, "crops 3 height width"],
    told: PhasedModel | tuple[Tensor, Tensor],
) -> None:
    """Fill in z_t at level j as a chain's second, p(z_1 | z_t), and as its last, p(z_t).

    The first by xhat and v, or in phases.
    """
    (steps, first), sigma_t = crops.quantiser, float(costs.levels[j]) * crops.multipliers
    if costs.levels[j] <= second_sigmas(costs.quantiser)[1] or j == 0:
        if isinstance(told, tuple):
            p_1 = p_first(*told, z_t, first, sigma_t, steps)
            bits = coder_bits(crops.z_1, p_1, steps)
        else:
            bits = first_bits(told, crops.z_1, z_t, float(costs.levels[j]))
        costs.jumps[j] = crops.mean(bits)
    prior = p_prior(crops.domain, sigma_t)
    around = Gaussian(crops.z_1, (sigma_t**2 - first**2).expand_as(z_t))
    density = crops.mean(density_bits(around, prior))
    costs.priors[j] = density - crops.lattice_bits(costs.spacings[j])[:, None]
    costs.sent_first[j] = crops.mean(gaussian_kl_bits(around, prior))


def draw_below(
    crops: FirstLevel,
    levels: tuple[float, float],
    z_t: Float[Tensor, "crops 3 height width"],
    generator: torch.Generator,
) -> Float[Tensor, "crops 3 height width"]:
    """z_s of the lower of two noise levels, given z_t of the higher."""
    first = crops.quantiser.sigma
    noise = (above(level * crops.multipliers, first) for level in levels)
    q = q_posterior(crops.z_1, z_t, *noise)
    return q_sample(q.mean, q.variance.sqrt(), torch.randn(z_t.shape, generator=generator))


def measure_step(
    costs: Costs,
    crops: FirstLevel,
    step: tuple[int, int],
    z_t: Float[Tensor, "crops 3 height width"],
    xhat: Float[Tensor, "crops 3 height width"],
    v: Float[Tensor, "crops 3 height width"],
) -> None:
    """Fill in p(z_s | z_t) of levels i and j, on every lattice on which z_s can be drawn.

    By the posterior of x, which in phases knows some of z_s.
    """
    i, j = step
    z_1, some, first = crops.z_1, crops.some, crops.quantiser.sigma
    sigma_s, sigma_t = (float(costs.levels[n]) * crops.multipliers for n in step)
    q = q_posterior(z_1, z_t, above(sigma_s, first), above(sigma_t, first))
    p = p_reverse(xhat, v, z_t, sigma_s, sigma_t)
    costs.sent[j, i] = crops.mean(gaussian_kl_bits(q, p))
    density = crops.mean(density_bits(q, p))
    lattice_bits = crops.lattice_bits(costs.spacings[i])
    part_q, part_p = (Gaussian(some(g.mean), some(g.variance)) for g in (q, p))
    variances = (sigma_s**2 - first**2, sigma_t**2 - sigma_s**2)
    for k in np.flatnonzero(np.isfinite(costs.pops[: i + 1, i].min(0))):
        delta = float(costs.spacings[i, k]) * crops.multipliers
        excess = lattice_excess_bits(some(z_1), some(z_t), part_q, part_p, variances, delta)
        costs.steps[j, i, k] = density + crops.mean(excess) - lattice_bits[k]


def batched(
    model: PosteriorModel, z: Float[Tensor, "crops 3 height width"], sigma: float
) -> tuple[Float[Tensor, "crops 3 height width"], Float[Tensor, "crops 3 height width"]]:
    """The model's xhat and v at one noise level, a few crops at a time."""
    parts = [model(part, torch.full((len(part),), sigma, dtype=z.dtype)) for part in z.split(BATCH)]
    return torch.cat([xhat for xhat, _ in parts]), torch.cat([v for _, v in parts])


def lowest_bits(
    model: PosteriorModel,
    phased: PhasedModel | None,
    x: Float[Tensor, "crops 3 height width"],
    z_1: Float[Tensor, "crops 3 height width"],
    sigma: float,
    steps: Float[Tensor, "3 1 1"],
) -> Float[Tensor, "crops 3 height width"]:
    """The bits of x given z_1, at its noise level and of its M steps, a few crops at a time."""
    if phased is not None:
        pairs = zip(x.split(BATCH), z_1.split(BATCH), strict=True)
        return torch.cat([phased.remainder_bits(*pair) for pair in pairs])
    lowest = z_1 - (steps - 1) / 2
    return remainder_bits(x - lowest, z_1, *batched(model, z_1, sigma), steps)


def first_bits(
    phased: PhasedModel,
    z_1: Float[Tensor, "crops 3 height width"],
    z_2: Float[Tensor, "crops 3 height width"],
    sigma: float,
) -> Float[Tensor, "crops 3 height width"]:
    """The bits of z_1 given z_2 at one noise level, a few crops at a time."""
    parts = [
        phased.first_bits(*pair, torch.full((len(pair[0]),), sigma, dtype=z_1.dtype))
        for pair in zip(z_1.split(BATCH), z_2.split(BATCH), strict=True)
    ]
    return torch.cat(parts)


def refined(
    phased: PhasedModel,
    z_s: Float[Tensor, "crops 3 height width"],
    z_t: Float[Tensor, "crops 3 height width"],
    below: float,
    sigma: float,
) -> tuple[Float[Tensor, "crops 3 height width"], Float[Tensor, "crops 3 height width"]]:
    """The posterior of x that knows the phases of z_s before, a few crops at a time."""
    parts = [
        phased.refined(*pair, *(pair[0].new_full((len(pair[0]),), s) for s in (below, sigma)))
        for pair in zip(z_s.split(BATCH), z_t.split(BATCH), strict=True)
    ]
    return torch.cat([xhat for xhat, _ in parts]), torch.cat([v for _, v in parts])


def channels_coded(x: Float[Tensor, "crops 3 height width"], color: str) -> int:
    """How many channels the files of such crops code: of grey ones the first alone.

    Crops that are partly grey count as colour images.
    """
    return coded_channels("RGB" if x[:, 1:].any() else "L", color) or x.shape[1]


def coder_bits(z: Tensor, p: Gaussian[Tensor], delta: Tensor) -> Tensor:
    """Code length of a point of a lattice by the mass of its bin, at most the coder's."""
    return discretized_gaussian_bits(z, *p, delta).clamp_max(-math.log2(LEAST_MASS))
