"""The command ``diffcodec``, which the other files hang their commands on."""

from collections.abc import Iterator
from pathlib import Path

import click

from diffcodec import __version__
from diffcodec.cli.running import failing_as
from diffcodec.system.files import discard_standard_output
from diffcodec.system.memory import keep_freed_memory
from diffcodec.system.process import leave_on_signals, let_threads_sleep, open_closed_streams

OPTION_GROUPS = {  # of the help of any command, in this order; experts' last
    "Quality": "quality effort progressive bpp psnr",
    "Images and runs": "data out minutes steps resume init held-out limit labels embed-model "
    "finetune",
    "Files": "output output-dir recursive files-from force skip-existing jobs strip frame recover "
    "fill group",
    "Parts": "region scale",
    "Previews": "timestep timesteps previews allow-partial max-bytes",
    "Models": "model class",
    "Drawing": "reconstruct seed images size sampler eta corrector guidance sigma levels factor "
    "resamplings",
    "Messages": "quiet json help",
    "Training": "batch crop augment learning-rate loss variance",
    "Network": "preset channels blocks color self-ensemble-up-to expert",
    "Machine": "device precision compile accumulate tensorboard",
    "For experts": "",  # the others
    "Limits": "max-pixels max-side max-tiles max-timesteps max-metadata max-memory",
}
COMMAND_GROUPS = {
    "Images": "encode decode info verify show",
    "Archives": "pack append ls extract unpack",
    "Models": "models train evaluate plan calibrate quantize doctor",
    "Diffusion": "sample forward denoise interpolate inpaint enlarge",
}


def main() -> None:
    """The command ``diffcodec``."""
    open_closed_streams()
    leave_on_signals()
    keep_freed_memory()
    let_threads_sleep()
    with failing_as("standard output"):  # that click writes help to
        try:
            cli(prog_name="diffcodec")
        except OSError:
            discard_standard_output()
            raise


class Command(click.Command):
    """A command whose help has its options in groups."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the groups."""
        for title, rows in self.option_groups(ctx):
            with formatter.section(title):
                formatter.write_dl(rows)

    def option_groups(self, ctx: click.Context) -> Iterator[tuple[str, list[tuple[str, str]]]]:
        """Titles, and of each option its names and its help."""
        records = {
            max(param.opts, key=len).removeprefix("--"): param.get_help_record(ctx)
            for param in self.get_params(ctx)
            if isinstance(param, click.Option)
        }
        named = {name for names in OPTION_GROUPS.values() for name in names.split()}
        for title, names in OPTION_GROUPS.items():
            shown = names.split() or [name for name in records if name not in named]
            if rows := [row for name in shown if (row := records.get(name)) is not None]:
                yield title, rows


class Program(click.Group):
    """The command, whose help has its commands in groups."""

    command_class = Command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; to who gives a file instead, say which commands take it."""
        if args[0] not in self.commands and Path(args[0]).is_file():
            ctx.fail(f"{args[0]} is a file, expected a command before it, such as encode or decode")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the groups."""
        for title, names in COMMAND_GROUPS.items():
            rows = [(name, self.commands[name].get_short_help_str(100)) for name in names.split()]
            with formatter.section(title):
                formatter.write_dl(rows)


@click.group(
    cls=Program,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="\b\nExamples:\n  diffcodec encode photo.png\n  diffcodec decode photo.dfc copy.png\n",
)
@click.version_option(__version__, "-V", "--version", prog_name="diffcodec")
def cli() -> None:
    """The image codec built on diffusion.

    A path of "-" is standard input or output. Exit codes: 0 done; 1 failed; 2 wrong usage; 3 a
    file of ours that is damaged or not supported; 4 not the model that the file needs.
    """


def examples(*lines: str) -> str:
    """Examples of a command, to stand at the end of its help."""
    return "\b\n" + "\n  ".join(["Examples:" if len(lines) > 1 else "Example:", *lines])
