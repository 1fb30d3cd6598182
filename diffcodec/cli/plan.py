"""The commands plan and quantize."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from diffcodec.cli.options import (
    PATH,
    crop_option,
    data_option,
    device_option,
    force_option,
    parse_numbers,
    quiet_option,
    used_model_option,
)
from diffcodec.cli.program import cli, examples
from diffcodec.cli.running import check_device, check_target, failing_as, print_line, say
from diffcodec.container.parts import PLAN_NAMES
from diffcodec.errors import ModelMismatchError
from diffcodec.models.file import DEFAULT_MODEL, ModelInfo, model_info, model_path
from diffcodec.system.files import STANDARD, check_output, is_stream, write_file

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from diffcodec.models.model import Model


@cli.command(
    "plan",
    short_help="Find the noise levels that suit a model and your images.",
    epilog=examples(
        "diffcodec plan --data photos --model run/float.safetensors --out new.safetensors",
    ),
)
@data_option
@used_model_option
@click.option("--out", type=PATH, metavar="FILE", help="Write the model with the plans found.")
@click.option(
    "--timesteps",
    type=parse_numbers,
    metavar="N,N,N",
    help="Network evaluations of fast, default and best, at most.  [default: as the model has]",
)
@click.option(
    "--crops",
    type=click.IntRange(min=1),
    default=24,
    show_default=True,
    metavar="N",
    help="How many to search on, and how many to predict files for.",
)
@crop_option("as in training")
@device_option
@force_option
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object, plans and all.")
@quiet_option
def find_plans(
    *,
    data: str,
    model: str | None,
    out: str | None,
    timesteps: tuple[int, ...] | None,
    crops: int,
    crop: int | None,
    device: str,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Find the noise levels and lattices of fast, default and best for a model and your images.

    Files are predicted for crops of every twentieth image, plans are searched on the others. An
    integer model is quantised anew, by the images of DIR.
    """
    if out == STANDARD and as_json:
        raise click.UsageError("--json needs standard output for itself; give another --out")
    if timesteps is not None and len(timesteps) != len(PLAN_NAMES):
        raise click.UsageError(f"--timesteps takes {len(PLAN_NAMES)} numbers: N,N,N")
    check_device(device)
    name = model or DEFAULT_MODEL
    with failing_as(name):
        path, info, loaded = _open(name, device, out, force)
        from diffcodec.planning import propose

        _check_timesteps(timesteps, propose.most_timesteps(loaded))
    side = _calibration_side(crop, info, loaded)
    with failing_as(data):
        x, held_out = propose.search_crops(data, side, crops, loaded.color)
        proposals = propose.propose_plans(loaded, x, held_out, timesteps, not quiet)
    if as_json:
        described = {plan: proposal.to_dict() for plan, proposal in proposals.items()}
        settings = {"model": name, "id": info.id.hex(), "crops": crops, "crop": side}
        print_line(json.dumps(settings | {"plans": described}))
    elif out != STANDARD:
        print_line(propose.format_proposals(proposals))
    if out is None:
        return

    plans = loaded.plans | {plan: proposal.plan for plan, proposal in proposals.items()}
    folders = path.parent, None if is_stream(out) else Path(out).parent
    _write_model(
        loaded,
        lambda calibration: propose.replace_plans(loaded, plans, calibration, folders),
        paths=(name, out),
        data=data,
        side=side,
        force=force,
        quiet=quiet,
    )


def _open(name: str, device: str, out: str | None, force: bool) -> "tuple[Path, ModelInfo, Model]":
    """The model to plan for, by a name for which there may be an output."""
    path = model_path(name)
    info = model_info(path)
    if out is not None:
        _check_suffix("--out", out, info)
        check_target(out, str(path), force, str(path))
    from diffcodec.models.model import load_model

    return path, info, load_model(path, "float", device)


def _check_suffix(name: str, out: str, info: ModelInfo) -> None:
    """Refuse an output whose suffix is of another kind of model file than it would be."""
    is_json = info.calibrated is not None
    if not is_stream(out) and (Path(out).suffix == ".json") != is_json:
        kind = "a calibrated model" if is_json else "a model of tensors"
        suffix = ".json" if is_json else ".safetensors"
        raise click.UsageError(f"{name} {out}: it is {kind}, expected a name with {suffix}")


def _check_timesteps(timesteps: tuple[int, ...] | None, most: int) -> None:
    if timesteps is not None and not 3 <= min(timesteps) <= max(timesteps) <= most:
        raise click.UsageError(f"--timesteps must be from 3 to {most}")


def _calibration_side(crop: int | None, info: ModelInfo, model: "Model") -> int:
    """The side of the crops to calibrate with: as given, or as in training."""
    side, multiple = crop or info.about.get("crop"), model.network.multiple
    if not isinstance(side, int) or side < 1 or side % multiple:
        raise click.UsageError(f"give --crop, a multiple of {multiple} for this network")
    return side


def _write_model(
    model: "Model",
    serialise: "Callable[[Tensor], bytes]",
    *,
    paths: tuple[str, str],
    data: str,
    side: int,
    force: bool,
    quiet: bool = False,
) -> None:
    """Write what a model becomes by crops of images that show the range of its activations.

    Args:
        model: loaded as "float".
        serialise: the bytes of its new file.
        paths: the model's and the output's.
        data: the images.
        side: of the crops.
        force: whether to overwrite.
        quiet: whether to say nothing of it.
    """
    from diffcodec.training.crops import calibration_images

    source, target = paths
    with failing_as(data):
        calibration = calibration_images(data, side, model.color)
    with failing_as(source):
        written = serialise(calibration)
    with failing_as(target):
        write_file(target, written, force)
    if target != STANDARD and not quiet:
        say(f"{source} -> {target}: {len(written)} bytes")


QUANTIZED = ".integer.safetensors"


@cli.command(
    short_help="Make an integer model of a float one.",
    epilog=examples(
        "diffcodec quantize run/float.safetensors --data photos",
    ),
)
@click.argument("source", type=PATH, metavar="FLOAT_MODEL")
@click.argument("output", type=PATH, metavar="[OUT]", required=False)
@data_option
@crop_option("as in training")
@device_option
@force_option
def quantize(
    *, source: str, output: str | None, data: str, crop: int | None, device: str, force: bool
) -> None:
    """Make an integer model of a float one, by images like those that it was trained on.

    OUT is FLOAT_MODEL with the suffix .integer.safetensors if it is not given.
    """
    check_device(device)
    with failing_as(source):
        path = model_path(source)
        target = output or str(Path(source).with_suffix(QUANTIZED))
        info = model_info(path)
        if info.arithmetic != "float":
            raise ModelMismatchError(
                "it is an integer model already; give a float one, such as the float.safetensors "
                "of a training run"
            )
        if info.calibrated is not None:
            raise ModelMismatchError(
                "it is a calibrated model, which has no form in integers; give a float one of "
                "tensors, such as the float.safetensors of a training run"
            )
        _check_suffix("OUT", target, info)
        check_output(target, str(path), force)

        from diffcodec.models.export import quantize_model
        from diffcodec.models.model import load_model

        model = load_model(path, "float", device)
    side = _calibration_side(crop, info, model)
    _write_model(
        model,
        lambda calibration: quantize_model(model, calibration),
        paths=(source, target),
        data=data,
        side=side,
        force=force,
    )
