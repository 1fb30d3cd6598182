"""Search for plans: the noise levels of a chain of T timesteps, and the lattice of each.

What a step pushes follows from the model's predictions at the level it starts from, and what it
pops from the lattice alone. So one pass over a grid of noise levels gives the bits of every step
that a chain could take, and dynamic programming the smallest file for any T (Watson et al. 2021
find timesteps for sampling so), among the chains that keep the stack of the average crop above a
reserve. Where the stack of a crop runs empty all the same, its file pays for seed bits, or for
upper timesteps sent by relative entropy coding (:func:`diffcodec.descent.encode_below_preview`).

All bits are per dimension (subpixel), as means over a crop.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.special import entr, ndtr
from torch import Tensor
from tqdm import tqdm

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
from diffcodec.container import CHAIN_CODERS, LEAST_PREVIEW, Container, Tile, pack
from diffcodec.data import CropSampler, domain_batch, find_images, split_held_out
from diffcodec.diffusion import (
    LOG2_E,
    Gaussian,
    discretized_gaussian_bits,
    gaussian_kl_bits,
    p_first,
    p_reverse,
    q_posterior,
    q_sample,
    to_bits_per_dimension,
)
from diffcodec.errors import DiffcodecError
from diffcodec.evaluate import mean_interval
from diffcodec.fallback import encode_fallback
from diffcodec.models import FloatUNet, Model, serialise_float_model, serialise_model
from diffcodec.plan import PLANS, Plan
from diffcodec.schedule import explicit
from diffcodec.tiles import coded_channels

Array = NDArray[np.float64]
GridPath = Sequence[tuple[int, int]]  # of z_2 .. z_T: the level's index, its lattice's

GRID_RATIO = 1.1  # of neighbouring levels; its cube above FINE_UP_TO, where few bits are
FINE_UP_TO = 30.0
SPACINGS = (2.3, 0.5, 16)  # of lattices: coarsest and finest as multiples of sigma_t, how many
COARSEST_LATTICE = 4.0  # delta / tau'
LEAST_MASS = 2.0**-24  # what the entropy coder gives any symbol
POSITIONS = 24  # of each crop at which the effect of lattices is measured
BATCH = 8  # crops that go through the network together
BUCKET_BPD, BUCKETS = 0.04, 60  # heights of the stack that the search tells apart
RESERVES_BPD = (-1.0, -0.5, -0.2, 0.0, 0.1, 0.2, 0.3, 0.45, 0.6)  # of the average crop, to try
PREVIEW_OVERHEAD = 0.3  # of relative entropy coding over the KL, with what its bias costs below
SHORTLIST = 4  # plans of a budget that are simulated, beside the longest
LATTICE_ENDS = ((3.4, 2.1), (3.7, 2.4), (4.0, 2.7))  # at the bottom and the top, to try
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
            that of :func:`diffcodec.chain.coding_steps`.
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


@dataclass(frozen=True)
class FoundPlan:
    """A plan, and the mean over the crops it was found on of what it should give.

    Attributes:
        plan: levels and lattices.
        bpd: whole files by the judge, or their payloads where the table alone is the judge.
    """

    plan: Plan
    bpd: float


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
        prior = prior_distribution(domain, sigma_t)
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


def channels_coded(x: Tensor, color: str) -> int:
    """How many channels the files of such crops code: of grey ones the first alone.

    Crops that are partly grey count as colour images.
    """
    return coded_channels("RGB" if x[:, 1:].any() else "L", color) or x.shape[1]


def lattice_bits(deltas: Sequence[Tensor], coded: int) -> Array:
    """Bits per dimension between a density and its mass on each lattice: mean of log2 delta."""
    return np.array([delta[:coded].log2().mean().item() for delta in deltas])


class StackSearch:
    """Dynamic programming over the chains that keep the stack of one crop above a reserve.

    A state is a level and lattice of z_t with the height of the stack after the push of z_{t-1}, in
    buckets. What is on the stack at the end is the file, so of the chains that reach a state the
    one of the lowest height is kept, and a higher one in its own bucket, since it can pay for
    larger pops.
    """

    def __init__(self, costs: Costs, timesteps: int, reserve: float):
        """Find the best chains of up to so many timesteps.

        Args:
            costs: of one crop, or of the average of several.
            reserve: below which no pop may leave the stack.
        """
        self.costs, self.reserve = costs, reserve
        n, lattices = costs.spacings.shape
        self.lowest = np.isfinite(costs.steps).any((2, 3)).argmax(1)  # the lowest z_s of each z_t
        start = np.full((n, lattices, BUCKETS), np.inf)
        for j in range(n):
            low = np.broadcast_to(costs.remainder - costs.pops[0, j], lattices)
            self._keep(start[j], low, low + costs.jumps[j])
        self.layers = [start]  # of timesteps 2, 3, ...: heights [level, lattice, bucket]
        for _ in range(timesteps - 2):
            layer = np.full_like(start, np.inf)
            for j in range(n):
                self._keep(layer[j], *self._reached(j, self.layers[-1]))
            self.layers.append(layer)

    def _reached(self, j: int, layer: Array) -> tuple[Array, Array]:
        """Heights after the pop of z_t at level j and after the push, from all states of a layer.

        Both [lattice of z_t, level (from the lowest on), lattice and bucket of z_s].
        """
        i = slice(self.lowest[j], j)
        pops = self.costs.pops[1:][i, j].T[:, :, None, None]
        pushes = self.costs.steps[j, i, :, 0][:, :, None]
        is_state = np.isfinite(layer[i]) & np.isfinite(pushes)
        low = np.where(is_state, layer[i], -np.inf) - pops
        return low, low + np.where(is_state, pushes, 0)

    def _keep(self, kept: Array, low: Array, heights: Array) -> None:
        """Keep the lowest of the possible heights in every bucket of each lattice."""
        possible = (low >= self.reserve) & np.isfinite(heights)
        lattice = np.nonzero(possible)[0]
        found = heights[possible]
        buckets = np.clip((found - self.reserve) / BUCKET_BPD, 0, BUCKETS - 1).astype(np.int64)
        np.minimum.at(kept, (lattice, buckets), found)

    def path(self, timesteps: int) -> GridPath | None:
        """The cheapest chain of so many timesteps, if there is one."""
        layer = self.layers[timesteps - 2]
        total = layer + self.costs.priors
        j, k, b = (int(i) for i in np.unravel_index(total.argmin(), total.shape))
        if not math.isfinite(total[j, k, b]):
            return None
        path = [(j, k)]
        for before in reversed(self.layers[: timesteps - 2]):
            low, heights = (field[k] for field in self._reached(j, before))
            is_origin = (heights == layer[j, k, b]) & (low >= self.reserve)
            i, k, b = (int(a) for a in np.argwhere(is_origin)[0])
            j = i + int(self.lowest[j])
            path.append((j, k))
            layer = before
        return path[::-1]


def bent_lattices(timesteps: int, bottom: float, top: float) -> tuple[float, ...]:
    """Of a plan: from coarse ones at the bottom, where the stack is low, quickly to finer ones."""
    heights = np.linspace(0, 1, timesteps - 1)
    return tuple(float(f) for f in top + (bottom - top) * (1 - heights) ** 2)


def plan_of_path(costs: Costs, path: GridPath) -> Plan:
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
    others_bpd: Array | None = None,
    reserves: Sequence[float] = RESERVES_BPD,
    files_bpd: Callable[[Plan], float] | None = None,
) -> dict[int, FoundPlan]:
    """The plan of the smallest files for each budget of timesteps.

    Chains are searched that hold the stack of the average crop above this reserve and that. Of what
    is found the best is taken by the crops' own files, each with its own dip. It may have fewer
    timesteps than it could, where each more costs more on the stack than it gains.

    Args:
        costs: of crops like the images to come.
        timesteps: budgets: at most so many network evaluations.
        others_bpd: of each crop by a fallback coder, which takes the crops where it is smaller.
        reserves: to try.
        files_bpd: a better judge than the table of the crops' mean file by a plan, for those that
            the table likes most and for the longest, which it likes too little.

    Returns:
        By budget.

    Raises:
        DiffcodecError: if a budget is below 3 timesteps, or above what the grid has, or no chain
            stays above a reserve.
    """
    most = len(costs.levels) + 1
    if not timesteps or min(timesteps) < 3 or max(timesteps) > most:
        raise DiffcodecError(
            f"timesteps {list(timesteps)}: expected 3 to {most}, the levels of the grid and sigma_1"
        )
    best: dict[int, FoundPlan] = {}  # by length
    for reserve in reserves:
        search = StackSearch(costs.average(), max(timesteps), reserve)
        for length in range(3, max(timesteps) + 1):
            path = search.path(length)
            if path is not None:
                bpd = float(with_fallback(costs.course(path).payload, others_bpd).mean())
                if length not in best or bpd < best[length].bpd:
                    best[length] = FoundPlan(plan_of_path(costs, path), bpd)
    if not best or min(best) > min(timesteps):
        raise DiffcodecError(
            f"no chain of {min(timesteps)} timesteps on these crops: their stack runs empty at "
            "once; give crops with more detail"
        )
    judged: dict[int, FoundPlan] = {}

    def choose(count: int) -> FoundPlan:
        lengths = sorted((n for n in best if n <= count), key=lambda n: best[n].bpd)
        if files_bpd is None:
            return best[lengths[0]]
        shortlist = {*lengths[:SHORTLIST], max(lengths)}
        for length in shortlist - judged.keys():
            plan = best[length].plan
            judged[length] = FoundPlan(plan, files_bpd(plan))
        return min((judged[n] for n in judged if n <= count), key=lambda f: f.bpd)

    return {count: choose(count) for count in sorted(timesteps)}


def with_fallback(payload: Array, others_bpd: Array | None) -> Array:
    """What is left of the payloads where another coder takes the crops that it codes better."""
    return payload if others_bpd is None else np.minimum(payload, others_bpd)


def simulate(
    model: PosteriorModel, x: Tensor, color: str, plan: Plan, generator: torch.Generator
) -> Course:
    """Coding crops by any plan.

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
    z_1 = z
    xhat, v = batched(model, z, plan.levels[0])
    changes = [remainder_bits(remainder, z, xhat, v, delta[0])]
    sent = []
    for t in range(1, len(plan.levels)):
        drawn = z + draw_std[t] * torch.randn(x.shape, generator=generator)
        z_t = delta[t] * torch.round(drawn / delta[t])
        q = Gaussian(z, (draw_std[t] ** 2).expand_as(z))
        changes.append(-coder_bits(z_t, q, delta[t]))
        xhat, v = batched(model, z_t, plan.levels[t])
        if t == 1:
            p = p_first(xhat, v, z_t, sigma[0], sigma[1], delta[0])
        else:
            step = p_reverse(xhat, v, z_t, sigma[t - 1], sigma[t])
            noise = above(sigma[t - 1], sigma[0]), above(sigma[t], sigma[0])
            sent.append(gaussian_kl_bits(q_posterior(z_1, z_t, *noise), step))
            p = corrected(step, delta[t - 1])
        changes.append(coder_bits(z, p, delta[t - 1]))
        z = z_t
    prior = prior_distribution(domain, sigma[-1])
    changes.append(coder_bits(z, corrected(prior, delta[-1]), delta[-1]))
    around = Gaussian(z_1, (above(sigma[-1], sigma[0]) ** 2).expand_as(x))
    sent.append(gaussian_kl_bits(around, prior))
    coded = channels_coded(x, color)
    heights, each = (
        np.array([to_bits_per_dimension(bits[:, :coded]).double().numpy() for bits in parts])
        for parts in (changes, sent)
    )
    return Course(np.cumsum(heights, 0), each)


