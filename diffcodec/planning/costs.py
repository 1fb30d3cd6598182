"""What the steps between noise levels cost, measured on crops."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from scipy.special import entr, ndtr
from torch import Tensor
from tqdm import tqdm

from diffcodec.arrays import Array
from diffcodec.codec.planes import coded_channels
from diffcodec.coding.steps import FORWARD_RADIUS
from diffcodec.container.parts import LEAST_PREVIEW
from diffcodec.diffusion.bound import (
    FIRST_SIGMA,
    PosteriorModel,
    above,
    draw_dither,
    remainder_bits,
)
from diffcodec.diffusion.color import DOMAINS, channels
from diffcodec.diffusion.losses import MAX_SIGMA, SECOND_SIGMA
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
from diffcodec.diffusion.schedule import explicit
from diffcodec.errors import DiffcodecError

PREVIEW_OVERHEAD = 0.3  # of relative entropy coding over the KL, with what its bias costs below

BATCH = 8  # crops that go through the network together

GridPath = Sequence[tuple[int, int]]  # of z_2 .. z_T: the level's index, its lattice's
GRID_RATIO = 1.1  # of neighbouring levels; its cube above FINE_UP_TO, where few bits are
FINE_UP_TO = 30.0
SPACINGS = (2.3, 0.5, 16)  # of lattices: coarsest and finest as multiples of sigma_t, how many
COARSEST_LATTICE = 4.0  # delta / tau'
LEAST_MASS = 2.0**-24  # what the entropy coder gives any symbol
POSITIONS = 24  # of each crop at which the effect of lattices is measured
REACH = 12  # levels of the grid that a step may climb


@dataclass(frozen=True)
class Costs:
    """Bits of every step that a chain on a grid could take, for each of some crops.

    Indices: level i or j above sigma_1 (s and t of a step), lattice k, crop c. What a chain cannot
    do is infinite.

    Attributes:
        levels: [n]
        spacings: of lattices, delta in grey levels of the first channel, [n, k].
        pops: of z_t at level j on lattice k given z_s at level i - 1 (0: z_1), [n + 1, n, k].
        remainder: pushes of x given z_1, [c].
        jumps: pushes of z_1 given z_2 at level j, [n, c].
        steps: pushes of z_s at level i on lattice k given z_t at level j, [j, i, k, c].
        priors: pushes of z_T, [n, k, c].
        sent: KL of z_s at level i given z_t at level j, if it is sent from the top, [j, i, c].
        sent_first: KL of z_T at level j, [n, c].
    """

    levels: Array
    spacings: Array
    pops: Array
    remainder: Array
    jumps: Array
    steps: Array
    priors: Array
    sent: Array
    sent_first: Array

    def course(self, path: GridPath) -> "Course":
        """Of coding the crops by a chain."""
        changes = [self.remainder]
        for t, (j, k) in enumerate(path):
            i, below = path[t - 1] if t else (-1, 0)
            pushed = self.steps[j, i, below] if t else self.jumps[j]
            changes += [np.full_like(pushed, -self.pops[i + 1, j, k]), pushed]
        nodes = [j for j, _ in path]
        sent = [self.sent[t, s] for s, t in pairwise(nodes)]
        return Course(
            np.cumsum([*changes, self.priors[path[-1]]], 0),
            np.array([*sent, self.sent_first[nodes[-1]]]),
        )

    def average(self) -> "Costs":
        """The same for the average crop."""
        names = ("remainder", "jumps", "steps", "priors", "sent", "sent_first")
        return replace(self, **{n: getattr(self, n).mean(-1, keepdims=True) for n in names})


@dataclass(frozen=True)
class Course:
    """Coding crops by a plan, step by step.

    Attributes:
        heights: of the stack after each coding step of the encoder, from 0, [2 T, c]. The order is
            that of :func:`diffcodec.coding.steps.coding_steps`.
        sent: KL of z_2 .. z_T, each given the one above, if it is sent from the top, [T - 1, c].
    """

    heights: Array
    sent: Array

    @property
    def payload(self) -> Array:
        """What files hold, [c]: the stack, and the cheapest way out where it runs empty.

        Either seed bits, or a preview of its own: then the upper timesteps take
        ``PREVIEW_OVERHEAD`` more, and only what is below can run empty.
        """
        above = np.cumsum(self.sent[::-1], 0)[::-1]
        ways_out = [np.maximum(0, -self.heights.min(0))]
        for t in range(LEAST_PREVIEW, len(self.sent) + 2):
            dip = np.maximum(0, -self.heights[: 2 * t - 3].min(0))
            ways_out.append(PREVIEW_OVERHEAD * above[t - 2] + dip)
        payload: Array = self.heights[-1] + np.min(ways_out, 0)
        return payload


def grid_levels() -> list[float]:
    """The levels to choose from, above sigma_1: denser where the bits are."""
    levels = [SECOND_SIGMA[0]]
    while levels[-1] < MAX_SIGMA:
        ratio = GRID_RATIO if levels[-1] < FINE_UP_TO else GRID_RATIO**3
        levels.append(levels[-1] * ratio)
    return levels[:-1]


def grid_spacings(levels: Sequence[float]) -> Array:
    """The lattice spacings to choose from at each level, [levels, spacings], coarse to fine."""
    return np.outer(levels, np.geomspace(*SPACINGS))


def draw_lattice(sigma_s: float, sigma_t: float, spacing: float) -> float:
    """A plan's ``delta / tau'`` where ``tau'^2 + delta^2 / 12 = sigma_t^2 - sigma_s^2``.

    Infinite where rounding alone is more noise than the step has.
    """
    square = sigma_t * sigma_t - sigma_s * sigma_s - spacing * spacing / 12
    return spacing / math.sqrt(square) if square > 0 else math.inf


def pop_bits(lattice: float, phases: int = 16) -> float:
    """Entropy of a Gaussian rounded to a lattice of ``delta / tau'``, its mean anywhere."""
    edges = np.arange(-FORWARD_RADIUS, FORWARD_RADIUS + 2) - 0.5
    phase = (np.arange(phases)[:, None] + 0.5) / phases - 0.5
    mass = np.diff(ndtr((edges - phase) * lattice), axis=1)
    mass = mass / mass.sum(1, keepdims=True)
    return float(entr(mass).sum(1).mean() / math.log(2))


