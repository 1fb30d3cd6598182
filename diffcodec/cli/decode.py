"""The command decode."""

import io
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from diffcodec.cli.options import (
    device_option,
    file_model_option,
    file_options,
    limit_options,
    many_files_options,
    parse_integers,
)
from diffcodec.cli.program import cli, examples
from diffcodec.cli.running import (
    CommandError,
    Files,
    image_format,
    load_given,
    one_by_one,
    parse_data,
    printable,
    reading_file,
)
from diffcodec.coding.reconstructions import RECONSTRUCTIONS
from diffcodec.container.parts import MAGIC
from diffcodec.container.reader import FileReader
from diffcodec.container.salvage import Damage
from diffcodec.errors import CorruptError, TruncatedError
from diffcodec.images.formats import EXACT_MODES, SUFFIX_MODES
from diffcodec.limits import Limits
from diffcodec.system.files import STANDARD, check_output, read_file, write_file
from diffcodec.system.process import loading

if TYPE_CHECKING:
    from PIL.Image import Image


SCALES = ("1", "1/2", "1/4", "1/8")


def parse_region(text: str) -> tuple[int, ...]:
    """Four integers between commas."""
    numbers = parse_integers(text)
    if len(numbers) != 4:
        raise ValueError(f"{text!r} has {len(numbers)} numbers, expected X,Y,W,H.")
    return numbers


@cli.command(
    short_help="Decode files to images.",
    epilog=examples(
        "diffcodec decode photo.dfc copy.png",
        "diffcodec decode -r coded --output-dir photos",
    ),
)
@file_options(".png")
@click.option(
    "--timestep",
    type=click.IntRange(min=0),
    metavar="T",
    help="0: the exact image. t: its posterior mean given z_t, the coarser the larger t.  "
    "[default: the finest]",
)
@click.option(
    "--allow-partial",
    is_flag=True,
    help="Of a file with previews that is cut show all that has come, of one that is damaged the "
    "last preview that is whole.",
)
@click.option(
    "--recover",
    is_flag=True,
    help="Of a file that is damaged or cut write the tiles that are whole, and say which are not.",
)
@click.option(
    "--fill",
    is_flag=True,
    help="With --recover draw the tiles that are lost by the model: they are invented. Slow.",
)
@click.option(
    "--max-bytes",
    type=click.IntRange(min=1),
    metavar="N",
    help="Show what the first N bytes of a file with previews hold.",
)
@click.option(
    "--reconstruct",
    type=click.Choice(RECONSTRUCTIONS),
    default="mean",
    show_default=True,
    help="At a timestep above 0: the posterior mean; a sharper one by two more evaluations; its "
    "whole continuation by the probability-flow ODE or by ancestral sampling, sharper still and "
    "farther from the image.",
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**24 - 1),
    metavar="N",
    default=0,
    show_default=True,
    help="Of --reconstruct sample.",
)
@click.option(
    "--region",
    type=parse_region,
    metavar="X,Y,W,H",
    help="A part of the image: left, top, width, height. Only the tiles that it touches are read "
    "and evaluated.",
)
@click.option(
    "--scale",
    type=click.Choice(SCALES),
    default="1",
    show_default=True,
    help="The image reduced by so much, from fewer timesteps.",
)
@file_model_option
@device_option
@limit_options
@many_files_options
def decode(
    *,
    files: Files,
    timestep: int | None,
    allow_partial: bool,
    recover: bool,
    fill: bool,
    max_bytes: int | None,
    reconstruct: str,
    region: tuple[int, ...] | None,
    scale: str,
    model: str | None,
    device: str,
    **options: Any,
) -> None:
    """Decode a file to an image: decode IN [OUT], or decode --output-dir DIR IN...

    OUT is IN with the suffix .png if it is not given. The suffix of OUT chooses the format among
    those that keep pixels exactly, and JPEG for what is lossy; to standard output it is PNG.
    """
    if recover and (allow_partial or timestep is not None or reconstruct != "mean"):
        raise click.UsageError(
            "--recover takes whatever is whole; leave out --allow-partial, --timestep and "
            "--reconstruct"
        )
    if recover and (region or scale != "1"):
        raise click.UsageError("--recover gives the whole image; leave out --region and --scale")
    if fill and not recover:
        raise click.UsageError("--fill is of --recover; give both")
    load_given(model, device=device)
    work = partial(
        _decode_file,
        timestep=timestep,
        model=model,
        device=device,
        recover=recover,
        fill=fill,
        max_bytes=max_bytes,
        force=files.force,
        progress=files.progress,
        allow_partial=allow_partial or max_bytes is not None,
        reconstruct=reconstruct,
        region=region,
        scale=int(scale.rpartition("/")[2]),
        **options,
    )
    files.for_each(one_by_one(work))