def predict_files(
    model: PosteriorModel, x: Tensor, color: str, plan: Plan, others_bpd: Array, seed: int = 0
) -> Array:
    """What whole files of crops should take by any plan, in bits per dimension, [crops].

    Integer arithmetic is not known here; its files are a little larger (docs/plans.md).

    Args:
        model: gives xhat and v.
        x: integers of the colour domain as floats, [crops, 3, height, width], no larger than a
            tile.
        color: of x.
        plan: of the files.
        others_bpd: of each crop by a fallback coder (:func:`fallback_bpd`), which counts where it
            is smaller, as in the files.
        seed: of the noise.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.inference_mode():
        payload = simulate(model, x, color, plan, generator).payload
    height, width = x.shape[2:]
    bits = with_fallback(payload, others_bpd)
    return bits + 8 * bytes_around(width, height) / (width * height * channels_coded(x, color))


def bytes_around(width: int, height: int) -> int:
    """What a file of one tile has beside its payload."""
    tile = Tile(CHAIN_CODERS[0], bytes(width * height))
    container = Container("RGB", width, height, b"some", 0, False, {}, (tile,))
    return len(pack(container)) - len(tile.payload)


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


def fallback_bpd(x: Tensor, color: str) -> Array:
    """What the smallest other coder makes of each crop, in bits per dimension."""
    coded = channels_coded(x, color)
    rgb = from_domain(x.to(torch.int32), color).clamp(0, 255).to(torch.uint8)
    crops = [Image.fromarray(crop.permute(1, 2, 0).contiguous().numpy()) for crop in rgb]
    crops = [crop.convert("L") for crop in crops] if coded == 1 else crops
    dimensions = x[0, :coded].numel()
    return np.array([8 * len(encode_fallback(crop)[1]) / dimensions for crop in crops])


def search_plans(
    model: PosteriorModel,
    x: Tensor,
    color: str,
    timesteps: Sequence[int],
    others_bpd: Array,
    seed: int = 0,
    progress: bool = False,
) -> dict[int, FoundPlan]:
    """The best plans of a model on the usual grid; see :func:`find_plans`.

    Args:
        model: gives xhat and v.
        x: calibration crops, integers of the colour domain as floats, [crops, 3, height, width].
        timesteps: budgets of the chains to find.
        others_bpd: see :func:`predict_files`.
        seed: of the noise.
        progress: whether to show a bar.
    """
    levels = grid_levels()
    generator = torch.Generator().manual_seed(seed)
    with torch.inference_mode():
        costs = measure_costs(
            model, x, color, levels, grid_spacings(levels), generator, REACH, progress
        )

    def files_bpd(plan: Plan) -> float:
        return float(predict_files(model, x, color, plan, others_bpd, seed).mean())

    return find_plans(costs, timesteps, others_bpd, files_bpd=files_bpd)


@dataclass(frozen=True)
class Proposal:
    """A plan for an effort beside the one that the model has.

    Attributes:
        plan: found.
        files_bpd: whole files of held-out crops by it, predicted, [crops].
        own: the model's, if it has one.
        own_files_bpd: files by that one.
    """

    plan: Plan
    files_bpd: Array
    own: Plan | None = None
    own_files_bpd: Array | None = None

    def to_dict(self) -> dict[str, Any]:
        """Of JSON's types."""
        described = _describe(self.plan, self.files_bpd)
        if self.own is None or self.own_files_bpd is None:
            return described
        return described | {"own": _describe(self.own, self.own_files_bpd)}


