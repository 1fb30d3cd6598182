"""Pipelines of the library diffusers as models, and models as such pipelines; the extra diffusers.

Only its classes named here are loaded, from safetensors: nothing that lies in a folder is executed.
"""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from diffcodec.diffusion.losses import MAX_SIGMA
from diffcodec.diffusion.parametrisation import NoisePath, path_of_alphas
from diffcodec.diffusion.quantiser import first_sigma
from diffcodec.diffusion.schedule import GREY_LEVELS_PER_UNIT
from diffcodec.errors import DiffcodecError, ModelMismatchError, UnsupportedError
from diffcodec.models.converted import from_epsilon
from diffcodec.models.model import Model

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
    name = "pipeline"
    if isinstance(pipeline, (str, os.PathLike)):
        network, scheduler = _load(library, Path(pipeline))
        name = Path(pipeline).resolve().name
    else:
        network = getattr(pipeline, "unet", getattr(pipeline, "transformer", None))
        scheduler = getattr(pipeline, "scheduler", None)
    _check(type(network).__name__, NETWORKS)
    given = _read_scheduler(scheduler) | _read_network(network)
    if network.config.out_channels == 3 and given["variance"] == "learned-range":
        given["variance"] = "fixed-large"
    return from_epsilon(network, **{"name": name, **given, **options})


def _check(name: str, known: tuple[str, ...]) -> None:
    if name not in known:
        raise UnsupportedError(f"{name}: expected one of {', '.join(known)}")


def _load(library: Any, folder: Path) -> tuple[Any, Any]:
    """Network and scheduler of a folder."""
    try:
        index = json.loads((folder / "model_index.json").read_text())
        part = "unet" if "unet" in index else "transformer"
        kind, scheduler = index[part][1], index["scheduler"][1]
    except (OSError, ValueError, LookupError, TypeError) as e:
        raise ModelMismatchError(f"{folder}: not a folder of a diffusers pipeline ({e})") from e
    _check(kind, NETWORKS)
    _check(scheduler, (*DISCRETE, *STRAIGHT))
    try:
        network = getattr(library, kind).from_pretrained(
            folder,
            subfolder=part,
            use_safetensors=True,
            local_files_only=True,
            low_cpu_mem_usage=False,  # or it asks for accelerate on stderr
        )
        chain = getattr(library, scheduler).from_pretrained(folder, subfolder="scheduler")
    except (OSError, ValueError, RuntimeError) as e:
        raise ModelMismatchError(f"{folder}: diffusers cannot load it ({e})") from e
    return network, chain


def _read_scheduler(scheduler: Any) -> dict[str, Any]:
    """Schedule, prediction and variance as :func:`from_epsilon` takes them."""
    name, config = type(scheduler).__name__, scheduler.config
    _check(name, (*DISCRETE, *STRAIGHT))
    if name in STRAIGHT:
        path = NoisePath("straight", unit=float(config.num_train_timesteps))
        return {"schedule": path, "prediction": "velocity", "variance": "fixed-large"}
    alphas = np.asarray(scheduler.alphas_cumprod, dtype=np.float64)
    alphas = alphas[alphas > 1e-8]  # without a last timestep that is noise alone
    return {
        "schedule": path_of_alphas(alphas),
        "prediction": PREDICTIONS[config.prediction_type],
        "variance": VARIANCES.get(config.get("variance_type", ""), "fixed-large"),
    }


def _read_network(network: Any) -> dict[str, Any]:
    """Which images it takes."""
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
    if attends and not isinstance(size, int):
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
