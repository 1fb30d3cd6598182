"""The command show."""

import io
from functools import partial
from pathlib import Path

import click

from diffcodec.cli.options import (
    force_option,
    make_limits,
    max_memory_option,
    max_pixels_option,
    model_option,
    output_dir_option,
    output_option,
    quiet_option,
)
from diffcodec.cli.program import cli
from diffcodec.cli.running import for_each, load_given, pair_outputs, parse_data, reading_file
from diffcodec.system.files import STANDARD, check_output, read_file, write_file


@cli.command(short_help="Show the timesteps of files as pages, or contact sheets.")
@click.argument("paths", nargs=-1, required=True, metavar="IN [OUT]")
@output_option
@output_dir_option
@model_option("The model file it was encoded with, if that is not a shipped one.")
@force_option
@max_pixels_option
@max_memory_option
@quiet_option
def show(
    *,
    paths: tuple[str, ...],
    output: str | None,
    output_dir: str | None,
    model: str | None,
    force: bool,
    max_pixels: int,
    max_memory: int,
    quiet: bool,
) -> None:
    """Show a file at each timestep: show IN [OUT], or show --output-dir DIR IN...

    The picture, the bytes so far, bits per pixel and PSNR. The suffix of OUT chooses: .html, one
    page with a slider that needs nothing else; .png, a contact sheet. OUT is IN with the suffix
    .html if it is not given.
    """
    jobs = pair_outputs(paths, output, output_dir, ".html")
    limits = make_limits(max_pixels, max_memory)
    for _, target in jobs:
        if target != STANDARD and not target.lower().endswith((".html", ".png")):
            raise click.UsageError(
                f"{target}: expected .html for a page, or .png for a contact sheet"
            )

    def work(source: str, target: str) -> str | None:
        check_output(target, source, force)
        data = read_file(source)
        parse_data(data, limits)

        from diffcodec.viewing.show import contact_sheet, page, previews

        with reading_file(data):
            shown = previews(data, model, not quiet, limits)
        if target.lower().endswith(".png"):
            stream = io.BytesIO()
            contact_sheet(shown).save(stream, "PNG")
            written = stream.getvalue()
        else:
            written = page(shown, Path(source).name).encode()
        write_file(target, written, force)
        return None if target == STANDARD else f"{source} -> {target}: {len(shown)} timesteps"

    load_given(model)
    for_each(jobs, work, show=None if quiet else partial(click.echo, err=True))
