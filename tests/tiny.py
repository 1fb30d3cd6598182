"""Model files small enough for tests: random weights code without loss too, only not well."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from diffcodec.diffusion.plan import Plan, geometric_plan, shipped_plan
from diffcodec.diffusion.quantiser import first_sigma
from diffcodec.models.export import serialise_float_model, serialise_model
from diffcodec.networks.config import NetworkConfig, PhasesConfig, UNetConfig
from diffcodec.networks.experts import ExpertDenoisers

TINY = UNetConfig(channels=(8, 8), blocks=(1, 1), patch=2, embedding=16)
TIMESTEPS = {"fast": 4, "default": 6, "best": 8}
PHASES = PhasesConfig(quantiser=8, channels=8, blocks=1, components=2)
# The networks of x stand behind an expert of patch 1, those of z_1 behind one of 2, those of the
# variables above behind one of 1 up to the noise level 50 and one of 2 beyond.
FULL = replace(TINY, patch=1)
PHASED = NetworkConfig(((3.0, FULL), (10.0, TINY), (50.0, FULL), (math.inf, TINY)), phases=PHASES)
PHASED_PLANS = {
    name: shipped_plan(first_sigma(PHASES.quantiser), *levels)
    for name, levels in (("fast", (12.0, 200.0)), ("default", (9.0, 40.0, 300.0)))
}
PHASED_MODEL_PLANS = PHASED_PLANS | {"lossy": shipped_plan(first_sigma(4), 4.0, 12.0, 60.0, 300.0)}


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
    described = {plan: geometric_plan(TIMESTEPS[plan]) for plan in plans}
    network = random_network(NetworkConfig((*low, (math.inf, main)), *ensemble), seed)
    return _written(folder / f"{name}.safetensors", network, described, arithmetic)


def phased_model(
    folder: Path, name: str = "phased", arithmetic: str = "integer", seed: int = 0
) -> Path:
    """A model file that codes x given z_1, and z_1 given z_2, in phases; its plans are few."""
    network = random_network(PHASED, seed)
    return _written(folder / f"{name}.safetensors", network, PHASED_MODEL_PLANS, arithmetic)


def random_network(config: NetworkConfig, seed: int = 0) -> ExpertDenoisers:
    """Of small weights, also where training starts from zero; larger where phases are told much."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = ExpertDenoisers(config)
        for name, parameter in network.named_parameters():
            is_known = name.startswith("phases") and ".out." not in name
            torch.nn.init.normal_(parameter, std=0.1 if is_known else 0.05)
        for expert in network.experts if config.classes else ():  # of images without a class none
            torch.nn.init.normal_(expert.embed_label.weight, std=5.0)
            torch.nn.init.zeros_(expert.embed_label.weight[0])
    return network


def _written(
    path: Path, network: ExpertDenoisers, described: Mapping[str, Plan], arithmetic: str
) -> Path:
    calibration = torch.arange(2 * 3 * 16 * 16).view(2, 3, 16, 16) % 251.0
    about = {"data": "none"}
    if arithmetic == "float":
        path.write_bytes(serialise_float_model(network, described, about))
    else:
        path.write_bytes(serialise_model(network, calibration, described, about))
    return path
