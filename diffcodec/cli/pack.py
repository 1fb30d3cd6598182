"""The commands that write archives: pack, append."""

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial, reduce
from itertools import islice
from operator import and_
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import click

from diffcodec.archive.archive import Archive, open_archive
from diffcodec.archive.index import Entry
from diffcodec.archive.parts import MOST_IMAGES
from diffcodec.archive.records import SUFFIX
from diffcodec.archive.writing import GROUP_IMAGES
from diffcodec.cli.encode import read_picture
from diffcodec.cli.inputs import find_inputs
from diffcodec.cli.options import (
    MINUTES,
    PATH,
    archive_argument,
    device_option,
    effort_option,
    force_option,
    jobs_option,
    json_option,
    limit_options,
    quiet_option,
    together,
    used_model_option,
)
from diffcodec.cli.program import cli, examples
from diffcodec.cli.running import (
    EXIT_FAILURE,
    CommandError,
    Job,
    attempt,
    check_target,
    failing_as,
    for_each,
    load_given,
    print_line,
    printable,
    say,
)
from diffcodec.container.parts import MODES
from diffcodec.images.formats import SUFFIXES
from diffcodec.limits import Limits
from diffcodec.models.file import DEFAULT_MODEL
from diffcodec.system.addresses import is_address
from diffcodec.system.files import EXISTS, STANDARD, replacing

if TYPE_CHECKING:
    from diffcodec.codec.encoding import ImageLike

ARRAY_SUFFIXES = (".npy", ".npz")


@dataclass(frozen=True)
class Picture:
    """An image to pack: its name in messages and in the archive, how it is read, and its file."""

    shown: str
    name: str | None
    read: "Callable[[], ImageLike]"
    bytes_in: int
    path: str


writing_options = together(
    click.option(
        "--files-from",
        type=PATH,
        metavar="FILE",
        help="Take the inputs that FILE lists too, a path a line or between zero bytes.",
    ),
    effort_option("How many evaluations of the network to spend, in encoding and decoding."),
    click.option(
        "--group",
        type=click.IntRange(1, MOST_IMAGES),
        default=GROUP_IMAGES,
        show_default=True,
        metavar="N",
        help="Images that share a stack, and are decoded for the sake of one; of more than 32 x 32 "
        "pixels as many as have no more pixels together.",
    ),
    click.option(
        "--labels",
        type=PATH,
        metavar="FILE",
        help="What each image is labelled with, a line of JSON or text for each.",
    ),
    click.option(
        "--classes",
        is_flag=True,
        help="Tell the model, which was trained with labels, that of each image: its class.",
    ),
    click.option(
        "--adapt",
        is_flag=True,
        help="Fit the model to each group of images, where it pays: for images unlike those that "
        "it was trained with. Coding takes longer, decoding not.",
    ),
    click.option("--embed-model", is_flag=True, help="Put the model into the archive, too."),
    click.option("--strip", is_flag=True, help="Leave out all metadata."),
    jobs_option("jobs", "Code N groups at a time."),
    used_model_option,
    device_option,
    limit_options,
    quiet_option,
    json_option,
)


@cli.command(
    short_help="Code many images into one archive.",
    epilog=examples(
        "diffcodec pack thumbnails thumbnails.dfca",
        "diffcodec pack test.npy test.dfca --labels test.labels.txt --model cifar10 --jobs 2",
    ),
)
@click.argument("inputs", nargs=-1, type=PATH, metavar="IN... OUT")
@force_option
@click.option(
    "--finetune",
    type=MINUTES,
    metavar="MINUTES",
    help="First train a model on the images; if it pays for itself, code by it and embed it.",
)
@writing_options
def pack(*, inputs: tuple[str, ...], force: bool, finetune: float | None, **options: Any) -> None:
    """Code images without loss into an archive: files, folders and all below, .npy and .npz arrays.

    OUT, the last argument, ends with .dfca. Alike images of one size share groups.
    """
    *paths, target = inputs or ("",)
    if not target.endswith(SUFFIX):
        raise click.UsageError("the last argument is the archive to write, OUT.dfca")
    with failing_as(target), ExitStack() as held:
        path = Path(target)
        if path.exists():
            if not (force and path.is_file()):
                raise FileExistsError(*EXISTS, target)
            check_target(target, STANDARD, force, options["model"])
            path = held.enter_context(replacing(path))
        if finetune is not None and options["classes"]:
            raise click.UsageError(
                "--finetune trains without classes; train --labels first, and give --model"
            )
        if finetune is not None:
            options |= _finetuned(paths, target, finetune, **options)
        code = _write(paths, path, target, "x", skip_existing=False, **options)
    raise SystemExit(code)


