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
from diffcodec.models.layout import write_tensors
from diffcodec.models.model import INVALID, Model, build_model
from diffcodec.networks.experts import ExpertDenoisers
from diffcodec.networks.quantize import quantize


def serialise_model(
    network: ExpertDenoisers,
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
    shape = network.config
    info = ModelInfo("", b"", shape, dict(plans), dict(about), "integer", {})
    try:
        tensors = quantize(network, calibration, plans)
        answers = model_answers(build_model(info, tensors, "integer"))
    except INVALID as e:
        raise ModelMismatchError(f"this network cannot be quantised ({e})") from e
    metadata = make_metadata(shape, plans, about, "integer", answers)
    return _model_file(write_tensors(tensors, shape), metadata)


def serialise_float_model(
    network: ExpertDenoisers, plans: Mapping[str, Plan], about: Mapping[str, Any]
) -> bytes:
    """A float model file: the network as it is. See :func:`serialise_model`."""
    metadata = make_metadata(network.config, plans, about, "float", {})
    return _model_file(write_tensors(network.state_dict(), network.config), metadata)


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
    info = model.info
    if model.arithmetic == "integer":
        raise ModelMismatchError(f"model {info.name} is an integer model already; give a float one")
    return serialise_model(model.module, calibration, info.plans, info.about)
