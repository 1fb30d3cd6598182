"""The folder of a run: the names of its files."""

from pathlib import Path

CHECKPOINT, CONFIG, LOG = "checkpoint.pt", "config.json", "log.jsonl"
CURVE, SPLIT = "curve.png", "split.png"
MODEL, FLOAT_MODEL = "model.safetensors", "float.safetensors"
FILES = (CHECKPOINT, MODEL, FLOAT_MODEL, CONFIG, LOG, CURVE, SPLIT)


def found_run(folder: Path) -> str | None:
    """The name of a file in the folder that a new run there would replace, if there is one."""
    return next((name for name in FILES if (folder / name).exists()), None)


def is_picture_of_run(path: Path) -> bool:
    """Whether an image is a picture that a run has drawn of itself."""
    return path.name in {CURVE, SPLIT} and (path.parent / CHECKPOINT).exists()
