"""What a chain makes of given images: more noise, less, what lies between two, what is missing.

It knows RGB alone. The alpha of an image, where it has one, goes on top of what is made of it.
"""

from collections.abc import Sequence
from math import isfinite
from os import PathLike
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from diffcodec.diffusion.process import q_sample
from diffcodec.errors import UnsupportedError
from diffcodec.limits import DEFAULT_LIMITS
from diffcodec.models.model import Model, loaded
from diffcodec.sampling.denoiser import (
    TOP_SIGMA,
    Denoiser,
    Noise,
    as_rgb,
    isotropic_level,
    to_field,
    to_images,
)
from diffcodec.sampling.draw import MOST_SEED, MOST_STEPS
from diffcodec.sampling.equations import (
    forward_step,
    replace_coarse,
    replace_known,
    slerp,
)
from diffcodec.sampling.samplers import Hook, draw_prior, go_down
from diffcodec.values import integer, number

RESAMPLINGS = 5  # of RePaint at each level; the paper has 10
MOST = {"images": 1 << 16, "factor": 1 << 16, "resamplings": MOST_STEPS}
AnyModel = str | PathLike[str] | Model  # a name or a path is loaded in float arithmetic


def forward(
    model: AnyModel, image: Image.Image, levels: Sequence[float], seed: int = 0
) -> list[Image.Image]:
    """Samples of ``q(z_t | x)`` at noise levels, one noise for all (DDPM eq. 4).

    Args:
        model: whose colour domain the noise is in; a name, a path or a loaded model.
        image: in any mode; it is taken as RGB, and all have its alpha.
        levels: in grey levels of the schedule.
        seed: of the noise.

    Raises:
        UnsupportedError: if a level is below 0, or not finite.
    """
    model = loaded(model, "float")
    levels = [_noise("levels", sigma) for sigma in levels]
    _check_numbers(seed=seed)
    denoiser, x = Denoiser(model), to_field(image, model)
    noise, alpha = Noise(seed, 1)(*x.shape[2:]), _alpha_of(image)
    noisy = (q_sample(x, denoiser.noise_of(sigma, x), noise) for sigma in levels)
    return [_with_alpha(to_images(z, model)[0], alpha) for z in noisy]


def denoise(model: AnyModel, image: Image.Image, sigma: float) -> Image.Image:
    """The posterior mean of an image that has Gaussian noise: a single evaluation.

    Args:
        model: float, or integer at one of its own levels; a name, a path or a loaded model.
        image: with noise, taken as RGB; its alpha stays.
        sigma: of the noise in each of R, G and B, in grey levels.

    Raises:
        UnsupportedError: if that is not above 0, or none of an integer model's own levels.
    """
    model = loaded(model, "float")
    if not _noise("sigma", sigma):
        raise UnsupportedError("sigma 0: expected noise to take out, above 0")
    xhat, _ = Denoiser(model)(to_field(image, model), isotropic_level(sigma, model))
    return _with_alpha(to_images(xhat, model)[0], _alpha_of(image))


