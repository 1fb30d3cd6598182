"""Options that several commands share, and what the commands are given for them."""

from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from typing import Any

import click

from diffcodec.cli.running import Files, pair_outputs
from diffcodec.container.parts import PLAN_NAMES
from diffcodec.limits import DEFAULT_LIMITS
from diffcodec.models.file import DEFAULT_MODEL

Command = Callable[..., None]
Option = Callable[[Command], Command]


def together(*options: Option) -> Option:
    """Options as one decorator; help shows them in this order."""

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def model_option(description: str) -> Option:
    """Which model."""
    return click.option("--model", metavar="NAME_OR_PATH", help=description)


def effort_option(description: str) -> Option:
    """Which of the model's plans."""
    return click.option(
        "--effort",
        type=click.Choice(PLAN_NAMES),
        default="default",
        show_default=True,
        help=description,
    )


paths_argument = click.argument("paths", nargs=-1, required=True, metavar="PATH...")
file_model_option = model_option(
    "The model file it was encoded with, if that is not a shipped one."
)
data_option = click.option(
    "--data", metavar="DIR", required=True, help="Folder of images, or a .npy or .npz."
)
used_model_option = model_option(f"A shipped model, or a model file.  [default: {DEFAULT_MODEL}]")
crop_option = click.option(
    "--crop",
    metavar="N",
    type=click.IntRange(min=1),
    help="Sides of the crops of images.  [default: as in training]",
)
force_option = click.option("-f", "--force", is_flag=True, help="Overwrite files that exist.")
quiet_option = click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print a JSON object per input.")
many_files_options = together(
    click.option("--skip-existing", is_flag=True, help="Leave out inputs whose output exists."),
    click.option(
        "-j",
        "--jobs",
        "processes",
        type=click.IntRange(min=1),
        default=1,
        show_default=True,
        metavar="N",
        help="Work on N inputs at a time.",
    ),
)


def file_options(suffix: str) -> Option:
    """The arguments IN [OUT], and how outputs are written: the command gets ``files``.

    ``many_files_options`` go there too.

    Args:
        suffix: of outputs whose name is not given.
    """

    def decorate(command: Command) -> Command:
        @wraps(command)
        def given(
            *,
            paths: tuple[str, ...],
            output: str | None,
            output_dir: str | None,
            force: bool,
            quiet: bool,
            skip_existing: bool = False,
            processes: int = 1,
            **more: Any,
        ) -> None:
            if skip_existing and force:
                raise click.UsageError("--skip-existing and --force exclude each other")
            jobs = pair_outputs(paths, output, output_dir, suffix)
            command(files=Files(jobs, force, quiet, skip_existing, processes), **more)

        return together(
            click.argument("paths", nargs=-1, required=True, metavar="IN [OUT]"),
            click.option("-o", "--output", metavar="OUT", help="Where to write the one output."),
            click.option(
                "--output-dir",
                metavar="DIR",
                help="Every PATH is an input; write their outputs here.",
            ),
            force_option,
            quiet_option,
        )(given)

    return decorate


def limit_options(command: Command) -> Command:
    """What to refuse: the command gets ``limits``."""

    @wraps(command)
    def given(*, max_pixels: int, max_memory: int, **more: Any) -> None:
        limits = replace(DEFAULT_LIMITS, pixels=max_pixels, memory_bytes=max_memory << 20)
        command(limits=limits, **more)

    return together(
        click.option(
            "--max-pixels",
            type=click.IntRange(min=1),
            default=DEFAULT_LIMITS.pixels,
            show_default=True,
            metavar="N",
            help="Refuse images of more pixels.",
        ),
        click.option(
            "--max-memory",
            type=click.IntRange(min=1),
            default=DEFAULT_LIMITS.memory_bytes >> 20,
            show_default=True,
            metavar="MIB",
            help="Refuse what is expected to take more memory.",
        ),
    )(given)


def parse_numbers(text: str) -> tuple[int, ...]:
    """Positive integers between commas."""
    numbers = tuple(int(part) for part in text.split(","))
    if min(numbers) < 1:
        raise ValueError("a number below 1")
    return numbers
