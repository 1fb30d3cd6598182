"""Whether a model on another device gives the CPU's answers: files decode on either, or on none."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from diffcodec.diffusion.phases import ERROR_LIMIT, PLANES
from diffcodec.errors import UnsupportedError
from diffcodec.networks.devices import describe_device
from diffcodec.networks.gemm import products_work

if TYPE_CHECKING:
    from diffcodec.models.model import Model

SHAPE = (2, 3, 21, 18)  # of what is asked: no multiples of what networks take


def check_products(device: torch.device) -> None:
    """Refuse a device whose products of integers are not exact.

    Raises:
        UnsupportedError: they are not, or it has none.
    """
    if not products_work(device):
        raise UnsupportedError(
            f"{describe_device(device)}: it gives no exact products of 8-bit integers with torch "
            f"{torch.__version__}, so that other machines would not decode its files; give the "
            "device cpu"
        )


def check_agreement(model: "Model", reference: "Model") -> None:
    """Refuse a model on a device that answers otherwise than on the CPU, in any bit.

    Args:
        model: on the device.
        reference: the same on the CPU.

    Raises:
        UnsupportedError: it does.
    """
    for (name, found), (_, expected) in zip(_answers(model), _answers(reference), strict=True):
        if not np.array_equal(found, expected):
            raise UnsupportedError(
                f"{describe_device(model.device)}: model {model.name} gives another {name} there "
                "than on the CPU, so that other machines would not decode its files; give the "
                "device cpu"
            )


def _answers(model: "Model") -> Iterator[tuple[str, NDArray[np.floating]]]:
    """What it says at all its noise levels, and in all phases, each with its name."""
    rng = np.random.default_rng(0)
    x = rng.integers(-255, 256, SHAPE) // np.array([1, 4])[:, None, None, None]
    for sigma, which in model.asked():
        z = x + sigma * rng.standard_normal(SHAPE)
        labels = [-1, model.classes - 1] if model.classes else None
        mean, v = model.posterior_x(z, sigma, labels)
        yield f"mean at the noise level {sigma}", mean
        yield f"variance at the noise level {sigma}", v
        if which is None:
            continue
        for number, shared in enumerate(model.begin_phases(which, z, sigma)[2]):
            shape = (SHAPE[0], PLANES[which], *SHAPE[2:])
            told = rng.integers(-ERROR_LIMIT, ERROR_LIMIT + 1, shape).astype(np.float64)
            parameters = model.phase_parameters(which, sigma, number, shared, told)
            yield f"phase {number} at the noise level {sigma}", parameters
