"""Search for plans: the noise levels of a chain of T timesteps, and the lattice of each.

What a step pushes follows from the model's predictions at the level it starts from, and what it
pops from the lattice alone. So one pass over a grid of noise levels gives the bits of every step
that a chain could take, and dynamic programming the smallest file for any T (Watson et al. 2021
find timesteps for sampling so), among the chains that keep the stack above a reserve.

All bits are per dimension (subpixel), as means over a crop.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.special import entr, ndtr
from torch import Tensor

from diffcodec.bound import (
    FIRST_SIGMA,
    MAX_SIGMA,
    SECOND_SIGMA,
    PosteriorModel,
    above,
    channels,
    dithered_quantise,
    draw_dither,
    prior_distribution,
    remainder_bits,
)
from diffcodec.chain import FORWARD_RADIUS, MIN_STD_BINS, make_levels
from diffcodec.color import DOMAINS, from_domain
from diffcodec.diffusion import (
    LOG2_E,
    Gaussian,
    discretized_gaussian_bits,
    p_first,
    p_reverse,
    q_posterior,
    q_sample,
    to_bits_per_dimension,
)
from diffcodec.errors import DiffcodecError
from diffcodec.fallback import encode_fallback
from diffcodec.plan import Plan
from diffcodec.schedule import explicit

Array = NDArray[np.float64]
Path = Sequence[tuple[int, int]]  # of z_2 .. z_T: the level's index, its lattice's

GRID_RATIO = 1.1  # of neighbouring levels; its cube above FINE_UP_TO, where few bits are
FINE_UP_TO = 30.0
SPACINGS = (2.3, 0.5, 16)  # of lattices: coarsest and finest as multiples of sigma_t, how many
COARSEST_LATTICE = 4.0  # delta / tau'
LEAST_MASS = 2.0**-24  # what the entropy coder gives any symbol
POSITIONS = 24  # of each crop at which the effect of lattices is measured
BATCH = 8  # crops that go through the network together
BUCKET_BPD, BUCKETS = 0.03, 80  # heights of the stack that the search tells apart
LEAST_REMAINDER_BPD = 0.9  # without it a crop can't pay for the first pops, whatever the plan
RESERVES_BPD = (0.1, 0.25, 0.4, 0.55, 0.7)
MARGIN_BPD = 0.4  # by which images to come may fill the stack less than the crops
GRAIN = 1.2  # std in grey levels
SEED_BPD = 0.02  # allowed in the average file
REACH = 15  # levels of the grid that a step may climb


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
    """

    levels: Array
    spacings: Array
    pops: Array
    remainder: Array
    jumps: Array
    steps: Array
    priors: Array

    def heights(self, path: Path) -> Array:
        """Of the stack after each coding step of the encoder, from 0: [2 T, c].

        The order is that of :func:`diffcodec.chain.coding_steps`.
        """
        changes = [self.remainder]
        for t, (j, k) in enumerate(path):
            i, below = path[t - 1] if t else (-1, 0)
            pushed = self.steps[j, i, below] if t else self.jumps[j]
            changes += [np.full_like(pushed, -self.pops[i + 1, j, k]), pushed]
        return np.cumsum([*changes, self.priors[path[-1]]], 0)

    def average(self, crops: Sequence[int] | slice = slice(None)) -> "Costs":
        """The same for the average of some crops."""
        names = ("remainder", "jumps", "steps", "priors")
        of_crops = {n: getattr(self, n)[..., crops].mean(-1, keepdims=True) for n in names}
        return replace(self, **of_crops)


@dataclass(frozen=True)
class FoundPlan:
    """A plan and what it should give, as means over crops.

    Attributes:
        plan: levels and lattices.
        bpd: of the files' payloads, seed bits included.
        seed_bpd: how much of it is seed bits: how far the stack dips below its start.
    """

    plan: Plan
    bpd: float
    seed_bpd: float


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


