"""Working on many inputs: outcomes, messages, exit codes."""

import errno
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click

from diffcodec.container.parts import MAGIC, Container
from diffcodec.container.reader import parse
from diffcodec.errors import (
    DiffcodecError,
    FormatError,
    LimitError,
    ModelMismatchError,
    UnsupportedError,
    UnsupportedFileError,
    WorkerDiedError,
)
from diffcodec.images.formats import save_format
from diffcodec.limits import Limits
from diffcodec.models.file import model_info, model_path
from diffcodec.system.files import STANDARD, remove_temporaries, write_standard_output

EXIT_FAILURE, EXIT_BAD_FILE, EXIT_WRONG_MODEL = 1, 3, 4  # click exits with 2 on wrong usage
SKIPPED = "skipped"  # instead of a result
ADVICE = {
    errno.EACCES: "check its permissions",
    errno.EEXIST: "give another output, or --force to overwrite it",
    errno.EISDIR: "give the path of a file",
    errno.ENOENT: "check the path",
    errno.ENOSPC: "free some space and run it again",
}


class CommandError(Exception):
    """A message about a path, with an exit code of its own."""

    def __init__(self, message: str, exit_code: int = EXIT_FAILURE, path: str | None = None):
        super().__init__(message)
        self.exit_code, self.path = exit_code, path


FAILURES = (DiffcodecError, OSError, MemoryError, CommandError)


def print_line(text: str) -> None:
    """To standard output."""
    write_standard_output(f"{text}\n".encode())


def say(text: str) -> None:
    """To standard error."""
    click.echo(text, err=True)


def pair_outputs(
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


@dataclass(frozen=True)
class Files:
    """What the arguments and options say of inputs and outputs; ``jobs`` are pairs of their paths.

    Made by :func:`diffcodec.cli.options.file_options`.
    """

    jobs: list[tuple[str, str]]
    force: bool
    quiet: bool
    skip_existing: bool
    processes: int

    @property
    def progress(self) -> bool:
        """Whether to show a bar for each file: several would be in each other's way."""
        return not self.quiet and self.processes == 1

    def for_each(
        self,
        work: Callable[..., Any],
        as_json: bool = False,
        show: Callable[[Any], None] = say,
    ) -> None:
        """Work on each pair of paths; see :func:`for_each`."""
        for_each(
            self.jobs,
            partial(_skip_existing_output, work) if self.skip_existing else work,
            as_json,
            show if as_json or not self.quiet else None,
            self.processes,
        )


def _skip_existing_output(work: Callable[..., Any], source: str, target: str) -> Any:
    """Work, unless its output exists; as outputs are written whole, that was done before."""
    try:
        return work(source, target)
    except FileExistsError:
        return SKIPPED


def image_format(target: str) -> str:
    """Of an output, by its suffix."""
    if target == STANDARD:
        return "PNG"
    try:
        return save_format(target)
    except UnsupportedError as e:
        raise CommandError(str(e), path=target) from e


def load_given(model: str | None, arithmetic: str | None = None) -> None:
    """Let a wrong --model fail once, by its own name; what is loaded stays loaded."""
    if model is not None:
        from diffcodec.models.model import load_model

        with failing_as(model):
            load_model(model, arithmetic or model_info(model_path(model)).arithmetic)


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


def for_each(
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
                print_line(json.dumps({"input": job[0], "output": job[1], "skipped": True}))
        elif show is not None and outcome is not None:
            show(outcome)
    if skipped and show is not None:
        say(f"diffcodec: {skipped} of {len(jobs)} outputs exist: skipped")
    if failed and len(jobs) > 1:
        names = ", ".join(name for name, _ in failed)
        say(f"diffcodec: {len(failed)} of {len(jobs)} inputs failed: {names}")
    codes = {code for _, code in failed}
    if codes:
        sys.exit(codes.pop() if len(codes) == 1 else EXIT_FAILURE)


def _outcomes(
    jobs: Sequence[tuple[str, ...]], work: Callable[..., Any], processes: int
) -> Iterator[tuple[tuple[str, ...], Any | Exception]]:
    """Each job with what work makes of it or the exception that it raises."""
    if min(processes, len(jobs)) > 1:
        from diffcodec.system.workers import run_in_workers

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
    message = " ".join(message.removeprefix(f"{path}: ").split())
    say(f"diffcodec: {path}: {message}")
    if as_json:
        print_line(json.dumps({"input": name, "error": message, "exit_code": code}))
    return code
