"""The command show."""

import io
from pathlib import Path

import click

from diffcodec.cli.options import device_option, file_model_option, file_options, limit_options
from diffcodec.cli.program import cli, examples
from diffcodec.cli.running import (
    Files,
    check_target,
    load_given,
    one_by_one,
    parse_data,
    printable,
    reading_file,
)
from diffcodec.limits import Limits
from diffcodec.system.files import STANDARD, read_file, write_file


@cli.command(
    short_help="Show the timesteps of files as pages, or contact sheets.",
    epilog=examples(
        "diffcodec show photo.dfc page.html",
    ),
)
@file_options(".html")
@file_model_option
@device_option
@limit_options
def show(*, files: Files, model: str | None, device: str, limits: Limits) -> None:
    """Show a file at each timestep: show IN [OUT], or show --output-dir DIR IN...

    The picture, the bytes so far, bits per pixel and PSNR. The suffix of OUT chooses: .html, one
    page with a slider that needs nothing else; .png, a contact sheet. OUT is IN with the suffix
    .html if it is not given.
    """
    for _, target in files.jobs:
        if target != STANDARD and not target.lower().endswith((".html", ".png")):
            raise click.UsageError(
                f"{target}: expected .html for a page, or .png for a contact sheet"
            )

    def work(source: str, target: str) -> str | None:
        check_target(target, source, files.force, model)
        data = read_file(source)
        parse_data(data, limits)

        from diffcodec.viewing.show import contact_sheet, page, previews, used_model

        with reading_file(data):
            shown = previews(data, model, files.progress, limits, device)
            used, _ = used_model(data, model, limits)
        name = printable(Path(source).name)
        if target.lower().endswith(".png"):
            stream = io.BytesIO()
            contact_sheet(shown, name).save(stream, "PNG")
            written = stream.getvalue()
        else:
            written = page(shown, name, used).encode()
        write_file(target, written, files.force, source)
        if target == STANDARD:
            return None
        timesteps = f"{len(shown)} timestep{'' if len(shown) == 1 else 's'}"
        return f"{printable(source)} -> {printable(target)}: {timesteps}"

    load_given(model, device=device)
    files.for_each(one_by_one(work))
