"""What the command ``train`` does, for Python."""

from dataclasses import fields, replace
from os import PathLike
from pathlib import Path
from typing import Any

from diffcodec.errors import DiffcodecError
from diffcodec.models.model import load_weights
from diffcodec.training.config import INIT_WARMUP, TrainConfig
from diffcodec.training.trainer import CHECKPOINT, MODEL, Trainer

SETTINGS = tuple(field.name for field in fields(TrainConfig) if field.name != "data")


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
        settings: of :class:`diffcodec.training.config.TrainConfig`, such as ``steps``.

    Returns:
        The path of the model, for :func:`diffcodec.load_model`.

    Raises:
        DiffcodecError: if there are no usable images, the folder holds a run, or training fails.
        TypeError: for a setting that does not exist.
    """
    if unknown := settings.keys() - set(SETTINGS):
        raise TypeError(f"found {', '.join(sorted(unknown))}, expected {', '.join(SETTINGS)}")
    folder, weights = Path(out), None
    if (folder / CHECKPOINT).exists() or (folder.exists() and not folder.is_dir()):
        raise DiffcodecError(f"{folder}: it holds a run already, or is no folder; give another")
    config = TrainConfig(str(Path(data)), **settings)
    if init is not None:
        network, weights = load_weights(str(init))
        warmup = settings.get("warmup", INIT_WARMUP)
        config = replace(config, network=network, warmup=warmup)
    trainer = Trainer(config, folder, weights, quiet)
    folder.mkdir(parents=True, exist_ok=True)
    if minutes is not None:
        trainer.finish_within(minutes)
    trainer.run()
    return folder / MODEL
