"""The command encode."""

import io
import json
import time
import warnings
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from diffcodec.cli.options import (
    effort_option,
    file_options,
    json_option,
    limit_options,
    many_files_options,
    parse_numbers,
    used_model_option,
)
from diffcodec.cli.program import cli
from diffcodec.cli.running import CommandError, Files, load_given, print_line, say
from diffcodec.container.info import dimensions, tiles_by_coder
from diffcodec.container.parts import MAGIC, MOST_DRAW
from diffcodec.container.reader import parse
from diffcodec.errors import FormatError
from diffcodec.images.formats import SUFFIXES
from diffcodec.limits import Limits
from diffcodec.models.file import ARITHMETICS, DEFAULT_MODEL
from diffcodec.system.files import STANDARD, check_output, read_file, write_file

if TYPE_CHECKING:
    from PIL.Image import Image


@cli.command(options_metavar="[OPTIONS]", short_help="Code images, without loss or to a size.")
@file_options(".dfc")
@effort_option("How many evaluations of the network to spend, in encoding and decoding.")
@click.option(
    "--timestep",
    type=click.IntRange(min=1),
    help="Stop at this timestep: a lossy file, smaller the larger it is.",
)
@click.option(
    "--bpp",
    type=float,
    metavar="R",
    help="A lossy file of at most R bits per pixel; with --progressive, previews of so many.",
)
@click.option(
    "--psnr",
    type=float,
    metavar="DB",
    help="A lossy file of at least so many dB; with --progressive, previews.",
)
@click.option(
    "--progressive",
    is_flag=True,
    help="Previews first, down to --timestep, --bpp or --psnr, then the exact image; the file may "
    "be cut anywhere.",
)
@click.option(
    "--previews",
    type=parse_numbers,
    metavar="T,T,...",
    help="The timesteps at which a lossy or progressive file may be cut.  [default: about every "
    "1.5 dB]",
)
@click.option(
    "--draws",
    type=click.IntRange(1, MOST_DRAW + 1),
    default=1,
    show_default=True,
    metavar="N",
    help="Code each tile N times, by other shared randomness each, and keep the smallest: for tiny "
    "images without loss. Decoding takes no longer.",
)
@used_model_option
@click.option(
    "--arithmetic",
    type=click.Choice(ARITHMETICS),
    default="integer",
    show_default=True,
    help="Of the network. Files of float arithmetic are for research: they may not decode on "
    "another machine.",
)
@limit_options
@many_files_options
@json_option
def encode(
    *, files: Files, model: str | None, arithmetic: str, as_json: bool, **options: Any
) -> None:
    """Code an image: encode IN [OUT], or encode --output-dir DIR IN...

    Without loss, unless --timestep, --bpp or --psnr says otherwise, without --progressive. OUT is
    IN with the suffix .dfc if it is not given.
    """
    _check_goals(**options)
    for _, target in files.jobs:
        if target.lower().endswith(tuple(SUFFIXES)):
            raise click.UsageError(
                f"{target}: an image as output; for several inputs, --output-dir"
            )
        if target == STANDARD and as_json:
            raise click.UsageError("--json needs standard output for itself; give an output file")
    if files.processes > 1 and arithmetic == "float":
        raise click.UsageError(
            "--jobs changes the number of threads, which files of float arithmetic depend on"
        )
    name = model or DEFAULT_MODEL
    load_given(name, arithmetic)
    work = partial(
        _encode_file,
        model=name,
        arithmetic=arithmetic,
        force=files.force,
        progress=files.progress,
        **options,
    )
    files.for_each(work, as_json, partial(_show_result, as_json=as_json))


def _check_goals(
    *,
    timestep: int | None,
    bpp: float | None,
    psnr: float | None,
    progressive: bool,
    previews: tuple[int, ...] | None,
    draws: int,
    **_: Any,
) -> None:
    goals = sum(goal is not None for goal in (timestep, bpp, psnr))
    if goals > 1:
        raise click.UsageError("--timestep, --bpp and --psnr exclude each other")
    if previews and not (goals or progressive):
        raise click.UsageError("--previews needs --progressive, --timestep, --bpp or --psnr")
    if draws > 1 and (goals or progressive):
        raise click.UsageError("--draws is for files without loss and previews")


def _show_result(result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_line(json.dumps(result))
    elif result["output"] != STANDARD:
        rate = "{bits_per_dimension:.3f} bits per dimension"
        if result["timestep"]:
            rate = "{bits_per_pixel:.3f} bits per pixel, timestep {timestep}"
        text = f"{{input}} -> {{output}}: {{bytes_in}} -> {{bytes_out}} bytes, {rate}, "
        say((text + "{seconds:.1f} s").format(**result))


def _encode_file(
    source: str,
    target: str,
    *,
    model: str,
    arithmetic: str,
    effort: str,
    limits: Limits,
    force: bool,
    progress: bool,
    **options: Any,
) -> dict[str, Any]:
    """Code one image; returns what there is to say of it."""
    from diffcodec.codec import encoding
    from diffcodec.models.model import load_model

    check_output(target, source, force)
    start = time.perf_counter()
    data = read_file(source)
    image = _read_image(source, data, limits)
    loaded = load_model(model, arithmetic)
    coded = encoding.encode(image, loaded, effort, progress, limits=limits, **options)
    write_file(target, coded, force)
    container = parse(coded, limits)
    return {
        "input": source,
        "output": target,
        "bytes_in": len(data),
        "bytes_out": len(coded),
        "bits_per_dimension": 8 * len(coded) / dimensions(container),
        "bits_per_pixel": 8 * len(coded) / (container.width * container.height),
        "timestep": container.layers.stops[-1] if container.layers else 0,
        "seconds": time.perf_counter() - start,
        "model": loaded.info.name,
        "arithmetic": loaded.arithmetic,
        "effort": effort,
        "tiles": tiles_by_coder(container),
    }


def _read_image(source: str, data: bytes, limits: Limits) -> "Image":
    from diffcodec.images.reading import read_image

    if data[: len(MAGIC)] == MAGIC:
        raise CommandError("it is coded already; give an image, or use decode")
    stream = io.BytesIO(data)
    stream.name = source
    warnings.filterwarnings("ignore", module=r"PIL\.")  # of files that it reads all the same
    try:
        return read_image(stream, limits)
    except FormatError as e:  # exit code 3 is for our own files
        raise CommandError(str(e)) from e
