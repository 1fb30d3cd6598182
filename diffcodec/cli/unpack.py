"""The commands that read archives: ls, extract, unpack."""

import io
import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, count
from pathlib import Path, PurePosixPath
from typing import Any

import click

from diffcodec.archive.archive import Archive, open_archive
from diffcodec.archive.index import Entry
from diffcodec.archive.writing import GROUP_IMAGES
from diffcodec.cli.inputs import make_folder
from diffcodec.cli.options import (
    PATH,
    archive_argument,
    device_option,
    file_model_option,
    force_option,
    jobs_option,
    json_option,
    limit_options,
    quiet_option,
    together,
)
from diffcodec.cli.program import cli, examples
from diffcodec.cli.running import (
    CommandError,
    Job,
    attempt,
    check_target,
    failing_as,
    folders_of_outputs,
    for_each,
    load_given,
    print_line,
    printable,
    say,
)
from diffcodec.errors import CorruptError, DiffcodecError
from diffcodec.images.formats import SUFFIXES
from diffcodec.limits import Limits
from diffcodec.system.files import EXISTS, STANDARD, replacing, write_file

ARRAY_OUTPUT = ".npy"


@cli.command(
    name="ls",
    short_help="List the images of an archive.",
    epilog=examples("diffcodec ls thumbnails.dfca"),
)
@archive_argument
@limit_options
@json_option
def list_images(*, path: str, limits: Limits, as_json: bool) -> None:
    """List the images of an archive: name, size, mode and label, a line each; decodes nothing."""
    with failing_as(path), open_archive(path, limits=limits) as archive:
        for entry in archive.entries():
            width, height = entry.size
            if as_json:
                size = {"mode": entry.mode, "width": width, "height": height}
                print_line(json.dumps({"name": entry.name} | size | {"label": entry.label}))
            else:
                label = "" if entry.label is None else f"\t{json.dumps(entry.label)}"
                print_line(f"{printable(entry.name)}\t{width}x{height}\t{entry.mode}{label}")


reading_options = together(
    file_model_option,
    device_option,
    force_option,
    click.option("--skip-existing", is_flag=True, help="Leave out images whose file exists."),
    jobs_option("jobs", "Decode in N processes."),
    limit_options,
    quiet_option,
)


@cli.command(
    short_help="Decode some images of an archive.",
    epilog=examples("diffcodec extract thumbnails.dfca cats/1.png cats/2.png"),
)
@archive_argument
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option(
    "--output-dir", type=PATH, default=".", metavar="DIR", help="Where to.  [default: here]"
)
@reading_options
def extract(*, path: str, names: tuple[str, ...], output_dir: str, **options: Any) -> None:
    """Decode images of an archive, by name or by number, to PNG files of their names."""
    _read(path, output_dir, names, **options)


@cli.command(
    short_help="Decode an archive to image files, or an array.",
    epilog=examples(
        "diffcodec unpack thumbnails.dfca thumbnails",
        "diffcodec unpack test.dfca test.npy",
    ),
)
@archive_argument
@click.argument("output", required=False, type=PATH, metavar="[DIR]")
@reading_options
def unpack(*, path: str, output: str | None, **options: Any) -> None:
    """Decode all images of an archive to PNG files in a folder, by default of the archive's name.

    An output that ends with .npy is an array instead, if the images are of one size and mode.
    """
    output = output or str(Path(path).with_suffix(""))
    if output.endswith(".npz"):
        raise click.UsageError(f"{output}: an array is written as .npy; for files give a folder")
    if output.endswith(ARRAY_OUTPUT):
        _unpack_array(path, output, **options)
    else:
        _read(path, output, None, **options)


def _read(
    path: str,
    output_dir: str,
    names: Sequence[str] | None,
    *,
    model: str | None,
    device: str,
    force: bool,
    skip_existing: bool,
    jobs: int,
    limits: Limits,
    quiet: bool,
) -> None:
    """Decode images to files."""
    if skip_existing and force:
        raise click.UsageError("--skip-existing and --force exclude each other")
    load_given(model, device=device)
    work = _Extractor(path, model, device, limits, output_dir, force)
    start = time.perf_counter()
    with folders_of_outputs(output_dir, [Path(output_dir)]):
        with failing_as(path), open_archive(path, limits=limits) as archive:
            wanted: list[Job] = []
            if names is None:  # group by group, so that each is decoded once
                entries = enumerate(archive.entries())
                ordered = sorted(entries, key=lambda each: (each[1].group.offset, each[1].place))
                wanted = [(entry.name, str(number), output_dir) for number, entry in ordered]
            else:
                wanted = [(name, "", output_dir) for name in names]
        written: list[str] = []
        for_each(
            wanted,
            work,
            show=None if quiet else written.append,
            skip_existing=skip_existing,
            processes=jobs,
            most_together=GROUP_IMAGES,
            progress=not quiet,
        )
    if not quiet:
        seconds = time.perf_counter() - start
        images = f"{len(written)} image{'' if len(written) == 1 else 's'}"
        say(f"{printable(path)} -> {printable(output_dir)}: {images}, {seconds:.1f} s")


