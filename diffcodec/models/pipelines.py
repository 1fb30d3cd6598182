"""Pipelines of the library diffusers as models, and models as such pipelines; the extra diffusers.

Only its classes named here are loaded, from safetensors: nothing that lies in a folder is executed.
"""

import json
import math
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open

from diffcodec.diffusion.losses import MAX_SIGMA
from diffcodec.diffusion.parametrisation import NoisePath, path_of_alphas
from diffcodec.diffusion.quantiser import first_sigma
from diffcodec.diffusion.schedule import GREY_LEVELS_PER_UNIT
from diffcodec.errors import DiffcodecError, ModelMismatchError, UnsupportedError
from diffcodec.models.converted import MOST_TIMESTEPS, from_epsilon
from diffcodec.models.model import Model, check_answers
from diffcodec.networks.converted import MOST_SIDE
from diffcodec.networks.unet import NoNumbers

NETWORKS = ("UNet2DModel", "DiTTransformer2DModel")
DISCRETE = ("DDPMScheduler", "DDIMScheduler", "EulerDiscreteScheduler")
STRAIGHT = ("FlowMatchEulerDiscreteScheduler",)
PREDICTIONS = {"epsilon": "epsilon", "sample": "x0", "v_prediction": "v"}  # by their names
VARIANCES = {
    "fixed_small": "fixed-small",
    "fixed_small_log": "fixed-small",
    "fixed_large": "fixed-large",
    "fixed_large_log": "fixed-large",
    "learned_range": "learned-range",
}
EXPORTED_TIMESTEPS = 1000
LEAST_SIGNAL = 1e-7  # abar of a timestep; one that is noise alone has less


def diffusers_library() -> Any:
    """The library.

    Raises:
        DiffcodecError: if it is not installed.
    """
    try:
        import diffusers
    except ImportError as e:
        raise DiffcodecError(
            "pipelines of diffusers need that library; pip install 'diffcodec[diffusers]'"
        ) from e
    return diffusers


def from_diffusers(pipeline: str | os.PathLike[str] | Any, **options: Any) -> Model:
    """A codec of a pipeline of diffusers that makes RGB images, in float arithmetic.

    Networks: ``UNet2DModel`` and ``DiTTransformer2DModel`` of 3 channels (a network of classes is
    asked for none of them). Schedulers: DDPM, DDIM, EulerDiscrete, FlowMatchEulerDiscrete. One with
    attention is given images of the size that it was trained on, or squares of that size of larger
    ones.

    Args:
        pipeline: a folder that ``save_pretrained`` has written, or the pipeline itself.
        options: of :func:`from_epsilon` that are to be others: ``variance``, ``plans``, ``size``.

    Raises:
        DiffcodecError: if diffusers is missing, or the folder is no such pipeline.
        UnsupportedError: for another network or scheduler.
    """
    library = diffusers_library()
    where = name = "pipeline"
    if isinstance(pipeline, (str, os.PathLike)):
        network, scheduler = _load(library, Path(pipeline))
        where, name = str(pipeline), Path(pipeline).resolve().name
    else:
        network = getattr(pipeline, "unet", getattr(pipeline, "transformer", None))
        scheduler = getattr(pipeline, "scheduler", None)
    _check(type(network).__name__, NETWORKS)
    with _reading(where, "not a pipeline that makes a codec"):
        found = _read_scheduler(scheduler) | _read_network(network, "size" in options)
        if network.config.out_channels == 3 and found["variance"] == "learned-range":
            found["variance"] = "fixed-large"
        own = {key: value for key, value in found.items() if key not in options}
        from_epsilon(network, **own)
    model = from_epsilon(network, **{"name": name, **own, **options})
    with _reading(where, "its network does not answer"):
        check_answers(model, model.info.levels[-1:])
    return model


def _check(name: Any, known: Collection[str]) -> None:
    if name not in tuple(known):
        raise UnsupportedError(f"{name!s:.100}: expected one of {', '.join(known)}")


@contextmanager
def _reading(where: str, fault: str) -> Iterator[None]:
    """What fails now is the fault of a pipeline, whose descriptions may hold anything.

    Raises:
        ModelMismatchError: it does.
    """
    try:
        yield
    except (DiffcodecError, MemoryError):
        raise
    except Exception as e:  # almost any, by the library on what it does not expect
        raise ModelMismatchError(f"{where}: {fault} ({str(e) or type(e).__name__:.300})") from e


def _load(library: Any, folder: Path) -> tuple[Any, Any]:
    """Network and scheduler of a folder."""
    with _reading(str(folder), "not a folder of a diffusers pipeline"):
        index = _described(folder / "model_index.json")
        part = "unet" if "unet" in index else "transformer"
        kind, scheduler = index[part][1], index["scheduler"][1]
    _check(kind, NETWORKS)
    _check(scheduler, (*DISCRETE, *STRAIGHT))
    with _reading(str(folder), "diffusers cannot load it"):
        _check_sizes(getattr(library, kind), folder / part)
        _check_timesteps(_described(folder / "scheduler" / "scheduler_config.json"))
        network = getattr(library, kind).from_pretrained(
            folder,
            subfolder=part,
            use_safetensors=True,
            local_files_only=True,
            low_cpu_mem_usage=False,  # or it asks for accelerate on stderr
        )
        chain = getattr(library, scheduler).from_pretrained(folder, subfolder="scheduler")
    return network, chain


def _described(path: Path) -> dict[str, Any]:
    described = json.loads(path.read_text())
    if not isinstance(described, dict):
        raise ValueError(f"{path.name} is no object of JSON")
    return described


