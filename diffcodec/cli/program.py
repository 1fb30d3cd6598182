"""The command ``diffcodec``, which the other files hang their commands on."""

import click

from diffcodec import __version__
from diffcodec.system.memory import keep_freed_memory
from diffcodec.system.process import leave_on_signals, open_closed_streams


def main() -> None:
    """The command ``diffcodec``."""
    open_closed_streams()
    leave_on_signals()
    keep_freed_memory()
    cli(prog_name="diffcodec")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="diffcodec")
def cli() -> None:
    """The image codec built on diffusion.

    A path of "-" is standard input or output. Exit codes: 0 done; 1 failed; 2 wrong usage; 3 a
    file of ours that is damaged or not supported; 4 not the model that the file needs.
    """