@cli.command(
    short_help="Code more images into an archive.",
    epilog=examples("diffcodec append thumbnails.dfca more --skip-existing"),
)
@archive_argument
@click.argument("inputs", nargs=-1, type=PATH, metavar="IN...")
@click.option("--skip-existing", is_flag=True, help="Leave out images whose names the archive has.")
@writing_options
def append(*, path: str, inputs: tuple[str, ...], skip_existing: bool, **options: Any) -> None:
    """Code more images into an archive, behind those that it has.

    What is there is not written again. If the command is ended, the archive has all that it had and
    what was complete; --skip-existing goes on from there.
    """
    with failing_as(path):
        if is_address(path):
            raise CommandError("only files are appended to; give a path")
        if not Path(path).exists():
            raise CommandError("there is no such archive; make it by pack")
        code = _write(inputs, Path(path), path, "a", skip_existing=skip_existing, **options)
    raise SystemExit(code)


def _finetuned(
    paths: Sequence[str],
    target: str,
    minutes: float,
    *,
    files_from: str | None,
    model: str | None,
    effort: str,
    group: int,
    adapt: bool,
    device: str,
    limits: Limits,
    quiet: bool,
    **_: Any,
) -> dict[str, Any]:
    """Train a model on the images; what is to be done otherwise if it pays for itself."""
    from diffcodec.cli.finetuning import SAMPLED, compare, finetune
    from diffcodec.codec.arguments import find_source

    if len(paths) != 1 or files_from:
        raise click.UsageError("--finetune takes one folder, or one array, as input")
    pictures = list_pictures(paths, None, limits)
    chosen = pictures[:: -(-len(pictures) // SAMPLED)]
    images = [find_source(picture.read(), limits, strip=True) for picture in chosen]
    side = sorted(min(image.size) for image in images)[len(images) // 2]
    folder = Path(target).with_suffix(".run")
    name = model or DEFAULT_MODEL
    made = finetune(paths[0], name, minutes, folder, side, quiet, device)
    compared = compare(images, len(pictures), name, made, effort, group, adapt, device)
    if not quiet:
        say(f"{printable(target)}: {compared.describe()}")
    return {"model": str(made), "embed_model": True} if compared.pays else {}


def list_pictures(paths: Sequence[str], files_from: str | None, limits: Limits) -> list[Picture]:
    """What is to be packed, in order."""
    with failing_as(files_from or ""):
        found = find_inputs(paths, True, files_from, [*SUFFIXES, *ARRAY_SUFFIXES])
    if STANDARD in (one.path for one in found):
        raise click.UsageError("standard input has no name to be used in an archive")
    return list(_pictures([(one.path, one.between) for one in found], limits))


def _write(
    paths: Sequence[str],
    path: Path,
    target: str,
    mode: str,
    *,
    files_from: str | None,
    skip_existing: bool,
    effort: str,
    labels: str | None,
    embed_model: bool,
    model: str | None,
    device: str,
    jobs: int,
    quiet: bool,
    as_json: bool,
    **options: Any,
) -> int:
    """Put images into an archive; returns the exit code."""
    start = time.perf_counter()
    pictures = list_pictures(paths, files_from, options["limits"])
    load_given(model, device=device)
    told = _read_labels(labels, len(pictures)) if labels else [None] * len(pictures)
    if options["classes"]:
        _check_classes(labels, told, model or DEFAULT_MODEL, effort, device)
    with ExitStack() as held:
        executor = held.enter_context(_processes(jobs)) if jobs > 1 else None
        options |= {"model": model, "plan": effort, "device": device, "executor": executor}
        archive = open_archive(path, mode, jobs=jobs, **options)
        if mode == "x":
            held.push(partial(_leave_none_empty, path))  # after it is closed
            _close_to_others(path, pictures)
        held.enter_context(archive)
        before = path.stat().st_size if mode == "a" else 0
        adding = _Adding(archive, pictures, told, skip_existing)
        model_bytes = archive.embed_model() if embed_model else 0
        code, first = 0, len(archive)
        shown = [(picture.shown, target) for picture in pictures]
        try:
            show = None if quiet else say
            for_each(shown, adding, show=show, skip_existing=skip_existing, progress=not quiet)
        except SystemExit as e:  # of the images that failed; the others are kept
            code = int(e.code or 0)
        samples = sum(map(_samples, islice(archive.entries(), first, None)))
    if mode == "x" and not adding.images:
        path.unlink()
        raise CommandError("there is no image to write; no archive is made", code or EXIT_FAILURE)
    result: dict[str, Any] = {
        "output": target,
        "images": adding.images,
        "bytes_in": adding.bytes_in,
        "bytes_out": path.stat().st_size - before,
        "model_bytes": model_bytes,
        "seconds": time.perf_counter() - start,
    }
    result["bits_per_dimension"] = 8 * result["bytes_out"] / max(1, samples)
    if not quiet or as_json:
        _show(result, as_json)
    return code


def _show(result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_line(json.dumps(result))
        return
    text = "{images} images, {bytes_in} -> {bytes_out} bytes, {bits_per_dimension:.3f} bits per "
    text += "dimension, {seconds:.1f} s"
    text += "; {model_bytes} of the bytes are the model" if result["model_bytes"] else ""
    say(f"{printable(result['output'])}: {text.format(**result)}")


class _Adding:
    """Puts images into an archive, and counts them."""

    def __init__(
        self, archive: Archive, pictures: Sequence[Picture], labels: Sequence[Any], skip: bool
    ):
        self._archive = archive
        self._left = iter(zip(pictures, labels, strict=True))
        self._names = {entry.name for entry in archive.entries()}
        self._skip = skip
        self._is_new = not len(archive)
        self.images = self.bytes_in = 0

    def __call__(self, jobs: Iterable[Job]) -> Iterator[Any]:
        """Outcomes, job by job."""
        for _, (picture, label) in zip(jobs, self._left, strict=True):
            yield attempt(self._add, picture, label)

    def _add(self, picture: Picture, label: Any) -> None:
        """Add one image.

        Raises:
            FileExistsError, CommandError: the archive has one of its name.
        """
        name = picture.name
        if name is not None or self._skip:
            if (name or picture.shown) in self._names:
                if self._skip:
                    raise FileExistsError
                raise CommandError(
                    "another input has its name; give the folder above both, or rename one"
                    if self._is_new
                    else "the archive has an image of this name; give --skip-existing"
                )
            self._names.add(name or picture.shown)
        self._archive.append(picture.read(), name, label)
        self.images += 1
        self.bytes_in += picture.bytes_in


def _pictures(inputs: Sequence[tuple[str, str]], limits: Limits) -> Iterator[Picture]:
    """What is to be packed, file by file and image by image of arrays.

    Images of the one array that is given have no names but their numbers.
    """
    for path, between in inputs:
        name = str(PurePosixPath(*Path(between).parts, Path(path).name))
        if Path(path).suffix.lower() not in ARRAY_SUFFIXES:
            read = partial(read_picture, path, limits)
            yield Picture(path, name, read, _size(path), path)
            continue
        with failing_as(path):
            arrays = _read_arrays(path)
        for stem, array in arrays.items():
            for k, image in enumerate(array):
                number = str(k) if len(inputs) == len(arrays) == 1 else f"{name}{stem}/{k}"
                given = None if number == str(k) else number
                yield Picture(number, given, partial(_copy, image), image.nbytes, path)


def _read_arrays(path: str) -> dict[str, Any]:
    """Arrays of images by name: one image of three channels is an array of one."""
    import numpy as np

    try:
        loaded = np.load(path, mmap_mode="r", allow_pickle=False)
        found = {"": loaded}
        if isinstance(loaded, np.lib.npyio.NpzFile):
            found = {f"/{name}": loaded[name] for name in loaded.files}
    except Exception as e:  # NumPy and zipfile raise almost anything on damaged files
        raise CommandError(f"not readable as an array of images ({e})", path=path) from e
    for name, array in found.items():
        if array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3):
            found[name] = array[None]
        is_grey = array.ndim in (2, 3) and array.dtype.name in ("uint8", "uint16", "bool")
        is_color = array.ndim == 4 and array.dtype == np.uint8 and array.shape[3] in range(1, 5)
        if not (is_grey or is_color):
            raise CommandError(
                f"an array {array.dtype} {list(array.shape)}, expected uint8 [n, h, w] or "
                "[n, h, w, 1 to 4], uint16 or bool [n, h, w]: scale, cast or transpose it",
                path=path,
            )
    return found


def _close_to_others(path: Path, pictures: Sequence[Picture]) -> None:
    """Make an archive no more open than any of its inputs, before there is anything in it."""
    modes = (Path(one.path).stat().st_mode for one in pictures if _size(one.path))
    path.chmod(reduce(and_, modes, path.stat().st_mode) & 0o777)


def _leave_none_empty(path: Path, _kind: object, error: BaseException | None, _: object) -> None:
    """Remove an archive that was just made if something failed before an image was in it."""
    if error is None:
        return
    with open_archive(path) as made:
        is_empty = not len(made)
    if is_empty:
        path.unlink()


def _samples(entry: Entry) -> int:
    width, height = entry.size
    return width * height * MODES[entry.mode].channels


def _copy(image: Any) -> Any:
    """A copy of an array that is a view of a file mapped into memory."""
    import numpy as np

    return np.array(image)


def _size(path: str) -> int:
    try:
        return Path(path).stat().st_size
    except OSError:  # reading it says so
        return 0


def _read_labels(path: str, count: int) -> list[Any]:
    with failing_as(path):
        text = Path(path).read_text(encoding="utf-8", errors="surrogateescape")
        lines = text.removesuffix("\n").split("\n") if text else []  # JSON may hold other breaks
        if len(lines) != count:
            raise CommandError(f"{len(lines)} labels for {count} images; give one for each")

    def value(line: str) -> Any:
        try:
            found = json.loads(line)
            json.dumps(found, allow_nan=False)
        except (ValueError, RecursionError):  # NaN and infinities among it
            return line
        return found

    return list(map(value, lines))


def _check_classes(
    path: str | None, labels: Sequence[Any], model: str, effort: str, device: str
) -> None:
    """Refuse labels that the model does not know as classes."""
    from diffcodec.codec.encoding import load_planned

    if path is None:
        raise click.UsageError("--classes are those of --labels; give both")
    with failing_as(path):
        used = load_planned(model, effort, device)
        for line, label in enumerate(labels, 1):
            if label is not None and type(label) is not int:
                raise CommandError(f"line {line}: {label!r} is no class; give a number, or null")
            if label is not None:
                used.check_label(label)


def _processes(jobs: int) -> Any:
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    from diffcodec.system.workers import prepare_worker

    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    return ProcessPoolExecutor(jobs, context, prepare_worker, (jobs,))
