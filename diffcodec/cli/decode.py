"""The command decode."""

import io
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

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
    MOST_TOGETHER,
    TOGETHER_PIXELS,
    CommandError,
    Files,
    Job,
    attempt,
    check_target,
    image_format,
    in_groups,
    load_given,
    parse_data,
    printable,
    reading_file,
    write_together,
)
from diffcodec.coding.reconstructions import RECONSTRUCTIONS, SEEDS
from diffcodec.container.parts import MAGIC
from diffcodec.container.reader import FileReader
from diffcodec.container.salvage import Damage
from diffcodec.errors import CorruptError, TruncatedError
from diffcodec.images.formats import EXACT_MODES, SUFFIX_MODES
from diffcodec.limits import Limits
from diffcodec.system.files import STANDARD, read_file, write_file
from diffcodec.system.process import loading

if TYPE_CHECKING:
    from PIL import Image


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
    default=RECONSTRUCTIONS[0],
    show_default=True,
    help="At a timestep above 0: the mean of two posterior means; the first of them alone; a "
    "sharper one by two more evaluations; its whole continuation by the probability-flow ODE or by "
    "ancestral sampling, sharper still and farther from the image.",
)
@click.option(
    "--seed",
    type=click.IntRange(0, SEEDS - 1),
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
    if recover and (allow_partial or timestep is not None or reconstruct != RECONSTRUCTIONS[0]):
        raise click.UsageError(
            "--recover takes whatever is whole; leave out --allow-partial, --timestep and "
            "--reconstruct"
        )
    if recover and (region or scale != "1"):
        raise click.UsageError("--recover gives the whole image; leave out --region and --scale")
    if fill and not recover:
        raise click.UsageError("--fill is of --recover; give both")
    load_given(model, device=device)
    work = _Decoder(
        timestep,
        model,
        device,
        recover,
        fill,
        max_bytes,
        files.force,
        files.progress,
        allow_partial or max_bytes is not None,
        region,
        int(scale.rpartition("/")[2]),
        options.pop("limits"),
        options | {"reconstruct": reconstruct},
    )
    files.for_each(work, most_together=MOST_TOGETHER)


class _Opened(NamedTuple):
    """A file that is to be decoded."""

    source: str
    target: str
    format: str
    data: bytes
    pixels: int  # of those that are decoded beside others; 0 if it is decoded alone
    seconds: float  # that it took to read


@dataclass(frozen=True)
class _Decoder:
    """How files are decoded; works on jobs in this process or in another."""

    timestep: int | None
    model: str | None
    device: str
    recover: bool
    fill: bool
    max_bytes: int | None
    force: bool
    progress: bool
    allow_partial: bool
    region: tuple[int, ...] | None
    scale: int
    limits: Limits
    reconstruction: dict[str, Any]

    def __call__(self, jobs: Iterable[Job]) -> Iterator[str | Exception | None]:
        """Decode files; for each what there is to say of it, in order."""
        opened = (attempt(self._open, *job) for job in jobs)
        for group in in_groups(opened, lambda one: one.pixels, TOGETHER_PIXELS):
            yield from self._decode(group)

    @property
    def _is_plain(self) -> bool:
        """Whether all of the exact image is wanted."""
        given = self.allow_partial or self.recover or self.region or self.scale > 1
        return not given and not self.timestep

    def _open(self, source: str, target: str) -> _Opened:
        if target == source != STANDARD and read_file(source, len(MAGIC)) != MAGIC:
            parse_data(read_file(source), self.limits)  # why it is no file of ours
        format = image_format(target)
        check_target(target, source, self.force, self.model)
        start = time.perf_counter()
        data = read_file(source, len(MAGIC) if self._in_parts(source) else self.max_bytes)
        pixels = 0
        if self._is_plain and format in EXACT_MODES:
            with reading_file(data):
                container = FileReader(data, self.limits).container
            pixels = 0 if container.layers else container.width * container.height
        return _Opened(source, target, format, data, pixels, time.perf_counter() - start)

    def _in_parts(self, source: str) -> bool:
        """Whether only the parts of a file that are wanted are read."""
        return self.region is not None and self.max_bytes is None and source != STANDARD

    def _decode(self, group: Sequence[_Opened | Exception]) -> Iterator[str | Exception | None]:
        """Decode files side by side and write their images."""

        def decoded(files: list[_Opened]) -> "Iterator[Image.Image]":
            with loading():
                from diffcodec.codec.many import decode_many
            data = [file.data for file in files]
            return decode_many(data, self.model, limits=self.limits, device=self.device)

        return write_together(group, decoded, self._write)

    def _write(self, one: _Opened, image: "Image.Image | None", seconds: float) -> str | None:
        """Write an image, and say what there is to say of it."""
        from diffcodec.images.writing import write_image

        start = time.perf_counter()
        damage: Sequence[Damage] = ()
        found = 0
        if image is None:
            seconds = 0
            found, image, damage = self._decode_alone(one)
        suffix = Path(one.target).suffix.lower()
        if (mode := SUFFIX_MODES.get(suffix, image.mode)) != image.mode:
            raise CommandError(
                f"{one.target} is for images of mode {mode}, this one is {image.mode}: write .ppm "
                "or .png",
                path=one.target,
            )
        stream = io.BytesIO()
        is_exact = found == 0 and self.scale == 1
        lost = write_image(image, stream, one.format, exact=is_exact)
        write_file(one.target, stream.getvalue(), self.force, one.source)
        if damage:
            raise CorruptError(_describe_damage(damage, self.fill))
        if one.target == STANDARD:
            return None
        seconds += one.seconds + time.perf_counter() - start
        what = f"{image.width} x {image.height} {image.mode}, {seconds:.1f} s"
        if lost:
            what += f"; not kept by {one.format}: {', '.join(lost)}"
        return f"{printable(one.source)} -> {printable(one.target)}: " + (
            f"timestep {found}, {what}" if found else what
        )

    def _decode_alone(self, one: _Opened) -> "tuple[int, Image.Image, Sequence[Damage]]":
        """The finest timestep that is wanted of a file, its image, and what is damaged."""
        in_parts = self._in_parts(one.source)
        is_exact = self.recover or (self.timestep is None and not self.allow_partial)
        is_exact = (is_exact or self.timestep == 0) and self.scale == 1
        if one.format not in EXACT_MODES and is_exact:
            self._check_lossy(one, in_parts)
        limits, device = self.limits, self.device
        if self.recover:
            recovered = _recover(one.data, self.model, self.progress, limits, device, self.fill)
            return 0, *recovered
        with _without_previews(one.data, self.limits, len(one.data) == self.max_bytes):
            found, image = decode_data(
                one.data,
                self.timestep,
                self.model,
                self.progress,
                one.source if in_parts else None,
                allow_partial=self.allow_partial,
                region=self.region,
                scale=self.scale,
                limits=limits,
                device=device,
                **self.reconstruction,
            )
        return found, image, ()

    def _check_lossy(self, one: _Opened, in_parts: bool) -> None:
        """Refuse an exact image for a format that would not keep it."""
        data = read_file(one.source) if in_parts else one.data
        layers = parse_data(data, self.limits).layers
        if layers is None or layers.is_exact:
            raise CommandError(
                f"the image is exact, which {one.format} would not keep: write .png, or give a "
                "--timestep"
            )


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
) -> "tuple[int, Image.Image]":
    """The finest timestep of a file, and its image; with a path the data are only its beginning."""
    with loading():
        from diffcodec.codec import decoding

    with reading_file(data):
        return decoding.decode_finest(path or data, timestep, model, progress, **options)


def _recover(
    data: bytes, model: str | None, progress: bool, limits: Limits, device: str, fill: bool
) -> "tuple[Image.Image, Sequence[Damage]]":
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
