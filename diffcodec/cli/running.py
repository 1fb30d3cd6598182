"""Working on many inputs: outcomes, messages, exit codes."""

import errno
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import click

from diffcodec.cli.inputs import made_folders
from diffcodec.container.parts import MAGIC, Container
from diffcodec.container.reader import parse
from diffcodec.errors import (
    DiffcodecError,
    FormatError,
    LimitError,
    ModelMismatchError,
    UnsupportedError,
    UnsupportedFileError,
)
from diffcodec.images.formats import FRAME_IN_SHELL, save_format
from diffcodec.limits import Limits
from diffcodec.models.file import model_files, model_info, model_path, network_path
from diffcodec.system.files import (
    STANDARD,
    check_output,
    discard_standard_output,
    is_stream,
    write_standard_output,
)
from diffcodec.system.process import loading

EXIT_FAILURE, EXIT_BAD_FILE, EXIT_WRONG_MODEL = 1, 3, 4  # click exits with 2 on wrong usage
MOST_TOGETHER = 32  # inputs that a process gets at a time
TOGETHER_PIXELS = 1 << 15  # of small images that are coded side by side
ADVICE = {
    errno.EBADF: "it is closed; give a file, or connect it to one",
    errno.EACCES: "check its permissions",
    errno.EEXIST: "give another output, or --force to overwrite it",
    errno.EISDIR: "give a file; a folder of inputs with --recursive, of outputs by --output-dir",
    errno.EFBIG: "write to a file system, or under a limit, that takes larger files",
    errno.EDQUOT: "free some space and run it again",
    errno.ENOENT: "check the path",
    errno.ENOSPC: "free some space and run it again",
}


class CommandError(Exception):
    """A message about a path, with an exit code of its own."""

    def __init__(self, message: str, exit_code: int = EXIT_FAILURE, path: str | None = None):
        super().__init__(message)
        self.exit_code, self.path = exit_code, path


FAILURES = (DiffcodecError, OSError, MemoryError, CommandError)
Opened = TypeVar("Opened")
Made = TypeVar("Made")
Job = tuple[str, ...]  # an input, and its output if there is one
Work = Callable[[Iterable[Job]], Iterator[Any]]  # a result for each job, or why there is none


def print_line(text: str) -> None:
    """Print to standard output; names that are not UTF-8 as the bytes that they are."""
    write_standard_output(f"{text}\n".encode(errors="surrogateescape"))


@contextmanager
def discarding_unwritten() -> Iterator[None]:
    """Drop in the end what standard output has not taken, where the work goes on without."""
    try:
        yield
    finally:
        try:
            sys.stdout.flush()
        except OSError:
            discard_standard_output()


def say(text: str) -> None:
    """Print to standard error; where that cannot be written, the work itself does not fail."""
    with suppress(OSError):
        click.echo(text, err=True)


