"""The command line, with the conventions of zstd and cjxl.

What loads torch, NumPy or Pillow is imported where it is used: ``--help``, ``models``, ``info`` and
``verify --structure`` do without.
"""

import errno
import io
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

import click

from diffcodec import __version__
from diffcodec.container import CHAIN_CODERS, MAGIC, MOST_DRAW, Container, Damage, parse
from diffcodec.errors import (
    CorruptError,
    DiffcodecError,
    FormatError,
    LimitError,
    ModelMismatchError,
    UnsupportedError,
    UnsupportedFileError,
    WorkerDiedError,
)
from diffcodec.files import (
    STANDARD,
    check_output,
    leave_on_signals,
    read_file,
    remove_temporaries,
    write_file,
    write_standard_output,
)
from diffcodec.info import describe, dimensions, format_description, tiles_by_coder
from diffcodec.limits import DEFAULT_LIMITS, Limits
from diffcodec.memory import keep_freed_memory
from diffcodec.model_file import (
    ARITHMETICS,
    DEFAULT_MODEL,
    ModelInfo,
    count_parameters,
    find_model_path,
    model_path,
    read_model_info,
    shipped_models,
)

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from diffcodec.data import Source
    from diffcodec.models import Model
    from diffcodec.network import NetworkConfig
    from diffcodec.train import TrainConfig, Trainer

EXIT_FAILURE, EXIT_BAD_FILE, EXIT_WRONG_MODEL = 1, 3, 4  # click exits with 2 on wrong usage

IMAGE_SUFFIXES = (
    *(".bmp", ".gif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".qoi"),
    *(".tif", ".tiff", ".webp"),
)
RECONSTRUCTIONS = ("mean", "flow", "sample")  # as in descent.py, which loads numerics
VARIANCES = ("learned", "fixed-small", "fixed-large")  # as in bound.py
SKIPPED = "skipped"  # instead of a result
ADVICE = {
    errno.EACCES: "check its permissions",
    errno.EEXIST: "give another output, or --force to overwrite it",
    errno.EISDIR: "give the path of a file",
    errno.ENOENT: "check the path",
    errno.ENOSPC: "free some space and run it again",
}


class _CommandError(Exception):
    """A message about a path, with an exit code of its own."""

    def __init__(self, message: str, exit_code: int = EXIT_FAILURE, path: str | None = None):
        super().__init__(message)
        self.exit_code, self.path = exit_code, path


FAILURES = (DiffcodecError, OSError, MemoryError, _CommandError)


def main() -> None:
    """The command ``diffcodec``."""
    leave_on_signals()
    keep_freed_memory()
    cli(prog_name="diffcodec")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="diffcodec")
def cli() -> None:
    """The image codec built on diffusion.

    A path of "-" is standard input or output. Exit codes: 0 done; 1 failed; 2 wrong usage; 3 a
    file of ours that is damaged or not supported; 4 not the model that the file needs.
    """


