"""A model at work: the posterior of x that the chain asks for."""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from diffcodec.diffusion.color import DOMAINS
from diffcodec.diffusion.plan import Plan
from diffcodec.errors import ModelMismatchError, UnsupportedError
from diffcodec.models.file import ARITHMETICS, DEFAULT_MODEL, ModelInfo, model_path, read_model_info
from diffcodec.networks.float_unet import FloatUNet
from diffcodec.networks.integer import IntegerUNet
from diffcodec.networks.quantize import float_weights
from diffcodec.networks.unet import DETAIL, Conv, NetworkConfig, outline
from diffcodec.system.memory import HEAP

INVALID = (  # what tensors and descriptions that are none of a model raise
    SafetensorError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)


class Model:
    """A trained epsilon-model with its plans, in its integer form or as a float network."""

    def __init__(self, info: ModelInfo, network: IntegerUNet | FloatUNet):
        self.info, self.network = info, network
        self.arithmetic = "float" if isinstance(network, FloatUNet) else "integer"
        self.color = network.config.color
        self.domain = DOMAINS[self.color]

    @property
    def plans(self) -> dict[str, Plan]:
        """By name: "fast", "default", "best"."""
        return self.info.plans

    def posterior_x(
        self, z: NDArray[np.float64], sigma: float
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean and variance of x given z_t, both [batch, 3, height, width].

        Any height and width: borders are padded by repetition to what the network needs.

        Args:
            z: [batch, 3, height, width], grey levels of the colour domain.
            sigma: one of the plans' noise levels.

        Guarantee: the same numbers for an image alone or in a batch; of an integer model also on
        every machine.
        """
        height, width = z.shape[2:]
        m = self.network.config.multiple
        padded = torch.from_numpy(z)
        if width % m or height % m:
            padded = F.pad(padded, (0, -width % m, 0, -height % m), mode="replicate")
        try:
            with torch.inference_mode():
                mean, v = self.network.posterior_x(padded, sigma)
        except OverflowError:  # of a broken model; is_posterior tells the caller
            mean = v = torch.full_like(padded, torch.nan)
        HEAP.release_unused()
        return mean[:, :, :height, :width].numpy(), v[:, :, :height, :width].numpy()


def _check_shapes(config: NetworkConfig, tensors: Mapping[str, Tensor]) -> None:
    """Refuse an integer network whose convolutions are not those that its description claims.

    Raises:
        ValueError: so.
        KeyError: if one is missing.
    """
    for name, module in outline(config, len(tensors)).named_modules():
        if not isinstance(module, Conv):
            continue
        out, inputs, *kernel = module.shape
        parts = {name: inputs}
        if name.removeprefix(DETAIL) == "conv_in":
            parts = {f"{name}.z": inputs // 3, f"{name}.phase": inputs - inputs // 3}
        for part, n_in in parts.items():
            found, expected = list(tensors[f"{part}.weight"].shape), [out, n_in, *kernel]
            if found != expected:
                raise ValueError(f"{part}.weight is {found}, expected {expected}")


def is_posterior(mean: NDArray[np.float64], variance: NDArray[np.float64]) -> bool:
    """Whether these can be a mean and a variance: not so if a network's numbers overflow."""
    return bool(
        np.isfinite(mean).all() and np.isfinite(variance).all() and np.greater(variance, 0).all()
    )


@lru_cache(maxsize=4)
def _load(path: Path, arithmetic: str) -> Model:
    info, data = read_model_info(path)
    if info.arithmetic == "float" and arithmetic == "integer":
        raise ModelMismatchError(
            f"model {info.name} {info.id.hex()} is a float model, expected an integer one; give "
            "--arithmetic float, or make an integer model of it by diffcodec quantize"
        )
    try:
        tensors = load(data)
        if arithmetic == "float" and info.arithmetic == "integer":
            tensors = float_weights(tensors)
        return build_model(info, tensors, arithmetic)
    except INVALID as e:
        raise ModelMismatchError(f"{path}: not a diffcodec model file ({e})") from e


def build_model(info: ModelInfo, tensors: dict[str, Tensor], arithmetic: str = "integer") -> Model:
    """The model of these tensors; what they lack raises one of ``INVALID``."""
    config = NetworkConfig.from_dict(info.network)
    if not all(torch.isfinite(t).all() for t in tensors.values()):
        raise ValueError("a weight is not finite")
    levels = info.levels
    network: IntegerUNet | FloatUNet
    if arithmetic == "float":
        network = FloatUNet(config, tensors)
    else:
        _check_shapes(config, tensors)
        with np.errstate(all="raise"):
            network = IntegerUNet(config, tensors)
        missing = set(levels) - set(network.levels)
        if missing:
            raise ValueError(f"no tables for the noise levels {sorted(missing)}")
    model = Model(info, network)
    # Shapes that do not fit each other show in use: better now than in the midst of a file.
    for sigma in (levels[0], levels[-1]):
        if not is_posterior(*model.posterior_x(np.zeros((1, 3, 1, 1)), sigma)):
            raise ValueError(f"a mean or variance is out of range at the noise level {sigma}")
    return model


def load_model(name_or_path: str | Path = DEFAULT_MODEL, arithmetic: str = "integer") -> Model:
    """A shipped model by name, or any model file by path.

    Args:
        name_or_path: of the model.
        arithmetic: "integer", or "float" for research: files may not decode on another machine.

    Raises:
        ModelMismatchError: if there is no such model, the file is not a diffcodec model, or a float
            model is to be an integer one.
    """
    if arithmetic not in ARITHMETICS:
        raise UnsupportedError(f"arithmetic {arithmetic!r}: expected one of {ARITHMETICS}")
    return _load(model_path(name_or_path), arithmetic)


def load_weights(name_or_path: str | Path) -> tuple[NetworkConfig, dict[str, Tensor]]:
    """The shape and the weights of a model as a float network's state, to train on from.

    Raises:
        ModelMismatchError: as :func:`load_model`.
    """
    network = load_model(name_or_path, "float").network
    assert isinstance(network, FloatUNet)
    return network.config, {name: t.clone() for name, t in network.unet.state_dict().items()}
