"""What a model makes of a set of images: the bound, its parts, and the bytes of whole files."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from diffcodec.codec.batches import BATCH_PIXELS
from diffcodec.codec.many import encode_many
from diffcodec.codec.planes import coded_channels
from diffcodec.container.parts import LOSSY_PLAN, tile_grid
from diffcodec.diffusion.bound import chain_bound_bits, quantiser_of
from diffcodec.diffusion.color import channels, to_domain
from diffcodec.diffusion.phases import (
    Phased,
    expected_of,
    first_bits,
    phased_bits,
    refined_everywhere,
    told_planes,
)
from diffcodec.diffusion.plan import Plan, geometric_plan
from diffcodec.errors import UnsupportedError
from diffcodec.images.samples import is_grey
from diffcodec.models.model import Model
from diffcodec.sampling.likelihood import ode_bits
from diffcodec.training.data import Source, read_rgb


@dataclass(frozen=True)
class Evaluation:
    """Figures of one image.

    Attributes:
        name: its file's, or its place among the images.
        width, height: in pixels.
        channels: how many are coded: 3, or 1 of a grey image.
        parts_bits: of the bound: remainder p(x | z_1), p(z_1 | z_2), the steps upward, the prior.
        file_bytes: of the whole file, if it was written.
        ode_bits: by the probability-flow ODE, if they were asked for.
    """

    name: str
    width: int
    height: int
    channels: int
    parts_bits: NDArray[np.float64]
    file_bytes: int | None = None
    ode_bits: float | None = None

    @property
    def dimensions(self) -> int:
        """Samples (subpixels)."""
        return self.width * self.height * self.channels

    @property
    def parts_bpd(self) -> NDArray[np.float64]:
        """The bound's parts in bits per dimension."""
        return self.parts_bits / self.dimensions

    @property
    def file_bpd(self) -> float | None:
        """The file in bits per dimension."""
        return None if self.file_bytes is None else 8 * self.file_bytes / self.dimensions

    @property
    def ode_bpd(self) -> float | None:
        """The ODE's bits per dimension."""
        return None if self.ode_bits is None else self.ode_bits / self.dimensions

    def to_dict(self) -> dict[str, Any]:
        """The fields and figures, of JSON's types."""
        return {
            "image": self.name,
            "width": self.width,
            "height": self.height,
            "channels": self.channels,
            "bound_bpd": float(self.parts_bpd.sum()),
            "parts_bpd": self.parts_bpd.tolist(),
            "file_bpd": self.file_bpd,
            "file_bytes": self.file_bytes,
            "ode_bpd": self.ode_bpd,
        }


def open_image(source: Source, color: str) -> Image.Image:
    """An image as it is evaluated: RGB of 8 bits, or grey where its three channels are equal.

    Raises:
        DiffcodecError: if it cannot be read.
    """
    rgb = read_rgb(source) if isinstance(source, Path) else np.asarray(source)
    if is_grey(np.moveaxis(rgb, 0, -1)) and coded_channels("L", color):
        return Image.fromarray(np.ascontiguousarray(rgb[0]))
    return Image.fromarray(np.ascontiguousarray(rgb.transpose(1, 2, 0)))


