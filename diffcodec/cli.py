"""The command line, with the conventions of zstd and cjxl.

What loads torch is imported where it is used: ``--help``, ``models`` and, for files that carry step
marks, ``info`` do without.
"""

import errno
import io
import json
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from pickle import UnpicklingError
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

import click

from diffcodec import __version__
from diffcodec.container import CHAIN_CODERS, MAGIC, Container, FileReader, parse
from diffcodec.errors import (
    DiffcodecError,
    FormatError,
    LimitError,
    ModelMismatchError,
    UnsupportedError,
)
from diffcodec.files import STANDARD, check_output, read_file, write_file, write_standard_output
from diffcodec.info import describe, dimensions, format_description, tiles_by_coder
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

    from diffcodec.train import TrainConfig, Trainer

EXIT_FAILURE, EXIT_BAD_FILE, EXIT_WRONG_MODEL = 1, 3, 4  # click exits with 2 on wrong usage

IMAGE_SUFFIXES = (
    *(".bmp", ".gif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".qoi"),
    *(".tif", ".tiff", ".webp"),
)
RECONSTRUCTIONS = ("mean", "flow", "sample")  # as in descent.py, which loads numerics
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


def main() -> None:
    """The command ``diffcodec``."""
    signal.signal(signal.SIGTERM, _terminate)
    cli(prog_name="diffcodec")


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    """Leave by an exception, so that no temporary file stays behind."""
    signal.signal(number, signal.SIG_IGN)
    sys.exit(128 + number)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="diffcodec")
def cli() -> None:
    """The image codec built on diffusion.

    A path of "-" is standard input or output. Exit codes: 0 done; 1 failed; 2 wrong usage; 3 a
    file of ours that is damaged or not supported; 4 not the model that the file needs.
    """