@dataclass(frozen=True)
class _Extractor:
    """Writes images of an archive to files, in this process or in another."""

    path: str
    model: str | None
    device: str
    limits: Limits
    folder: str
    force: bool

    @cached_property
    def archive(self) -> Archive:
        """The archive, opened once in a process."""
        return open_archive(self.path, model=self.model, limits=self.limits, device=self.device)

    @cached_property
    def renamed(self) -> dict[int, str]:
        """The files of images by number whose own name another one has, as x.bmp beside x.png."""
        taken, others = set[str](), {}
        for number, entry in enumerate(self.archive.entries()):
            with suppress(CorruptError):
                own = _file_name(entry)
                base = PurePosixPath(entry.name)
                numbered = (f"{base}.{k}.png" for k in count(number))
                ways = chain((own, f"{base}.png"), numbered)
                name = next(way for way in ways if way not in taken)
                taken.add(name)
                if name != own:
                    others[number] = name
        return others

    def __call__(self, jobs: Iterable[Job]) -> Iterator[Any]:
        """Outcomes, job by job: an image's name, and its number if that is known."""
        for name, number, _ in jobs:
            yield attempt(self._extract, name, number)

    def _extract(self, name: str, number: str) -> str:
        from diffcodec.images.writing import write_image

        which = int(number) if number else _number(self.archive, name)
        name = _file_name(self.archive.entry(which))
        target = Path(self.folder, self.renamed.get(which, name))
        if target.exists():
            check_target(str(target), STANDARD, self.force, self.model)
        stream = io.BytesIO()
        write_image(self.archive[which], stream, "PNG")
        make_folder(target.parent)
        write_file(target, stream.getvalue(), self.force, self.path)
        return str(target)


def _number(archive: Archive, name: str) -> int:
    """The number of an image by its name, or else by its number."""
    try:
        return archive.number(name)
    except KeyError as e:
        is_short = len(name) < 20  # Python reads none of thousands of digits
        if name.isascii() and name.isdigit() and is_short and int(name) < len(archive):
            return int(name)
        raise CommandError(f"the archive has no image {name!r}; see diffcodec ls") from e


def _file_name(entry: Entry) -> str:
    """A path below the folder of outputs, whatever the archive says.

    Raises:
        CorruptError: the name leads elsewhere.
    """
    path = PurePosixPath(entry.name)
    is_above = path.is_absolute() or ".." in path.parts
    if is_above or set("\\\0") & set(entry.name) or not path.name or not _is_written(entry.name):
        raise CorruptError(f"the name {entry.name!r} is none of a file below a folder")
    if path.suffix.lower() in SUFFIXES:
        return str(path.with_suffix(".png"))
    return f"{path}.png"


def _is_written(name: str) -> bool:
    """Whether file names can have such characters."""
    try:
        os.fsencode(name)
    except UnicodeError:
        return False
    return True


def _unpack_array(
    path: str,
    output: str,
    *,
    model: str | None,
    device: str,
    force: bool,
    skip_existing: bool,
    jobs: int,
    limits: Limits,
    quiet: bool,
) -> None:
    """Decode all images to an array."""
    import numpy as np
    from tqdm import tqdm

    if jobs > 1:
        raise click.UsageError("--jobs is for files; an array is written by one process")
    load_given(model, device=device)
    with ExitStack() as held:
        held.enter_context(failing_as(path))
        if Path(output).exists() and not force:
            if skip_existing:
                return
            raise FileExistsError(*EXISTS, output)
        if Path(output).exists():
            check_target(output, path, force, model)
        archive = held.enter_context(open_archive(path, model=model, limits=limits, device=device))
        kinds = {(entry.mode, entry.size) for entry in archive.entries()}
        if len(kinds) != 1:
            raise DiffcodecError(
                f"images of {len(kinds)} sizes and modes, expected one for an array: give a folder"
            )
        if {mode for mode, _ in kinds} == {"P"}:
            raise DiffcodecError(
                "images with palettes, of which an array would hold indices alone: give a folder"
            )
        temporary = held.enter_context(replacing(output))
        first = np.asarray(archive[0])
        shape = (len(archive), *first.shape)
        described = np.lib.format.header_data_from_array_1_0(first) | {"shape": shape}
        bar = tqdm(archive, unit="image", delay=2, disable=True if quiet else None)
        with temporary.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, described)
            for image in bar:
                file.write(np.asarray(image).tobytes())
            file.flush()
            os.fsync(file.fileno())
        shutil.copymode(path, temporary)
