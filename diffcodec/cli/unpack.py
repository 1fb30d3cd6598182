"""The commands that read archives: ls, extract, unpack."""

import io
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from typing import Any

import click

from diffcodec.archive.archive import Archive, open_archive
from diffcodec.archive.index import Entry
from diffcodec.cli.options import (
    PATH,
    archive_argument,
    device_option,
    file_model_option,
    force_option,
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
    failing_as,
    for_each,
    load_given,
    print_line,
    printable,
    say,
)
from diffcodec.errors import CorruptError, DiffcodecError
from diffcodec.images.formats import SUFFIXES
from diffcodec.limits import Limits
from diffcodec.system.files import EXISTS, replacing, write_file

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
    limits: Limits,
    quiet: bool,
) -> None:
    """Decode images to files."""
    if skip_existing and force:
        raise click.UsageError("--skip-existing and --force exclude each other")
    load_given(model, device=device)
    with failing_as(path), open_archive(path, model=model, limits=limits, device=device) as archive:
        jobs: list[Job] = []
        if names is None:
            entries = enumerate(archive.entries())
            ordered = sorted(entries, key=lambda each: (each[1].group.offset, each[1].place))
            jobs = [(entry.name, str(number)) for number, entry in ordered]
        else:
            jobs = [(name, name) for name in names]

        def work(jobs: Iterable[Job]) -> Iterator[Any]:
            for _, which in jobs:
                number = int(which) if names is None else None
                yield attempt(_extract, archive, output_dir, which, number, force)

        for_each(
            jobs,
            work,
            show=None if quiet else say,
            skip_existing=skip_existing,
            progress=not quiet,
        )


def _extract(archive: Archive, folder: str, name: str, number: int | None, force: bool) -> None:
    """Write one image."""
    from diffcodec.images.writing import write_image

    if number is None:
        number = _number(archive, name)
    entry = archive.entry(number)
    target = Path(folder, _file_name(entry))
    if target.exists() and not force:
        raise FileExistsError(*EXISTS, str(target))
    stream = io.BytesIO()
    write_image(archive[number], stream, "PNG")
    target.parent.mkdir(parents=True, exist_ok=True)
    write_file(target, stream.getvalue(), force)


def _number(archive: Archive, name: str) -> int:
    """Of an image by its name, or else its number."""
    try:
        return archive.number(name)
    except KeyError as e:
        if name.isascii() and name.isdigit() and int(name) < len(archive):
            return int(name)
        raise CommandError(f"the archive has no image {name!r}; see diffcodec ls") from e


def _file_name(entry: Entry) -> str:
    """A path below the folder of outputs, whatever the archive says.

    Raises:
        CorruptError: the name leads elsewhere.
    """
    path = PurePosixPath(entry.name)
    if path.is_absolute() or ".." in path.parts or set("\\\0") & set(entry.name) or not path.name:
        raise CorruptError(f"the name {entry.name!r} is none of a file below a folder")
    if path.suffix.lower() in SUFFIXES:
        return str(path.with_suffix(".png"))
    return f"{path}.png"


def _unpack_array(
    path: str,
    output: str,
    *,
    model: str | None,
    device: str,
    force: bool,
    skip_existing: bool,
    limits: Limits,
    quiet: bool,
) -> None:
    import numpy as np
    from tqdm import tqdm

    load_given(model, device=device)
    with ExitStack() as held:
        held.enter_context(failing_as(path))
        if Path(output).exists() and not force:
            if skip_existing:
                return
            raise FileExistsError(*EXISTS, output)
        archive = held.enter_context(open_archive(path, model=model, limits=limits, device=device))
        kinds = {(entry.mode, entry.size) for entry in archive.entries()}
        if len(kinds) != 1:
            raise DiffcodecError(
                f"images of {len(kinds)} sizes and modes, expected one for an array: give a folder"
            )
        temporary = held.enter_context(replacing(output))
        first = np.asarray(archive[0])
        shape = (len(archive), *first.shape)
        array = np.lib.format.open_memmap(temporary, "w+", first.dtype, shape)
        bar = tqdm(archive, unit="image", delay=2, disable=True if quiet else None)
        for number, image in enumerate(bar):
            array[number] = np.asarray(image)
        array.flush()
