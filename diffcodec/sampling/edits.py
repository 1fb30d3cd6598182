"""What a chain makes of given images: more noise, less, what lies between two, what is missing."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from diffcodec.diffusion.process import q_sample
from diffcodec.errors import UnsupportedError
from diffcodec.models.model import Model
from diffcodec.sampling.denoiser import (
    TOP_SIGMA,
    Denoiser,
    Noise,
    isotropic_level,
    to_field,
    to_images,
)
from diffcodec.sampling.equations import (
    forward_step,
    replace_coarse,
    replace_known,
    slerp,
)
from diffcodec.sampling.samplers import Hook, draw_prior, go_down

RESAMPLINGS = 5  # of RePaint at each level; the paper has 10


def forward(
    model: Model, image: Image.Image, levels: Sequence[float], seed: int = 0
) -> list[Image.Image]:
    """Samples of ``q(z_t | x)`` at noise levels, one noise for all (DDPM eq. 4).

    Args:
        model: whose colour domain the noise is in.
        image: in any mode; it is taken as RGB.
        levels: in grey levels of the schedule.
        seed: of the noise.
    """
    denoiser, x = Denoiser(model), to_field(image, model)
    noise = Noise(seed, 1)(*x.shape[2:])
    return [
        to_images(q_sample(x, denoiser.noise_of(sigma, x), noise), model)[0] for sigma in levels
    ]


def denoise(model: Model, image: Image.Image, sigma: float) -> Image.Image:
    """The posterior mean of an image that has Gaussian noise: a single evaluation.

    Args:
        model: float, or integer at one of its own levels.
        image: with noise, taken as RGB.
        sigma: of the noise in each of R, G and B, in grey levels.
    """
    xhat, _ = Denoiser(model)(to_field(image, model), isotropic_level(sigma, model))
    return to_images(xhat, model)[0]


def interpolate(
    model: Model,
    a: Image.Image,
    b: Image.Image,
    *,
    images: int = 7,
    sigma: float = 100.0,
    steps: int | None = None,
    seed: int = 0,
    progress: bool = False,
) -> list[Image.Image]:
    """What lies between two images in the latents of a noise level (DDPM, section 4.4).

    Both are noised to z_t, their latents interpolated (images linearly, noises on the sphere, as
    DDIM has it), and each drawn down by the same ancestral noise.

    Args:
        model: see :func:`diffcodec.sample`.
        a, b: of one size.
        images: how many, both ends included.
        sigma: the level, in grey levels: the higher, the freer.
        steps: from the top down; those below the level are taken.
        seed: of the noise.
        progress: whether to show a bar.

    Raises:
        UnsupportedError: if the sizes differ.
    """
    if a.size != b.size:
        raise UnsupportedError(f"images of {a.size} and {b.size}: expected one size")
    denoiser, (x_a, x_b) = Denoiser(model), (to_field(image, model) for image in (a, b))
    height, width = x_a.shape[2:]
    drawn = Noise(seed, 2)(height, width)
    levels = denoiser.levels(steps, sigma)
    level = denoiser.noise_of(levels[0], x_a)
    shares = np.linspace(0, 1, images)
    z = torch.cat(
        [(1 - s) * x_a + s * x_b + level * slerp(drawn[:1], drawn[1:], float(s)) for s in shares]
    )
    return to_images(
        go_down(denoiser, z, levels, SameNoise(seed + 2, images), progress=progress), model
    )


class SameNoise(Noise):
    """One noise for all images."""

    def __init__(self, seed: int, images: int):
        super().__init__(seed, 1)
        self.images = images

    def __call__(self, height: int, width: int) -> Tensor:
        """See :class:`Noise`."""
        return super().__call__(height, width).expand(self.images, -1, -1, -1)


def inpaint(
    model: Model,
    image: Image.Image,
    missing: NDArray[np.bool_],
    *,
    steps: int | None = None,
    resamplings: int = RESAMPLINGS,
    seed: int = 0,
    progress: bool = False,
) -> Image.Image:
    """An image with what is missing drawn to fit the rest (RePaint, Lugmayr et al. 2022).

    At each level the known part comes from ``q(z_s | x)``, the rest from ``p(z_s | z_t)``; then it
    goes one level up and down again, so that both come to agree. What is known stays as it is.

    Args:
        model: see :func:`diffcodec.sample`.
        image: taken as RGB.
        missing: true where it is to be drawn, [height, width].
        steps: noise levels.
        resamplings: how often each step is taken.
        seed: of the noise.
        progress: whether to show a bar.

    Raises:
        UnsupportedError: if the mask has another size.
    """
    if missing.shape != (image.height, image.width):
        raise UnsupportedError(
            f"a mask of {missing.shape[1]} x {missing.shape[0]} for an image of {image.width} x "
            f"{image.height}: expected the same size"
        )
    x, known = to_field(image, model), torch.from_numpy(~missing).double()
    denoiser, noise = Denoiser(model), Noise(seed, 1)

    def replaced(z: Tensor, sigma: float) -> Tensor:
        drawn = q_sample(x, denoiser.noise_of(sigma, x), noise(*x.shape[2:]))
        return replace_known(z, drawn, known)

    found = _replacing(denoiser, replaced, x.shape[2:], noise, steps, resamplings, progress)
    filled = np.array(to_images(found, model)[0])
    filled[~missing] = np.asarray(image.convert("RGB"))[~missing]
    return Image.fromarray(filled)


def enlarge(
    model: Model,
    image: Image.Image,
    factor: int,
    *,
    steps: int | None = None,
    resamplings: int = 1,
    seed: int = 0,
    progress: bool = False,
) -> Image.Image:
    """A sample of images whose means over squares are the pixels of an image (ILVR).

    Args:
        model: see :func:`diffcodec.sample`.
        image: the small one, taken as RGB.
        factor: how often larger each side is to be.
        steps, resamplings, seed, progress: see :func:`inpaint`.
    """
    small = to_field(image, model)
    x = small.repeat_interleave(factor, -1).repeat_interleave(factor, -2)
    denoiser, noise = Denoiser(model), Noise(seed, 1)

    def replaced(z: Tensor, sigma: float) -> Tensor:
        drawn = q_sample(x, denoiser.noise_of(sigma, x), noise(*x.shape[2:]))
        return replace_coarse(z, drawn, factor)

    found = _replacing(denoiser, replaced, x.shape[2:], noise, steps, resamplings, progress)
    return to_images(replace_coarse(found, x, factor), model)[0]


def _replacing(
    denoiser: Denoiser,
    replaced: Hook,
    size: Sequence[int],
    noise: Noise,
    steps: int | None,
    resamplings: int,
    progress: bool,
) -> Tensor:
    """RePaint, Algorithm 1: a part of z_s is replaced after each step, ``resamplings`` times."""
    levels = denoiser.levels(steps, TOP_SIGMA)
    above = dict(zip(levels[1:], levels, strict=False))
    height, width = size

    def hook(z: Tensor, s: float) -> Tensor:
        z = replaced(z, s)
        sigma_s, sigma_t = (denoiser.noise_of(level, z) for level in (s, above[s]))
        for _ in range(resamplings - 1):
            z = forward_step(z, sigma_s, sigma_t, noise(height, width))
            z = replaced(denoiser.step(z, above[s], s, noise(height, width)), s)
        return z

    z = replaced(draw_prior(denoiser, levels[0], noise(height, width)), levels[0])
    return go_down(denoiser, z, levels, noise, hook=hook, progress=progress)