def density_bits(q: Gaussian, p: Gaussian) -> Tensor:
    """Cross-entropy of two Gaussians' densities, in bits: ``-E_q log2 p``.

    On a lattice of spacing delta it becomes, where that is fine, ``log2 delta`` bits less.
    """
    squared = (q.variance + (q.mean - p.mean) ** 2) / p.variance
    return 0.5 * LOG2_E * (squared + torch.log(2 * math.pi * p.variance))


def lattice_excess_bits(
    z_1: Tensor,
    z_t: Tensor,
    q: Gaussian,
    p: Gaussian,
    variances: tuple[Tensor, Tensor],
    delta: Tensor,
) -> Tensor:
    """What z_s on a lattice costs beyond ``density_bits(q, p) - log2 delta``.

    The lattice makes ``z_s = z_1 + n + u``, with n Gaussian and the rounding u uniform, so that
    given z_t, u is a truncated Gaussian, and n Gaussian given u. The chain codes z_s by the mass
    of its bin under p, whose variance is corrected for the bin's width (:mod:`diffcodec.chain`).
    The expectation is by Gauss-Legendre (u) and Gauss-Hermite (n) quadrature.

    Args:
        variances: of z_s around z_1, and of z_t around z_s.
        delta: the lattice's spacing.
    """
    std = corrected(p, delta).variance.sqrt()
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
) -> Costs:
    """The table of a model, by one evaluation of it per level and crop.

    Args:
        model: gives xhat and v.
        x: crops, integers of the colour domain as floats, [crops, 3, height, width].
        levels: to choose from, increasing, above sigma_1, [n].
        spacings: of lattices to choose from at each level, [n, k].
        reach: how many levels a step may climb; any number by default.

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
    multipliers, dither = channels(domain.noise_multipliers, x), channels(domain.dither, x)
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
    )
    pixels = torch.randperm(x[0, 0].numel(), generator=generator)[:POSITIONS]

    def some(field: Tensor) -> Tensor:
        return field.flatten(2)[:, :, pixels, None]

    def mean(bits: Tensor) -> Array:
        crop_means: Array = to_bits_per_dimension(bits).double().numpy()
        return crop_means

    costs.remainder[:] = mean(
        remainder_bits(remainder, z_1, *batched(model, z_1, FIRST_SIGMA), dither)
    )
    for j, level in enumerate(levels):
        sigma_t = level * multipliers
        deltas = [float(s) * multipliers for s in spacings[j]]
        z = q_sample(z_1, above(sigma_t, first), torch.randn(x.shape, generator=generator))
        xhat, v = batched(model, z, level)
        if level <= SECOND_SIGMA[1] or j == 0:
            p_1 = p_first(xhat, v, z, first, sigma_t, dither)
            costs.jumps[j] = mean(coder_bits(z_1, p_1, dither))
        prior = prior_distribution(domain, sigma_t)
        around = Gaussian(z_1, (sigma_t**2 - first**2).expand_as(x))
        costs.priors[j] = mean(density_bits(around, prior)) - lattice_bits(deltas)[:, None]
        for i in range(0 if reach is None else max(0, j - reach), j):
            sigma_s = levels[i] * multipliers
            q = q_posterior(z_1, z, above(sigma_s, first), above(sigma_t, first))
            p = p_reverse(xhat, v, z, sigma_s, sigma_t)
            density = mean(density_bits(q, p))
            part_q, part_p = (Gaussian(some(g.mean), some(g.variance.expand_as(x))) for g in (q, p))
            variances = (sigma_s**2 - first**2, sigma_t**2 - sigma_s**2)
            for k in np.flatnonzero(np.isfinite(costs.pops[: i + 1, i].min(0))):
                delta = float(spacings[i, k]) * multipliers
                excess = lattice_excess_bits(some(z_1), some(z), part_q, part_p, variances, delta)
                costs.steps[j, i, k] = density + mean(excess) - delta.log2().mean().item()
    return costs


def lattice_bits(deltas: Sequence[Tensor]) -> Array:
    """Bits per dimension between a density and its mass on each lattice: mean of log2 delta."""
    return np.array([delta.log2().mean().item() for delta in deltas])


class StackSearch:
    """Dynamic programming over the chains that keep the stack of some crops above a reserve.

    A state is a level and lattice of z_t with the height of the stack after the push of z_{t-1}, in
    buckets. Of the chains that reach a state the cheapest is kept, by the mean over all crops.
    """

    def __init__(self, costs: Costs, held: Costs, timesteps: int, reserve: float):
        """Find the best chains of up to so many timesteps.

        Args:
            costs: of the average crop.
            held: of the crop whose stack is held above the reserve.
        """
        self.costs, self.held, self.reserve = costs, held, reserve
        n, lattices = costs.spacings.shape
        start = Layer.empty(n, lattices)
        for j, k in np.argwhere(np.isfinite(costs.pops[0]) & np.isfinite(costs.jumps)):
            low = held.remainder - costs.pops[0, j, k]
            cost = costs.remainder - costs.pops[0, j, k] + costs.jumps[j]
            start.add(j, k, cost[low >= reserve], (low + held.jumps[j])[low >= reserve], reserve)
        self.layers = [start]  # of timesteps 2, 3, ...
        for _ in range(timesteps - 2):
            layer = Layer.empty(n, lattices)
            for j, k in np.ndindex(n, lattices):
                layer.add(j, k, *self._reached(j, k, self.layers[-1])[:2], reserve)
            self.layers.append(layer)

    def _reached(self, j: int, k: int, layer: "Layer") -> tuple[Array, Array, NDArray[np.int64]]:
        """Costs and heights in z_t at (j, k) from the states of a layer, and those states."""
        pops = self.costs.pops[1 : j + 1, j, k]
        low = layer.heights[:j] - np.where(np.isfinite(pops), pops, 0)[:, None, None]
        possible = np.isfinite(pops)[:, None, None] & np.isfinite(self.costs.steps[j, :j])
        states = np.argwhere(np.isfinite(layer.costs[:j]) & possible & (low >= self.reserve))
        i, below, bucket = states.T
        cost = layer.costs[i, below, bucket] - pops[i] + self.costs.steps[j, i, below, 0]
        return cost, low[i, below, bucket] + self.held.steps[j, i, below, 0], states

    def path(self, timesteps: int) -> Path | None:
        """The cheapest chain of so many timesteps, if there is one."""
        layer = self.layers[timesteps - 2]
        total = layer.costs + self.costs.priors
        j, k, b = (int(i) for i in np.unravel_index(total.argmin(), total.shape))
        if not math.isfinite(total[j, k, b]):
            return None
        path = [(j, k)]
        for before in reversed(self.layers[: timesteps - 2]):
            costs, heights, states = self._reached(j, k, before)
            same = (costs == layer.costs[j, k, b]) & (heights == layer.heights[j, k, b])
            j, k, b = (int(i) for i in states[same.argmax()])
            path.append((j, k))
            layer = before
        return path[::-1]


class Layer(NamedTuple):
    """The best chains of one length: cost and height by level, lattice and bucket of height."""

    costs: Array
    heights: Array

    @classmethod
    def empty(cls, levels: int, lattices: int) -> "Layer":
        """No chain yet."""
        shape = (levels, lattices, BUCKETS)
        return cls(np.full(shape, np.inf), np.full(shape, np.inf))

    def add(self, j: int, k: int, costs: Array, heights: Array, reserve: float) -> None:
        """Keep the cheapest of these chains in every bucket."""
        buckets = np.clip((heights - reserve) / BUCKET_BPD, 0, BUCKETS - 1).astype(np.int64)
        np.minimum.at(self.costs[j, k], buckets, costs)
        best = costs == self.costs[j, k, buckets]
        self.heights[j, k, buckets[best]] = heights[best]


def payload_bits(heights: Array) -> tuple[Array, Array]:
    """What a file holds by the heights of its stack [steps, c], and the seed bits of it, [c]."""
    seeds = np.maximum(0, -heights.min(0))
    return heights[-1] + seeds, seeds


def plan_of_path(costs: Costs, path: Path) -> Plan:
    """The plan of a path on the grid."""
    levels = (FIRST_SIGMA, *(float(costs.levels[j]) for j, _ in path))
    lattices = (
        draw_lattice(levels[t], levels[t + 1], float(costs.spacings[j, k]))
        for t, (j, k) in enumerate(path)
    )
    return Plan(levels, tuple(lattices))


def find_plans(
    costs: Costs,
    timesteps: Sequence[int],
    seed_bpd: float = SEED_BPD,
    others_bpd: Array | None = None,
    margin: float = MARGIN_BPD,
    reserves: Sequence[float] = RESERVES_BPD,
) -> dict[int, FoundPlan]:
    """The plan of the smallest files for each number of timesteps.

    The stack's dip differs from crop to crop. So chains are searched that hold the stack of the
    smoothest quarter of the crops, or of the next, above this reserve and that. Of what is found
    the best is taken by all crops' own files, each with its own dip, and a margin.

    Args:
        costs: of crops like the images to come.
        timesteps: the lengths of chains, which is the number of network evaluations.
        seed_bpd: at most so many seed bits in the average file.
        others_bpd: of each crop by a fallback coder, which takes the crops where it is smaller.
        margin: plans are compared as if every stack were so much lower, since images to come may
            be smoother than the crops.
        reserves: to try.

    Returns:
        By number of timesteps; predictions are means over the crops that the chain takes.

    Raises:
        DiffcodecError: if there are fewer than 3 timesteps, more than the grid has, or no chain
            stays within the seed bits.
    """
    most = len(costs.levels) + 1
    if not timesteps or min(timesteps) < 3 or max(timesteps) > most:
        raise DiffcodecError(
            f"timesteps {list(timesteps)}: expected 3 to {most}, the levels of the grid and sigma_1"
        )
    others = np.full_like(costs.remainder, np.inf) if others_bpd is None else others_bpd
    average = costs.average()
    path = StackSearch(average, average, max(timesteps), -math.inf).path(max(timesteps))
    if path is None:
        raise DiffcodecError(f"no chain of {max(timesteps)} timesteps on this grid")
    free = costs.heights(path)[-1]  # the crops' files if seed bits cost nothing
    worth = (free < others) & (costs.remainder >= LEAST_REMAINDER_BPD)
    kept = np.flatnonzero(worth) if worth.any() else np.arange(len(free))
    order = kept[np.argsort(free[kept])]
    quarter = max(1, len(order) // 4)
    windows = {tuple(order[a : a + quarter]) for a in (0, quarter)}
    found: dict[int, FoundPlan] = {}
    lowest = dict.fromkeys(timesteps, math.inf)
    for window, reserve in product(sorted(windows), reserves):
        held = costs.average(window)
        search = StackSearch(costs.average(kept.tolist()), held, max(timesteps), reserve)
        for count in timesteps:
            path = search.path(count)
            if path is None:
                continue
            heights = costs.heights(path)
            bits, seeds = payload_bits(heights)
            chosen = bits < others
            files = float((heights[-1] + np.maximum(0, margin - heights.min(0)))[kept].mean())
            if not chosen.any() or seeds[chosen].mean() > seed_bpd or files >= lowest[count]:
                continue
            lowest[count] = files
            plan = plan_of_path(costs, path)
            found[count] = FoundPlan(plan, float(bits[chosen].mean()), float(seeds[chosen].mean()))
    missing = [count for count in timesteps if count not in found]
    if missing:
        raise DiffcodecError(
            f"no chain of {missing} timesteps with at most {seed_bpd} seed bits per dimension on "
            "these crops; allow more seed bits or give crops with more detail"
        )
    return found


def simulate_heights(
    model: PosteriorModel, x: Tensor, color: str, plan: Plan, generator: torch.Generator
) -> Array:
    """Of the stack after each coding step of the encoder, from 0, for any plan: [2 T, c].

    Like the encoder, but with random draws for pops, code lengths for pushes and a float network:
    for a model that has no tables for the plan's levels yet. Unlike a table of costs it sees where
    the points of each lattice lie in the next, which makes its pops a little cheaper or dearer.
    """
    domain = DOMAINS[color]
    constants = make_levels(plan, domain)
    sigma, delta, draw_std = (
        [torch.tensor(getattr(level, name), dtype=x.dtype) for level in constants]
        for name in ("sigma", "spacing", "draw_std")
    )
    z, remainder = dithered_quantise(x, draw_dither(x.shape, domain, generator), delta[0])
    xhat, v = batched(model, z, plan.levels[0])
    changes = [remainder_bits(remainder, z, xhat, v, delta[0])]
    for t in range(1, len(plan.levels)):
        drawn = z + draw_std[t] * torch.randn(x.shape, generator=generator)
        z_t = delta[t] * torch.round(drawn / delta[t])
        q = Gaussian(z, (draw_std[t] ** 2).expand_as(z))
        changes.append(-coder_bits(z_t, q, delta[t]))
        xhat, v = batched(model, z_t, plan.levels[t])
        if t == 1:
            p = p_first(xhat, v, z_t, sigma[0], sigma[1], delta[0])
        else:
            p = corrected(p_reverse(xhat, v, z_t, sigma[t - 1], sigma[t]), delta[t - 1])
        changes.append(coder_bits(z, p, delta[t - 1]))
        z = z_t
    prior = corrected(prior_distribution(domain, sigma[-1]), delta[-1])
    changes.append(coder_bits(z, prior, delta[-1]))
    return np.cumsum([to_bits_per_dimension(bits).double().numpy() for bits in changes], 0)


def batched(model: PosteriorModel, z: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
    """The model's xhat and v at one noise level, a few crops at a time."""
    parts = [model(part, torch.full((len(part),), sigma, dtype=z.dtype)) for part in z.split(BATCH)]
    return torch.cat([xhat for xhat, _ in parts]), torch.cat([v for _, v in parts])


