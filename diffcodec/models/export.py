"""Model files from trained networks."""

import json
from collections.abc import Mapping
from typing import Any

from safetensors.torch import save
from torch import Tensor

from diffcodec.diffusion.plan import Plan
from diffcodec.errors import ModelMismatchError
from diffcodec.models.file import ModelInfo, make_metadata
from diffcodec.models.known_answers import model_answers
from diffcodec.models.model import INVALID, Model, build_model
from diffcodec.networks.float_unet import FloatUNet
from diffcodec.networks.quantize import quantize
from diffcodec.networks.unet import UNet


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
        plans: by name.
        about: description, of JSON's types.

    Raises:
        ModelMismatchError: if the network's numbers leave no integer model.
    """
    shape = network.config.to_dict()
    info = ModelInfo("", b"", shape, dict(plans), dict(about), "integer", {})
    try:
        tensors = quantize(network, calibration, info.levels)
        answers = model_answers(build_model(info, tensors))
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
