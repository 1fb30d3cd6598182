"""The constants of a chain: noise, lattice and draw of every timestep."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from diffcodec.arrays import Array
from diffcodec.diffusion.color import ColorDomain, channels
from diffcodec.diffusion.plan import Plan


@dataclass(frozen=True)
class Level:
    """One timestep's constants per channel."""

    sigma: Float64[Array, "3 1 1"]
    spacing: Float64[Array, "3 1 1"]  # delta; M on the first level
    draw_std: Float64[Array, "3 1 1"]  # tau'
    bridge_weight: Float64[Array, "3 1 1"]  # weight of the preview in the mean of the draw


def make_levels(
    plan: Plan, domain: ColorDomain, preview: int = 0, around_first: bool = False
) -> list[Level]:
    """Constants of timesteps 1..T (list index t - 1).

    ``tau_t^2 = sigma_t^2 - sigma_{t-1}^2 = tau'^2 + delta^2 / 12``: rounding to the lattice is
    part of the noise. Below a preview tau_t^2 is the variance of the bridge.

    Args:
        plan, domain: of the chain.
        preview: the timestep s of one that is known beforehand, or 0.
        around_first: whether its noise is around z_1, not around x.
    """
    multipliers = channels(domain.noise_multipliers, np.zeros(1))
    steps = channels(domain.quantiser_steps(plan.quantiser), multipliers)
    first = np.sqrt((steps * steps - 1) / 12)
    levels = [Level(first, steps, 0 * multipliers, 0 * multipliers)]
    for sigma, lattice in zip(plan.levels[1:], plan.lattice_ratios, strict=True):
        s, below = sigma * multipliers, levels[-1].sigma
        variance, bridge_weight = s * s - below * below, 0 * multipliers
        if len(levels) + 1 < preview:
            top = plan.levels[preview - 1] * multipliers
            shared = around_first or len(levels) > 1
            away = first if around_first else 0 * first  # the noise of what the noise is around
            low, middle, high = (np.sqrt(each * each - away * away) for each in (below, s, top))
            variance, bridge_weight = bridge(low, middle, high, shared)
        draw = np.sqrt(variance / (1 + lattice * lattice / 12))
        levels.append(Level(s, lattice * draw, draw, bridge_weight))
    return levels


def bridge(below: Array, sigma: Array, top: Array, shared: bool) -> tuple[Array, Array]:
    """Variance and b of ``q(z_t | z_{t-1}, z_s) = N((1 - b) z_{t-1} + b z_s, variance)``.

    Such that z_t is x and noise of sigma_t, all of which is in z_s too, as in the forward process.
    z_{t-1} has this already (``shared``), unless it is z_1: the dither knows nothing of z_s.

    Args:
        below, sigma, top: sigma_{t-1} < sigma_t < sigma_s.
        shared: whether the noise of z_{t-1} is part of that of z_s.
    """
    covariance = below * below if shared else 0 * below
    b = (sigma * sigma - covariance) / (top * top - covariance)
    a = 1 - b
    known = a * a * (below * below) + b * b * (top * top) + 2 * a * b * covariance
    return sigma * sigma - known, b
