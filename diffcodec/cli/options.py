"""Options that several commands share, and what the commands are given for them."""

import math
from collections.abc import Callable, Collection
from functools import wraps
from typing import Any

import click
from click.shell_completion import CompletionItem

from diffcodec.cli.inputs import find_inputs, pair_outputs
from diffcodec.cli.running import Files, failing_as
from diffcodec.container.parts import PLAN_NAMES
from diffcodec.limits import DEFAULT_LIMITS, Limits
from diffcodec.models.file import DEFAULT_MODEL, shipped_models
from diffcodec.networks.config import DEVICES
from diffcodec.system.files import STANDARD
from diffcodec.training.budget import MOST_MINUTES

SUFFIX = ".dfc"
Command = Callable[..., None]
Option = Callable[[Command], Command]


def together(*options: Option) -> Option:
    """Options as one decorator; help shows them in this order."""

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


class NamedPath(click.Path):
    """A path, which the shell completes; whether it can be read is seen later.

    An empty one is a variable of a script that is not set: it stands for no default.
    """

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Refuse an empty path."""
        if not value:
            self.fail("an empty name, expected a path.", param, ctx)
        return super().convert(value, param, ctx)


class ArchivePath(NamedPath):
    """The path of an archive, which is read and written at any place."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Refuse a standard stream."""
        if value == STANDARD:
            self.fail("an archive is a file, no standard stream; give its path.", param, ctx)
        return super().convert(value, param, ctx)


class ModelPath(NamedPath):
    """A shipped model by name, or the path of a model file."""

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """The names, and what the shell finds of files."""
        names = [path.stem for path in shipped_models() if path.stem.startswith(incomplete)]
        return [*map(CompletionItem, names), *super().shell_complete(ctx, param, incomplete)]


PATH = NamedPath(readable=False)
archive_argument = click.argument("path", type=ArchivePath(readable=False), metavar="ARCHIVE")


def model_option(description: str) -> Option:
    """The option that says which model."""
    return click.option(
        "--model", type=ModelPath(readable=False), metavar="NAME_OR_PATH", help=description
    )


def effort_option(description: str) -> Option:
    """The option that says which of the model's plans."""
    return click.option(
        "--effort",
        type=click.Choice(PLAN_NAMES),
        default="default",
        show_default=True,
        help=description,
    )


def crop_option(default: str) -> Option:
    """The option for the size of crops, whose default the command finds."""
    return click.option(
        "--crop",
        metavar="N",
        type=click.IntRange(min=1),
        help=f"Sides of the crops of images.  [default: {default}]",
    )


file_model_option = model_option(
    "The model file it was encoded with, if that is not a shipped one."
)
data_option = click.option(
    "--data", type=PATH, metavar="DIR", required=True, help="Folder of images, or a .npy or .npz."
)
used_model_option = model_option(f"A shipped model, or a model file.  [default: {DEFAULT_MODEL}]")
device_option = click.option(
    "--device",
    type=click.Choice(DEVICES),
    default="cpu",
    show_default=True,
    help="Where the network computes; auto is a GPU if there is one.",
)
force_option = click.option("-f", "--force", is_flag=True, help="Overwrite files that exist.")
quiet_option = click.option("--quiet", is_flag=True, help="Say nothing but errors.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print a JSON object per input.")


def jobs_option(name: str, text: str) -> Option:
    """The option of how many processes to work in, by the name of its argument and its help."""
    return click.option(
        "-j",
        "--jobs",
        name,
        type=click.IntRange(min=1),
        default=1,
        show_default=True,
        metavar="N",
        help=text,
    )


many_files_options = together(
    click.option("--skip-existing", is_flag=True, help="Leave out inputs whose output exists."),
    jobs_option("processes", "Work on N inputs at a time."),
)


more_inputs_options = together(
    click.option(
        "-r", "--recursive", is_flag=True, help="Of folders take the files in them and below."
    ),
    click.option(
        "--files-from",
        type=PATH,
        metavar="FILE",
        help="Take the inputs that FILE lists too, a path a line or between zero bytes.",
    ),
)