def bound_bits(
    model: Model,
    images: Sequence[Image.Image],
    plan: Plan,
    generator: torch.Generator,
    variance: str = "learned",
    labels: Sequence[int] | None = None,
) -> list[NDArray[np.float64]]:
    """The chain's variational bound on each image, tile by tile as it is coded, by its parts.

    Args:
        model: integer or float; float for levels that its own plans do not have.
        images: in the modes L and RGB.
        plan: of the chain.
        generator: of one sample of the chain.
        variance: one of ``variances.VARIANCES``.
        labels: class of each image.

    Returns:
        Bits of each image, [T + 1]: see :func:`diffcodec.diffusion.bound.chain_bound_bits`.
    """
    totals = [np.zeros(len(plan.levels) + 1) for _ in images]
    alike: dict[tuple[int, ...], list[tuple[int, NDArray[np.int16]]]] = {}
    for i, image in enumerate(images):
        rgb = np.asarray(image.convert("RGB")).transpose(2, 0, 1).astype(np.int16)
        coded = coded_channels(image.mode, model.color)
        for box in tile_grid(image.width, image.height):
            tile = rgb[:, box.top : box.top + box.height, box.left : box.left + box.width]
            alike.setdefault((coded, *tile.shape), []).append((i, to_domain(tile, model.color)))
    for (coded, _, height, width), tiles in alike.items():
        count = max(1, BATCH_PIXELS // (height * width))
        for batch in (tiles[i : i + count] for i in range(0, len(tiles), count)):
            numbers, arrays = zip(*batch, strict=True)
            x = torch.from_numpy(np.stack(arrays).astype(np.float64))
            told = None if labels is None else [labels[i] for i in numbers]
            posterior = torch_posterior(model, told)
            phased = ModelInPhases(model, plan) if model.phased else None
            same = (x, model.color, plan, generator, variance, coded)
            parts = chain_bound_bits(posterior, *same, phased=phased)
            for i, bpd in zip(numbers, parts.numpy(), strict=True):
                totals[i] += bpd * (x[0, 0].numel() * coded)
    return totals


def torch_posterior(model: Model, labels: Sequence[int] | None = None) -> Any:
    """A model as the bound asks it, of images of these classes."""

    def posterior(z: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        mean, v = model.posterior_x(z.double().numpy(), sigma[0].item(), labels)
        return torch.from_numpy(mean).to(z.dtype), torch.from_numpy(v).to(z.dtype)

    return posterior


class ModelInPhases:
    """The code by a model with phases: a ``PhasedModel``. The noise levels of a batch are alike."""

    def __init__(self, model: Model, plan: Plan):
        self.model, self.plan = model, plan

    def remainder_bits(self, x: Tensor, z_1: Tensor) -> Tensor:
        """Code length of x given z_1, in bits, of every sample."""
        told = self._told(0, x, z_1, self.plan.levels[0])[0]
        return phased_bits(x, z_1, told, self._steps(x))

    def first_bits(self, z_1: Tensor, z_2: Tensor, sigma: Tensor) -> Tensor:
        """Code length of z_1 given z_2 at noise levels sigma, in bits, of every sample."""
        return first_bits(z_1, self._told(1, z_1, z_2, sigma[0].item())[0], self._steps(z_1))

    def refined(
        self, z_s: Tensor, z_t: Tensor, below: Tensor, sigma: Tensor, lossy: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Mean and variance of x given z_t and, at each pixel, z_s of the phases before."""
        assert lossy is None  # as of a bound
        told, xhat, v = self._told(2, z_s, z_t, sigma[0].item(), below[0].item())
        return refined_everywhere(xhat, v, told.parameters)

    def _told(
        self, which: int, variable: Tensor, z: Tensor, sigma: float, below: float = 0.0
    ) -> tuple[Phased, Tensor, Tensor]:
        """What is predicted of a variable, where it is known, as the chain asks for it.

        And the mean and variance of x given z alone.
        """
        answer = self.model.begin_phases(which, z.numpy(), sigma)
        (xhat, v), shared = map(torch.from_numpy, answer[:2]), answer[2]
        multipliers = channels(self.model.domain.noise_multipliers, z)
        steps, sigma_1 = quantiser_of(self.model.domain, self.plan.quantiser, z)
        sigmas = below * multipliers if below else sigma_1, sigma * multipliers
        mean, unit = expected_of(which, xhat, v, z, sigmas, steps, torch.sqrt)
        known = variable.numpy(), mean.numpy(), unit.numpy()
        levels = (below, sigma) if below else None
        parameters = []
        for number, own in enumerate(shared):
            planes = told_planes(which, *known, number, levels)
            found = self.model.phase_parameters(which, sigma, number, own, planes)
            parameters.append(torch.from_numpy(found))
        return Phased(mean, unit, parameters), xhat, v

    def _steps(self, like: Tensor) -> Tensor:
        return quantiser_of(self.model.domain, self.plan.quantiser, like).steps


def find_plan(model: Model, plan: str, timesteps: int | None = None) -> Plan:
    """The model's plan of a name, or one of so many timesteps at constant ratio.

    Raises:
        UnsupportedError: if the model has no such plan, or it is for lossy files alone.
    """
    if timesteps is not None:
        quantiser = model.module.config.quantiser if model.phased else 2
        return geometric_plan(timesteps, quantiser=quantiser)
    if plan not in model.plans:
        raise UnsupportedError(f"no plan {plan!r} in this model; it has {', '.join(model.plans)}")
    if model.phased and plan == LOSSY_PLAN:
        others = ", ".join(name for name in model.plans if name != LOSSY_PLAN)
        raise UnsupportedError(
            f"the plan {plan!r} of a model in phases is of lossy files, which have no bound; give "
            f"one of {others}"
        )
    return model.plans[plan]


def evaluate(
    model: Model,
    sources: Sequence[Source],
    plan: Plan,
    *,
    files_plan: str | None = None,
    variance: str = "learned",
    labels: Sequence[int] | None = None,
    ode_steps: int | None = None,
    progress: bool = False,
) -> Iterator[Evaluation]:
    """Evaluate a model on images, one after the other.

    Args:
        model: integer or float; see :func:`bound_bits`.
        sources: files or arrays, of any size; see :func:`open_image`.
        plan: of the bound.
        files_plan: of the files, lossless and whole; none are written if it is not given.
        variance: of the bound, one of ``variances.VARIANCES``.
        labels: class of each image.
        ode_steps: of the probability-flow ODE, for its likelihood of colour images; see
            :func:`diffcodec.sampling.likelihood.ode_bits`. None for none.
        progress: whether to show a bar.

    Raises:
        DiffcodecError: if an image cannot be read.
    """
    with tqdm(total=len(sources), unit="image", disable=None if progress else True) as bar:
        for first, images in groups(open_image(source, model.color) for source in sources):
            chosen = None if labels is None else labels[first : first + len(images)]
            generator = torch.Generator().manual_seed(first)
            bounds = bound_bits(model, images, plan, generator, variance, chosen)
            sizes: list[int | None] = [None] * len(images)
            if files_plan is not None:
                files = encode_many(images, model, files_plan, labels=chosen)
                sizes = [len(data) for data in files]
            for i, (image, bits, size) in enumerate(zip(images, bounds, sizes, strict=True), first):
                source = sources[i]
                name = str(source) if isinstance(source, Path) else f"{i:05}"
                channels = coded_channels(image.mode, model.color)
                is_asked = ode_steps is not None and image.mode == "RGB"
                ode = ode_bits(model, image, ode_steps or 0, seed=i) if is_asked else None
                yield Evaluation(name, image.width, image.height, channels, bits, size, ode)
                bar.update()


def groups(images: Iterable[Image.Image]) -> Iterator[tuple[int, list[Image.Image]]]:
    """Images that go through the network together, with the number of the first of them."""
    group: list[Image.Image] = []
    first = pixels = 0
    for number, image in enumerate(images):
        if group and pixels + image.width * image.height > BATCH_PIXELS:
            yield first, group
            group, first, pixels = [], number, 0
        group.append(image)
        pixels += image.width * image.height
    if group:
        yield first, group
