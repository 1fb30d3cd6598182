"""A model at work: the posterior of x that the chain asks for."""

import json
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
from diffcodec.doctor import model_answers
from diffcodec.errors import ModelMismatchError, UnsupportedError
from diffcodec.integer import IntegerUNet
from diffcodec.memory import HEAP
from diffcodec.model_file import (
    ARITHMETICS,
    DEFAULT_MODEL,
    ModelInfo,
    make_metadata,
    model_path,
    read_model_info,
)
from diffcodec.network import DETAIL, Conv, NetworkConfig, UNet
from diffcodec.plan import Plan
from diffcodec.quantize import float_weights, quantize

INVALID = (  # what tensors and descriptions that are none of a model raise
    SafetensorError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)


class FloatUNet:
    """Inference of a :class:`diffcodec.network.UNet` in float32, for research.

    The order of its sums is the libraries' own: another machine or number of threads may give other
    bits. Images are evaluated one by one, so that at least their batch does not matter.
    """

    def __init__(self, config: NetworkConfig, weights: Mapping[str, Tensor]):
        """Load and check.

        Raises:
            ValueError: if these are not the network's weights in float32, all of them finite.
        """
        expected = _outline(config, len(weights)).state_dict()
        if weights.keys() != expected.keys():
            raise ValueError("its tensors are not those of its network")
        for name, weight in weights.items():
            shape = expected[name].shape
            if weight.shape != shape or weight.dtype != torch.float32:
                raise ValueError(
                    f"{name} is {weight.dtype} {list(weight.shape)}, expected float32 {list(shape)}"
                )
            if not weight.isfinite().all():
                raise ValueError("a weight is not finite")
        self.config = config
        with torch.random.fork_rng(devices=[]):
            self.unet = UNet(config)
        self.unet.load_state_dict(weights)

    def posterior_x(self, z: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        """Mean and variance of x given z_t: see :meth:`IntegerUNet.posterior_x`."""
        images = z.float().contiguous(memory_format=torch.channels_last).split(1)
        fields = [self.unet.posterior_x(image, torch.tensor([sigma])) for image in images]
        mean, v = (torch.cat(field).double() for field in zip(*fields, strict=True))
        return mean, v


class Model:
    """A trained epsilon-model with its plans, in its integer form or as a float network."""

    def __init__(self, info: ModelInfo, network: IntegerUNet | FloatUNet):
        self.info, self.network = info, network
        self.arithmetic = "float" if isinstance(network, FloatUNet) else "integer"
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


def _outline(config: NetworkConfig, tensors: int) -> UNet:
    """The network without its numbers.

    A description may claim any size: neither time nor memory for it before it is checked.

    Raises:
        ValueError: if it has more blocks than there are tensors, or no such network can be.
    """
    blocks = config.blocks + config.detail_blocks
    if sum(map(abs, blocks)) > tensors:
        raise ValueError(f"{blocks} blocks, but only {tensors} tensors")
    with torch.device("meta"):
        return UNet(config)


def _check_shapes(config: NetworkConfig, tensors: Mapping[str, Tensor]) -> None:
    """Refuse an integer network whose convolutions are not those that its description claims.

    Raises:
        ValueError: so.
        KeyError: if one is missing.
    """
    for name, module in _outline(config, len(tensors)).named_modules():
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
        return _build(info, tensors, arithmetic)
    except INVALID as e:
        raise ModelMismatchError(f"{path}: not a diffcodec model file ({e})") from e


def _build(info: ModelInfo, tensors: dict[str, Tensor], arithmetic: str = "integer") -> Model:
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

    Raises:
        ModelMismatchError: if the network's numbers leave no integer model.
    """
    shape = network.config.to_dict()
    info = ModelInfo("", b"", shape, dict(plans), dict(about), "integer", {})
    try:
        tensors = quantize(network, calibration, info.levels)
        answers = model_answers(_build(info, tensors))
    except INVALID as e:
        raise ModelMismatchError(f"this network cannot be quantised ({e})") from e
    return _model_file(tensors, make_metadata(shape, plans, about, "integer", answers))


def serialise_float_model(
    network: UNet, plans: Mapping[str, Plan], about: Mapping[str, Any]
) -> bytes:
    """A float model file: the network as it is. See :func:`serialise_model`."""
    metadata = make_metadata(network.config.to_dict(), plans, about, "float", {})
    return _model_file(network.state_dict(), metadata)


def _model_file(tensors: dict[str, Tensor], metadata: dict[str, str]) -> bytes:
    """Safetensors with the metadata sorted: the library's order differs from time to time."""
    data = save(tensors, metadata)
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header["__metadata__"] = dict(sorted(metadata.items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[8 + size :]


def quantize_model(model: Model, calibration: Tensor) -> bytes:
    """The file of the integer model that a float one becomes, of the same plans and description.

    Args:
        model: loaded as "float".
        calibration: see :func:`serialise_model`.

    Raises:
        ModelMismatchError: if it is an integer model, or its numbers leave no integer one.
    """
    info, network = model.info, model.network
    if not isinstance(network, FloatUNet):
        raise ModelMismatchError(f"model {info.name} is an integer model already; give a float one")
    return serialise_model(network.unet, calibration, info.plans, info.about)
