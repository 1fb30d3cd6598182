"""A model at work: the posterior of x that the chain asks for."""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from diffcodec.color import DOMAINS
from diffcodec.errors import ModelMismatchError
from diffcodec.integer import IntegerUNet
from diffcodec.model_file import (
    DEFAULT_MODEL,
    ModelInfo,
    make_metadata,
    model_path,
    read_model_info,
)
from diffcodec.network import NetworkConfig, UNet
from diffcodec.plan import Plan
from diffcodec.quantize import float_weights, quantize


class Model:
    """A trained epsilon-model in its integer form, with its plans."""

    def __init__(self, info: ModelInfo, network: IntegerUNet):
        self.info, self.network = info, network
        self.color = network.config.color
        self.domain = DOMAINS[self.color]

    @property
    def plans(self) -> dict[str, Plan]:
        """By effort: "fast", "default", "best"."""
        return self.info.plans

    def posterior_x(
        self, z: NDArray[np.float64], sigma: float
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean and variance of x given z_t, both [batch, 3, height, width].

        Any height and width: borders are padded by repetition to what the network needs.

        Args:
            z: [batch, 3, height, width], grey levels of the colour domain.
            sigma: one of the plans' noise levels.

        Guarantee: the same numbers on every machine, and for an image alone or in a batch.
        """
        height, width = z.shape[2:]
        m = self.network.config.multiple
        padded = F.pad(torch.from_numpy(z), (0, -width % m, 0, -height % m), mode="replicate")
        with torch.inference_mode():
            mean, v = self.network.posterior_x(padded, sigma)
        return mean[:, :, :height, :width].numpy(), v[:, :, :height, :width].numpy()


@lru_cache(maxsize=4)
def _load(path: Path) -> Model:
    info, data = read_model_info(path)
    try:
        tensors = load(data)
        if not all(torch.isfinite(t).all() for t in tensors.values()):
            raise ValueError("a weight is not finite")
        with np.errstate(all="raise"):
            network = IntegerUNet(NetworkConfig.from_dict(info.network), tensors)
        missing = {s for plan in info.plans.values() for s in plan.levels} - set(network.levels)
        if missing:
            raise ValueError(f"no tables for the noise levels {sorted(missing)}")
        model = Model(info, network)
        # Shapes that do not fit each other show in use: better now than in the midst of a file.
        model.posterior_x(np.zeros((1, 3, 1, 1)), network.levels[-1])
    except (
        SafetensorError,
        ArithmeticError,
        AttributeError,
        LookupError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as e:
        raise ModelMismatchError(f"{path}: not a diffcodec model file ({e})") from e
    return model


def load_model(name_or_path: str | Path = DEFAULT_MODEL) -> Model:
    """A shipped model by name, or any model file by path.

    Raises:
        ModelMismatchError: if there is no such model, or the file is not a diffcodec model.
    """
    return _load(model_path(name_or_path))


def load_weights(name_or_path: str | Path) -> tuple[NetworkConfig, dict[str, Tensor]]:
    """The shape and the weights of a model as a float network's state, to train on from.

    Raises:
        ModelMismatchError: as :func:`load_model`.
    """
    path = model_path(name_or_path)
    config = _load(path).network.config
    return config, float_weights(load(path.read_bytes()))


def serialise_model(
    network: UNet,
    calibration: Tensor,
    plans: Mapping[str, Plan],
    about: Mapping[str, Any],
) -> bytes:
    """A model file: the network quantised at the plans' noise levels.

    Args:
        network: trained.
        calibration: images that show the range of its activations: integers of its colour domain
            as floats, [batch, 3, height, width], sides multiples of ``config.multiple``.
        plans: by effort.
        about: description, of JSON's types.
    """
    levels = sorted({s for plan in plans.values() for s in plan.levels})
    return save(
        quantize(network, calibration, levels),
        make_metadata(network.config.to_dict(), plans, about),
    )
