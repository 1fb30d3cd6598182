"""Variances of x fitted to images by the code length."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from diffcodec.diffusion.bound import above, draw_dither, quantiser_of
from diffcodec.diffusion.color import channels
from diffcodec.diffusion.losses import MAX_SIGMA, second_sigmas
from diffcodec.diffusion.process import dithered_quantise, q_sample
from diffcodec.errors import DiffcodecError, ModelMismatchError
from diffcodec.limits import DEFAULT_LIMITS
from diffcodec.models.model import Model
from diffcodec.networks.calibrated import VarianceTable, classes_of, contrast

LEVELS = 20  # of a table above the first
CLASSES = 8  # of contrast
LEAST_VARIANCE = 1e-3  # squared grey levels, where a network makes no error at all
FEWEST = 64  # samples of a class; of fewer the mean is taken with those of all


def calibrate(
    model: Model,
    x: Float[Tensor, "crops 3 height width"],
    seed: int = 0,
    classes: int = CLASSES,
    progress: bool = False,
) -> VarianceTable:
    """The table of variances under which a model's steps cost the fewest bits on crops.

    A step is coded by ``N(q_mean + (1 - r)(xhat - x), Q + (1 - r)^2 v)`` where q has the variance
    Q, so that its expected code length is least where ``v`` is the mean of ``(x - xhat)^2``,
    whatever r is. The table has that for each noise level, channel and class of contrast.

    Args:
        model: that answers at any noise level.
        x: crops of images, integers of its colour domain as floats.
        seed: of the noise.
        classes: of contrast, 1 for a variance by noise level and channel alone.
        progress: whether to show a bar.

    Raises:
        ModelMismatchError: if the model is an integer one or in phases.
        DiffcodecError: if there are no crops, its numbers are out of range, or so many classes
            take too much memory.
    """
    check_variance(model)
    if not len(x):
        raise DiffcodecError("no images to calibrate by; give at least one")
    if x.numel() * classes > DEFAULT_LIMITS.memory_bytes:
        raise DiffcodecError(
            f"{classes} classes of {x.numel()} samples take about {x.numel() * classes >> 20} MiB "
            f"of memory, expected {DEFAULT_LIMITS.memory_bytes >> 20} at most; give fewer classes "
            "or crops"
        )
    quantiser = min((plan.quantiser for plan in model.plans.values()), default=2)
    steps, first = quantiser_of(model.domain, quantiser, x)
    generator = torch.Generator().manual_seed(seed)
    z_1, _ = dithered_quantise(x, draw_dither(x.shape, steps, generator), steps)
    sigmas = [float(first[0]), *np.geomspace(second_sigmas(quantiser)[0], MAX_SIGMA, LEVELS)]
    rows = []
    for level in tqdm(sigmas, "noise levels", disable=None if progress else True):
        sigma = level * channels(model.domain.noise_multipliers, x)
        noise = torch.randn(x.shape, generator=generator)
        z = z_1 if level == sigmas[0] else q_sample(z_1, above(sigma, first), noise)
        # One by one, as many as fit the memory of any image.
        answers = [model.posterior_x(part.double().numpy(), level)[0] for part in z.split(1)]
        mean = torch.from_numpy(np.concatenate(answers))
        if not mean.isfinite().all():
            raise DiffcodecError(f"model {model.name}: no numbers at the noise level {level:.4g}")
        rows.append(mean_squares(contrast(mean), (x - mean) ** 2, classes))
    edges, variances = (np.stack(fields) for fields in zip(*rows, strict=True))
    return VarianceTable(np.array(sigmas), edges, variances)


def check_variance(model: Model) -> None:
    """Refuse a model that has no variance at every noise level in whose place a table could be.

    Raises:
        ModelMismatchError: so.
    """
    if model.network.levels is None and not model.phased:
        return
    found = (
        "codes in phases, by distributions of its own"
        if model.phased
        else "answers at its own noise levels alone"
    )
    raise ModelMismatchError(
        f"model {model.name} {found}; calibrate a float model that is not in phases, or a pipeline "
        "of diffusers"
    )


def mean_squares(
    field: Float[Tensor, "crops 3 height width"],
    squares: Float[Tensor, "crops 3 height width"],
    classes: int,
) -> Sequence[np.ndarray]:
    """Edges between classes of a field alike in number, and the mean of squares in each.

    Args:
        field: by which to tell the classes.
        squares: to take the means of.
        classes: how many.

    Returns:
        [3, classes - 1] and [3, classes].
    """
    values = field.transpose(0, 1).flatten(1).numpy()
    shares = np.arange(1, classes) / classes
    edges = np.quantile(values, shares, axis=1).T.reshape(3, classes - 1)
    which = classes_of(field, edges).transpose(0, 1).flatten(1)
    flat = squares.transpose(0, 1).flatten(1).double()
    variances = np.empty((3, classes))
    for channel in range(3):
        for number in range(classes):
            chosen = flat[channel][which[channel] == number]
            mean = (chosen if len(chosen) >= FEWEST else flat[channel]).mean()
            variances[channel, number] = max(float(mean), LEAST_VARIANCE)
    return edges, variances
