"""Models of networks of others: any epsilon-model as a codec, and the files of calibrated ones."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import NoneType
from typing import Any

import torch

from diffcodec.container.parts import LAYER_PLANS
from diffcodec.diffusion.parametrisation import SCHEDULES, NoisePath
from diffcodec.diffusion.plan import Plan, falling_lattices, geometric_plan, nearest
from diffcodec.diffusion.schedule import GREY_LEVELS_PER_UNIT
from diffcodec.errors import ModelMismatchError
from diffcodec.models.file import CALIBRATED, ModelInfo, network_path, plans_to_dict
from diffcodec.models.model import Model, load_model
from diffcodec.networks.calibrated import CalibratedNetwork, VarianceTable
from diffcodec.networks.converted import Conversion, ConvertedNetwork
from diffcodec.networks.devices import CPU
from diffcodec.values import integer

TIMESTEPS = {"fast": 10, "default": 20, "best": 40}  # of the plans
MOST_TIMESTEPS = 1 << 16
SIGMA_MAX = 600.0  # of the plans, where a schedule goes beyond


def from_epsilon(
    network: Callable[..., Any],
    schedule: str | NoisePath = "linear",
    prediction: str = "epsilon",
    *,
    timesteps: int = 1000,
    scale: float = GREY_LEVELS_PER_UNIT,
    variance: str | VarianceTable = "fixed-large",
    plans: Mapping[str, Plan] | None = None,
    name: str = "converted",
    identity: bytes | None = None,
    **more: Any,
) -> Model:
    """A codec of any diffusion model of RGB images, in float arithmetic.

    Args:
        network: called with noisy images, [batch, 3, height, width], and what it is told of their
            noise, [batch]; see :class:`~diffcodec.networks.converted.ConvertedNetwork`.
        schedule: "linear", "scaled-linear" or "cosine", DDPM's discrete timesteps from 0 on; "edm",
            sigma in units of the image; "flow", t from 0, the image, to 1; or a ``NoisePath``.
        prediction: "epsilon", "v", "x0" (EDM's D too) or "velocity" (noise less image).
        timesteps: of a discrete schedule.
        scale: grey levels of the network's unit, whose 0 is 127.5.
        variance: of x given z_t: "fixed-large" (DDPM's beta), "fixed-small" (beta-tilde),
            "learned-range" (Improved DDPM's channels 3 to 5), or a table by
            :func:`~diffcodec.models.calibration.calibrate`.
        plans: by name; by default of 10, 20 and 40 steps at about constant ratio.
        name: to call the model by.
        identity: of a network that is no ``torch.nn.Module``.
        more: ``size``, ``multiple``, ``whole_timesteps``, ``more`` of
            :class:`~diffcodec.networks.converted.Conversion`.

    Raises:
        ValueError: if there is no such schedule, prediction or variance.
    """
    _check_types(schedule=schedule, variance=variance, plans=plans, name=name, identity=identity)
    if isinstance(schedule, str):
        if schedule not in SCHEDULES:
            raise ValueError(f"schedule {schedule!r}: expected one of {', '.join(SCHEDULES)}")
        if not 2 <= integer("timesteps", timesteps) <= MOST_TIMESTEPS:
            raise ValueError(f"timesteps {timesteps}: expected 2 to {MOST_TIMESTEPS}")
        schedule = SCHEDULES[schedule](integer("timesteps", timesteps))
    fixed = variance if isinstance(variance, str) else "fixed-large"
    conversion = Conversion(schedule, prediction, fixed, scale, **more)
    converted = ConvertedNetwork(network, conversion, identity)
    chosen = plans_of(schedule, scale) if plans is None else plans
    if isinstance(variance, VarianceTable):
        return Model(CalibratedNetwork(converted, variance), chosen, name)
    return Model(converted, chosen, name)


def _check_types(**given: Any) -> None:
    kinds: dict[str, Any] = {
        "schedule": (str, NoisePath),
        "variance": (str, VarianceTable),
        "plans": (Mapping, NoneType),
        "name": (str,),
        "identity": (bytes, NoneType),
    }
    for key, value in given.items():
        if not isinstance(value, kinds[key]):
            expected = " or ".join(kind.__name__ for kind in kinds[key])
            raise TypeError(f"{key}: found {type(value).__name__}, expected {expected}")
    for key, plan in (given["plans"] or {}).items():
        if key not in LAYER_PLANS or not isinstance(plan, Plan):
            raise ValueError(f"plans: found {key!r}: {plan!r}, expected a Plan by its name")


def plans_of(path: NoisePath, scale: float = GREY_LEVELS_PER_UNIT) -> dict[str, Plan]:
    """Plans at about constant ratio, whose levels are a schedule's, where that is discrete.

    Below its first timestep, where x is known to a grey level or two, a network is told more noise
    than there is.
    """
    noise = [scale * u for u in path.noise]
    plans = {}
    for name, count in TIMESTEPS.items():
        first, *levels = geometric_plan(count, min([SIGMA_MAX, *noise[-1:]])).levels
        if noise:
            levels = [
                level if level < noise[0] else noise[nearest(noise, level)] for level in levels
            ]
        kept = (first, *sorted({level for level in levels if level > first}))
        plans[name] = Plan(kept, falling_lattices(len(kept)))
    return plans


# --- files of calibrated networks -----------------------------------------------------------------


def open_network(source: str | os.PathLike[str], device: torch.device = CPU) -> Model:
    """What can be calibrated: a folder of diffusers, or a model of ours, in float arithmetic.

    Args:
        source: the folder, or the model's file or name.
        device: where its network is to compute.

    Raises:
        ModelMismatchError: if it is neither.
    """
    path = network_path(source)
    if path.is_dir():
        from diffcodec.models.pipelines import from_diffusers

        model = from_diffusers(path)
        network = getattr(model.network, "network", None)
        if isinstance(network, torch.nn.Module):
            network.to(device)
        return model
    return load_model(path, "float", str(device))


def serialise_calibrated(
    source: str | os.PathLike[str],
    folder: Path,
    model: Model,
    table: VarianceTable,
    about: Mapping[str, Any],
) -> bytes:
    """The file of a calibrated model: which network, its table, plans. The network stays a file.

    Args:
        source: of the network, as :func:`open_network` takes it.
        folder: where the file is to lie; the network is found from there.
        model: of the network; the file has its plans.
        table: of its variances.
        about: description, of JSON's types.
    """
    described = {
        "format": CALIBRATED,
        "source": os.path.relpath(network_path(source), folder.resolve()),
        "identity": model.network.identity.hex(),
        "variances": table.to_dict(),
        "plans": plans_to_dict(model.plans),
        "about": dict(about),
    }
    return json.dumps(described, indent=1).encode()


def build_calibrated(info: ModelInfo, path: Path, device: torch.device = CPU) -> Model:
    """The model of such a file.

    Args:
        info: what it says.
        path: where it lies.
        device: where its network is to compute.

    Raises:
        ModelMismatchError: if its network is not there, or another.
        ValueError, LookupError, TypeError: if the file is malformed.
    """
    described = info.calibrated or {}
    source = path.parent / described["source"]
    try:
        is_there = source.exists()
    except OSError as e:  # a name that is too long, a folder that is closed to us
        found = f"{described['source']:.100}"
        raise ModelMismatchError(
            f"{path}: its network {found} cannot be found ({e.strerror}); calibrate it again"
        ) from e
    if not is_there:
        raise ModelMismatchError(f"{path}: its network {source} is not there; put it back")
    network = open_network(source, device).network
    if network.identity.hex() != described["identity"]:
        raise ModelMismatchError(
            f"{path}: the network {source} has changed since it was calibrated; calibrate it again"
        )
    table = VarianceTable.from_dict(described["variances"])
    return Model(CalibratedNetwork(network, table), info.plans, file=info)
