"""The noise levels and lattices that plans are made of, and what draws on those lattices pop."""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64
from scipy.special import entr, ndtr

from diffcodec.arrays import Array
from diffcodec.coding.steps import FORWARD_RADIUS
from diffcodec.diffusion.losses import MAX_SIGMA, second_sigmas
from diffcodec.diffusion.quantiser import first_sigma

GRID_RATIO = 1.1  # of neighbouring levels; its cube above FINE_UP_TO, where few bits are
FINE_UP_TO = 30.0
SPACINGS = (2.3, 0.5, 16)  # of lattices: coarsest and finest as multiples of sigma_t, how many
COARSEST_LATTICE = 4.0  # delta / tau'
PHASES = 16  # of a mean between two points of a lattice


def grid_levels(quantiser: int = 2) -> list[float]:
    """The levels to choose from, above sigma_1 of M steps: denser where the bits are."""
    levels = [second_sigmas(quantiser)[0]]
    while levels[-1] < MAX_SIGMA:
        ratio = GRID_RATIO if levels[-1] < FINE_UP_TO else GRID_RATIO**3
        levels.append(levels[-1] * ratio)
    return levels[:-1]


def grid_spacings(levels: Sequence[float]) -> Float64[Array, "levels spacings"]:
    """The lattice spacings to choose from at each level, coarse to fine."""
    return np.outer(levels, np.geomspace(*SPACINGS))


def draw_lattice(sigma_s: float, sigma_t: float, spacing: float) -> float:
    """A plan's ``delta / tau'`` where ``tau'^2 + delta^2 / 12 = sigma_t^2 - sigma_s^2``.

    Infinite where rounding alone is more noise than the step has.
    """
    square = sigma_t * sigma_t - sigma_s * sigma_s - spacing * spacing / 12
    return spacing / math.sqrt(square) if square > 0 else math.inf


def pop_bits(lattice: float) -> float:
    """Entropy of a Gaussian rounded to a lattice of ``delta / tau'``, its mean anywhere."""
    edges = np.arange(-FORWARD_RADIUS, FORWARD_RADIUS + 2) - 0.5
    phase = (np.arange(PHASES)[:, None] + 0.5) / PHASES - 0.5
    mass = np.diff(ndtr((edges - phase) * lattice), axis=1)
    mass = mass / mass.sum(1, keepdims=True)
    return float(entr(mass).sum(1).mean() / math.log(2))


def tabulate_pops(
    levels: Sequence[float], spacings: Float64[Array, "n k"], quantiser: int = 2
) -> Float64[Array, "n+1 n k"]:
    """What each draw pops, infinite where it cannot be; see :class:`.costs.Costs`."""
    n, lattices = spacings.shape
    pops = np.full((n + 1, n, lattices), np.inf)
    for i, sigma_s in enumerate([first_sigma(quantiser), *levels]):
        for j in range(i, n):
            for k in range(lattices):
                lattice = draw_lattice(sigma_s, levels[j], spacings[j, k])
                if lattice <= COARSEST_LATTICE:
                    pops[i, j, k] = pop_bits(lattice)
    return pops