def tabulate_pops(levels: Sequence[float], spacings: Array) -> Array:
    """What each draw pops, infinite where it cannot be: [n + 1, n, k]."""
    n, lattices = spacings.shape
    pops = np.full((n + 1, n, lattices), np.inf)
    for i, sigma_s in enumerate([FIRST_SIGMA, *levels]):
        for j in range(i, n):
            for k in range(lattices):
                lattice = draw_lattice(sigma_s, levels[j], spacings[j, k])
                if lattice <= COARSEST_LATTICE:
                    pops[i, j, k] = pop_bits(lattice)
    return pops


def density_bits(q: Gaussian[Tensor], p: Gaussian[Tensor]) -> Tensor:
    """Cross-entropy of two Gaussians' densities, in bits: ``-E_q log2 p``.

    On a lattice of spacing delta it becomes, where that is fine, ``log2 delta`` bits less.
    """
    squared = (q.variance + (q.mean - p.mean) ** 2) / p.variance
    bits: Tensor = 0.5 * LOG2_E * (squared + torch.log(2 * math.pi * p.variance))
    return bits


def lattice_excess_bits(
    z_1: Tensor,
    z_t: Tensor,
    q: Gaussian[Tensor],
    p: Gaussian[Tensor],
    variances: tuple[Tensor, Tensor],
    delta: Tensor,
) -> Tensor:
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