def interpolate(
    model: AnyModel,
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
        a, b: of one size. Where one has alpha, what lies between has that between them.
        images: how many, both ends included.
        sigma: the level, in grey levels: the higher, the freer.
        steps: from the top down; those below the level are taken.
        seed: of the noise.
        progress: whether to show a bar.

    Raises:
        UnsupportedError: if the sizes differ, or there is no way down from the level.
    """
    model = loaded(model, "float")
    _check_numbers(images=images, steps=steps, seed=seed)
    denoiser, (x_a, x_b) = Denoiser(model), (to_field(image, model) for image in (a, b))
    if a.size != b.size:
        raise UnsupportedError(f"images of {a.size} and {b.size}: expected one size")
    DEFAULT_LIMITS.check_image(a.width, a.height * images)
    height, width = x_a.shape[2:]
    drawn = Noise(seed, 2)(height, width)
    levels = denoiser.levels(steps, _noise("sigma", sigma))
    level = denoiser.noise_of(levels[0], x_a)
    shares = np.linspace(0, 1, images)
    z = torch.cat(
        [(1 - s) * x_a + s * x_b + level * slerp(drawn[:1], drawn[1:], float(s)) for s in shares]
    )
    found = go_down(denoiser, z, levels, SameNoise(seed + 2, images), progress=progress)
    return list(map(_with_alpha, to_images(found, model), _alphas_between(a, b, shares)))


class SameNoise(Noise):
    """One noise for all images."""

    def __init__(self, seed: int, images: int):
        super().__init__(seed, 1)
        self.images = images

    def __call__(self, height: int, width: int) -> Tensor:
        """See :class:`Noise`."""
        return super().__call__(height, width).expand(self.images, -1, -1, -1)


def inpaint(
    model: AnyModel,
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
        image: taken as RGB; its alpha stays where it is known, and what is drawn is opaque.
        missing: true where it is to be drawn, [height, width].
        steps: noise levels.
        resamplings: how often each step is taken.
        seed: of the noise.
        progress: whether to show a bar.

    Raises:
        UnsupportedError: if the mask has another size.
        TypeError: if it is no array of truth values.
    """
    model = loaded(model, "float")
    _check_numbers(steps=steps, resamplings=resamplings, seed=seed)
    x = to_field(image, model)
    kind = getattr(missing, "dtype", type(missing).__name__)
    if not isinstance(missing, np.ndarray) or kind != np.bool_:
        raise TypeError(
            f"missing: found {kind}, expected a NumPy array of bool, true where it is missing, "
            "such as mask > 127"
        )
    if missing.shape != (image.height, image.width):
        size = " x ".join(map(str, missing.shape[::-1]))
        raise UnsupportedError(
            f"a mask of {size} for an image of {image.width} x {image.height}: expected the same "
            "size"
        )
    known = torch.from_numpy(~missing).double()
    denoiser, noise = Denoiser(model), Noise(seed, 1)

    def replaced(z: Tensor, sigma: float) -> Tensor:
        drawn = q_sample(x, denoiser.noise_of(sigma, x), noise(*x.shape[2:]))
        return replace_known(z, drawn, known)

    found = _replacing(denoiser, replaced, x.shape[2:], noise, steps, resamplings, progress)
    filled = np.array(to_images(found, model)[0])
    filled[~missing] = np.asarray(as_rgb(image))[~missing]
    alpha = _alpha_of(image)
    return _with_alpha(Image.fromarray(filled), None if alpha is None else alpha | 255 * missing)


def enlarge(
    model: AnyModel,
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
        image: the small one, taken as RGB; its alpha is repeated.
        factor: how often larger each side is to be.
        steps, resamplings, seed, progress: see :func:`inpaint`.

    Raises:
        LimitError: if the large image is over the pixels that are taken.
    """
    model = loaded(model, "float")
    _check_numbers(factor=factor, steps=steps, resamplings=resamplings, seed=seed)
    small = to_field(image, model)
    DEFAULT_LIMITS.check_image(image.width * factor, image.height * factor)
    x = small.repeat_interleave(factor, -1).repeat_interleave(factor, -2)
    denoiser, noise = Denoiser(model), Noise(seed, 1)

    def replaced(z: Tensor, sigma: float) -> Tensor:
        drawn = q_sample(x, denoiser.noise_of(sigma, x), noise(*x.shape[2:]))
        return replace_coarse(z, drawn, factor)

    found = _replacing(denoiser, replaced, x.shape[2:], noise, steps, resamplings, progress)
    alpha = _alpha_of(image)
    large = None if alpha is None else alpha.repeat(factor, 0).repeat(factor, 1)
    return _with_alpha(to_images(replace_coarse(found, x, factor), model)[0], large)


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


def _alpha_of(image: Image.Image) -> NDArray[np.uint8] | None:
    """How opaque an image is, [height, width]; None of one that has no alpha."""
    if not image.has_transparency_data:
        return None
    return np.asarray(image.convert("RGBA"))[:, :, 3]


def _with_alpha(image: Image.Image, alpha: NDArray[Any] | None) -> Image.Image:
    """An image of mode RGB with an alpha, if there is one."""
    if alpha is not None:
        image.putalpha(Image.fromarray(alpha.astype(np.uint8)))
    return image


def _alphas_between(
    a: Image.Image, b: Image.Image, shares: NDArray[np.float64]
) -> list[NDArray[np.float64] | None]:
    """How opaque the images are that lie between two of one size."""
    ends = [_alpha_of(a), _alpha_of(b)]
    if all(end is None for end in ends):
        return [None] * len(shares)
    low, high = (np.full(a.size[::-1], 255.0) if end is None else end for end in ends)
    return [np.rint((1 - share) * low + share * high) for share in shares]


def _noise(name: str, value: Any) -> float:
    """Noise in grey levels, a finite number from 0 on."""
    sigma = number(name, value)
    if sigma is None or not (isfinite(sigma) and sigma >= 0):
        raise UnsupportedError(f"{name} {value}: expected finite numbers of grey levels, 0 or more")
    return sigma


def _check_numbers(*, seed: Any, steps: Any = None, **counts: Any) -> None:
    """Refuse what is no seed, no number of steps, or no count from 1 on.

    Raises:
        TypeError: if it is no integer.
        UnsupportedError: if it is out of range.
    """
    given = {name: (1, value, MOST[name]) for name, value in counts.items()}
    given |= {"seed": (0, seed, MOST_SEED - MOST["images"])}
    given |= {} if steps is None else {"steps": (2, steps, MOST_STEPS)}
    for name, (least, value, most) in given.items():
        if not least <= integer(name, value) <= most:
            raise UnsupportedError(f"{name} {value}: expected {least} to {most}")
