"""What the command ``train`` does, for Python."""

from collections.abc import Mapping
from dataclasses import fields, replace
from os import PathLike
from pathlib import Path
from typing import Any

from diffcodec.diffusion.variances import VARIANCES
from diffcodec.errors import DiffcodecError, UnsupportedError
from diffcodec.models.model import load_weights
from diffcodec.networks.config import DEVICES, NetworkConfig
from diffcodec.training.budget import MOST_MINUTES
from diffcodec.training.config import INIT_WARMUP, TrainConfig, with_classes, with_ensemble
from diffcodec.training.crops import AUGMENTATIONS
from diffcodec.training.folder import MODEL, found_run
from diffcodec.training.steps import LOSSES
from diffcodec.training.trainer import Trainer
from diffcodec.values import flag, integer, number, path

SETTINGS = tuple(field.name for field in fields(TrainConfig) if field.name != "data")
CHOICES = {
    "augment": AUGMENTATIONS,
    "loss": tuple(LOSSES),
    "optimizer": ("muon", "adamw"),
    "variance": VARIANCES,
    "precision": ("bfloat16", "float32"),
    "device": DEVICES,
}
RANGES = {  # of the others from 0 up
    **dict.fromkeys(("steps", "accumulate", "crop"), (1, 1 << 32)),
    "batch": (8, 1 << 32),  # as the losses take
    "ema": (0, 1),
    "seed": (0, (1 << 63) - 1),
}


def check_settings(config: TrainConfig) -> None:
    """Refuse what no run can have.

    Raises:
        UnsupportedError: a value that is none of those to choose from, or out of range.
        TypeError: one of another type.
    """
    for field in fields(TrainConfig):
        name, value, kind = field.name, getattr(config, field.name), type(field.default)
        if name in CHOICES and (not isinstance(value, str) or value not in CHOICES[name]):
            raise UnsupportedError(f"{name} {value!r}: expected one of {', '.join(CHOICES[name])}")
        if kind is bool and not isinstance(value, bool):
            raise TypeError(f"{name}: found {type(value).__name__}, expected True or False")
        if kind in (int, float):
            found = (integer if kind is int else number)(name, value)
            least, most = RANGES.get(name, (0, 1 << 32))
            if found is None or not least <= found <= most:
                raise UnsupportedError(f"{name} {value}: expected {least} to {most}")
    if not isinstance(config.network, NetworkConfig):
        raise TypeError(f"network: found {type(config.network).__name__}, expected a NetworkConfig")
    if not isinstance(config.labels, str | PathLike | None):
        raise TypeError(f"labels: found {type(config.labels).__name__}, expected a path")


def train(
    data: str | PathLike[str],
    out: str | PathLike[str],
    *,
    init: str | PathLike[str] | None = None,
    minutes: float | None = None,
    quiet: bool = False,
    **settings: Any,
) -> Path:
    """Train a model on a folder of images.

    Args:
        data: a folder of images, or a file of them.
        out: the folder of the run, which must not hold one.
        init: a model to start from, in its shape.
        minutes: that the run takes, compiling, validations and the quantised model counted, instead
            of ``steps``.
        quiet: whether to say nothing of it: neither lines of the log nor a progress bar.
        settings: of :class:`diffcodec.training.config.TrainConfig`, such as ``steps``. The network,
            if it is none of them, has self-ensemble by ``augment``; with ``labels`` their classes.

    Returns:
        The path of the model, for :func:`diffcodec.load_model`.

    Raises:
        DiffcodecError: if there are no usable images, the folder holds a run, or training fails.
        TypeError: for a setting that does not exist, or two of which one would not count.
    """
    if unknown := settings.keys() - set(SETTINGS):
        raise TypeError(f"found {', '.join(sorted(unknown))}, expected {', '.join(SETTINGS)}")
    for given, one, other in ((init, "init", "network"), (minutes, "minutes", "steps")):
        if given is not None and other in settings:
            raise TypeError(f"found both {one} and {other}, expected one; leave out {other}")
    folder, weights = path("out", out), None
    try:
        if folder.exists() and not folder.is_dir():
            raise DiffcodecError(f"{folder}: it is no folder; give another")
        if name := found_run(folder):
            raise DiffcodecError(f"{folder}: it holds a run already ({name}); give another folder")
    except OSError as error:
        raise DiffcodecError(f"{folder}: {error.strerror}; check the path") from error
    config = TrainConfig(str(path("data", data)), **settings)
    check_settings(config)
    if config.labels is not None:
        config = replace(config, labels=str(path("labels", config.labels)))
    if minutes is not None and not 0 < (number("minutes", minutes) or 0) <= MOST_MINUTES:
        raise UnsupportedError(f"minutes {minutes}: expected above 0 to {MOST_MINUTES:,}")
    if init is not None:
        network, weights = load_weights(path("init", init))
        warmup = settings.get("warmup", INIT_WARMUP)
        config = replace(config, network=network, warmup=warmup)
    config = replace(config, network=_as_asked(config, settings))
    trainer = Trainer(config, folder, weights, flag("quiet", quiet))
    folder.mkdir(parents=True, exist_ok=True)
    if minutes is not None:
        trainer.finish_within(minutes)
    trainer.run()
    return folder / MODEL


def _as_asked(config: TrainConfig, settings: Mapping[str, Any]) -> NetworkConfig:
    """The network with self-ensemble and classes, as the command has it."""
    network = config.network
    if "network" not in settings:
        network = with_ensemble(network, config.augment)
    return network if config.labels is None else with_classes(network, Path(config.labels))