def measure_costs(
    model: PosteriorModel,
    x: Tensor,
    color: str,
    levels: Sequence[float],
    spacings: Array,
    generator: torch.Generator,
    reach: int | None = None,
    progress: bool = False,
) -> Costs:
    """The table of a model, by one evaluation of it per level and crop.

    Args:
        model: gives xhat and v.
        x: crops, integers of the colour domain as floats, [crops, 3, height, width].
        levels: to choose from, increasing, above sigma_1, [n].
        spacings: of lattices to choose from at each level, [n, k].
        reach: how many levels a step may climb; any number by default.
        progress: whether to show a bar.

    Raises:
        DiffcodecError: if there are no levels or crops, or the levels do not increase.
    """
    n, lattices, crops = len(levels), spacings.shape[-1], len(x)
    if n == 0 or crops == 0 or spacings.shape != (n, lattices) or lattices == 0:
        raise DiffcodecError(
            f"{n} noise levels, {crops} crops and lattices {spacings.shape}: a search needs at "
            "least one of each, and lattices for every level"
        )
    try:
        explicit([FIRST_SIGMA, *levels])
    except ValueError as e:
        raise DiffcodecError(str(e)) from e
    domain = DOMAINS[color]
    coded = channels_coded(x, color)
    multipliers, dither = channels(domain.noise_multipliers, x), channels(domain.quantiser_steps, x)
    first = FIRST_SIGMA * multipliers
    z_1, remainder = dithered_quantise(x, draw_dither(x.shape, domain, generator), dither)
    costs = Costs(
        np.array(levels, dtype=np.float64),
        spacings,
        tabulate_pops(levels, spacings),
        np.zeros(crops),
        np.full((n, crops), np.inf),
        np.full((n, n, lattices, crops), np.inf),
        np.full((n, lattices, crops), np.inf),
        np.full((n, n, crops), np.inf),
        np.full((n, crops), np.inf),
    )
    pixels = torch.randperm(x[0, 0].numel(), generator=generator)[:POSITIONS]

    def some(field: Tensor) -> Tensor:
        return field.flatten(2)[:, :, pixels, None]

    def mean(bits: Tensor) -> Array:
        crop_means: Array = to_bits_per_dimension(bits[:, :coded]).double().numpy()
        return crop_means

    costs.remainder[:] = mean(
        remainder_bits(remainder, z_1, *batched(model, z_1, FIRST_SIGMA), dither)
    )
    bar = tqdm(levels, "noise levels", disable=None if progress else True)
    for j, level in enumerate(bar):
        sigma_t = level * multipliers
        deltas = [float(s) * multipliers for s in spacings[j]]
        z = q_sample(z_1, above(sigma_t, first), torch.randn(x.shape, generator=generator))
        xhat, v = batched(model, z, level)
        if level <= SECOND_SIGMA[1] or j == 0:
            p_1 = p_first(xhat, v, z, first, sigma_t, dither)
            costs.jumps[j] = mean(coder_bits(z_1, p_1, dither))
        prior = p_prior(domain, sigma_t)
        around = Gaussian(z_1, (sigma_t**2 - first**2).expand_as(x))
        costs.priors[j] = mean(density_bits(around, prior))
        costs.priors[j] -= lattice_bits(deltas, coded)[:, None]
        costs.sent_first[j] = mean(gaussian_kl_bits(around, prior))
        for i in range(0 if reach is None else max(0, j - reach), j):
            sigma_s = levels[i] * multipliers
            q = q_posterior(z_1, z, above(sigma_s, first), above(sigma_t, first))
            p = p_reverse(xhat, v, z, sigma_s, sigma_t)
            density = mean(density_bits(q, p))
            costs.sent[j, i] = mean(gaussian_kl_bits(q, p))
            part_q, part_p = (Gaussian(some(g.mean), some(g.variance.expand_as(x))) for g in (q, p))
            variances = (sigma_s**2 - first**2, sigma_t**2 - sigma_s**2)
            for k in np.flatnonzero(np.isfinite(costs.pops[: i + 1, i].min(0))):
                delta = float(spacings[i, k]) * multipliers
                excess = lattice_excess_bits(some(z_1), some(z), part_q, part_p, variances, delta)
                costs.steps[j, i, k] = density + mean(excess) - lattice_bits([delta], coded)
    return costs


def lattice_bits(deltas: Sequence[Tensor], coded: int) -> Array:
    """Bits per dimension between a density and its mass on each lattice: mean of log2 delta."""
    return np.array([delta[:coded].log2().mean().item() for delta in deltas])


def batched(model: PosteriorModel, z: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
    """The model's xhat and v at one noise level, a few crops at a time."""
    parts = [model(part, torch.full((len(part),), sigma, dtype=z.dtype)) for part in z.split(BATCH)]
    return torch.cat([xhat for xhat, _ in parts]), torch.cat([v for _, v in parts])


def channels_coded(x: Tensor, color: str) -> int:
    """How many channels the files of such crops code: of grey ones the first alone.

    Crops that are partly grey count as colour images.
    """
    return coded_channels("RGB" if x[:, 1:].any() else "L", color) or x.shape[1]


def coder_bits(z: Tensor, p: Gaussian[Tensor], delta: Tensor) -> Tensor:
    """Code length of a point of a lattice by the mass of its bin, at most the coder's."""
    return discretized_gaussian_bits(z, *p, delta).clamp_max(-math.log2(LEAST_MASS))