def _check_sizes(kind: Any, folder: Path) -> None:
    """Refuse the description of a network that has more numbers than lie beside it.

    It may claim any size: neither time nor memory for it before it is checked.

    Raises:
        ValueError: so; almost any, by the library, if no such network can be.
    """
    described, shapes = _described(folder / "config.json"), []
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            shapes += [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118
    if not shapes:
        raise ValueError(f"no tensors in {folder.name}, expected a file of safetensors")
    for name in ("layers_per_block", "num_layers"):
        if isinstance(layers := described.get(name), int) and layers > len(shapes):
            raise ValueError(f"{name} {layers}, but only {len(shapes)} tensors")
    if isinstance(side := described.get("sample_size"), int) and side > MOST_SIDE:
        raise ValueError(f"sample_size {side}: expected {MOST_SIDE} at most")
    with torch.device("meta"), NoNumbers():
        outline = kind.from_config(described)
    found = sum(map(math.prod, shapes))
    kinds = outline.parameters(), outline.buffers()  # the latter may be computed, not stored
    claimed = max(sum(tensor.numel() for tensor in kind) for kind in kinds)
    if claimed > found:
        raise ValueError(f"a network of {claimed} numbers is described, expected {found} at most")


def _check_timesteps(described: Mapping[str, Any]) -> None:
    """Refuse more timesteps than memory should be taken for."""
    count = described.get("num_train_timesteps")
    if isinstance(count, int) and not 2 <= count <= MOST_TIMESTEPS:
        raise ValueError(f"num_train_timesteps {count}: expected 2 to {MOST_TIMESTEPS}")


def _read_scheduler(scheduler: Any) -> dict[str, Any]:
    """Schedule, prediction and variance as :func:`from_epsilon` takes them."""
    name, config = type(scheduler).__name__, scheduler.config
    _check(name, (*DISCRETE, *STRAIGHT))
    if name in STRAIGHT:
        path = NoisePath("straight", unit=float(config.num_train_timesteps))
        return {"schedule": path, "prediction": "velocity", "variance": "fixed-large"}
    _check(config.prediction_type, PREDICTIONS)
    alphas = np.asarray(scheduler.alphas_cumprod, dtype=np.float64)
    if not np.all((alphas >= 0) & (alphas < 1)) or not (alphas > LEAST_SIGNAL).any():
        raise ValueError("the signal of its timesteps is not between 0 and 1")
    return {
        "schedule": path_of_alphas(alphas[alphas > LEAST_SIGNAL]),
        "prediction": PREDICTIONS[config.prediction_type],
        "variance": VARIANCES.get(str(config.get("variance_type")), "fixed-large"),
    }


def _read_network(network: Any, has_size: bool) -> dict[str, Any]:
    """Which images it takes, unless their size is given."""
    config = network.config
    if config.in_channels != 3 or config.out_channels not in (3, 6):
        raise UnsupportedError(
            f"a network of {config.in_channels} channels in and {config.out_channels} out: "
            "expected 3, and 3 or 6; those of a latent are no images"
        )
    if type(network).__name__ == "DiTTransformer2DModel":
        return {"size": config.sample_size, "more": {"class_labels": config.num_embeds_ada_norm}}
    blocks = (*config.down_block_types, *config.up_block_types)
    attends = config.add_attention or any("Attn" in block for block in blocks)
    size = config.sample_size if attends else 0
    if attends and not (has_size or isinstance(size, int)):
        raise UnsupportedError(
            "a network with attention that does not say its sample_size; give size"
        )
    return {"size": size, "multiple": 2 ** (len(config.block_out_channels) - 1)}


# --- to the other side ----------------------------------------------------------------------------


def exported_noise(lowest: float) -> NoisePath:
    """The timesteps of an exported model, at constant ratio over the levels that it knows."""
    levels = np.geomspace(lowest, MAX_SIGMA, EXPORTED_TIMESTEPS) / GREY_LEVELS_PER_UNIT
    return NoisePath("variance-preserving", tuple(levels.tolist()))


def to_diffusers(model: Model) -> Any:
    """A pipeline of diffusers that draws images from a model of ours.

    Its network is :class:`~diffcodec.models.exported.ExportedUNet`, an epsilon-model of whitened
    images, and its scheduler DDPM's; any other of diffusers that knows betas can take its place.
    ``save_pretrained`` writes it, ``ExportedPipeline.from_pretrained`` reads it again.

    Args:
        model: loaded as "float".

    Raises:
        ModelMismatchError: if it is an integer model, or a network of others.
        DiffcodecError: if diffusers is missing.
    """
    if not isinstance(model, Model):
        raise TypeError(f"model: found {type(model).__name__}, expected a loaded model")
    library = diffusers_library()
    from diffcodec.models.exported import ExportedPipeline, ExportedUNet

    config = model.module.config
    path = exported_noise(first_sigma(config.quantiser))
    network = ExportedUNet(json.dumps(config.to_dict()), path.noise)
    network.module.load_state_dict(model.module.state_dict())
    scheduler = library.DDPMScheduler(
        num_train_timesteps=len(path.noise), trained_betas=_betas(path), clip_sample=False
    )
    return ExportedPipeline(network, scheduler)


def _betas(path: NoisePath) -> list[float]:
    """DDPM's betas, of a path's noise."""
    abar = 1 / (1 + np.square(path.noise))
    before = np.concatenate([[1.0], abar[:-1]])
    betas: list[float] = (1 - abar / before).tolist()
    return betas
