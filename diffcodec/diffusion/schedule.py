"""Noise schedules: each yields noise levels, an increasing array of sigma_t in grey levels.

To the codec every schedule is the same thing: a list of noise levels of the chain
``q(z_t | x) = N(x, sigma_t^2)``. With DDPM's ``x_t`` scaled to [-1, 1],
``x_t = sqrt(abar_t) (z_t - 127.5) / 127.5``, so ``sigma_t = 127.5 sqrt((1 - abar_t) / abar_t)``.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Levels = NDArray[np.float64]

GREY_LEVELS_PER_UNIT = 127.5  # DDPM scales 0..255 to -1..1


def sigma_from_alphas_cumprod(alphas_cumprod: Levels) -> Levels:
    """Noise levels from DDPM's cumulative signal ``abar_t`` (Ho et al. 2020, eq. 4).

    Args:
        alphas_cumprod: [T], decreasing, each in (0, 1).

    Returns:
        sigma_t in grey levels, [T], increasing.
    """
    return GREY_LEVELS_PER_UNIT * np.sqrt((1 - alphas_cumprod) / alphas_cumprod)


def linear(timesteps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> Levels:
    """DDPM's linear beta schedule (Ho et al. 2020, section 4)."""
    betas = np.linspace(beta_start, beta_end, timesteps)
    return sigma_from_alphas_cumprod(np.cumprod(1 - betas, dtype=np.float64))


def scaled_linear(
    timesteps: int = 1000, beta_start: float = 8.5e-4, beta_end: float = 0.012
) -> Levels:
    """Latent diffusion's betas, linear in their roots (Rombach et al. 2022, its released code)."""
    betas = np.linspace(beta_start**0.5, beta_end**0.5, timesteps) ** 2
    return sigma_from_alphas_cumprod(np.cumprod(1 - betas, dtype=np.float64))


def cosine(timesteps: int = 1000, offset: float = 0.008, max_beta: float = 0.999) -> Levels:
    """Improved DDPM's cosine schedule (Nichol and Dhariwal 2021, eq. 17), betas clipped."""
    abar = np.cos((np.linspace(0, 1, timesteps + 1) + offset) / (1 + offset) * np.pi / 2) ** 2
    betas = np.minimum(1 - abar[1:] / abar[:-1], max_beta)
    return sigma_from_alphas_cumprod(np.cumprod(1 - betas))


def geometric(timesteps: int, sigma_min: float = 0.5, sigma_max: float = 800.0) -> Levels:
    """Noise levels at constant ratio: uniform in log sigma."""
    return np.geomspace(sigma_min, sigma_max, timesteps)


def explicit(levels: Sequence[float]) -> Levels:
    """A schedule given as its list of noise levels in grey levels.

    Raises:
        ValueError: if a level is not finite and positive, or they do not increase.
    """
    sigma = np.asarray(levels, dtype=np.float64)
    if sigma.ndim != 1 or sigma.size == 0 or not np.all(np.isfinite(sigma)):
        raise ValueError(f"noise levels must be a list of finite numbers, found {levels!r}")
    if sigma[0] <= 0 or np.any(np.diff(sigma) <= 0):
        raise ValueError(f"noise levels must be positive and increase, found {levels!r}")
    return sigma
