"""The command encode."""

import io
import json
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from diffcodec.cli.options import (
    POSITIVE_NUMBER,
    SUFFIX,
    Finite,
    device_option,
    effort_option,
    file_options,
    json_option,
    limit_options,
    many_files_options,
    parse_numbers,
    used_model_option,
)
from diffcodec.cli.program import cli, examples
from diffcodec.cli.quality import LOSSLESS, quality_timestep
from diffcodec.cli.running import (
    MOST_TOGETHER,
    TOGETHER_PIXELS,
    CommandError,
    Files,
    Job,
    attempt,
    check_target,
    failing_as,
    in_groups,
    load_given,
    print_line,
    printable,
    say,
    write_together,
)
from diffcodec.container.info import dimensions, tiles_by_coder
from diffcodec.container.parts import (
    EDGE_MULTIPLE,
    LEAST_PREVIEW,
    LEAST_TILE_SIDE,
    MAGIC,
    MOST_DRAW,
    TILE_SIDE,
)
from diffcodec.container.reader import parse
from diffcodec.errors import FormatError
from diffcodec.images.formats import SUFFIXES, lossy_format
from diffcodec.limits import Limits
from diffcodec.models.file import ARITHMETICS, DEFAULT_MODEL, model_info, model_path
from diffcodec.system.files import STANDARD, read_file, write_file

if TYPE_CHECKING:
    from PIL.Image import Image

    from diffcodec.models.model import Model

_CODED = "it is coded already; give an image, or use decode"


def _parse_class(text: str) -> int | str:
    """A number, or auto."""
    if text == "auto":
        return text
    if not (text.isascii() and text.isdigit()):
        raise click.BadParameter(f"{text!r}, expected a number from 0 on, or auto")
    return int(text)


def _parse_side(given: str | int) -> int:
    """The side of tiles, or its default."""
    text = str(given)
    side = int(text) if text.isascii() and text.isdigit() else 0
    least, most = LEAST_TILE_SIDE, TILE_SIDE
    if side % EDGE_MULTIPLE or not least <= side <= most:
        raise click.BadParameter(
            f"{text!r}, expected a multiple of {EDGE_MULTIPLE} from {least} to {most}"
        )
    return side