def printable(name: str) -> str:
    """A name on one line, for the eye: what else would break the line is escaped."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in name)


@dataclass(frozen=True)
class Files:
    """What the arguments and options say of inputs and outputs; ``jobs`` are pairs of their paths.

    Made by :func:`diffcodec.cli.options.file_options`.
    """

    jobs: list[tuple[str, str]]
    makes_folders: bool
    force: bool
    quiet: bool
    skip_existing: bool
    processes: int

    @property
    def progress(self) -> bool:
        """Whether to show a bar of the one file: of several there is one over all."""
        return not self.quiet and len(self.jobs) == 1

    def for_each(
        self,
        work: Work,
        as_json: bool = False,
        show: Callable[[Any], None] = say,
        most_together: int = 1,
    ) -> None:
        """Work on each pair of paths; see :func:`for_each`."""
        folders = {Path(target).parent for _, target in self.jobs} if self.makes_folders else ()
        with folders_of_outputs("--output-dir", folders):
            for_each(
                self.jobs,
                work,
                as_json=as_json,
                show=show if as_json or not self.quiet else None,
                skip_existing=self.skip_existing,
                processes=self.processes,
                most_together=most_together,
                progress=not self.quiet,
            )


@contextmanager
def folders_of_outputs(name: str, folders: Iterable[Path]) -> Iterator[None]:
    """See :func:`made_folders`; what cannot be made fails by this name."""
    with ExitStack() as stack:
        with failing_as(name):
            stack.enter_context(made_folders(folders))
        yield


def image_format(target: str) -> str:
    """The image format of an output, by its suffix; what has no name of its own becomes a PNG."""
    if is_stream(target):
        return "PNG"
    try:
        return save_format(target)
    except UnsupportedError as e:
        raise CommandError(str(e), path=target) from e


def check_device(device: str) -> None:
    """Let a wrong --device fail by its own name."""
    if device == "cuda":
        from diffcodec.networks.devices import find_device

        with failing_as("--device"):
            find_device(device)


def load_given(model: str | None, arithmetic: str | None = None, device: str = "cpu") -> None:
    """Let a wrong --device or --model fail once, by its own name; what is loaded stays loaded."""
    check_device(device)
    if model is not None:
        with loading(), failing_as(model):
            from diffcodec.models.model import load_model

            load_model(model, arithmetic or model_info(model_path(model)).arithmetic, device)


def check_target(target: str, source: str, force: bool, model: str | None) -> None:
    """Refuse an output as :func:`check_output` does, and also one that is a file of the model.

    Args:
        target: the output.
        source: the input that it is made from.
        force: whether another file that exists may be overwritten.
        model: given for it, if one is.

    Raises:
        DiffcodecError: it is the input, or a file of the model or of the network that it names.
        OSError: see :func:`check_output`.
    """
    check_output(target, source, force)
    if model is None or target == STANDARD or not Path(target).is_file():
        return
    files: list[Path] = []
    with suppress(DiffcodecError, OSError):  # loading it says what is wrong
        files = [file for file in model_files(network_path(model)) if file.exists()]
    if any(file.samefile(target) for file in files):
        raise DiffcodecError("the output is a file of the model; give another output")


def parse_data(data: bytes, limits: Limits) -> Container:
    """The parts of a file."""
    with reading_file(data):
        return parse(data, limits)


@contextmanager
def reading_file(data: bytes) -> Iterator[None]:
    """What fails now is the file's fault."""
    if data and not MAGIC.startswith(data[: len(MAGIC)]):
        raise CommandError(
            f"not a diffcodec file (it starts with {data[: len(MAGIC)].hex(' ')}); "
            "give a file that encode has made",
            EXIT_BAD_FILE,
        )
    try:
        yield
    except (UnsupportedFileError, LimitError) as e:
        raise CommandError(str(e), EXIT_BAD_FILE) from e


def one_by_one(work: Callable[..., Any]) -> Work:
    """Work on jobs, of which each is done by itself."""
    return partial(_one_by_one, work)


def _one_by_one(work: Callable[..., Any], jobs: Iterable[Job]) -> Iterator[Any]:
    for job in jobs:
        yield attempt(work, *job)


def in_groups(
    opened: Iterable[Opened | Exception], pixels: Callable[[Opened], int], most: int
) -> Iterator[list[Opened | Exception]]:
    """Inputs in order, those together that have so many pixels at most; one of 0 is alone.

    A failure goes with any, and counts nothing.
    """
    group: list[Opened | Exception] = []
    held = 0
    for one in opened:
        size = 0 if isinstance(one, Exception) else pixels(one) or most + 1
        if group and held + size > most:
            yield group
            group, held = [], 0
        group.append(one)
        held += size
    if group:
        yield group


def attempt(work: Callable[..., Any], *arguments: Any) -> Any | Exception:
    """What work returns, or the exception that it raises."""
    try:
        return work(*arguments)
    except Exception as e:
        return e


def write_together(
    group: Sequence[Opened | Exception],
    make: Callable[[list[Opened]], Iterable[Made]],
    write: Callable[[Opened, Made | None, float], Any],
) -> Iterator[Any]:
    """Write what is made of inputs side by side; if that fails, of those left by each itself.

    Args:
        group: inputs, or why there is none.
        make: what is to be written of each of several inputs, in order.
        write: an input and what was made of it, in so many seconds, if anything; gives its outcome.
    """
    inputs = [one for one in group if not isinstance(one, Exception)]
    made: list[Made] = []
    start = time.perf_counter()
    if len(inputs) > 1:
        with suppress(DiffcodecError, MemoryError):
            made.extend(make(inputs))
    seconds = (time.perf_counter() - start) / max(1, len(made))
    left = iter(made)
    for one in group:
        if isinstance(one, Exception):
            yield one
        else:
            yield attempt(write, one, next(left, None), seconds)