def _model_option(description: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    return click.option("--model", metavar="NAME_OR_PATH", help=description)


def _effort_option(description: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    return click.option(
        "--effort",
        type=click.Choice(CHAIN_CODERS),
        default="default",
        show_default=True,
        help=description,
    )


_paths = click.argument("paths", nargs=-1, required=True, metavar="PATH...")
_output = click.option("-o", "--output", metavar="OUT", help="Where to write the one output.")
_output_dir = click.option(
    "--output-dir", metavar="DIR", help="Every PATH is an input; write their outputs here."
)
_max_pixels = click.option(
    "--max-pixels",
    type=click.IntRange(min=1),
    default=DEFAULT_LIMITS.pixels,
    show_default=True,
    metavar="N",
    help="Refuse images of more pixels.",
)
_max_memory = click.option(
    "--max-memory",
    type=click.IntRange(min=1),
    default=DEFAULT_LIMITS.memory_bytes >> 20,
    show_default=True,
    metavar="MIB",
    help="Refuse what is expected to take more memory.",
)
_force = click.option("-f", "--force", is_flag=True, help="Overwrite files that exist.")
_skip_existing = click.option(
    "--skip-existing", is_flag=True, help="Leave out inputs whose output exists."
)
_processes = click.option(
    "-j",
    "--jobs",
    "processes",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="N",
    help="Work on N inputs at a time.",
)
_quiet = click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors.")
_json = click.option("--json", "as_json", is_flag=True, help="Print a JSON object per input.")


# --- encode, decode -------------------------------------------------------------------------------


def _numbers(text: str) -> tuple[int, ...]:
    numbers = tuple(int(part) for part in text.split(","))
    if min(numbers) < 1:
        raise ValueError("a number below 1")
    return numbers


@cli.command(options_metavar="[OPTIONS]", short_help="Code images, without loss or to a size.")
@click.argument("paths", nargs=-1, required=True, metavar="IN [OUT]")
@_output
@_output_dir
@_effort_option("How many evaluations of the network to spend, in encoding and decoding.")
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
    type=_numbers,
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
@_model_option(f"A shipped model, or a model file.  [default: {DEFAULT_MODEL}]")
@click.option(
    "--arithmetic",
    type=click.Choice(ARITHMETICS),
    default="integer",
    show_default=True,
    help="Of the network. Files of float arithmetic are for research: they may not decode on "
    "another machine.",
)
@_max_pixels
@_max_memory
@_skip_existing
@_processes
@_force
@_json
@_quiet
def encode(
    *,
    paths: tuple[str, ...],
    output: str | None,
    output_dir: str | None,
    effort: str,
    timestep: int | None,
    bpp: float | None,
    psnr: float | None,
    progressive: bool,
    previews: tuple[int, ...] | None,
    draws: int,
    model: str | None,
    arithmetic: str,
    max_pixels: int,
    max_memory: int,
    skip_existing: bool,
    processes: int,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Code an image: encode IN [OUT], or encode --output-dir DIR IN...

    Without loss, unless --timestep, --bpp or --psnr says otherwise, without --progressive. OUT is
    IN with the suffix .dfc if it is not given.
    """
    goals = sum(goal is not None for goal in (timestep, bpp, psnr))
    if goals > 1:
        raise click.UsageError("--timestep, --bpp and --psnr exclude each other")
    if previews and not (goals or progressive):
        raise click.UsageError("--previews needs --progressive, --timestep, --bpp or --psnr")
    if draws > 1 and (goals or progressive):
        raise click.UsageError("--draws is for files without loss and previews")
    jobs = _outputs(paths, output, output_dir, ".dfc")
    for _, target in jobs:
        if target.lower().endswith(IMAGE_SUFFIXES):
            raise click.UsageError(
                f"{target}: an image as output; for several inputs, --output-dir"
            )
        if target == STANDARD and as_json:
            raise click.UsageError("--json needs standard output for itself; give an output file")
    if processes > 1 and arithmetic == "float":
        raise click.UsageError(
            "--jobs changes the number of threads, which files of float arithmetic depend on"
        )
    name = model or DEFAULT_MODEL
    with _failing_as(name):
        from diffcodec.models import load_model

        load_model(name, arithmetic)

    def show(result: dict[str, Any]) -> None:
        if as_json:
            _print(json.dumps(result))
        elif result["output"] != STANDARD:
            rate = "{bits_per_dimension:.3f} bits per dimension"
            if result["timestep"]:
                rate = "{bits_per_pixel:.3f} bits per pixel, timestep {timestep}"
            text = f"{{input}} -> {{output}}: {{bytes_in}} -> {{bytes_out}} bytes, {rate}, "
            text += "{seconds:.1f} s"
            click.echo(text.format(**result), err=True)

    work = partial(
        _encode_file,
        model=name,
        arithmetic=arithmetic,
        effort=effort,
        limits=_limits(max_pixels, max_memory),
        force=force,
        progress=not quiet and processes == 1,
        timestep=timestep,
        bpp=bpp,
        psnr=psnr,
        progressive=progressive,
        previews=previews,
        draws=draws,
    )
    _for_each(
        *(jobs, _unless_skipped(work, skip_existing, force), as_json),
        show=None if quiet and not as_json else show,
        processes=processes,
    )


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
    from diffcodec import codec
    from diffcodec.models import load_model

    check_output(target, source, force)
    start = time.perf_counter()
    data = read_file(source)
    image = _read_image(source, data, limits)
    loaded = load_model(model, arithmetic)
    coded = codec.encode(image, loaded, effort, progress, limits=limits, **options)
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


@cli.command(short_help="Decode files to images.")
@click.argument("paths", nargs=-1, required=True, metavar="IN [OUT]")
@_output
@_output_dir
@click.option(
    "--timestep",
    type=click.IntRange(min=0),
    help="0: the exact image. t: its posterior mean given z_t, the coarser the larger t.  "
    "[default: the finest]",
)
@click.option(
    "--allow-partial",
    is_flag=True,
    help="Of a file with previews that is cut or damaged show the last that is whole.",
)
@click.option(
    "--recover",
    is_flag=True,
    help="Of a file that is damaged or cut write the tiles that are whole, and say which are not.",
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
    help="At a timestep above 0: the posterior mean, or its continuation by the probability-flow "
    "ODE or by ancestral sampling, which look sharper and are farther from the image.",
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**24 - 1),
    default=0,
    show_default=True,
    help="Of --reconstruct sample.",
)
@_model_option("The model file it was encoded with, if that is not a shipped one.")
@_max_pixels
@_max_memory
@_skip_existing
@_processes
@_force
@_quiet
def decode(
    *,
    paths: tuple[str, ...],
    output: str | None,
    output_dir: str | None,
    timestep: int | None,
    allow_partial: bool,
    recover: bool,
    max_bytes: int | None,
    reconstruct: str,
    seed: int,
    model: str | None,
    max_pixels: int,
    max_memory: int,
    skip_existing: bool,
    processes: int,
    force: bool,
    quiet: bool,
) -> None:
    """Decode a file to an image: decode IN [OUT], or decode --output-dir DIR IN...

    OUT is IN with the suffix .png if it is not given. The suffix of OUT chooses the format among
    those that keep pixels exactly; to standard output it is PNG.
    """
    if recover and (allow_partial or timestep is not None or reconstruct != "mean"):
        raise click.UsageError(
            "--recover takes whatever is whole; leave out --allow-partial, --timestep and "
            "--reconstruct"
        )
    jobs = _outputs(paths, output, output_dir, ".png")

    work = partial(
        _decode_file,
        timestep=timestep,
        model=model,
        recover=recover,
        max_bytes=max_bytes,
        force=force,
        progress=not quiet and processes == 1,
        limits=_limits(max_pixels, max_memory),
        allow_partial=allow_partial or max_bytes is not None,
        reconstruct=reconstruct,
        seed=seed,
    )
    _load_given(model)
    _for_each(
        *(jobs, _unless_skipped(work, skip_existing, force)),
        show=None if quiet else partial(click.echo, err=True),
        processes=processes,
    )


def _decode_file(
    source: str,
    target: str,
    *,
    timestep: int | None,
    model: str | None,
    recover: bool,
    max_bytes: int | None,
    force: bool,
    progress: bool,
    **options: Any,
) -> str | None:
    """Decode one file; returns what there is to say of it."""
    from diffcodec.images import write_image

    image_format = _image_format(target)
    check_output(target, source, force)
    start = time.perf_counter()
    data = read_file(source, -1 if max_bytes is None else max_bytes)
    damage: Sequence[Damage] = ()
    if recover:
        found = 0
        image, damage = _recover(data, model, progress, options["limits"])
    else:
        found, image = _decode(data, timestep, model, progress, **options)
    stream = io.BytesIO()
    write_image(image, stream, image_format)
    write_file(target, stream.getvalue(), force)
    if damage:
        raise CorruptError(_describe_damage(damage))
    if target == STANDARD:
        return None
    seconds = time.perf_counter() - start
    what = f"{image.width} x {image.height} {image.mode}, {seconds:.1f} s"
    return f"{source} -> {target}: " + (f"timestep {found}, {what}" if found else what)


def _outputs(
    paths: Sequence[str], output: str | None, output_dir: str | None, suffix: str
) -> list[tuple[str, str]]:
    """Inputs with their outputs."""
    if output_dir is not None:
        if output is not None:
            raise click.UsageError("--output and --output-dir exclude each other")
        if STANDARD in paths:
            raise click.UsageError("standard input has no name to be used in --output-dir")
        jobs = [(path, str(Path(output_dir) / (Path(path).stem + suffix))) for path in paths]
        for target, count in Counter(target for _, target in jobs).items():
            if count > 1:
                raise click.UsageError(f"{count} inputs have the same output {target}")
        return jobs
    if output is None and len(paths) == 2:
        return [(paths[0], paths[1])]
    if len(paths) > 1:
        raise click.UsageError("one input and one output; for several inputs, --output-dir")
    source = Path(paths[0])
    default = STANDARD if paths[0] == STANDARD else str(source.parent / (source.stem + suffix))
    return [(paths[0], output or default)]


def _unless_skipped(
    work: Callable[..., Any], skip_existing: bool, force: bool
) -> Callable[..., Any]:
    if skip_existing and force:
        raise click.UsageError("--skip-existing and --force exclude each other")
    return partial(_skip_existing_output, work) if skip_existing else work


def _skip_existing_output(work: Callable[..., Any], source: str, target: str) -> Any:
    """Work, unless its output exists; as outputs are written whole, that was done before."""
    try:
        return work(source, target)
    except FileExistsError:
        return SKIPPED


def _limits(max_pixels: int, max_memory: int = DEFAULT_LIMITS.memory_bytes >> 20) -> Limits:
    return replace(DEFAULT_LIMITS, pixels=max_pixels, memory_bytes=max_memory << 20)


def _read_image(source: str, data: bytes, limits: Limits) -> "Image":
    from diffcodec.images import read_image

    if data[: len(MAGIC)] == MAGIC:
        raise _CommandError("it is coded already; give an image, or use decode")
    stream = io.BytesIO(data)
    stream.name = source
    try:
        return read_image(stream, limits)
    except FormatError as e:  # exit code 3 is for our own files
        raise _CommandError(str(e)) from e


def _decode(
    data: bytes, timestep: int | None, model: str | None, progress: bool, **options: Any
) -> "tuple[int, Image]":
    from diffcodec import codec

    with _reading(data):
        return codec.decode_finest(data, timestep, model, progress, **options)


def _recover(
    data: bytes, model: str | None, progress: bool, limits: Limits
) -> "tuple[Image, Sequence[Damage]]":
    from diffcodec.recovery import recover

    with _reading(data):
        return recover(data, model, progress, limits=limits)


def _describe_damage(damage: Sequence[Damage]) -> str:
    def describe(part: Damage) -> str:
        place = ""
        if part.box is not None:
            place = " ({width} x {height} pixels at {left}, {top})".format(**part.box._asdict())
        return f"{part.part}{place}: {part.reason}"

    tiles = len({part.tile for part in damage} - {None})
    lost = f"{tiles} tile{'' if tiles == 1 else 's'}"
    return f"damaged; written but for {lost}. " + ". ".join(map(describe, damage))


def _image_format(target: str) -> str:
    from diffcodec.images import save_format

    if target == STANDARD:
        return "PNG"
    try:
        return save_format(target)
    except UnsupportedError as e:
        raise _CommandError(str(e), path=target) from e


def _load_given(model: str | None) -> None:
    """Let a wrong --model fail once, by its own name; what is loaded stays loaded."""
    if model is not None:
        from diffcodec.models import load_model

        with _failing_as(model):
            load_model(model, read_model_info(model_path(model))[0].arithmetic)


# --- info, verify, models -------------------------------------------------------------------------


@cli.command(short_help="Show what files hold.")
@_paths
@_model_option("The model file they were encoded with, if that is not a shipped one.")
@click.option(
    "--measure", is_flag=True, help="Code files anew that do not say what a timestep takes."
)
@_max_pixels
@_json
def info(
    paths: tuple[str, ...], model: str | None, measure: bool, max_pixels: int, as_json: bool
) -> None:
    """Show the header of files, and the bits that each timestep takes.

    Small files do not store the latter: --measure codes them again, if their model is at hand.
    """
    with _failing_as(model or ""):
        given = read_model_info(model_path(model))[0] if model else None

    def work(path: str) -> None:
        data = read_file(path)
        container = _parse(data, _limits(max_pixels))
        if measure:
            container = _measured(data, container, model)
        described = describe(data, container, given or _shipped_model(container))
        text = json.dumps({"input": path} | described)
        _print(text if as_json else f"{path}\n{format_description(described)}")

    _for_each([(path,) for path in paths], work, as_json)


def _measured(data: bytes, container: Container, model: str | None) -> Container:
    from diffcodec.codec import measure_marks

    try:
        return measure_marks(data, model)
    except DiffcodecError:  # whether it decodes is for verify to say
        return container


def _shipped_model(container: Container) -> ModelInfo | None:
    try:
        return read_model_info(find_model_path(container.model))[0]
    except ModelMismatchError:
        return None


@cli.command(short_help="Check that files decode.")
@_paths
@_model_option("The model file they were encoded with, if that is not a shipped one.")
@click.option(
    "--structure",
    is_flag=True,
    help="Check the structure and all checksums but that of the pixels, without decoding.",
)
@_max_pixels
@_max_memory
def verify(
    paths: tuple[str, ...], model: str | None, structure: bool, max_pixels: int, max_memory: int
) -> None:
    """Decode files in full and check their pixels against their checksums."""
    limits = _limits(max_pixels, max_memory)

    def work(path: str) -> None:
        data = read_file(path)
        if structure:
            _parse(data, limits)
        else:
            _decode(data, timestep=None, model=model, progress=True, limits=limits)
        _print(f"{path}: OK")

    _load_given(model)
    _for_each([(path,) for path in paths], work)


@cli.command(short_help="Show the timesteps of files as pages, or contact sheets.")
@click.argument("paths", nargs=-1, required=True, metavar="IN [OUT]")
@_output
@_output_dir
@_model_option("The model file it was encoded with, if that is not a shipped one.")
@_force
@_max_pixels
@_max_memory
@_quiet
def show(
    *,
    paths: tuple[str, ...],
    output: str | None,
    output_dir: str | None,
    model: str | None,
    force: bool,
    max_pixels: int,
    max_memory: int,
    quiet: bool,
) -> None:
    """Show a file at each timestep: show IN [OUT], or show --output-dir DIR IN...

    The picture, the bytes so far, bits per pixel and PSNR. The suffix of OUT chooses: .html, one
    page with a slider that needs nothing else; .png, a contact sheet. OUT is IN with the suffix
    .html if it is not given.
    """
    jobs = _outputs(paths, output, output_dir, ".html")
    limits = _limits(max_pixels, max_memory)
    for _, target in jobs:
        if target != STANDARD and not target.lower().endswith((".html", ".png")):
            raise click.UsageError(
                f"{target}: expected .html for a page, or .png for a contact sheet"
            )

    def work(source: str, target: str) -> str | None:
        check_output(target, source, force)
        data = read_file(source)
        _parse(data, limits)

        from diffcodec.show import contact_sheet, page, previews

        with _reading(data):
            shown = previews(data, model, not quiet, limits)
        if target.lower().endswith(".png"):
            stream = io.BytesIO()
            contact_sheet(shown).save(stream, "PNG")
            written = stream.getvalue()
        else:
            written = page(shown, Path(source).name).encode()
        write_file(target, written, force)
        return None if target == STANDARD else f"{source} -> {target}: {len(shown)} timesteps"

    _load_given(model)
    _for_each(jobs, work, show=None if quiet else partial(click.echo, err=True))


@cli.command(short_help="List the shipped models.")
def models() -> None:
    """List the models that come with the package."""
    paths = shipped_models()
    if not paths:
        click.echo("no models come with this installation; give one by --model", err=True)
    for path in paths:
        with _failing_as(path.stem):
            about, data = read_model_info(path)
            plans = [f"{name} {len(plan.levels)}" for name, plan in about.plans.items()]
            rows = {
                "id": about.id.hex(),
                "arithmetic": about.arithmetic,
                "parameters": count_parameters(data),
                "size": f"{len(data)} bytes",
                "timesteps": ", ".join(plans),
                **about.about,
            }
            title = f"{about.name} (default)" if about.name == DEFAULT_MODEL else about.name
            _print("\n".join([title, *(f"  {key:14} {value}" for key, value in rows.items())]))


def _parse(data: bytes, limits: Limits) -> Container:
    with _reading(data):
        return parse(data, limits)


@contextmanager
def _reading(data: bytes) -> Iterator[None]:
    """What fails now is the file's fault."""
    if data and not MAGIC.startswith(data[: len(MAGIC)]):
        raise _CommandError(
            f"not a diffcodec file (it starts with {data[: len(MAGIC)].hex(' ')}); "
            "give a file that encode has made",
            EXIT_BAD_FILE,
        )
    try:
        yield
    except (UnsupportedFileError, LimitError) as e:
        raise _CommandError(str(e), EXIT_BAD_FILE) from e


# --- train ----------------------------------------------------------------------------------------


class _TrainCommand(click.Command):
    """Its options take their defaults from the dataclasses of a run, which come with torch."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        if not self.params:
            self.params = list(_train_options())
        return super().get_params(ctx)


def _train_options() -> Iterable[click.Parameter]:
    from diffcodec.color import DOMAINS
    from diffcodec.data import AUGMENTATIONS
    from diffcodec.network import PRESETS, NetworkConfig
    from diffcodec.train import DEVICES, LOSSES, TrainConfig

    defaults = {f.name: f.default for kind in (TrainConfig, NetworkConfig) for f in fields(kind)}

    def option(names: str, description: str, **more: Any) -> click.Option:
        declared = names.split()
        name = declared[0].split("/")[0].removeprefix("--").replace("-", "_")
        default = defaults[name]
        if isinstance(default, tuple):
            shown = ",".join(map(str, default)) or None
            more |= {"type": _numbers, "metavar": "N,N,...", "default": shown}
        else:
            more |= {"default": default}
        return click.Option(declared, help=description, show_default=True, **more)

    positive = click.IntRange(min=1)
    return (
        click.Option(
            ["--data"],
            metavar="DIR",
            required=True,
            help="Folder of training images, or a file of them (.npy, .npz).",
        ),
        click.Option(["--out"], metavar="DIR", required=True, help="Folder of the run."),
        option("--steps", "Updates of the weights.", type=positive),
        click.Option(
            ["--minutes"],
            type=click.FloatRange(min=0, min_open=True),
            help="As many steps as take so long here; validation does not count.",
        ),
        option("--batch", "Crops in each update.", type=click.IntRange(min=8)),
        option("--accumulate", "Passes in which a batch is worked on.", type=positive),
        option("--crop", "Sides of a crop in pixels.", type=positive),
        option("--augment", "What is exchanged at random.", type=click.Choice(AUGMENTATIONS)),
        option("--learning-rate", "Peak of the learning rate."),
        option(
            "--loss",
            "Code length, DDPM's L_simple, or Improved DDPM's L_hybrid.",
            type=click.Choice(list(LOSSES)),
        ),
        option(
            "--variance",
            "Of the steps: the network's, or DDPM's beta-tilde (small) or beta (large).",
            type=click.Choice(VARIANCES),
        ),
        option("--seed", "Of weights, crops and noise.", type=click.IntRange(min=0)),
        click.Option(
            ["--preset"],
            type=click.Choice(list(PRESETS)),
            default="default",
            show_default=True,
            help="Shape of the network, where --channels and --blocks are not given.",
        ),
        option("--channels", "Of the network, from its finest resolution down."),
        option("--blocks", "Residual blocks at each resolution, on the way down and up."),
        option("--color", "Colour domain.", type=click.Choice(list(DOMAINS))),
        option(
            "--second-view-up-to",
            "Noise level up to which coding also asks the network for the image mirrored (with "
            "--augment mirror) or turned (with all), and takes the mean; 0 for none.",
            type=click.FloatRange(min=0),
        ),
        option(
            "--detail-up-to",
            "Noise level up to which a second network answers; 0 for none.",
            type=click.FloatRange(min=0),
        ),
        option("--detail-blocks", "Residual blocks of that one, if not as many as of the first."),
        option("--precision", "Of training.", type=click.Choice(["bfloat16", "float32"])),
        option("--compile/--no-compile", "Compile the network first."),
        option("--device", "auto is a GPU if there is one.", type=click.Choice(DEVICES)),
        option("--tensorboard", "Write the log for TensorBoard too.", is_flag=True),
        click.Option(
            ["--labels"],
            metavar="FILE",
            help="Classes of the images in their order, an integer a line: train with labels.",
        ),
        click.Option(
            ["--resume"],
            is_flag=True,
            help="Continue the run in --out; what is not given is as it was.",
        ),
        click.Option(
            ["--init"],
            metavar="MODEL",
            help="Start from a model's weights, in its shape; --blocks may add to it.",
        ),
    )


@cli.command(cls=_TrainCommand, short_help="Train a model on a folder of images.")
@click.pass_context
def train(
    ctx: click.Context,
    /,
    *,
    data: str,
    out: str,
    resume: bool,
    init: str | None,
    minutes: float | None,
    labels: str | None,
    **_: Any,
) -> None:
    """Train a model on a folder of images.

    The run writes OUT/model.safetensors: a model for --model; and OUT/float.safetensors, the same
    before it was quantised.
    """
    from diffcodec.data import read_labels
    from diffcodec.train import CHECKPOINT, CONFIG, Trainer, joined_processes

    if resume and init is not None:
        raise click.UsageError("--resume continues with the run's own weights; leave out --init")
    if minutes is not None and (resume or _is_given(ctx, "steps")):
        raise click.UsageError("--minutes sets the number of steps of a new run; give only one")
    folder = Path(out)
    with _failing_as(out):
        if folder.exists() and not folder.is_dir():
            raise _CommandError("it is not a folder; give another")
        has_checkpoint = (folder / CHECKPOINT).is_file()
        if has_checkpoint and not resume:
            raise _CommandError(
                "it holds a run already; give --resume to continue it, or another folder"
            )
        if resume and not has_checkpoint:
            raise _CommandError("it holds no run to continue; leave out --resume")
        config = _train_config(ctx, folder / CONFIG if resume else None)
    weights = None
    if init is not None:
        network, weights = _initial_network(ctx, init, config.network)
        config = replace(config, network=network)
    if labels is not None and not config.network.classes:
        with _failing_as(labels):
            classes = int(read_labels(Path(labels)).max()) + 1
        config = replace(config, network=replace(config.network, classes=classes))
    _check_shape(config.network, config.crop)
    with _failing_as(data), joined_processes(config.device):
        trainer = Trainer(config, folder, weights)
        with _failing_as(out):
            folder.mkdir(parents=True, exist_ok=True)
            if resume:
                _resume(trainer)
            elif minutes is not None:
                trainer.plan_steps(minutes)
            trainer.run()


def _check_shape(shape: "NetworkConfig", crop: int) -> None:
    for name, blocks in (("blocks", shape.blocks), ("detail-blocks", shape.of_detail().blocks)):
        if len(shape.channels) != len(blocks):
            raise click.UsageError(f"--channels and --{name} need as many numbers as each other")
    if shape.detail_blocks and not shape.detail_up_to:
        raise click.UsageError("--detail-blocks needs --detail-up-to")
    if crop % shape.multiple:
        raise click.UsageError(f"--crop must be a multiple of {shape.multiple} for this network")


def _initial_network(
    ctx: click.Context, init: str, wanted: "NetworkConfig"
) -> tuple["NetworkConfig", dict[str, "Tensor"]]:
    """The weights to start from and the shape to train: theirs, with more blocks if given."""
    from diffcodec.models import load_weights

    with _failing_as(init):
        network, weights = load_weights(init)
    if any(_is_given(ctx, name) for name in ("preset", "channels", "color")):
        raise click.UsageError("--init has a shape; leave out --preset, --channels and --color")
    if _is_given(ctx, "blocks"):
        _check_added("--blocks", wanted.blocks, network.blocks)
        network = replace(network, blocks=wanted.blocks)
    if _is_given(ctx, "detail_up_to"):
        network = replace(network, detail_up_to=wanted.detail_up_to)
    if not network.detail_up_to:
        network = network.of_main()
    if _is_given(ctx, "detail_blocks"):
        _check_added("--detail-blocks", wanted.detail_blocks, network.of_detail().blocks)
        network = replace(network, detail_blocks=wanted.detail_blocks)
    view, up_to = wanted.second_view, wanted.second_view_up_to
    return replace(network, second_view=view, second_view_up_to=up_to), weights


def _check_added(option: str, blocks: tuple[int, ...], has: tuple[int, ...]) -> None:
    if len(blocks) != len(has) or any(a < b for a, b in zip(blocks, has, strict=True)):
        raise click.UsageError(
            f"--init has blocks {','.join(map(str, has))}; {option} may only add to each"
        )


def _is_given(ctx: click.Context, name: str) -> bool:
    return ctx.get_parameter_source(name) == click.core.ParameterSource.COMMANDLINE


def _train_config(ctx: click.Context, saved: Path | None) -> "TrainConfig":
    """The configuration from the options, and from a saved one where an option is not given."""
    from diffcodec.network import PRESETS, NetworkConfig
    from diffcodec.train import INIT_WARMUP, VIEW_OF_AUGMENTATION, TrainConfig

    try:
        run: dict[str, Any] = json.loads(saved.read_text()) if saved else {"network": {}}
        network = run.pop("network")
    except (ValueError, KeyError) as e:
        raise _CommandError(f"its config.json is damaged ({e}); start a new run") from e
    if saved is None and ctx.params["init"] is not None:
        run["warmup"] = INIT_WARMUP
    if saved is None or _is_given(ctx, "preset"):
        network |= PRESETS[ctx.params["preset"]].to_dict()
    for part, kind in ((run, TrainConfig), (network, NetworkConfig)):
        for name in {f.name for f in fields(kind)} & set(ctx.params):
            value = ctx.params[name]
            if _is_given(ctx, name) or (name not in part and value is not None):
                part[name] = value
    if saved is None:
        network["second_view"] = VIEW_OF_AUGMENTATION[run["augment"]]
    return TrainConfig(**run, network=NetworkConfig.from_dict(network))


def _resume(trainer: "Trainer") -> None:
    try:
        trainer.resume()
    except (RuntimeError, LookupError, ValueError, EOFError, UnpicklingError) as e:
        raise _CommandError(
            f"its checkpoint is damaged or of another network ({type(e).__name__}); "
            "give the options that the run was started with"
        ) from e


# --- evaluate -------------------------------------------------------------------------------------


@cli.command(short_help="Measure a model on images: the bound and whole files.")
@click.option("--data", metavar="DIR", required=True, help="Folder of images, or a .npy or .npz.")
@_model_option(f"A shipped model, or a model file.  [default: {DEFAULT_MODEL}]")
@_effort_option("Which of the model's plans.")
@click.option(
    "--timesteps",
    type=click.IntRange(min=2),
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
    "--labels", metavar="FILE", help="Classes of the images, for the bound of a model of classes."
)
@click.option(
    "--picture", metavar="FILE", help="Write a picture (PNG) of the bound by noise level."
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object, image by image.")
@_quiet
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
    picture: str | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Measure a model on images: its variational bound, the bound's parts, and whole files.

    Images of any size, in RGB of 8 bits, or grey. Means over images, in bits per dimension
    (subpixel), with 95 % intervals.
    """
    name = model or DEFAULT_MODEL
    is_float = labels is not None or timesteps is not None
    if is_float or variance != "learned":
        bound_only = True  # files know nothing of these
    if picture is not None:
        with _failing_as(picture):
            check_output(picture, data, force=True)
            if find_spec("matplotlib") is None:
                raise _CommandError("pictures need matplotlib; pip install 'diffcodec[train]'")
    with _failing_as(name):
        from diffcodec import evaluate as work
        from diffcodec.models import load_model

        arithmetic = "float" if is_float else read_model_info(model_path(name))[0].arithmetic
        loaded = load_model(name, arithmetic)
        plan = work.find_plan(loaded, effort, timesteps)
    with _failing_as(data):
        sources, classes = _evaluation_images(data, labels, loaded, held_out)
        results = list(
            work.evaluate(
                *(loaded, sources[:limit], plan),
                effort=None if bound_only else effort,
                variance=variance,
                labels=classes,
                progress=not quiet,
            )
        )
    settings = {"model": name, "id": loaded.info.id.hex(), "arithmetic": arithmetic}
    settings |= {"effort": "" if timesteps else effort, "variance": variance}
    summary: dict[str, Any] = settings | work.summarise(results, plan)
    if picture is not None:
        with _failing_as(picture):
            work.draw_split([part["bpd"] for part in summary["parts"]], plan.levels, Path(picture))
    if as_json:
        _print(json.dumps(summary | {"results": [result.to_dict() for result in results]}))
    else:
        _print(work.format_summary(summary))


def _evaluation_images(
    data: str, labels: str | None, model: "Model", held_out: bool
) -> "tuple[list[Source], list[int] | None]":
    """Images and their classes, if those are given."""
    from diffcodec.data import check_labels, find_images, hold_out, list_images, read_labels

    sources = list_images(find_images(Path(data)))
    classes: list[int] | None = None
    if labels is not None:
        read = read_labels(Path(labels))
        check_labels(read, sources, model.network.config.classes)
        classes = read.tolist()
    if held_out:
        sources = hold_out(sources)[1]
        classes = classes and hold_out(classes)[1]
    return sources, classes


# --- plan -----------------------------------------------------------------------------------------


@cli.command("plan", short_help="Find the noise levels that suit a model and your images.")
@click.option("--data", metavar="DIR", required=True, help="Folder of images, or a .npy or .npz.")
@_model_option(f"A shipped model, or a model file.  [default: {DEFAULT_MODEL}]")
@click.option("--out", metavar="FILE", help="Write the model with the plans found.")
@click.option(
    "--timesteps",
    type=_numbers,
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
@click.option(
    "--crop",
    metavar="N",
    type=click.IntRange(min=1),
    help="Their sides.  [default: as in training]",
)
@_force
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object, plans and all.")
@_quiet
def find_plans(
    *,
    data: str,
    model: str | None,
    out: str | None,
    timesteps: tuple[int, ...] | None,
    crops: int,
    crop: int | None,
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
    if timesteps is not None and len(timesteps) != len(CHAIN_CODERS):
        raise click.UsageError(f"--timesteps takes {len(CHAIN_CODERS)} numbers: N,N,N")
    name = model or DEFAULT_MODEL
    with _failing_as(name):
        path = model_path(name)
        info = read_model_info(path)[0]
        if out is not None:
            check_output(out, str(path), force)

        from diffcodec import planning
        from diffcodec.models import load_model
        from diffcodec.train import calibration_images

        loaded = load_model(path, "float")
    most = len(planning.grid_levels()) + 1
    if timesteps is not None and not 3 <= min(timesteps) <= max(timesteps) <= most:
        raise click.UsageError(f"--timesteps must be from 3 to {most}")
    side = _calibration_side(crop, info, loaded)
    with _failing_as(data):
        x, held_out = planning.search_crops(data, side, crops, loaded.color)
        proposals = planning.propose_plans(loaded, x, held_out, timesteps, not quiet)
    if as_json:
        described = {effort: proposal.to_dict() for effort, proposal in proposals.items()}
        settings = {"model": name, "id": info.id.hex(), "crops": crops, "crop": side}
        _print(json.dumps(settings | {"plans": described}))
    elif out != STANDARD:
        _print(planning.format_proposals(proposals))
    if out is None:
        return
    plans = {effort: proposal.plan for effort, proposal in proposals.items()}
    with _failing_as(data):
        calibration = calibration_images(data, side, loaded.color)
    with _failing_as(name):
        written = planning.replace_plans(loaded, plans, calibration)
    with _failing_as(out):
        write_file(out, written, force)
    if out != STANDARD and not quiet:
        click.echo(f"{name} -> {out}: {len(written)} bytes", err=True)


def _calibration_side(crop: int | None, info: ModelInfo, model: "Model") -> int:
    """Of crops: as given, or as in training."""
    side, multiple = crop or info.about.get("crop"), model.network.config.multiple
    if not isinstance(side, int) or side < 1 or side % multiple:
        raise click.UsageError(f"give --crop, a multiple of {multiple} for this network")
    return side


# --- quantize -------------------------------------------------------------------------------------

QUANTIZED = ".integer.safetensors"


@cli.command(short_help="Make an integer model of a float one.")
@click.argument("source", metavar="FLOAT_MODEL")
@click.argument("output", metavar="[OUT]", required=False)
@click.option("--data", metavar="DIR", required=True, help="Folder of the training images.")
@click.option(
    "--crop",
    metavar="N",
    type=click.IntRange(min=1),
    help="Sides of the crops that show the range of its activations.  [default: as in training]",
)
@_force
def quantize(*, source: str, output: str | None, data: str, crop: int | None, force: bool) -> None:
    """Make an integer model of a float one, by images like those that it was trained on.

    OUT is FLOAT_MODEL with the suffix .integer.safetensors if it is not given.
    """
    with _failing_as(source):
        path = model_path(source)
        target = output or str(Path(source).with_suffix(QUANTIZED))
        info = read_model_info(path)[0]
        if info.arithmetic != "float":
            raise ModelMismatchError(
                "it is an integer model already; give a float one, such as the float.safetensors "
                "of a training run"
            )
        check_output(target, str(path), force)

        from diffcodec.models import load_model, quantize_model
        from diffcodec.train import calibration_images

        model = load_model(path, "float")
    side = _calibration_side(crop, info, model)
    with _failing_as(data):
        calibration = calibration_images(data, side, model.color)
    with _failing_as(source):
        quantized = quantize_model(model, calibration)
    with _failing_as(target):
        write_file(target, quantized, force)
    if target != STANDARD:
        click.echo(f"{source} -> {target}: {len(quantized)} bytes", err=True)


# --- doctor ---------------------------------------------------------------------------------------


@cli.command(short_help="Check that this machine computes what others compute.")
@click.argument("names", nargs=-1, metavar="[MODEL]...")
@_json
def doctor(names: tuple[str, ...], as_json: bool) -> None:
    """Check that this machine computes what others compute, for the shipped models or those given.

    Files decode wherever the known answers come out: those of the parts that all models share,
    and of each model's network and chain. Exits with 1 where one does not.
    """
    from diffcodec.doctor import (
        SHARED_ANSWERS,
        differing,
        environment,
        model_answers,
        shared_answers,
    )
    from diffcodec.models import load_model

    wrong_parts = differing(shared_answers(), SHARED_ANSWERS)
    results: dict[str, Any] = {"environment": environment(), "shared": wrong_parts, "models": {}}
    if not as_json:
        rows = results["environment"] | {"shared parts": _verdict(SHARED_ANSWERS, wrong_parts)}
        _print("\n".join(f"{key:14} {value}" for key, value in rows.items()))

    def work(name: str) -> None:
        model = load_model(name)
        expected = model.info.answers
        if not expected:
            raise ModelMismatchError("its file has no known answers; export it again")
        wrong = differing(model_answers(model), expected)
        results["models"][name] = wrong
        if not as_json:
            _print(f"{model.info.name:14} {_verdict(expected, wrong)}")

    _for_each([(name,) for name in names or [path.stem for path in shipped_models()]], work)
    exchanges = not wrong_parts and not any(results["models"].values())
    if as_json:
        _print(json.dumps(results | {"exchanges_files": exchanges}))
    elif exchanges:
        _print("this machine can exchange files with every other that says so")
    else:
        _print("THIS MACHINE CANNOT EXCHANGE FILES: it computes other probabilities")
    if not exchanges:
        sys.exit(EXIT_FAILURE)


def _verdict(expected: Iterable[str], wrong: Sequence[str]) -> str:
    return ", ".join(f"{name} {'DIFFERS' if name in wrong else 'ok'}" for name in expected)


# --- failures -------------------------------------------------------------------------------------


def _for_each(
    jobs: Sequence[tuple[str, ...]],
    work: Callable[..., Any],
    as_json: bool = False,
    show: Callable[[Any], None] | None = None,
    processes: int = 1,
) -> None:
    """Work on each input, the first of a job; one that fails does not stop the rest.

    Exits with the code of the failures if they agree in it, else with 1.
    """
    failed: list[tuple[str, int]] = []
    skipped = 0
    for job, outcome in _outcomes(jobs, work, processes):
        if isinstance(outcome, Exception):
            failed.append((job[0], _report_failed(job, outcome, as_json)))
        elif outcome == SKIPPED:
            skipped += 1
            if as_json:
                _print(json.dumps({"input": job[0], "output": job[1], "skipped": True}))
        elif show is not None and outcome is not None:
            show(outcome)
    if skipped and show is not None:
        click.echo(f"diffcodec: {skipped} of {len(jobs)} outputs exist: skipped", err=True)
    if failed and len(jobs) > 1:
        names = ", ".join(name for name, _ in failed)
        click.echo(f"diffcodec: {len(failed)} of {len(jobs)} inputs failed: {names}", err=True)
    codes = {code for _, code in failed}
    if codes:
        sys.exit(codes.pop() if len(codes) == 1 else EXIT_FAILURE)


def _outcomes(
    jobs: Sequence[tuple[str, ...]], work: Callable[..., Any], processes: int
) -> Iterator[tuple[tuple[str, ...], Any | Exception]]:
    """Each job with what work makes of it or the exception that it raises."""
    if min(processes, len(jobs)) > 1:
        from diffcodec.workers import run_in_workers

        yield from run_in_workers(work, jobs, processes)
        return
    for job in jobs:
        try:
            outcome = work(*job)
        except Exception as e:
            outcome = e
        yield job, outcome


def _report_failed(job: tuple[str, ...], error: Exception, as_json: bool) -> int:
    """Report the failure of a job, or raise what is none of its input."""
    if isinstance(error, BrokenPipeError) or not isinstance(error, FAILURES):
        raise error
    if isinstance(error, WorkerDiedError):
        remove_temporaries(job[-1], error.process)
    return _report(job[0], error, as_json)


@contextmanager
def _failing_as(name: str) -> Iterator[None]:
    """Exit with one line on a failure that concerns the whole command."""
    try:
        yield
    except BrokenPipeError:
        raise
    except FAILURES as e:
        sys.exit(_report(name, e))


def _report(name: str, error: Exception, as_json: bool = False) -> int:
    """Print the one line of a failure, and give its exit code."""
    path, message, code = name, str(error) or "not enough memory", EXIT_FAILURE
    if isinstance(error, _CommandError):
        path, code = error.path or name, error.exit_code
    elif isinstance(error, ModelMismatchError):
        code = EXIT_WRONG_MODEL
    elif isinstance(error, FormatError):
        code = EXIT_BAD_FILE
    elif isinstance(error, OSError) and error.strerror:
        path, advice = error.filename or name, ADVICE.get(error.errno or 0)
        message = error.strerror + (f"; {advice}" if advice else "")
    message = " ".join(message.removeprefix(f"{path}: ").split())
    click.echo(f"diffcodec: {path}: {message}", err=True)
    if as_json:
        _print(json.dumps({"input": name, "error": message, "exit_code": code}))
    return code


def _print(text: str) -> None:
    write_standard_output(f"{text}\n".encode())
