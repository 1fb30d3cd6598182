"""Options that several commands share."""

from collections.abc import Callable
from dataclasses import replace

import click

from diffcodec.container.parts import CHAIN_CODERS
from diffcodec.limits import DEFAULT_LIMITS, Limits


def model_option(description: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Which model."""
    return click.option("--model", metavar="NAME_OR_PATH", help=description)


def effort_option(description: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Which of the model's plans."""
    return click.option(
        "--effort",
        type=click.Choice(CHAIN_CODERS),
        default="default",
        show_default=True,
        help=description,
    )


paths_argument = click.argument("paths", nargs=-1, required=True, metavar="PATH...")
output_option = click.option("-o", "--output", metavar="OUT", help="Where to write the one output.")
output_dir_option = click.option(
    "--output-dir", metavar="DIR", help="Every PATH is an input; write their outputs here."
)
max_pixels_option = click.option(
    "--max-pixels",
    type=click.IntRange(min=1),
    default=DEFAULT_LIMITS.pixels,
    show_default=True,
    metavar="N",
    help="Refuse images of more pixels.",
)
max_memory_option = click.option(
    "--max-memory",
    type=click.IntRange(min=1),
    default=DEFAULT_LIMITS.memory_bytes >> 20,
    show_default=True,
    metavar="MIB",
    help="Refuse what is expected to take more memory.",
)
force_option = click.option("-f", "--force", is_flag=True, help="Overwrite files that exist.")
skip_existing_option = click.option(
    "--skip-existing", is_flag=True, help="Leave out inputs whose output exists."
)
jobs_option = click.option(
    "-j",
    "--jobs",
    "processes",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="N",
    help="Work on N inputs at a time.",
)
quiet_option = click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print a JSON object per input.")


def parse_numbers(text: str) -> tuple[int, ...]:
    """Positive integers between commas."""
    numbers = tuple(int(part) for part in text.split(","))
    if min(numbers) < 1:
        raise ValueError("a number below 1")
    return numbers


def make_limits(max_pixels: int, max_memory: int = DEFAULT_LIMITS.memory_bytes >> 20) -> Limits:
    """The limits that the options ask for; memory in MiB."""
    return replace(DEFAULT_LIMITS, pixels=max_pixels, memory_bytes=max_memory << 20)