def corrected(p: Gaussian, delta: Tensor) -> Gaussian:
    """The chain's correction of a variance whose mass over a bin of width delta is taken."""
    floor = (MIN_STD_BINS * delta) ** 2
    return Gaussian(p.mean, torch.maximum(p.variance - delta**2 / 12, floor))


def coder_bits(z: Tensor, p: Gaussian, delta: Tensor) -> Tensor:
    """Code length of a point of a lattice by the mass of its bin, at most the coder's."""
    return discretized_gaussian_bits(z, *p, delta).clamp_max(-math.log2(LEAST_MASS))


def with_grain(rgb: Tensor, std: float, generator: torch.Generator) -> Tensor:
    """Crops with every second one under film grain or sensor noise; integers 0..255 as int16.

    Images scaled down have lost theirs. But smooth surfaces with grain fill the stack least of all
    that the chain codes better than other coders do, so plans must be made with some at hand.
    """
    noise = std * torch.randn(rgb[1::2].shape, generator=generator)
    grainy = rgb.clone()
    grainy[1::2] = (rgb[1::2] + noise).round().clamp(0, 255).to(rgb.dtype)
    return grainy


def fallback_bpd(x: Tensor, color: str) -> Array:
    """What the smallest other coder makes of each crop, in bits per dimension."""
    rgb = from_domain(x.to(torch.int32), color).clamp(0, 255).to(torch.uint8)
    crops = [Image.fromarray(crop.permute(1, 2, 0).contiguous().numpy()) for crop in rgb]
    return np.array([8 * len(encode_fallback(crop)[1]) / x[0].numel() for crop in crops])


def search_plans(
    model: PosteriorModel,
    x: Tensor,
    color: str,
    timesteps: Sequence[int],
    seed_bpd: float = SEED_BPD,
    seed: int = 0,
) -> dict[int, FoundPlan]:
    """The best plans of a model on the usual grid; see :func:`find_plans`.

    Args:
        model: gives xhat and v.
        x: calibration crops, integers of the colour domain as floats, [crops, 3, height, width].
        timesteps: the lengths of chains to find.
        seed_bpd: at most so many seed bits in the average file.
        seed: of the noise.
    """
    levels = grid_levels()
    generator = torch.Generator().manual_seed(seed)
    with torch.inference_mode():
        costs = measure_costs(model, x, color, levels, grid_spacings(levels), generator, REACH)
    return find_plans(costs, timesteps, seed_bpd, fallback_bpd(x, color))
