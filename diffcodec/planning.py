"""Search for plans: which noise levels a chain of T timesteps should have.

The cost of a step t -> s is known from the model's predictions at sigma_t alone (its error and
variance), so one pass over a fine grid of noise levels gives the cost of every possible step, and
dynamic programming the best chain of any length (Watson et al. 2021 do so for sampling).
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
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
)
from diffcodec.color import DOMAINS
from diffcodec.diffusion import (
    Gaussian,
    discretized_gaussian_bits,
    gaussian_kl_bits,
    p_first,
    p_reverse,
    q_posterior,
)
from diffcodec.schedule import geometric


def grid_levels(count: int) -> list[float]:
    """The levels to choose from, the lowest being the least second level."""
    return [float(s) for s in geometric(count, SECOND_SIGMA[0], MAX_SIGMA)]


def measure_costs(
    model: PosteriorModel, x: Tensor, color: str, grid: Sequence[float], generator: torch.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Bits per dimension of every step that a chain on the grid could take.

    Args:
        model: gives xhat and v.
        x: integers of the colour domain as floats, [batch, 3, height, width].
        grid: increasing levels above sigma_1.

    Returns:
        The first jump from each level [n], the step from level i to a lower level j [n, n]
        (infinite where j >= i), and the prior at each level [n].
    """
    domain = DOMAINS[color]
    multipliers, steps = channels(domain.noise_multipliers, x), channels(domain.dither, x)
    first = FIRST_SIGMA * multipliers
    z_1, _ = dithered_quantise(x, draw_dither(x.shape, domain, generator), steps)
    n = len(grid)
    jumps, priors, transitions = np.zeros(n), np.zeros(n), np.full((n, n), np.inf)
    for i, level in enumerate(grid):
        sigma_t = level * multipliers
        z = z_1 + above(sigma_t, first) * torch.randn(x.shape, generator=generator)
        xhat, v = model(z, torch.full((len(x),), level, dtype=x.dtype))
        p_1 = p_first(xhat, v, z, first, sigma_t, steps)
        jumps[i] = discretized_gaussian_bits(z_1, *p_1, steps).mean().item()
        top = Gaussian(z_1, (above(sigma_t, first) ** 2).expand_as(x))
        priors[i] = gaussian_kl_bits(top, prior_distribution(domain, sigma_t)).mean().item()
        for j in range(i):
            sigma_s = grid[j] * multipliers
            q = q_posterior(z_1, z, above(sigma_s, first), above(sigma_t, first))
            p = p_reverse(xhat, v, z, sigma_s, sigma_t)
            transitions[i, j] = gaussian_kl_bits(q, p).mean().item()
    return jumps, transitions, priors


def best_levels(
    timesteps: int,
    grid: Sequence[float],
    jumps: NDArray[np.float64],
    transitions: NDArray[np.float64],
    priors: NDArray[np.float64],
) -> tuple[list[float], float]:
    """The cheapest chain of so many timesteps by dynamic programming.

    Returns:
        sigma_1 and the chosen levels, and the cost of all but the remainder, in bits per dimension.
    """
    cost = np.where(np.asarray(grid) <= SECOND_SIGMA[1], jumps, math.inf)  # of ending in each level
    choices = []
    for _ in range(timesteps - 2):
        through = transitions + cost[None, :]
        choices.append(through.argmin(1))
        cost = through.min(1)
    last = int((cost + priors).argmin())
    total = float((cost + priors)[last])
    path = [last]
    for choice in reversed(choices):
        path.append(int(choice[path[-1]]))
    return [FIRST_SIGMA, *(grid[i] for i in reversed(path))], total