def _describe(plan: Plan, files_bpd: Array) -> dict[str, Any]:
    predicted = mean_interval([float(bpd) for bpd in files_bpd])
    return {"timesteps": len(plan.levels), "predicted_bpd": predicted} | asdict(plan)


def search_crops(data: str, side: int, count: int, color: str) -> tuple[Tensor, Tensor]:
    """Crops to search on, and crops of held-out images to predict files for.

    Raises:
        DiffcodecError: if there are no images, or none that is large enough.
    """
    samplers = (
        CropSampler(images, side, augment="none", memory_bytes=0)
        for images in split_held_out(find_images(Path(data)))
    )
    searched, held_out = (domain_batch(s.batch(count, seed=0, step=0), color) for s in samplers)
    return searched, held_out


def propose_plans(
    model: Model,
    x: Tensor,
    held_out: Tensor,
    timesteps: Sequence[int] | None = None,
    progress: bool = False,
) -> dict[str, Proposal]:
    """Plans for each effort of a model.

    Args:
        model: loaded as "float".
        x: crops to search on, integers of its colour domain as floats, [crops, 3, height, width].
        held_out: crops of other images, to predict files for.
        timesteps: at most, of each effort; as many as the model has if they are not given.
        progress: whether to show a bar.

    Raises:
        DiffcodecError: see :func:`find_plans`.
    """
    assert isinstance(model.network, FloatUNet)
    network, color = model.network.unet.posterior_x, model.color
    if timesteps is None:
        timesteps = [len(model.plans.get(e, PLANS[e]).levels) for e in CHAIN_CODERS]
    others, held_out_others = fallback_bpd(x, color), fallback_bpd(held_out, color)

    def mean_file(plan: Plan) -> float:
        return float(predict_files(network, x, color, plan, others).mean())

    def held_out_files(plan: Plan) -> Array:
        return predict_files(network, held_out, color, plan, held_out_others)

    found = search_plans(network, x, color, timesteps, others, progress=progress)
    proposals = {}
    for effort, count in zip(CHAIN_CODERS, timesteps, strict=True):
        own = model.plans.get(effort)
        choice = [(found[count].bpd, found[count].plan)]
        if own is not None and len(own.levels) <= count:
            plans = [
                own,
                *(Plan(own.levels, bent_lattices(len(own.levels), *ends)) for ends in LATTICE_ENDS),
            ]
            choice += [(mean_file(p), p) for p in plans]
        plan = min(choice, key=itemgetter(0))[1]
        own_files = None if own is None else held_out_files(own)
        proposals[effort] = Proposal(plan, held_out_files(plan), own, own_files)
    return proposals