def _decode_file(
    source: str,
    target: str,
    *,
    timestep: int | None,
    model: str | None,
    recover: bool,
    fill: bool,
    max_bytes: int | None,
    force: bool,
    progress: bool,
    **options: Any,
) -> str | None:
    """Decode one file; returns what there is to say of it."""
    from diffcodec.images.writing import write_image

    if target == source != STANDARD and read_file(source, len(MAGIC)) != MAGIC:
        parse_data(read_file(source), options["limits"])  # why it is no file of ours
    format = image_format(target)
    check_output(target, source, force)
    start = time.perf_counter()
    in_parts = options["region"] is not None and max_bytes is None and source != STANDARD
    data = read_file(source, len(MAGIC) if in_parts else max_bytes)
    limits = options["limits"]
    is_exact = recover or (timestep is None and not options["allow_partial"]) or timestep == 0
    is_exact = is_exact and options["scale"] == 1
    if format not in EXACT_MODES and is_exact and not _is_lossy(source, data, in_parts, limits):
        raise CommandError(
            f"the image is exact, which {format} would not keep: write .png, or give a --timestep"
        )
    damage: Sequence[Damage] = ()
    if recover:
        found = 0
        image, damage = _recover(data, model, progress, limits, options["device"], fill)
    else:
        path = source if in_parts else None
        with _without_previews(data, limits, is_cut=len(data) == max_bytes):
            found, image = decode_data(data, timestep, model, progress, path, **options)
    if (mode := SUFFIX_MODES.get(Path(target).suffix.lower(), image.mode)) != image.mode:
        raise CommandError(
            f"{target} is for images of mode {mode}, this one is {image.mode}: write .ppm or .png",
            path=target,
        )
    stream = io.BytesIO()
    lost = write_image(image, stream, format, exact=found == 0 and options["scale"] == 1)
    write_file(target, stream.getvalue(), force, source)
    if damage:
        raise CorruptError(_describe_damage(damage, fill))
    if target == STANDARD:
        return None
    seconds = time.perf_counter() - start
    what = f"{image.width} x {image.height} {image.mode}, {seconds:.1f} s"
    if lost:
        what += f"; not kept by {format}: {', '.join(lost)}"
    return f"{printable(source)} -> {printable(target)}: " + (
        f"timestep {found}, {what}" if found else what
    )


def _is_lossy(source: str, data: bytes, is_beginning: bool, limits: Limits) -> bool:
    """Whether a file, or that which these bytes begin, ends before the exact image."""
    layers = parse_data(read_file(source) if is_beginning else data, limits).layers
    return layers is not None and not layers.is_exact


@contextmanager
def _without_previews(data: bytes, limits: Limits, is_cut: bool) -> Iterator[None]:
    """Say why the beginning of a file shows nothing, if --max-bytes has cut it."""
    try:
        yield
    except TruncatedError as e:
        with suppress(TruncatedError):
            if is_cut and FileReader(data, limits).container.layers is None:
                raise CommandError(
                    "it has no previews, so its beginning shows nothing: leave out --max-bytes, or "
                    "encode it with --progressive"
                ) from e
        raise


def decode_data(
    data: bytes,
    timestep: int | None,
    model: str | None,
    progress: bool,
    path: str | None = None,
    **options: Any,
) -> "tuple[int, Image]":
    """The finest timestep of a file, and its image; with a path the data are only its beginning."""
    with loading():
        from diffcodec.codec import decoding

    with reading_file(data):
        return decoding.decode_finest(path or data, timestep, model, progress, **options)


def _recover(
    data: bytes, model: str | None, progress: bool, limits: Limits, device: str, fill: bool
) -> "tuple[Image, Sequence[Damage]]":
    from diffcodec.codec.recovery import recover

    with reading_file(data):
        return recover(data, model, progress, limits=limits, device=device, fill=fill)


def _describe_damage(damage: Sequence[Damage], filled: bool) -> str:
    def describe(part: Damage) -> str:
        place = ""
        if part.box is not None:
            place = " ({width} x {height} pixels at {left}, {top})".format(**part.box._asdict())
        return f"{part.part}{place}: {part.reason}"

    tiles = len({part.tile for part in damage} - {None})
    lost = f"{tiles} tile{'' if tiles == 1 else 's'}"
    written = f"written, {lost} invented" if filled and tiles else f"written but for {lost}"
    return f"damaged; {written}. " + ". ".join(map(describe, damage))
