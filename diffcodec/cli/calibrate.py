"""The command calibrate."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from diffcodec.cli.options import PATH, crop_option, data_option, force_option, quiet_option
from diffcodec.cli.program import cli, examples
from diffcodec.cli.running import CommandError, check_target, failing_as, print_line, say
from diffcodec.models.file import network_path
from diffcodec.system.files import write_file

if TYPE_CHECKING:
    from torch import Tensor

    from diffcodec.models.model import Model

SIDE = 64  # of crops, where neither --crop nor the network says it


@cli.command(
    short_help="Fit a table of variances to a network of others, by code length.",
    epilog=examples(
        "diffcodec calibrate --model ddpm-folder --data photos --out ddpm.json",
    ),
)
@click.option(
    "--model",
    "source",
    type=PATH,
    metavar="FOLDER",
    required=True,
    help="Folder of a diffusers pipeline, or a float model that is not in phases.",
)
@data_option
@click.option(
    "--out", type=PATH, metavar="FILE", required=True, help="Where to write the model (.json)."
)
@click.option(
    "--crops",
    type=click.IntRange(min=1),
    default=64,
    show_default=True,
    metavar="N",
    help="How many to fit the table on.",
)
@click.option(
    "--classes",
    type=click.IntRange(min=1),
    default=8,
    show_default=True,
    metavar="N",
    help="Of contrast around a sample, each with a variance; 1 for none.",
)
@crop_option("64, or the next that the network takes")
@force_option
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object, table and all.")
@quiet_option
def calibrate(
    *,
    source: str,
    data: str,
    out: str,
    crops: int,
    classes: int,
    crop: int | None,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Fit a table of variances to a network, by the code length of images.

    The output is a small file for --model that names the network, which stays where it is. The
    bound of the default plan is told on held-out images, with the network's own variance and with
    the table.
    """
    if not out.endswith(".json"):
        raise click.UsageError(f"--out {out}: expected a name that ends with .json")
    with failing_as(source):
        path = network_path(source)
    with failing_as(out):
        check_target(out, str(path), force, str(path))
    from diffcodec.models.calibration import calibrate as fit
    from diffcodec.models.calibration import check_variance
    from diffcodec.models.converted import open_network, serialise_calibrated
    from diffcodec.models.model import Model
    from diffcodec.networks.calibrated import CalibratedNetwork
    from diffcodec.planning.propose import search_crops
    from diffcodec.training.data import MAX_CLASSES

    if classes > MAX_CLASSES:
        raise click.UsageError(f"--classes {classes}: expected {MAX_CLASSES} at most")
    with failing_as(source):
        model = open_network(path)
        check_variance(model)
    multiple = model.network.multiple
    side = crop or -(-SIDE // multiple) * multiple
    with failing_as(data):
        x, held_out = search_crops(data, side, crops, model.color)
    with failing_as(source):
        table = fit(model, x, classes=classes, progress=not quiet)
        calibrated = Model(CalibratedNetwork(model.network, table), model.plans)
        before, after = (_bound_bpd(each, held_out) for each in (model, calibrated))
        about = {"crops": crops, "crop": side, "before_bpd": before, "after_bpd": after}
        written = serialise_calibrated(path, Path(out).parent, model, table, about)
    with failing_as(out):
        write_file(out, written, force)
    if as_json:
        print_line(json.dumps(about | {"out": out, "variances": table.to_dict()}))
    elif not quiet:
        say(
            f"{source} -> {out}: bound of the default plan on held-out crops {before:.4f} bits per "
            f"dimension, with the table {after:.4f}"
        )


def _bound_bpd(model: "Model", x: "Tensor") -> float:
    """The mean bound of the default plan on crops, in bits per dimension."""
    import torch

    from diffcodec.diffusion.bound import chain_bound_bits
    from diffcodec.evaluation.measure import torch_posterior

    if "default" not in model.plans:
        raise CommandError(f"it has no plan default, only {', '.join(model.plans)}")
    generator, plan = torch.Generator().manual_seed(0), model.plans["default"]
    parts = chain_bound_bits(torch_posterior(model), x.double(), model.color, plan, generator)
    return float(parts.sum(1).mean())
