"""What the command ``evaluate`` does, for Python."""

from os import PathLike
from typing import Any

from diffcodec.errors import UnsupportedError
from diffcodec.evaluation import measure
from diffcodec.evaluation.summary import summarise
from diffcodec.models.file import DEFAULT_MODEL, model_info, model_path
from diffcodec.models.model import Model, loaded
from diffcodec.training.data import find_images, list_images
from diffcodec.values import flag, integer, path


def evaluate(
    data: str | PathLike[str],
    model: str | PathLike[str] | Model = DEFAULT_MODEL,
    plan: str = "default",
    progress: bool = False,
    *,
    limit: int | None = None,
    bound_only: bool = False,
    device: str | None = None,
) -> dict[str, Any]:
    """Measure a model on images: its variational bound, the bound's parts, and whole files.

    Args:
        data: a folder of images, or a file of them.
        model: a shipped model's name, a path or a loaded model; of a path by the arithmetic of its
            file.
        plan: "fast", "default" or "best".
        progress: show a bar on a terminal.
        limit: only the first so many images.
        bound_only: code no files.
        device: where the model computes; see :func:`diffcodec.load_model`.

    Returns:
        What ``diffcodec evaluate --json`` prints of all images together: ``bound_bpd`` and
        ``file_bpd`` with ``mean`` and ``half_width``, ``file_bytes``, ``parts``.

    Raises:
        DiffcodecError: if there are no images, no such model, or no such plan.
        TypeError: for anything but the types above.
    """
    if limit is not None and integer("limit", limit) < 1:
        raise UnsupportedError(f"limit {limit}: expected 1 or more images")
    arithmetic = "integer" if isinstance(model, Model) else model_info(model_path(model)).arithmetic
    used = loaded(model, arithmetic, device)
    chosen = measure.find_plan(used, plan)
    sources = list_images(find_images(path("data", data)))[:limit]
    files_plan = None if flag("bound_only", bound_only) else plan
    evaluations = measure.evaluate(
        used, sources, chosen, files_plan=files_plan, progress=flag("progress", progress)
    )
    return summarise(list(evaluations), chosen)
