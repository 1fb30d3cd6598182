"""One equation of sampling, one function, named as its paper names it.

In the codec's coordinates ``z_t = x + sigma_t eps``, where DDPM's ``x_t = sqrt(abar_t) z_t`` and
``sigma_t^2 = (1 - abar_t) / abar_t``. Reverse transitions, posteriors and the forward process are
in :mod:`diffcodec.diffusion.process`. Fields are [images, 3, height, width]; sigmas broadcast.
"""

import torch
from torch import Tensor

from diffcodec.diffusion.process import Gaussian, p_reverse, q_posterior, q_sample


def score(xhat: Tensor, z: Tensor, sigma: Tensor) -> Tensor:
    """Gradient of ``log p(z_t)`` by Tweedie's formula (Song et al. 2021, section 2.1).

    ``(xhat - z_t) / sigma_t^2``, which is ``-eps / sigma_t``.
    """
    return (xhat - z) / sigma**2


def ancestral_step(
    xhat: Tensor, v: Tensor, z: Tensor, sigma_s: Tensor, sigma_t: Tensor, noise: Tensor
) -> Tensor:
    """A sample of ``p(z_s | z_t)`` (DDPM, Algorithm 2), with the variance v of x (Improved DDPM).

    Where ``v = 0`` its variance is DDPM's beta-tilde.
    """
    p = p_reverse(xhat, v, z, sigma_s, sigma_t)
    return q_sample(p.mean, p.variance.sqrt(), noise)


def ddim_step(
    xhat: Tensor, z: Tensor, sigma_s: Tensor, sigma_t: Tensor, eta: float, noise: Tensor
) -> Tensor:
    """DDIM's step (Song et al. 2021, eqs. 12 and 16).

    ``z_s = xhat + sqrt(sigma_s^2 - w^2) eps + w noise`` with ``w = eta sqrt(Q)``, Q the variance of
    ``q(z_s | z_t, x)``: 0 is deterministic, 1 is ``q(z_s | z_t, x = xhat)``.
    """
    q: Gaussian[Tensor] = q_posterior(xhat, z, sigma_s, sigma_t)
    w = eta * q.variance.sqrt()
    return xhat + (sigma_s**2 - w**2).sqrt() * (z - xhat) / sigma_t + w * noise


def probability_flow(xhat: Tensor, z: Tensor, sigma: float) -> Tensor:
    """Slope ``dz / dsigma = (z - xhat) / sigma`` of the probability-flow ODE (EDM, eqs. 1 and 3).

    ``sigma`` is the schedule's level: what multiplies it by channel cancels out.
    """
    return (z - xhat) / sigma


def heun_step(z: Tensor, slope_t: Tensor, slope_s: Tensor, s: float, t: float) -> Tensor:
    """EDM's second-order step from level t to s (Karras et al. 2022, Algorithm 1, line 8).

    Args:
        z: at level t.
        slope_t: there.
        slope_s: at level s, where Euler's step with ``slope_t`` leads.
        s, t: the levels.
    """
    return z + (s - t) * (slope_t + slope_s) / 2


def langevin_step(z: Tensor, gradient: Tensor, snr: float, noise: Tensor) -> Tensor:
    """A corrector step by Langevin dynamics (Song et al. 2021, Algorithm 5).

    ``z + e gradient + sqrt(2 e) noise``, ``e = 2 (snr |noise| / |gradient|)^2``, norms by image.
    All in coordinates where the noise of every channel is alike.
    """
    e = 2 * (snr * _norm(noise) / _norm(gradient)) ** 2
    return z + e * gradient + (2 * e).sqrt() * noise


def classifier_free_guidance(xhat: Tensor, given_class: Tensor, scale: float) -> Tensor:
    """``xhat + scale (xhat_class - xhat)``: 1 for the class as it is (Ho and Salimans 2022, eq. 6).

    The paper's w is ``scale - 1``; of x as of epsilon, which is linear in it.
    """
    return xhat + scale * (given_class - xhat)


def classifier_guidance(xhat: Tensor, gradient: Tensor, sigma: Tensor, scale: float) -> Tensor:
    """Classifier guidance (Dhariwal and Nichol 2021, Algorithm 2), of x instead of epsilon.

    ``xhat + scale sigma_t^2 grad log p(class | z_t)``.
    """
    return xhat + scale * sigma**2 * gradient


def slerp(a: Tensor, b: Tensor, share: float) -> Tensor:
    """Spherical interpolation of noise (DDIM, appendix D.5): its length stays that of noise."""
    cosine = (a * b).flatten(1).sum(1)[:, None, None, None] / (_norm(a) * _norm(b))
    angle = torch.arccos(cosine.clamp(-0.9999, 0.9999))
    return (((1 - share) * angle).sin() * a + (share * angle).sin() * b) / angle.sin()


def _norm(field: Tensor) -> Tensor:
    """The norm of each image, [images, 1, 1, 1]."""
    norm: Tensor = (field * field).flatten(1).sum(1).sqrt()[:, None, None, None]
    return norm


def replace_known(z: Tensor, known: Tensor, mask: Tensor) -> Tensor:
    """RePaint's step (Lugmayr et al. 2022, eq. 8c): what is known is taken from q, the rest from p.

    ``mask`` is 1 where the image is known.
    """
    return mask * known + (1 - mask) * z


def replace_coarse(z: Tensor, known: Tensor, factor: int) -> Tensor:
    """ILVR's step (Choi et al. 2021, eq. 8): the means over squares are taken from q.

    ``z - phi(z) + phi(known)``, phi the mean over squares of ``factor`` pixels.
    """
    difference = torch.nn.functional.avg_pool2d(known - z, factor)
    return z + difference.repeat_interleave(factor, -1).repeat_interleave(factor, -2)


def forward_step(z: Tensor, sigma_s: Tensor, sigma_t: Tensor, noise: Tensor) -> Tensor:
    """A sample of ``q(z_t | z_s)``, one way up (DDPM eq. 2; RePaint, Algorithm 1, line 10)."""
    return z + (sigma_t**2 - sigma_s**2).sqrt() * noise
