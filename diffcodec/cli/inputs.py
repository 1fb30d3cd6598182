"""What is worked on: the paths that arguments, folders and lists name, and their outputs."""

import errno
import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import click

from diffcodec.system.addresses import is_address, name_of
from diffcodec.system.files import STANDARD, read_file

_INPUTS = ("/dev/stdin", "/dev/fd/0")  # of other names of the standard streams
_OUTPUTS = ("/dev/stdout", "/dev/fd/1")


class Input(NamedTuple):
    """A path, and the folders between it and the argument that it was found below."""

    path: str
    between: str = ""


def find_inputs(
    paths: Sequence[str],
    recursive: bool,
    files_from: str | None,
    suffixes: Collection[str],
    metavar: str = "IN",
) -> list[Input]:
    """Paths as they are given or listed; of folders, if that is wanted, the files below them.

    Args:
        paths: arguments.
        recursive: whether to look into folders.
        files_from: a file that lists more, a path a line, or between zero bytes.
        suffixes: of the files that are taken out of folders, in lower case.
        metavar: the name of the argument in the command's usage.

    Raises:
        OSError: a folder or the list cannot be read, or there is nothing of these suffixes.
        click.UsageError: there is no input.
    """
    listed = _read_list(files_from) if files_from is not None else []
    if not paths and not listed:
        raise click.UsageError(
            f"{files_from} lists no input" if files_from else f"Missing argument '{metavar}'."
        )
    found: list[Input] = []
    for path in (STANDARD if name in _INPUTS else name for name in [*paths, *listed]):
        if recursive and path != STANDARD and Path(path).is_dir():
            found += _files_below(path, suffixes)
        else:
            found.append(Input(path))
    return found


def _read_list(path: str) -> list[str]:
    data = read_file(path)
    lines = data.split(b"\0") if b"\0" in data else data.splitlines()
    return [os.fsdecode(line) for line in lines if line]


def _files_below(folder: str, suffixes: Collection[str]) -> list[Input]:
    def fail(error: OSError) -> None:
        raise error

    def walk() -> Iterator[Input]:
        for parent, folders, names in os.walk(folder, onerror=fail):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in sorted(names):
                if Path(name).suffix.lower() in suffixes and not name.startswith("."):
                    between = os.path.relpath(parent, folder)
                    yield Input(str(Path(parent, name)), "" if between == "." else between)

    found = list(walk())
    if not found:
        raise FileNotFoundError(
            errno.ENOENT, f"it holds no files of {', '.join(sorted(suffixes))}", folder
        )
    return found


def pair_outputs(
    inputs: Sequence[Input],
    output: str | None,
    output_dir: str | None,
    suffix: str,
    is_list: bool,
) -> list[tuple[str, str]]:
    """Inputs with their outputs.

    Args:
        inputs: two of them are one with its output, unless they are a list.
        output: that of the one input.
        output_dir: where all outputs go.
        suffix: of outputs that are not named.
        is_list: whether all of them are inputs, even without ``output_dir``.

    Raises:
        click.UsageError: that is not what the arguments can mean.
    """
    paths = [path for path, _ in inputs]
    is_one_with_output = not is_list and output_dir is None and len(paths) == 2
    for target in (output, output_dir, paths[1] if is_one_with_output else None):
        if target is not None and is_address(target):
            raise click.UsageError(f"{target}: outputs are files on this machine; give a path")
    output = STANDARD if output in _OUTPUTS else output

    def name(path: str) -> str:
        return Path(name_of(path)).stem + suffix

    if output_dir is not None or is_list:
        if output is not None:
            raise click.UsageError(
                "--output names one file; it goes neither with --output-dir nor with several inputs"
            )
        if STANDARD in paths:
            raise click.UsageError("standard input has no name to be used for an output")
        return _unlike(
            [
                (
                    path,
                    str(Path(output_dir or _folder(path), between * bool(output_dir)) / name(path)),
                )
                for path, between in inputs
            ]
        )
    if output is None and len(paths) == 2:
        target = STANDARD if paths[1] in _OUTPUTS else paths[1]
        _check_name(paths[0], target)
        return [(paths[0], target)]
    if len(paths) > 1:
        raise click.UsageError("one input and one output; for several inputs, --output-dir")
    source = Path(paths[0])
    is_pipe = source.is_relative_to("/dev") and not source.is_file()  # as <(...) in a shell
    is_stream = paths[0] == STANDARD or is_pipe
    default = STANDARD if is_stream else str(_folder(paths[0]) / name(paths[0]))
    return [(paths[0], output or default)]


def _folder(path: str) -> Path:
    """Where the output of an input goes that is not named; of an address here."""
    return Path() if is_address(path) else Path(path).parent


def _check_name(source: str, target: str) -> None:
    """Refuse an output that looks like a mistake: the value of an option that takes none."""
    path = Path(target)
    if target != STANDARD and not path.suffix and (path.is_file() or not path.exists()):
        raise click.UsageError(
            f"the output {target} has no suffix; if that is meant, give it by --output {target}"
        )


def _unlike(jobs: list[tuple[str, str]]) -> list[tuple[str, str]]:
    by_target: dict[str, str] = {}
    for source, target in jobs:
        if (other := by_target.setdefault(target, source)) is not source:
            raise click.UsageError(
                f"2 inputs have the same output {target}: {other} and {source}; give them apart"
            )
    return jobs


@contextmanager
def made_folders(folders: Iterable[Path]) -> Iterator[None]:
    """Folders that outputs go into, made where they are missing; what stays empty goes again.

    Raises:
        OSError: one cannot be made.
    """
    made: list[Path] = []
    try:
        for folder in folders:
            missing = [each for each in (folder, *folder.parents) if not each.exists()]
            made += reversed(missing)
            make_folder(folder)
        yield
    finally:
        for folder in reversed(made):
            with suppress(OSError):  # it is not empty
                folder.rmdir()


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it, if it is missing.

    Raises:
        OSError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as e:
        raise NotADirectoryError(errno.ENOTDIR, "it is not a folder", str(folder)) from e