def _model_option(description: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    return click.option("--model", metavar="NAME_OR_PATH", help=description)


_paths = click.argument("paths", nargs=-1, required=True, metavar="PATH...")
_output = click.option("-o", "--output", metavar="OUT", help="Where to write the one output.")
_output_dir = click.option(
    "--output-dir", metavar="DIR", help="Every PATH is an input; write their outputs here."
)
_force = click.option("-f", "--force", is_flag=True, help="Overwrite files that exist.")
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
@click.option(
    "--effort",
    type=click.Choice(CHAIN_CODERS),
    default="default",
    show_default=True,
    help="How many evaluations of the network to spend, in encoding and decoding.",
)
@click.option(
    "--timestep",
    type=click.IntRange(min=1),
    help="Stop at this timestep: a lossy file, smaller the larger it is.",
)
@click.option("--bpp", type=float, metavar="R", help="A lossy file of at most R bits per pixel.")
@click.option("--psnr", type=float, metavar="DB", help="A lossy file of at least so many dB.")
@click.option(
    "--progressive",
    is_flag=True,
    help="Previews first, down to --timestep, then the exact image; the file may be cut anywhere.",
)
@click.option(
    "--previews",
    type=_numbers,
    metavar="T,T,...",
    help="The timesteps at which a lossy or progressive file may be cut.  [default: all that are "
    "worth it]",
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
    model: str | None,
    arithmetic: str,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Code an image: encode IN [OUT], or encode --output-dir DIR IN...

    Without loss, unless --timestep, --bpp or --psnr says otherwise. OUT is IN with the suffix .dfc
    if it is not given.
    """
    goals = sum(goal is not None for goal in (timestep, bpp, psnr))
    if goals > 1 or (progressive and (bpp, psnr) != (None, None)):
        raise click.UsageError(
            "--timestep, --bpp and --psnr exclude each other, and the last two --progressive"
        )
    if previews and not (goals or progressive):
        raise click.UsageError("--previews needs --progressive, --timestep, --bpp or --psnr")
    jobs = _outputs(paths, output, output_dir, ".dfc")
    for _, target in jobs:
        if target.lower().endswith(IMAGE_SUFFIXES):
            raise click.UsageError(
                f"{target}: an image as output; for several inputs, --output-dir"
            )
        if target == STANDARD and as_json:
            raise click.UsageError("--json needs standard output for itself; give an output file")
    name = model or DEFAULT_MODEL
    with _failing_as(name):
        from diffcodec.models import load_model

        loaded = load_model(name, arithmetic)

    def work(source: str, target: str) -> None:
        from diffcodec import codec

        check_output(target, source, force)
        start = time.perf_counter()
        data = read_file(source)
        image = _read_image(source, data)
        coded = codec.encode(
            *(image, loaded, effort, not quiet),
            timestep=timestep,
            bpp=bpp,
            psnr=psnr,
            progressive=progressive,
            previews=previews,
        )
        write_file(target, coded, force)
        container = parse(coded)
        result = {
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
        if as_json:
            _print(json.dumps(result))
        elif not quiet and target != STANDARD:
            rate = "{bits_per_dimension:.3f} bits per dimension"
            if result["timestep"]:
                rate = "{bits_per_pixel:.3f} bits per pixel, timestep {timestep}"
            text = f"{{input}} -> {{output}}: {{bytes_in}} -> {{bytes_out}} bytes, {rate}, "
            text += "{seconds:.1f} s"
            click.echo(text.format(**result), err=True)

    _for_each(jobs, work, as_json)


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
@_force
@_quiet
def decode(
    *,
    paths: tuple[str, ...],
    output: str | None,
    output_dir: str | None,
    timestep: int | None,
    allow_partial: bool,
    max_bytes: int | None,
    reconstruct: str,
    seed: int,
    model: str | None,
    force: bool,
    quiet: bool,
) -> None:
    """Decode a file to an image: decode IN [OUT], or decode --output-dir DIR IN...

    OUT is IN with the suffix .png if it is not given. The suffix of OUT chooses the format among
    those that keep pixels exactly; to standard output it is PNG.
    """
    jobs = _outputs(paths, output, output_dir, ".png")

    def work(source: str, target: str) -> None:
        from diffcodec.images import write_image

        image_format = _image_format(target)
        check_output(target, source, force)
        start = time.perf_counter()
        data = read_file(source, -1 if max_bytes is None else max_bytes)
        found, image = _decode(
            *(data, timestep, model, not quiet),
            allow_partial=allow_partial or max_bytes is not None,
            reconstruct=reconstruct,
            seed=seed,
        )
        stream = io.BytesIO()
        write_image(image, stream, image_format)
        write_file(target, stream.getvalue(), force)
        if not quiet and target != STANDARD:
            seconds = time.perf_counter() - start
            what = f"{image.width} x {image.height} {image.mode}, {seconds:.1f} s"
            if found:
                what = f"timestep {found}, {what}"
            click.echo(f"{source} -> {target}: {what}", err=True)

    _load_given(model)
    _for_each(jobs, work)


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


def _read_image(source: str, data: bytes) -> "Image":
    from diffcodec.images import read_image

    if data[: len(MAGIC)] == MAGIC:
        raise _CommandError("it is coded already; give an image, or use decode")
    stream = io.BytesIO(data)
    stream.name = source
    try:
        return read_image(stream)
    except FormatError as e:  # exit code 3 is for our own files
        raise _CommandError(str(e)) from e


def _decode(
    data: bytes, timestep: int | None, model: str | None, progress: bool, **options: Any
) -> "tuple[int, Image]":
    from diffcodec import codec

    # An UnsupportedError of the file itself; the codec's own is about the timestep.
    _read(data, lambda data: FileReader(data).container)
    try:
        return codec.decode_finest(data, timestep, model, progress, **options)
    except LimitError as e:
        raise _CommandError(str(e), EXIT_BAD_FILE) from e


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
@_json
def info(paths: tuple[str, ...], model: str | None, as_json: bool) -> None:
    """Show the header of files, and the bits that each timestep takes.

    Small files do not store the latter: they are coded again, if their model is at hand.
    """
    with _failing_as(model or ""):
        given = read_model_info(model_path(model))[0] if model else None

    def work(path: str) -> None:
        data = read_file(path)
        container = _parse(data)
        described = describe(data, container, given or _shipped_model(container), model)
        text = json.dumps({"input": path} | described)
        _print(text if as_json else f"{path}\n{format_description(described)}")

    _for_each([(path,) for path in paths], work, as_json)


def _shipped_model(container: Container) -> ModelInfo | None:
    try:
        return read_model_info(find_model_path(container.model))[0]
    except ModelMismatchError:
        return None


@cli.command(short_help="Check that files decode.")
@_paths
@_model_option("The model file they were encoded with, if that is not a shipped one.")
def verify(paths: tuple[str, ...], model: str | None) -> None:
    """Decode files in full and check their pixels against their checksums."""

    def work(path: str) -> None:
        _decode(read_file(path), timestep=None, model=model, progress=True)
        _print(f"{path}: OK")

    _load_given(model)
    _for_each([(path,) for path in paths], work)


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


def _parse(data: bytes) -> Container:
    return _read(data, parse)


def _read(data: bytes, read: Callable[[bytes], Container]) -> Container:
    if data and not MAGIC.startswith(data[: len(MAGIC)]):
        raise _CommandError(
            f"not a diffcodec file (it starts with {data[: len(MAGIC)].hex(' ')}); "
            "give a file that encode has made",
            EXIT_BAD_FILE,
        )
    try:
        return read(data)
    except (UnsupportedError, LimitError) as e:
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
    from diffcodec.network import NetworkConfig
    from diffcodec.data import AUGMENTATIONS
    from diffcodec.train import LOSSES, TrainConfig

    defaults = {f.name: f.default for kind in (TrainConfig, NetworkConfig) for f in fields(kind)}

    def option(names: str, description: str, **more: Any) -> click.Option:
        declared = names.split()
        name = declared[0].split("/")[0].removeprefix("--").replace("-", "_")
        default = defaults[name]
        if isinstance(default, tuple):
            more |= {"type": _numbers, "metavar": "N,N,...", "default": ",".join(map(str, default))}
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
        option("--batch", "Crops in each update.", type=click.IntRange(min=8)),
        option("--crop", "Sides of a crop in pixels.", type=positive),
        option("--augment", "What is exchanged at random.", type=click.Choice(AUGMENTATIONS)),
        option("--learning-rate", "Peak of the learning rate."),
        option("--loss", "Code length, or DDPM's L_simple.", type=click.Choice(list(LOSSES))),
        option("--seed", "Of weights, crops and noise.", type=click.IntRange(min=0)),
        option("--channels", "Of the network, from its finest resolution down."),
        option("--blocks", "Residual blocks at each resolution, on the way down and up."),
        option("--color", "Colour domain.", type=click.Choice(list(DOMAINS))),
        option("--precision", "Of training.", type=click.Choice(["bfloat16", "float32"])),
        option("--compile/--no-compile", "Compile the network first."),
        click.Option(
            ["--resume"],
            is_flag=True,
            help="Continue the run in --out; what is not given is as it was.",
        ),
        click.Option(
            ["--init"], metavar="MODEL", help="Start from a model's weights, in its shape."
        ),
    )


@cli.command(cls=_TrainCommand, short_help="Train a model on a folder of images.")
@click.pass_context
def train(
    ctx: click.Context, /, *, data: str, out: str, resume: bool, init: str | None, **_: Any
) -> None:
    """Train a model on a folder of images.

    The run writes OUT/model.safetensors: a model for --model; and OUT/float.safetensors, the same
    before it was quantised.
    """
    from diffcodec.train import CHECKPOINT, CONFIG, Trainer

    if resume and init is not None:
        raise click.UsageError("--resume continues with the run's own weights; leave out --init")
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
        from diffcodec.models import load_weights

        with _failing_as(init):
            network, weights = load_weights(init)
            config = replace(config, network=network)
    shape = config.network
    if len(shape.channels) != len(shape.blocks):
        raise click.UsageError("--channels and --blocks need as many numbers as each other")
    if config.crop % shape.multiple:
        raise click.UsageError(f"--crop must be a multiple of {shape.multiple} for this network")
    with _failing_as(data):
        trainer = Trainer(config, folder, weights)
    with _failing_as(out):
        folder.mkdir(parents=True, exist_ok=True)
        if resume:
            _resume(trainer)
        trainer.run()


def _train_config(ctx: click.Context, saved: Path | None) -> "TrainConfig":
    """The configuration from the options, and from a saved one where an option is not given."""
    from diffcodec.network import NetworkConfig
    from diffcodec.train import TrainConfig

    try:
        run: dict[str, Any] = json.loads(saved.read_text()) if saved else {"network": {}}
        network = run.pop("network")
    except (ValueError, KeyError) as e:
        raise _CommandError(f"its config.json is damaged ({e}); start a new run") from e
    for part, kind in ((run, TrainConfig), (network, NetworkConfig)):
        for name in {f.name for f in fields(kind)} & set(ctx.params):
            given = ctx.get_parameter_source(name) == click.core.ParameterSource.COMMANDLINE
            if given or name not in part:
                part[name] = ctx.params[name]
    return TrainConfig(**run, network=NetworkConfig.from_dict(network))


def _resume(trainer: "Trainer") -> None:
    try:
        trainer.resume()
    except (RuntimeError, LookupError, ValueError, EOFError, UnpicklingError) as e:
        raise _CommandError(
            f"its checkpoint is damaged or of another network ({type(e).__name__}); "
            "give the options that the run was started with"
        ) from e


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
    side, multiple = crop or info.about.get("crop"), model.network.config.multiple
    if not isinstance(side, int) or side < 1 or side % multiple:
        raise click.UsageError(f"give --crop, a multiple of {multiple} for this network")
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
    jobs: Sequence[tuple[str, ...]], work: Callable[..., None], as_json: bool = False
) -> None:
    """Work on each input, the first of a job; one that fails does not stop the rest.

    Exits with the code of the failures if they agree in it, else with 1.
    """
    failed: list[tuple[str, int]] = []
    for job in jobs:
        try:
            work(*job)
        except BrokenPipeError:
            raise
        except (DiffcodecError, OSError, MemoryError, _CommandError) as e:
            failed.append((job[0], _report(job[0], e, as_json)))
    if failed and len(jobs) > 1:
        names = ", ".join(name for name, _ in failed)
        click.echo(f"diffcodec: {len(failed)} of {len(jobs)} inputs failed: {names}", err=True)
    codes = {code for _, code in failed}
    if codes:
        sys.exit(codes.pop() if len(codes) == 1 else EXIT_FAILURE)


@contextmanager
def _failing_as(name: str) -> Iterator[None]:
    """Exit with one line on a failure that concerns the whole command."""
    try:
        yield
    except BrokenPipeError:
        raise
    except (DiffcodecError, OSError, MemoryError, _CommandError) as e:
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
