"""How a model file lays out its network: two formats, one network.

diffcodec-model-0 holds one or two U-Nets of the same channels: the shape as plain arguments, the
tensors by their own names, those of the second, for noise levels up to ``detail_up_to``, behind
``detail.``. diffcodec-model-1 holds any list of experts as the package has them. A network that the
first can express is written in it. No torch here.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

from diffcodec.networks.config import PHASES_PREFIX, PREFIX, NetworkConfig, unet_config

FORMATS = ("diffcodec-model-0", "diffcodec-model-1")
DETAIL = "detail."
T = TypeVar("T")


def is_plain(config: NetworkConfig) -> bool:
    """Whether the first format can express a network."""
    alike = config.experts[0][1].is_like(config.main)
    return len(config.experts) <= 2 and alike and config.phases is None


def write_network(config: NetworkConfig) -> dict[str, Any]:
    """The description of a network in a model file, of JSON's types."""
    if not is_plain(config):
        return config.to_dict()
    low, detail = config.experts[0]
    has_detail = low < math.inf
    blocks = detail.blocks if has_detail and detail.blocks != config.main.blocks else ()
    return config.main.to_dict() | {
        "second_view": config.self_ensemble,
        "second_view_up_to": config.self_ensemble_up_to,
        "detail_up_to": low if has_detail else 0.0,
        "detail_blocks": blocks,
    }


def read_network(description: Mapping[str, Any]) -> NetworkConfig:
    """Inverse of :func:`write_network`, after a way through JSON.

    Raises:
        ValueError, TypeError, KeyError: if there is no such network.
    """
    if "experts" in description:
        return NetworkConfig.from_dict(description)
    plain = dict(description)
    ensemble = {
        new: plain.pop(old)
        for old, new in (
            ("second_view", "self_ensemble"),
            ("second_view_up_to", "self_ensemble_up_to"),
        )
        if old in plain
    }
    low, blocks = plain.pop("detail_up_to", 0.0), tuple(plain.pop("detail_blocks", ()))
    main = unet_config(plain)
    detail = replace(main, blocks=blocks or main.blocks)
    experts = ((low, detail), (math.inf, main)) if low else ((math.inf, main),)
    return NetworkConfig(experts, **ensemble)


def write_tensors(tensors: Mapping[str, T], config: NetworkConfig) -> dict[str, T]:
    """The tensors by their names in a model file."""
    if not is_plain(config):
        return dict(tensors)
    last = f"{PREFIX}{len(config.experts) - 1}."
    return {
        name.removeprefix(last)
        if name.startswith(last)
        else name.replace(f"{PREFIX}0.", DETAIL, 1): tensor
        for name, tensor in tensors.items()
    }


def read_tensors(tensors: Mapping[str, T], config: NetworkConfig) -> dict[str, T]:
    """Inverse of :func:`write_tensors`."""
    last = len(config.experts) - 1

    def own(name: str) -> str:
        if name.startswith((PREFIX, PHASES_PREFIX)):
            return name
        if name.startswith(DETAIL) and last:
            return name.replace(DETAIL, f"{PREFIX}0.", 1)
        return f"{PREFIX}{last}.{name}"

    return {own(name): tensor for name, tensor in tensors.items()}
