"""The model as samplers ask it: xhat of images of any size, guided, and the noise they take."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import EllipsisType

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diffcodec.diffusion.color import channels, from_domain, to_domain
from diffcodec.diffusion.losses import second_sigmas
from diffcodec.diffusion.phases import clipped_exp, expected_z, of_phase, refined, told_planes
from diffcodec.diffusion.plan import SECOND_RATIO, geometric_plan
from diffcodec.diffusion.process import p_reverse, q_sample
from diffcodec.diffusion.quantiser import first_sigma
from diffcodec.errors import ModelMismatchError, UnsupportedError
from diffcodec.models.model import Model
from diffcodec.sampling.equations import (
    ancestral_step,
    classifier_free_guidance,
    classifier_guidance,
)

WINDOW, MARGIN = 512, 64  # pixels that are evaluated together, and seen around them
TOP_SIGMA = 600.0  # where samples begin: far above the range of pixels
STEPS = 50
Place = tuple[EllipsisType, slice, slice]
Gradient = Callable[[Tensor, float], Tensor]


@dataclass(frozen=True)
class Guidance:
    """Where samples are led.

    Attributes:
        label: class of all images, of a model of classes.
        scale: of classifier-free guidance; 1 for the class as it is.
        classifier: gives the gradient of ``log p(class | z_t)`` by z, from z and sigma.
        classifier_scale: of it.
    """

    label: int | None = None
    scale: float = 1.0
    classifier: Gradient | None = None
    classifier_scale: float = 1.0


NO_GUIDANCE = Guidance()


class Denoiser:
    """Posterior mean and variance of x given z_t by a model, window by window of large images.

    Args:
        model: integer (at its plans' noise levels) or float.
        guidance: of the mean.

    Raises:
        UnsupportedError: for a label that the model does not know.
    """

    def __init__(self, model: Model, guidance: Guidance = NO_GUIDANCE):
        self.model, self.guidance = model, guidance
        if guidance.label is not None:
            model.check_label(guidance.label)
        m = model.network.multiple
        self.window, self.margin = (-(-side // m) * m for side in (WINDOW, MARGIN))

    def __call__(self, z: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        """Mean and variance, of images in the colour domain.

        Raises:
            UnsupportedError: if an integer model is to answer at another level than its own.
            ModelMismatchError: if the model's numbers are out of range.
        """
        known = self.model.network.levels
        if known is not None and sigma not in known:
            raise UnsupportedError(
                f"the noise level {sigma:.6g} of an integer model, which answers at the levels of "
                'its plans alone; load it by load_model(..., "float")'
            )
        xhat, v = torch.empty_like(z), torch.empty_like(z)
        for part, inside, here in self._windows(z):
            for field, found in zip((xhat, v), self._posterior(z[part], sigma), strict=True):
                field[here] = found[inside]
        self._checked(sigma, xhat, v)
        return xhat, v

    def step(self, z: Tensor, t: float, s: float, noise: Tensor) -> Tensor:
        """A sample of ``p(z_s | z_t)``; by a model in phases one phase after the other.

        Such a model's posterior of x given z_t alone is not trained above the second level: what it
        codes is that of each phase, which knows z_s of those before.

        Args:
            z: z_t, in the colour domain.
            t: its noise level.
            s: the one below.
            noise: standard normal, like z.
        """
        quantiser = min((plan.quantiser for plan in self.model.plans.values()), default=2)
        if not self.model.phased or s < second_sigmas(quantiser)[0]:
            sigma_s, sigma_t = (self.noise_of(level, z) for level in (s, t))
            return ancestral_step(*self(z, t), z, sigma_s, sigma_t, noise)
        z_s = torch.empty_like(z)
        for part, inside, here in self._windows(z):
            z_s[here] = self._step_in_phases(z[part], t, s, noise[part])[inside]
        return self._checked(t, z_s)[0]

    def _step_in_phases(self, z: Tensor, t: float, s: float, noise: Tensor) -> Tensor:
        sigmas = self.noise_of(s, z), self.noise_of(t, z)
        *posterior, shared = self.model.begin_phases(2, z.double().numpy(), t)
        xhat, v = map(torch.from_numpy, posterior)
        lead = self._led(xhat, z, t) - xhat
        mean, unit = expected_z(xhat, v, z, sigmas, torch.sqrt)
        z_s = torch.zeros_like(z)
        for number, own in enumerate(shared):
            known = z_s.numpy(), mean.numpy(), unit.numpy()
            told = told_planes(2, *known, number, (s, t))
            found = self.model.phase_parameters(2, t, number, own, told)
            fields = (xhat, v, lead, z, noise)
            xhat_n, v_n, lead_n, z_n, noise_n = (of_phase(field, number) for field in fields)
            parameters = torch.from_numpy(found)[:, :, : z_n.shape[2], : z_n.shape[3]]
            told_x, told_v = refined(xhat_n, v_n, parameters, torch.sqrt, clipped_exp)
            p = p_reverse(told_x + lead_n, told_v, z_n, *sigmas)
            of_phase(z_s, number)[:] = q_sample(p.mean, p.variance.sqrt(), noise_n)
        return z_s

    def _windows(self, z: Tensor) -> Iterator[tuple[Place, Place, Place]]:
        """Parts of an image: where each lies, which of it is kept, and where that goes."""
        height, width = z.shape[2:]
        for top in range(0, height, self.window):
            for left in range(0, width, self.window):
                above, before = (max(0, start - self.margin) for start in (top, left))
                below, behind = (start + self.window + self.margin for start in (top, left))
                inside = (
                    ...,
                    slice(top - above, top - above + self.window),
                    slice(left - before, left - before + self.window),
                )
                here = (..., slice(top, top + self.window), slice(left, left + self.window))
                yield (..., slice(above, below), slice(before, behind)), inside, here

    def _checked(self, sigma: float, *fields: Tensor) -> tuple[Tensor, ...]:
        if not all(field.isfinite().all() for field in fields):
            raise ModelMismatchError(
                f"model {self.model.name}: numbers out of range at the noise level {sigma:g}"
            )
        return fields

    def _posterior(self, z: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        guidance = self.guidance
        xhat, v = _ask(self.model, z, sigma, guidance.label)
        if guidance.label is not None and guidance.scale != 1:
            plain, _ = _ask(self.model, z, sigma)
            xhat = classifier_free_guidance(plain, xhat, guidance.scale)
        return self._led(xhat, z, sigma), v

    def _led(self, xhat: Tensor, z: Tensor, sigma: float) -> Tensor:
        """The mean of x as a classifier leads it."""
        guidance = self.guidance
        if guidance.classifier is None:
            return xhat
        gradient = guidance.classifier(z, sigma)
        shape = tuple(getattr(gradient, "shape", ()))
        if not isinstance(gradient, Tensor) or shape != tuple(z.shape):
            raise TypeError(
                f"classifier: it gave {type(gradient).__name__} {list(shape)}, expected the "
                f"gradient of log p(class | z_t) by z as a tensor {list(z.shape)}"
            )
        noise = self.noise_of(sigma, z)
        return classifier_guidance(xhat, gradient, noise, guidance.classifier_scale)

    def noise_of(self, sigma: float, like: Tensor) -> Tensor:
        """The noise of each channel, [3, 1, 1]."""
        return sigma * channels(self.model.domain.noise_multipliers, like)

    def levels(self, steps: int | None = None, top: float = TOP_SIGMA) -> list[float]:
        """Noise levels of a way down, falling: so many, or those of the plan with the most.

        Raises:
            UnsupportedError: if an integer model is to answer at others than its own, or the top
                is below what there is a way down from.
        """
        plans = self.model.plans.values()
        known = self.model.network.levels
        if steps is None and known is not None:
            found = max((plan.levels for plan in plans), key=len)
            self._check_top(top, found[0])
        elif known is not None:
            raise UnsupportedError(
                f"{steps} steps by an integer model, which answers at the levels of its plans "
                'alone; leave steps out, or load it by load_model(..., "float")'
            )
        else:
            quantiser = min((plan.quantiser for plan in plans), default=2)
            self._check_top(top, 1.001 * SECOND_RATIO * first_sigma(quantiser))
            found = geometric_plan(max(2, steps or STEPS), top, quantiser).levels
        return sorted((level for level in found if level <= top * 1.0001), reverse=True)

    def _check_top(self, top: float, least: float) -> None:
        if top < least:
            raise UnsupportedError(
                f"noise of {top:g} grey levels, below which model {self.model.name} has no way "
                f"down; give {math.ceil(100 * least) / 100:g} or more"
            )


def _ask(model: Model, z: Tensor, sigma: float, label: int | None = None) -> tuple[Tensor, Tensor]:
    labels = None if label is None else [label] * len(z)
    mean, v = model.posterior_x(z.double().numpy(), sigma, labels)
    return torch.from_numpy(mean), torch.from_numpy(v)


class Noise:
    """Standard normal noise; image i of a seed is image 0 of the seed i higher."""

    def __init__(self, seed: int, images: int):
        self._generators = [torch.Generator().manual_seed(seed + i) for i in range(images)]

    def __call__(self, height: int, width: int) -> Tensor:
        """[images, 3, height, width], float64."""
        shape = (1, 3, height, width)
        drawn = [torch.randn(shape, generator=g, dtype=torch.float64) for g in self._generators]
        return torch.cat(drawn)


def isotropic_level(sigma: float, model: Model) -> float:
    """The chain's level for noise of so many grey levels in each of R, G and B: of its volume."""
    multipliers = model.domain.noise_multipliers
    return sigma / math.prod(multipliers) ** (1 / len(multipliers))


def as_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode as RGB, without its alpha."""
    with_alpha = image.convert("RGBA") if image.has_transparency_data else image
    return with_alpha.convert("RGB")


def to_field(image: Image.Image, model: Model) -> Tensor:
    """An image in the model's colour domain, [1, 3, height, width], float64.

    Raises:
        TypeError: if it is none of Pillow's.
    """
    if not isinstance(image, Image.Image):
        raise TypeError(f"image: found {type(image).__name__}, expected an image of Pillow's")
    rgb = np.asarray(as_rgb(image)).transpose(2, 0, 1).astype(np.int32)
    return torch.from_numpy(to_domain(rgb, model.color)).double()[None]


def to_images(field: Tensor, model: Model) -> list[Image.Image]:
    """Images of fields in the colour domain, rounded and clipped."""
    rgb = from_domain(field.round().to(torch.int32), model.color).clamp(0, 255).to(torch.uint8)
    return [Image.fromarray(each.permute(1, 2, 0).contiguous().numpy()) for each in rgb]