def replace_plans(model: Model, plans: Mapping[str, Plan], calibration: Tensor) -> bytes:
    """The file of a model with other plans: a float one as it is, an integer one quantised anew.

    The weights of an integer model are on their grid already, so they stay as they are; the units
    of its inputs, and the tables for the plans' noise levels, are new.

    Args:
        model: loaded as "float", whatever the arithmetic of its file.
        plans: by effort.
        calibration: see :func:`diffcodec.models.serialise_model`.

    Raises:
        ModelMismatchError: if its numbers leave no integer model.
    """
    assert isinstance(model.network, FloatUNet)
    if model.info.arithmetic == "float":
        return serialise_float_model(model.network.unet, plans, model.info.about)
    return serialise_model(model.network.unet, calibration, plans, model.info.about)


def format_proposals(proposals: dict[str, Proposal]) -> str:
    """For people."""
    names = ("timesteps", "predicted bpd", "model has", "predicted")
    rows = ["effort   {:>9} {:>20} {:>9} {:>9}".format(*names)]
    for effort, proposal in proposals.items():
        mean, half = mean_interval([float(bpd) for bpd in proposal.files_bpd]).values()
        text = f"{mean:.4f}" + ("" if half is None else f" +- {half:.4f}")
        row = f"{effort:8} {len(proposal.plan.levels):9} {text:>20}"
        if proposal.own is not None and proposal.own_files_bpd is not None:
            row += f" {len(proposal.own.levels):9} {proposal.own_files_bpd.mean():9.4f}"
        rows.append(row)
    return "\n".join(rows)