def for_each(
    jobs: Sequence[Job],
    work: Work,
    *,
    as_json: bool = False,
    show: Callable[[Any], None] | None = None,
    skip_existing: bool = False,
    processes: int = 1,
    most_together: int = 1,
    progress: bool = False,
) -> None:
    """Work on each input, the first of a job; one that fails does not stop the rest.

    Exits with the code of the failures if they agree in it, else with 1.

    Args:
        jobs: inputs with their outputs.
        work: on the jobs; what it returns is shown.
        as_json: whether to print an object for what fails or is skipped.
        show: what to do with a result.
        skip_existing: whether an output that exists is as good as made: it was written whole.
        processes: how many work side by side.
        most_together: jobs that one of them gets at a time.
        progress: whether to show a bar over all inputs on a terminal.
    """
    failed: list[tuple[str, int]] = []
    skipped = 0
    with _bar(len(jobs), progress and len(jobs) > 1) as bar:
        for job, outcome in _outcomes(jobs, work, processes, most_together):
            with _beside(bar):
                if skip_existing and isinstance(outcome, FileExistsError):
                    skipped += 1
                    if as_json:
                        said = {"input": job[0], "output": job[1], "skipped": True}
                        print_line(json.dumps(said))
                elif isinstance(outcome, Exception):
                    failed.append((job[0], _report_failed(job, outcome, as_json)))
                elif show is not None and outcome is not None:
                    show(outcome)
            if bar is not None:
                bar.update()
    if skipped and show is not None:
        say(f"diffcodec: {skipped} of {len(jobs)} outputs exist: skipped")
    if failed and len(jobs) > 1:
        names = ", ".join(printable(name) for name, _ in failed)
        say(f"diffcodec: {len(failed)} of {len(jobs)} inputs failed: {names}")
    codes = {code for _, code in failed}
    if codes:
        sys.exit(codes.pop() if len(codes) == 1 else EXIT_FAILURE)


def _bar(files: int, is_wanted: bool) -> AbstractContextManager[Any]:
    """A progress bar over so many files; seen on a terminal, if it takes over two seconds."""
    if not (is_wanted and sys.stderr.isatty()):
        return nullcontext()  # tqdm takes a while to load
    from tqdm import tqdm

    bar: AbstractContextManager[Any] = tqdm(total=files, unit="file", delay=2)
    return bar


def _beside(bar: Any) -> AbstractContextManager[None]:
    """Lines that are written meanwhile go above the bar."""
    above: AbstractContextManager[None] = (
        nullcontext() if bar is None else bar.external_write_mode()
    )
    return above


def _outcomes(
    jobs: Sequence[Job], work: Work, processes: int, most_together: int
) -> Iterator[tuple[Job, Any | Exception]]:
    """Each job with what work makes of it or the exception that it raises."""
    if min(processes, len(jobs)) > 1:
        from diffcodec.system.workers import run_in_workers

        # Several times as many groups as processes, so that none is idle for long at the end.
        size = max(1, min(most_together, len(jobs) // (4 * processes)))
        groups = [jobs[i : i + size] for i in range(0, len(jobs), size)]
        yield from run_in_workers(work, groups, min(processes, len(jobs)))
    else:
        yield from zip(jobs, work(jobs), strict=True)


def _report_failed(job: Job, error: Exception, as_json: bool) -> int:
    """Report the failure of a job, or raise what is none of its input."""
    if isinstance(error, BrokenPipeError) or not isinstance(error, FAILURES):
        raise error
    return _report(job[0], error, as_json)


@contextmanager
def failing_as(name: str) -> Iterator[None]:
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
    if isinstance(error, CommandError):
        path, code = error.path or name, error.exit_code
    elif isinstance(error, ModelMismatchError):
        code = EXIT_WRONG_MODEL
    elif isinstance(error, FormatError):
        code = EXIT_BAD_FILE
    elif isinstance(error, OSError) and error.strerror:
        path, advice = error.filename or name, ADVICE.get(error.errno or 0)
        message = error.strerror + (f"; {advice}" if advice else "")
    if path == STANDARD:
        path = "standard output" if message.startswith("standard output: ") else "standard input"
    real = ""
    with suppress(ValueError):  # of an image in an archive, whose name no file can have
        real = f"{os.path.realpath(path)}: "
    for prefix in ("", real, f"cannot read {path}: "):
        message = message.removeprefix(f"{name}: ").removeprefix(f"{path}: ").removeprefix(prefix)
    message = printable(" ".join(_advise(message).split()))
    say(f"diffcodec: {printable(str(path))}: {message}")
    if as_json:
        print_line(json.dumps({"input": name, "error": message, "exit_code": code}))
    return code


def _advise(message: str) -> str:
    """The same with the option that raises a limit or chooses a frame, if the command has one."""
    context = click.get_current_context(silent=True)
    options = {} if context is None else {p.name: p.opts[0] for p in context.command.params}

    def option(found: re.Match[str]) -> str:
        name = f"max_{found[1].removesuffix('_bytes')}"
        return f"raise {options[name]}" if name in options else "make it smaller, or leave it out"

    if "frame" not in options:
        message = message.replace(FRAME_IN_SHELL, "split it into files of one each")
    return re.sub(r"raise the limit (\w+)(?= if you)", option, message)
