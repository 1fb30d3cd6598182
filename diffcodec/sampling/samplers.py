"""Ways down the chain: from noise to images."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor
from tqdm import tqdm

from diffcodec.diffusion.process import p_prior
from diffcodec.sampling.denoiser import Denoiser, Noise
from diffcodec.sampling.equations import (
    ddim_step,
    heun_step,
    langevin_step,
    probability_flow,
    score,
)

SAMPLERS = ("ancestral", "ddim", "heun")
SNR = 0.16  # of the corrector, Song et al.'s for CIFAR-10
Hook = Callable[[Tensor, float], Tensor]  # (z_s, sigma_s) -> z_s


def draw_prior(denoiser: Denoiser, sigma: float, noise: Tensor) -> Tensor:
    """A sample of ``p(z_T)``."""
    prior = p_prior(denoiser.model.domain, denoiser.noise_of(sigma, noise))
    return prior.mean + prior.variance.sqrt() * noise


def go_down(
    denoiser: Denoiser,
    z: Tensor,
    levels: Sequence[float],
    noise: Noise,
    *,
    sampler: str = "ancestral",
    eta: float = 0.0,
    corrector_steps: int = 0,
    snr: float = SNR,
    hook: Hook | None = None,
    progress: bool = False,
) -> Tensor:
    """The posterior mean of x at the last level that a sampler comes to.

    Args:
        denoiser: asked once for each level, by "heun" twice.
        z: at the first level.
        levels: falling.
        noise: that the sampler takes.
        sampler: one of ``SAMPLERS``.
        eta: of "ddim", how much of DDPM's noise.
        corrector_steps: by Langevin dynamics at each level but the first.
        snr: of these.
        hook: what else is done to z at each level but the first.
        progress: whether to show a bar.
    """
    height, width = z.shape[2:]
    pairs = list(pairwise(levels))
    for t, s in tqdm(pairs, "noise levels", disable=None if progress else True):
        sigma_t, sigma_s = (denoiser.noise_of(level, z) for level in (t, s))
        if sampler == "ancestral":
            z = denoiser.step(z, t, s, noise(height, width))
        elif sampler == "ddim":
            fresh = noise(height, width) if eta else torch.zeros_like(z)
            z = ddim_step(denoiser(z, t)[0], z, sigma_s, sigma_t, eta, fresh)
        else:
            slope = probability_flow(denoiser(z, t)[0], z, t)
            euler = z + (s - t) * slope
            z = heun_step(z, slope, probability_flow(denoiser(euler, s)[0], euler, s), s, t)
        for _ in range(corrector_steps):
            z = _corrected(denoiser, z, s, snr, noise(height, width))
        if hook is not None:
            z = hook(z, s)
    return denoiser(z, levels[-1])[0]


def _corrected(denoiser: Denoiser, z: Tensor, sigma: float, snr: float, noise: Tensor) -> Tensor:
    """z after a Langevin step in coordinates where the noise of every channel is sigma."""
    multipliers = denoiser.noise_of(1.0, z)
    gradient = score(denoiser(z, sigma)[0], z, sigma * multipliers) * multipliers
    return langevin_step(z / multipliers, gradient, snr, noise) * multipliers
