"""DDPM's equations as printed (Ho et al. 2020), in its own coordinates: images from -1 to 1.

The codec states the same chain in grey levels. Nothing here imports it, so that the tests can hold
the one against the other. Timestep t is 1..T as in the paper; abar_0 = 1.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

HALF_RANGE = 127.5


def to_unit(x):
    """0..255 to -1..1."""
    return (x - HALF_RANGE) / HALF_RANGE


@dataclass(frozen=True)
class Ddpm:
    """A variance schedule beta_1..beta_T and what follows from it."""

    betas: NDArray[np.float64]

    @property
    def timesteps(self):
        return len(self.betas)

    def beta(self, t):
        return self.betas[t - 1]

    def alpha(self, t):
        return 1 - self.beta(t)

    def abar(self, t):
        return np.prod(1 - self.betas[:t])

    def from_grey(self, z, t):
        """The chain's z_t in grey levels as DDPM's x_t."""
        return np.sqrt(self.abar(t)) * to_unit(z)

    def q_step(self, x_s, t):
        """Eq. 2: mean and variance of q(x_t | x_{t-1})."""
        return np.sqrt(1 - self.beta(t)) * x_s, self.beta(t)

    def q_marginal(self, x_0, t):
        """Eq. 4: mean and variance of q(x_t | x_0)."""
        return np.sqrt(self.abar(t)) * x_0, 1 - self.abar(t)

    def q_posterior(self, x_0, x_t, t):
        """Eqs. 6 and 7: mean and variance of q(x_{t-1} | x_t, x_0)."""
        of_x_0 = np.sqrt(self.abar(t - 1)) * self.beta(t) / (1 - self.abar(t))
        of_x_t = np.sqrt(self.alpha(t)) * (1 - self.abar(t - 1)) / (1 - self.abar(t))
        variance = (1 - self.abar(t - 1)) / (1 - self.abar(t)) * self.beta(t)
        return of_x_0 * x_0 + of_x_t * x_t, variance

    def x_t(self, x_0, eps, t):
        """Above eq. 9: eq. 4 reparametrised."""
        return np.sqrt(self.abar(t)) * x_0 + np.sqrt(1 - self.abar(t)) * eps

    def x_0(self, x_t, eps, t):
        """Eq. 15, and inside eq. 9: x_0 from x_t and its noise."""
        return (x_t - np.sqrt(1 - self.abar(t)) * eps) / np.sqrt(self.abar(t))

    def p_mean(self, x_t, eps, t):
        """Eq. 11: mean of p(x_{t-1} | x_t) from the epsilon-model's output."""
        return (x_t - self.beta(t) / np.sqrt(1 - self.abar(t)) * eps) / np.sqrt(self.alpha(t))

    def step_nats(self, eps, eps_hat, t):
        """Eq. 12: L_{t-1} of one dimension, with sigma_t^2 the posterior's variance."""
        _, variance = self.q_posterior(0.0, 0.0, t)
        weight = self.beta(t) ** 2 / (2 * variance * self.alpha(t) * (1 - self.abar(t)))
        return weight * (eps - eps_hat) ** 2


def decoder_probability(x_0, mean, std):
    """Eq. 13: the discretized Gaussian on -1..1; its end bins reach to infinity."""
    above = np.where(x_0 >= 1, np.inf, x_0 + 1 / 255)
    below = np.where(x_0 <= -1, -np.inf, x_0 - 1 / 255)
    return ndtr((above - mean) / std) - ndtr((below - mean) / std)


def linear_schedule():
    """Section 4: beta from 1e-4 to 0.02 in 1000 steps."""
    return Ddpm(np.array([1e-4 + (0.02 - 1e-4) * i / 999 for i in range(1000)]))


def cosine_schedule(timesteps=1000):
    """Nichol and Dhariwal 2021, eq. 17, with s = 0.008 and beta at most 0.999."""

    def f(t):
        return np.cos((t / timesteps + 0.008) / 1.008 * np.pi / 2) ** 2

    def beta(t):
        return min(1 - (f(t) / f(0)) / (f(t - 1) / f(0)), 0.999)

    return Ddpm(np.array([beta(t) for t in range(1, timesteps + 1)]))