@cli.command(
    short_help="Code images, without loss or to a size.",
    epilog=examples(
        "diffcodec encode photo.png",
        "diffcodec encode photo.png -q 75",
        "diffcodec encode -r photos --output-dir coded --jobs 4",
    ),
)
@file_options(SUFFIX, SUFFIXES)
@click.option(
    "-q",
    "--quality",
    type=Finite(0, LOSSLESS),
    metavar="Q",
    help="A lossy file, from 0, the smallest, to 99; 75 is about 36 dB; 100 is without loss.",
)
@effort_option(
    "How many evaluations of the network to spend, in encoding and decoding; not of lossy files by "
    "a model that has a plan for these."
)
@click.option(
    "--timestep",
    type=click.IntRange(min=1),
    metavar="T",
    help="Stop at this timestep: a lossy file, smaller the larger it is.",
)
@click.option(
    "--bpp",
    type=POSITIVE_NUMBER,
    metavar="R",
    help="A lossy file of at most R bits per pixel; with --progressive, previews of so many.",
)
@click.option(
    "--psnr",
    type=POSITIVE_NUMBER,
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
@click.option(
    "--adapt",
    is_flag=True,
    help="Fit the model to the image, and keep in the file what that takes, where it pays: for "
    "images unlike those that the model was trained with, without loss. Encoding takes longer, "
    "decoding not.",
)
@click.option(
    "--class",
    "label",
    type=_parse_class,
    metavar="K",
    help="Class of the image, from 0 on, for a model that was trained with labels; auto for the "
    "one of the smallest file.",
)
@click.option(
    "--tile-side",
    type=_parse_side,
    default=TILE_SIDE,
    show_default=True,
    metavar="N",
    help="The longest side of a tile, a multiple of 8: of large images whose parts are wanted by "
    "decode --region. Of 128 such a part costs 2.5 times less, and the file is 0.6 % larger.",
)
@click.option(
    "--strip",
    is_flag=True,
    help="Leave out all metadata: profile and other descriptions of colours, EXIF, XMP, text, "
    "resolution.",
)
@click.option(
    "--frame",
    type=click.IntRange(min=0),
    metavar="N",
    help="Of an image with several frames or pages take this one; the first is 0.",
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
@device_option
@limit_options
@many_files_options
@json_option
def encode(
    *, files: Files, model: str | None, arithmetic: str, device: str, as_json: bool, **options: Any
) -> None:
    """Code an image: encode IN [OUT], or encode --output-dir DIR IN...

    IN is a PNG, TIFF, WebP, BMP, GIF, JPEG, PPM or QOI file. OUT is IN with the suffix .dfc if it
    is not given.

    Without loss, unless --quality, --bpp, --psnr or --timestep is given. With --progressive these
    say where the previews end, and the file is exact.
    """
    _check_goals(**options)
    if options["quality"] == LOSSLESS:
        options["quality"] = None
    for _, target in files.jobs:
        if target.lower().endswith(tuple(SUFFIXES)):
            raise click.UsageError(
                f"{target} has the suffix of an image, and the output is a {SUFFIX} file; of "
                "several inputs the outputs go into a folder, --output-dir"
            )
        if target == STANDARD and as_json:
            raise click.UsageError("--json needs standard output for itself; give an output file")
    if files.processes > 1 and arithmetic == "float":
        raise click.UsageError(
            "--jobs changes the number of threads, which files of float arithmetic depend on"
        )
    name = model or DEFAULT_MODEL
    load_given(name, arithmetic, device)
    _find_timestep(name, options)
    work = _Encoder(
        name,
        arithmetic,
        device,
        options.pop("effort"),
        options.pop("limits"),
        files.force,
        files.progress,
        options.pop("strip"),
        options.pop("frame"),
        options,
    )
    files.for_each(work, as_json, partial(_show_result, as_json=as_json), MOST_TOGETHER)


def _check_goals(
    *,
    quality: float | None,
    timestep: int | None,
    bpp: float | None,
    psnr: float | None,
    progressive: bool,
    previews: tuple[int, ...] | None,
    draws: int,
    adapt: bool,
    label: int | str | None,
    **_: Any,
) -> None:
    goals = sum(goal is not None for goal in (quality, timestep, bpp, psnr))
    if goals > 1:
        raise click.UsageError("--quality, --timestep, --bpp and --psnr exclude each other")
    goals -= quality == LOSSLESS
    if previews and not (goals or progressive):
        raise click.UsageError(
            "--previews needs --progressive, --quality, --timestep, --bpp or --psnr"
        )
    if draws > 1 and (goals or progressive):
        raise click.UsageError("--draws is for files without loss and previews")
    if adapt and (goals or progressive):
        raise click.UsageError("--adapt is for files without loss and previews")
    if isinstance(label, str) and (goals or progressive):
        raise click.UsageError("--class auto is for files without loss and previews; give a number")


def _find_timestep(model: str, options: dict[str, Any]) -> None:
    """Put the timestep in the place of the quality."""
    quality = options.pop("quality")
    if quality is None:
        return
    with failing_as(model):
        info = model_info(model_path(model))
        name = options["effort"] if options["progressive"] else info.lossy_plan(options["effort"])
        plan = info.plans.get(name)
    if plan is not None:  # without the plan encoding fails and says so
        least = LEAST_PREVIEW if options["progressive"] else 1
        options["timestep"] = max(least, quality_timestep(quality, plan.levels))


def _show_result(result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_line(json.dumps(result))
    elif result["output"] != STANDARD:
        rate = "{bits_per_dimension:.3f} bits per dimension"
        if result["timestep"]:
            rate = "{bits_per_pixel:.3f} bits per pixel, timestep {timestep}"
        names = f"{printable(result['input'])} -> {printable(result['output'])}: "
        sizes = f"{{bytes_in}} -> {{bytes_out}} bytes, {rate}, {{seconds:.1f}} s"
        say(names + sizes.format(**result))
        for note in result["notes"]:
            say(f"diffcodec: {printable(result['input'])}: {note}")


class _Opened(NamedTuple):
    """An image that is to be coded."""

    source: str
    target: str
    image: "Image"
    lost: Sequence[str]  # of its metadata
    lossy_format: str | None
    bytes_in: int
    seconds: float  # that it took to read


@dataclass(frozen=True)
class _Encoder:
    """How images are coded; works on jobs in this process or in another."""

    model: str
    arithmetic: str
    device: str
    effort: str
    limits: Limits
    force: bool
    progress: bool
    strip: bool
    frame: int | None
    goals: dict[str, Any]

    @property
    def most(self) -> int:
        """The most pixels of images that are coded together."""
        # Lossy files are coded one at a time, and float arithmetic is not the same in every batch.
        lossy = any(self.goals[name] for name in ("timestep", "bpp", "psnr", "progressive"))
        return 0 if lossy or self.arithmetic == "float" else TOGETHER_PIXELS

    def __call__(self, jobs: Iterable[Job]) -> Iterator[dict[str, Any] | Exception]:
        """Code images; for each what there is to say of it, in order."""
        opened = (attempt(self._open, *job) for job in jobs)
        for group in in_groups(opened, lambda one: one.image.width * one.image.height, self.most):
            yield from self._encode(group)

    def _open(self, source: str, target: str) -> _Opened:
        from diffcodec.images.metadata import stripped

        if target == source != STANDARD and read_file(source, len(MAGIC)) == MAGIC:
            raise CommandError(_CODED)
        check_target(target, source, self.force, self.model)
        start = time.perf_counter()
        data = read_file(source)
        image = read_image_data(source, data, self.limits, self.frame)
        lost = image.info.pop("not_kept", ())
        if self.strip:
            image, lost = stripped(image), ()
        seconds = time.perf_counter() - start
        return _Opened(source, target, image, lost, lossy_format(data), len(data), seconds)

    def _encode(self, group: Sequence[_Opened | Exception]) -> Iterator[dict[str, Any] | Exception]:
        """Code images side by side and write their files."""
        from diffcodec.codec.many import encode_many

        def coded(images: list[_Opened]) -> Iterator[bytes]:
            same = {name: self.goals[name] for name in ("draws", "adapt", "tile_side")}
            return encode_many(
                [one.image for one in images],
                self._load(),
                self.effort,
                labels=[self.goals["label"]] * len(images),
                limits=self.limits,
                **same,
            )

        return write_together(group, coded, self._write)

    def _load(self) -> "Model":
        from diffcodec.models.model import load_model

        return load_model(self.model, self.arithmetic, self.device)

    def _write(self, one: _Opened, coded: bytes | None, seconds: float) -> dict[str, Any]:
        """Write a file, and say what there is to say of it."""
        from diffcodec.codec.encoding import encode

        start, model = time.perf_counter(), self._load()
        if coded is None:
            coded = encode(
                one.image, model, self.effort, self.progress, limits=self.limits, **self.goals
            )
        container = parse(coded, self.limits)
        write_file(one.target, coded, self.force, one.source)
        return {
            "input": one.source,
            "output": one.target,
            "bytes_in": one.bytes_in,
            "bytes_out": len(coded),
            "bits_per_dimension": 8 * len(coded) / dimensions(container),
            "bits_per_pixel": 8 * len(coded) / (container.width * container.height),
            "timestep": container.layers.stops[-1] if container.layers else 0,
            "seconds": one.seconds + seconds + time.perf_counter() - start,
            "model": model.info.name,
            "arithmetic": model.arithmetic,
            "effort": self.effort,
            "tiles": tiles_by_coder(container),
            "notes": list(_notes(one, len(coded))),
        }


def _notes(one: _Opened, bytes_out: int) -> Iterator[str]:
    """What else there is to say of a file."""
    if one.lost:
        yield f"not kept of the metadata: {', '.join(one.lost)}"
    if one.lossy_format and bytes_out > one.bytes_in:
        yield (
            f"it is a {one.lossy_format}, whose exact pixels take {bytes_out / one.bytes_in:.1f} "
            "times its bytes: keep it as it is, code the picture it was made from, or give "
            "--quality"
        )


def read_picture(source: str, limits: Limits) -> "Image":
    """The image in a file, or on standard input.

    Raises:
        CommandError, DiffcodecError, OSError: it cannot be read.
    """
    return read_image_data(source, read_file(source), limits, None)


def read_image_data(source: str, data: bytes, limits: Limits, frame: int | None) -> "Image":
    """The image in the bytes of a file."""
    from diffcodec.images.reading import read_image

    if data[: len(MAGIC)] == MAGIC:
        raise CommandError(_CODED)
    stream = io.BytesIO(data)
    stream.name = source
    warnings.filterwarnings("ignore", module=r"PIL\.")  # of files that it reads all the same
    try:
        return read_image(stream, limits, frame=frame, in_shell=True)
    except FormatError as e:  # exit code 3 is for our own files
        raise CommandError(str(e)) from e
