"""The command evaluate."""

import io
import json
import math
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from diffcodec.cli.options import (
    PATH,
    data_option,
    device_option,
    effort_option,
    force_option,
    quiet_option,
    used_model_option,
)
from diffcodec.cli.program import cli, examples
from diffcodec.cli.running import CommandError, failing_as, print_line
from diffcodec.diffusion.variances import VARIANCES
from diffcodec.models.file import DEFAULT_MODEL, model_files, model_info, model_path
from diffcodec.system.files import STANDARD, check_output, write_file

if TYPE_CHECKING:
    from collections.abc import Sequence

    from diffcodec.diffusion.plan import Plan
    from diffcodec.evaluation.measure import Evaluation
    from diffcodec.models.model import Model
    from diffcodec.training.data import Source


@cli.command(
    short_help="Measure a model on images: the bound and whole files.",
    epilog=examples(
        "diffcodec evaluate --data photos --limit 10",
    ),
)
@data_option
@used_model_option
@effort_option("Which of the model's plans.")
@click.option(
    "--timesteps",
    type=click.IntRange(min=2),
    metavar="N",
    help="A chain of so many steps at constant ratio instead: the bound alone.",
)
@click.option("--held-out", is_flag=True, help="Only the images that train would hold out.")
@click.option("--limit", metavar="N", type=click.IntRange(min=1), help="Only the first N images.")
@click.option("--bound-only", is_flag=True, help="Write no files.")
@click.option(
    "--variance",
    type=click.Choice(VARIANCES),
    default="learned",
    show_default=True,
    help="Of the bound: the model's own, or DDPM's beta-tilde (small) or beta (large).",
)
@click.option(
    "--labels", type=PATH, metavar="FILE", help="Classes of the images, for a model of classes."
)
@click.option(
    "--ode",
    type=click.IntRange(min=2),
    is_flag=False,
    flag_value=50,
    metavar="[STEPS]",
    help="Also the likelihood of colour images by the probability-flow ODE, in 50 steps or so "
    "many; of small images, and in float arithmetic.",
)
@click.option(
    "--picture",
    type=PATH,
    metavar="FILE",
    help="Write a picture (PNG) of the bound by noise level.",
)
@force_option
@device_option
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object, image by image.")
@quiet_option
def evaluate(
    *,
    data: str,
    model: str | None,
    effort: str,
    timesteps: int | None,
    held_out: bool,
    limit: int | None,
    bound_only: bool,
    variance: str,
    labels: str | None,
    ode: int | None,
    picture: str | None,
    force: bool,
    device: str,
    as_json: bool,
    quiet: bool,
) -> None:
    """Measure a model on images: its variational bound, the bound's parts, and whole files.

    Images of any size, in RGB of 8 bits, or grey. Means over images, in bits per dimension
    (subpixel), with 95 % intervals.
    """
    name = model or DEFAULT_MODEL
    is_float = timesteps is not None or ode is not None
    if is_float or variance != "learned":
        bound_only = True  # files know nothing of these
    if picture is not None:
        _check_picture(picture, [data, model or DEFAULT_MODEL, labels], force)
    from diffcodec.evaluation import measure
    from diffcodec.evaluation.summary import summarise

    with failing_as(name):
        from diffcodec.models.model import load_model

        arithmetic = "float" if is_float else model_info(model_path(name)).arithmetic
        loaded = load_model(name, arithmetic, device)
        plan = measure.find_plan(loaded, effort, timesteps)
    with failing_as(data):
        sources, classes = _evaluation_images(data, labels, loaded, held_out)
        results = list(
            measure.evaluate(
                loaded,
                sources[:limit],
                plan,
                files_plan=None if bound_only else effort,
                variance=variance,
                labels=classes,
                ode_steps=ode,
                progress=not quiet,
            )
        )
    settings = {"model": name, "id": loaded.info.id.hex(), "arithmetic": arithmetic}
    settings |= {"effort": "" if timesteps else effort, "variance": variance}
    summary: dict[str, Any] = settings | summarise(results, plan)
    _print_results(summary, results, as_json)
    if picture is not None:
        _draw_picture(picture, summary, plan, force)


def _print_results(summary: dict[str, Any], results: "Sequence[Evaluation]", as_json: bool) -> None:
    """Print the table, or an object: null is there what is no finite number, as JSON has none."""
    from diffcodec.evaluation.summary import format_summary

    if as_json:
        described = summary | {"results": [result.to_dict() for result in results]}
        print_line(json.dumps(_finite(described), allow_nan=False))
    else:
        print_line(format_summary(summary))


def _finite(value: Any) -> Any:
    """The value with None in the place of infinities and what is not a number."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _check_picture(path: str, inputs: "Sequence[str | None]", force: bool) -> None:
    """Check that the picture can be drawn, before anything is measured.

    Args:
        path: of the picture.
        inputs: data, model with all its files, and labels, of which it takes the place of none.
        force: whether to overwrite another file.
    """
    if path == STANDARD:
        raise click.UsageError(
            "--picture -: standard output is for the results, expected the path of a file"
        )
    data, model, labels = inputs
    with failing_as(path):
        check_output(path, str(data), force)
        if find_spec("matplotlib") is None:
            raise CommandError("pictures need matplotlib; pip install 'diffcodec[train]'")
    if Path(path).exists():
        from diffcodec.training.data import find_images

        with failing_as(str(data)):
            sources = find_images(Path(str(data)))
        with failing_as(str(model)):
            sources += filter(Path.exists, model_files(model_path(str(model))))
        sources += [] if labels is None else [Path(labels)]
        with failing_as(path):
            for source in sources:
                check_output(path, str(source), force)


def _draw_picture(path: str, summary: dict[str, Any], plan: "Plan", force: bool) -> None:
    """Draw the bound's parts, and write the picture whole or not at all."""
    from diffcodec.training.pictures import draw_split

    stream = io.BytesIO()
    with failing_as(path):
        draw_split([part["bpd"] for part in summary["parts"]], plan.levels, stream)
        write_file(path, stream.getvalue(), force)


def _evaluation_images(
    data: str, labels: str | None, model: "Model", held_out: bool
) -> "tuple[list[Source], list[int] | None]":
    """Images and their classes, if those are given."""
    from diffcodec.training.data import (
        check_labels,
        find_images,
        hold_out,
        list_images,
        read_labels,
    )

    sources = list_images(find_images(Path(data)))
    classes: list[int] | None = None
    if labels is not None:
        read = read_labels(Path(labels))
        check_labels(read, sources, model.classes)
        classes = read.tolist()
    if held_out:
        sources = hold_out(sources)[1]
        classes = classes and hold_out(classes)[1]
    return sources, classes
