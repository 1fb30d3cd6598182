"""How other diffusion models write the same chain: their noisy input, what they are told and say.

All of them add Gaussian noise to a scaled image, ``x_t = alpha x_0 + s eps``, and so all are one
process with ``u = s / alpha``, the noise of ``x_t / alpha``: here ``sigma = u`` times the grey
levels of their unit. Images x_0 are in their units, from -1 to 1.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from diffcodec.arrays import Array
from diffcodec.diffusion.schedule import (
    GREY_LEVELS_PER_UNIT,
    cosine,
    linear,
    scaled_linear,
    sigma_from_alphas_cumprod,
)


def x_from_epsilon(x_t: Tensor, alpha: float, s: float, eps: Tensor) -> Tensor:
    """x_0 from the noise (DDPM eq. 15): ``(x_t - s eps) / alpha``."""
    return (x_t - s * eps) / alpha


def x_from_x0(x_t: Tensor, alpha: float, s: float, x_0: Tensor) -> Tensor:
    """x_0 as it is: EDM's denoiser D, whose scalings are its own (Karras et al. 2022, eq. 7)."""
    return x_0


def x_from_v(x_t: Tensor, alpha: float, s: float, v: Tensor) -> Tensor:
    """x_0 from ``v = alpha eps - s x_0`` (Salimans and Ho 2022, section 4)."""
    return (alpha * x_t - s * v) / (alpha * alpha + s * s)


def x_from_velocity(x_t: Tensor, alpha: float, s: float, velocity: Tensor) -> Tensor:
    """x_0 from ``eps - x_0``, the slope of rectified flow's straight path (Liu et al. 2023, eq. 1).

    Time runs from the image to the noise; a network that is trained the other way gives minus this.
    """
    return (x_t - s * velocity) / (alpha + s)


PREDICTIONS: dict[str, Callable[[Tensor, float, float, Tensor], Tensor]] = {
    "epsilon": x_from_epsilon,
    "v": x_from_v,
    "x0": x_from_x0,
    "velocity": x_from_velocity,
}


def learned_range_variance(v: Tensor, u_s: float, u_t: float) -> Tensor:
    """Variance of x given x_t where Improved DDPM's network says v between beta-tilde and beta.

    Nichol and Dhariwal 2021, eq. 15: ``Sigma = exp(v log beta_t + (1 - v) log beta-tilde_t)``. With
    ``r = u_s^2 / u_t^2`` beta-tilde is ``Q = u_s^2 (1 - r)`` and beta ``Q + (1 - r)^2 u_t^2 /
    (1 + u_t^2)`` in the units of ``x_s / alpha_s``, so that the variance of x is what widens Q.
    """
    r = u_s * u_s / (u_t * u_t)
    q, most = u_s * u_s * (1 - r), u_t * u_t / (1 + u_t * u_t)
    ratio = math.log1p((1 - r) ** 2 * most / q)
    variance: Tensor = ((v * ratio).expm1() * (q / (1 - r) ** 2)).clamp(min=1e-6 * most)
    return variance


@dataclass(frozen=True)
class NoisePath:
    """Which noisy input a network is given at a noise level, and what it is told of the level.

    Attributes:
        kind: "variance-preserving", where ``alpha^2 + s^2 = 1`` (DDPM); "variance-exploding", where
            ``alpha = 1`` (NCSN, EDM); "straight", where ``alpha + s = 1`` (rectified flow).
        noise: u of the discrete timesteps 0, 1, ..., increasing; none if the level is told as it
            is: u of the first two kinds, t of the third.
        unit: what is told is multiplied by this.
    """

    kind: str
    noise: tuple[float, ...] = ()
    unit: float = 1.0

    def __post_init__(self) -> None:
        """Check.

        Raises:
            ValueError: if there is no such kind, the noise does not increase, or a number is not
                finite.
        """
        if self.kind not in KINDS:
            raise ValueError(f"a path {self.kind!r}: expected one of {', '.join(KINDS)}")
        if not all(0 < u < math.inf for u in self.noise) or np.any(np.diff(self.noise) <= 0):
            raise ValueError("the noise of the timesteps must be positive and increase")
        if not 0 < self.unit < math.inf:
            raise ValueError(f"what is told in units of {self.unit}: expected a number above 0")

    def factors(self, u: float) -> tuple[float, float]:
        """Alpha and s of ``x_t = alpha x_0 + s eps``."""
        alpha = {
            "variance-preserving": 1 / (1 + u * u) ** 0.5,
            "variance-exploding": 1.0,
            "straight": 1 / (1 + u),
        }[self.kind]
        return alpha, alpha * u

    def told(self, u: float, whole: bool = False) -> float:
        """What the network is told of the noise u.

        Between two discrete timesteps it is in proportion to the logarithm of the noise, or the
        nearer one.
        """
        if self.noise:
            timestep = float(
                np.interp(np.log(u), np.log(self.noise), np.arange(float(len(self.noise))))
            )
            return self.unit * (round(timestep) if whole else timestep)
        return self.unit * (u / (1 + u) if self.kind == "straight" else u)

    def step(self, u: float) -> tuple[float, float]:
        """The noise of two neighbouring discrete timesteps, u at or below the upper of them."""
        t = min(max(1, int(np.searchsorted(self.noise, u * (1 - 1e-9)))), len(self.noise) - 1)
        return self.noise[t - 1], self.noise[t]


KINDS = ("variance-preserving", "variance-exploding", "straight")


def discrete_path(levels: Array) -> NoisePath:
    """The path of DDPM's timesteps, from their noise levels in grey levels."""
    return NoisePath("variance-preserving", tuple((levels / GREY_LEVELS_PER_UNIT).tolist()))


def path_of_alphas(alphas_cumprod: Array) -> NoisePath:
    """The path of DDPM's timesteps, from their cumulative signal ``abar_t``."""
    return discrete_path(sigma_from_alphas_cumprod(alphas_cumprod))


SCHEDULES: dict[str, Callable[[int], NoisePath]] = {
    "linear": lambda timesteps: discrete_path(linear(timesteps)),
    "scaled-linear": lambda timesteps: discrete_path(scaled_linear(timesteps)),
    "cosine": lambda timesteps: discrete_path(cosine(timesteps)),
    "edm": lambda timesteps: NoisePath("variance-exploding"),
    "flow": lambda timesteps: NoisePath("straight"),
}