def paths_argument(command: Command) -> Command:
    """Files of ours, by name, in folders or on a list: the command gets ``paths``."""

    @wraps(command)
    def given(
        *, paths: tuple[str, ...], recursive: bool, files_from: str | None, **more: Any
    ) -> None:
        with failing_as(files_from or ""):
            found = find_inputs(paths, recursive, files_from, [SUFFIX], "PATH")
        command(paths=[path for path, _ in found], **more)

    argument = click.argument("paths", nargs=-1, type=PATH, metavar="PATH...")
    return together(argument, more_inputs_options)(given)


def file_options(suffix: str, suffixes: Collection[str] = (SUFFIX,)) -> Option:
    """The arguments IN [OUT], and how outputs are written: the command gets ``files``.

    ``many_files_options`` go there too.

    Args:
        suffix: of outputs whose name is not given.
        suffixes: of the inputs that are found in folders.
    """

    def decorate(command: Command) -> Command:
        @wraps(command)
        def given(
            *,
            paths: tuple[str, ...],
            output: str | None,
            output_dir: str | None,
            recursive: bool,
            files_from: str | None,
            force: bool,
            quiet: bool,
            skip_existing: bool = False,
            processes: int = 1,
            **more: Any,
        ) -> None:
            if skip_existing and force:
                raise click.UsageError("--skip-existing and --force exclude each other")
            with failing_as(files_from or ""):
                inputs = find_inputs(paths, recursive, files_from, suffixes)
            is_list = recursive or files_from is not None
            files = Files(
                jobs=pair_outputs(inputs, output, output_dir, suffix, is_list),
                makes_folders=output_dir is not None,
                force=force,
                quiet=quiet,
                skip_existing=skip_existing,
                processes=processes,
            )
            command(files=files, **more)

        return together(
            click.argument("paths", nargs=-1, type=PATH, metavar="IN [OUT]"),
            click.option(
                "-o", "--output", type=PATH, metavar="OUT", help="Where to write the one output."
            ),
            click.option(
                "--output-dir",
                type=PATH,
                metavar="DIR",
                help="All arguments are inputs: write their outputs into this folder, which is "
                "made if it is missing.",
            ),
            more_inputs_options,
            force_option,
            quiet_option,
        )(given)

    return decorate


_LIMITS = {  # of Limits: the unit of its option, and what is refused
    "pixels": (1, "images of more pixels"),
    "side": (1, "images of longer sides, in pixels"),
    "tiles": (1, "images of more tiles, which are of about 512 x 512 pixels"),
    "timesteps": (1, "files of more timesteps"),
    "metadata_bytes": (1 << 20, "more metadata"),
    "memory_bytes": (1 << 20, "what is expected to take more memory"),
}


def limit_options(command: Command) -> Command:
    """Options that say what to refuse: the command gets ``limits``."""

    @wraps(command)
    def given(**options: Any) -> None:
        units = {name: unit for name, (unit, _) in _LIMITS.items()}
        given = {name: unit * options.pop(_limit_name(name)) for name, unit in units.items()}
        command(limits=Limits(**given), **options)

    return together(
        *(
            click.option(
                f"--{_limit_name(name).replace('_', '-')}",
                type=click.IntRange(min=1),
                default=getattr(DEFAULT_LIMITS, name) // unit,
                show_default=True,
                metavar="N" if unit == 1 else "MIB",
                help=f"Refuse {what}.",
            )
            for name, (unit, what) in _LIMITS.items()
        )
    )(given)


def _limit_name(name: str) -> str:
    return f"max_{name.removesuffix('_bytes')}"


class Finite(click.FloatRange):
    """A number in a range, which infinity and "nan" are in none of."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Convert text to a finite number."""
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is no finite number.", param, ctx)
        return number


POSITIVE = click.IntRange(min=1)
POSITIVE_NUMBER = Finite(min=0, min_open=True)
MINUTES = Finite(min=0, max=MOST_MINUTES, min_open=True)  # of training
SEED = click.IntRange(0, (1 << 63) - 1)  # as torch takes them


def parse_numbers(text: str) -> tuple[int, ...]:
    """Positive integers between commas."""
    numbers = parse_integers(text)
    if min(numbers) < 1:
        raise ValueError(f"{min(numbers)} is below 1.")
    return numbers


def parse_integers(text: str) -> tuple[int, ...]:
    """Integers between commas."""
    try:
        return tuple(map(int, text.split(",")))
    except ValueError:
        raise ValueError(f"{text!r} is no list of integers between commas.") from None
