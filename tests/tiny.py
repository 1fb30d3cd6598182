"""Model files small enough for tests: random weights code without loss too, only not well."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from diffcodec.diffusion.plan import geometric_plan
from diffcodec.models.export import serialise_float_model, serialise_model
from diffcodec.networks.config import NetworkConfig, UNetConfig
from diffcodec.networks.experts import ExpertDenoisers

TINY = UNetConfig(channels=(8, 8), blocks=(1, 1), patch=2, embedding=16)
TIMESTEPS = {"fast": 4, "default": 6, "best": 8}


def tiny_model(
    folder: Path,
    seed: int = 0,
    name: str = "tiny",
    plans: Iterable[str] = tuple(TIMESTEPS),
    arithmetic: str = "integer",
    below: Mapping[float, dict[str, Any]] | None = None,
    ensemble: tuple[str, float] = ("none", 3.0),
    **shape: Any,
) -> Path:
    """A model file of two resolutions and 8 channels, with plans of ``TIMESTEPS``.

    ``below`` are the experts of lower noise levels, each up to one, and what differs in shape.
    """
    main = replace(TINY, **shape)
    low = [(up_to, replace(main, **changes)) for up_to, changes in (below or {}).items()]
    config = NetworkConfig((*low, (math.inf, main)), *ensemble)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = ExpertDenoisers(config)
        for parameter in network.parameters():  # also those that start at zero
            torch.nn.init.normal_(parameter, std=0.05)
    described = {plan: geometric_plan(TIMESTEPS[plan]) for plan in plans}
    path = folder / f"{name}.safetensors"
    calibration = torch.arange(2 * 3 * 16 * 16).view(2, 3, 16, 16) % 251.0
    about = {"data": "none"}
    if arithmetic == "float":
        path.write_bytes(serialise_float_model(network, described, about))
    else:
        path.write_bytes(serialise_model(network, calibration, described, about))
    return path
