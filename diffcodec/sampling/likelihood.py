"""The likelihood of images by the probability-flow ODE (Song et al. 2021, section 4.3).

Along ``dz / dlog sigma = z - xhat(z)`` the log density changes by minus the divergence, so that

    log p(z_0) = log p(z_T) + integral of (n - tr dxhat/dz) dlog sigma                  (eq. 39)

with z_T what the ODE leads to and n the number of samples. Images are integers: z_0 is x with
Gaussian noise of the lowest level that networks know it at, and what that costs is counted as in a
variational bound,

    bits(x) <= -log2 p(z_0) + log2 q(z_0 | x) - log2 p(x | z_0).
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from diffcodec.container.parts import tile_grid
from diffcodec.diffusion.color import channels
from diffcodec.diffusion.losses import second_sigmas
from diffcodec.diffusion.process import LOG2_E, Gaussian, discretized_gaussian_bits, p_prior
from diffcodec.errors import ModelMismatchError
from diffcodec.models.model import Model
from diffcodec.sampling.denoiser import TOP_SIGMA, Noise, to_field

STEPS = 50
EXACT_UP_TO = 192  # samples of an image: 8 x 8 pixels, of which the divergence is computed whole

Denoised = Callable[[Tensor, float], tuple[Tensor, Tensor]]


def ode_bits(
    model: Model, image: Image.Image, steps: int = STEPS, seed: int = 0, exact: bool | None = None
) -> float:
    """Bits of an image by the probability-flow ODE, tile by tile.

    Args:
        model: float, at any noise level.
        image: taken as RGB, all of whose samples count.
        steps: of Heun's method, each of two evaluations and their derivatives.
        seed: of the noise, and of Hutchinson's estimate of the divergence.
        exact: whether to compute the divergence itself, one derivative a sample; by default for
            images of up to ``EXACT_UP_TO`` samples.

    Raises:
        ModelMismatchError: if the model is an integer one.
    """
    if model.network.levels is not None:
        raise ModelMismatchError(
            f"model {model.name} is an integer model, which has no derivative; load it by "
            'load_model(..., "float")'
        )
    x, bits = to_field(image, model), 0.0
    for box in tile_grid(image.width, image.height):
        tile = x[:, :, box.top : box.top + box.height, box.left : box.left + box.width]
        wanted = tile.numel() <= EXACT_UP_TO if exact is None else exact
        bits += _tile_bits(model, tile, steps, seed, wanted)
    return bits


def _tile_bits(model: Model, x: Tensor, steps: int, seed: int, exact: bool) -> float:
    noise = Noise(seed, 1)
    quantiser = min((plan.quantiser for plan in model.plans.values()), default=2)
    levels = np.geomspace(second_sigmas(quantiser)[0], TOP_SIGMA, steps + 1).tolist()
    multipliers = channels(model.domain.noise_multipliers, x)
    around = Gaussian(x, (levels[0] * multipliers) ** 2)
    drawn = noise(*x.shape[2:])
    z = x + around.variance.sqrt() * drawn
    posterior = _differentiable(model)
    probe = None if exact else noise(*x.shape[2:]).sign()
    with torch.no_grad():
        xhat, v = posterior(z, levels[0])
    bits = discretized_gaussian_bits(x, xhat, v).sum() - gaussian_bits(z, around).sum()
    z, log_density = integrate(posterior, z, levels, probe)
    bits = bits + gaussian_bits(z, p_prior(model.domain, levels[-1] * multipliers)).sum()
    return float(bits - LOG2_E * log_density)


def gaussian_bits(z: Tensor, p: Gaussian[Tensor]) -> Tensor:
    """``-log2`` of a Gaussian's density."""
    squared = (z - p.mean) ** 2 / p.variance
    bits: Tensor = 0.5 * LOG2_E * (squared + torch.log(2 * math.pi * p.variance))
    return bits


def integrate(
    posterior: Denoised, z: Tensor, levels: Sequence[float], probe: Tensor | None
) -> tuple[Tensor, float]:
    """Where the ODE leads from the first level to the last, and the integral of the divergence.

    Args:
        posterior: differentiable.
        z: one image at the first level.
        levels: rising; Heun's steps in log sigma between them.
        probe: of -1 and 1, for Hutchinson's estimate; None for the divergence itself.
    """
    total = 0.0
    slope, divergence = slope_and_divergence(posterior, z, levels[0], probe)
    for low, high in pairwise(levels):
        h = math.log(high / low)
        there = slope_and_divergence(posterior, z + h * slope, high, probe)
        z = z + h * (slope + there[0]) / 2
        total += h * (divergence + there[1]) / 2
        slope, divergence = slope_and_divergence(posterior, z, high, probe)
    return z, total


def slope_and_divergence(
    posterior: Denoised, z: Tensor, sigma: float, probe: Tensor | None
) -> tuple[Tensor, float]:
    """``z - xhat`` and its divergence ``n - tr dxhat/dz``; by Hutchinson ``E e' J e = tr J``."""
    with torch.enable_grad():
        asked = z.detach().requires_grad_()
        xhat, _ = posterior(asked, sigma)
        if probe is not None:
            (product,) = torch.autograd.grad(xhat, asked, probe)
            trace = float((product * probe).sum())
        else:
            flat = xhat.flatten()
            rows = (
                torch.autograd.grad(flat[i], asked, retain_graph=True)[0].flatten()[i]
                for i in range(len(flat))
            )
            trace = float(sum(rows))
    return (z - xhat).detach(), z.numel() - trace


def _differentiable(model: Model) -> Denoised:
    """The posterior of a float network, with derivatives; of any height and width."""
    m = model.network.multiple

    def posterior(z: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        height, width = z.shape[2:]
        padded = F.pad(z, (0, -width % m, 0, -height % m), mode="replicate")
        mean, v = model.network.posterior_x(padded.to(model.device), sigma)
        cut = (..., slice(height), slice(width))
        return mean[cut].cpu(), v[cut].cpu()

    return posterior
