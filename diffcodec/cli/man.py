"""Manual pages of the commands, from what their help says: python -m diffcodec.cli.man DIR."""

from collections.abc import Iterator
from pathlib import Path

import click

from diffcodec import __version__
from diffcodec.cli import cli
from diffcodec.cli.inputs import make_folder
from diffcodec.cli.program import Command
from diffcodec.cli.running import failing_as
from diffcodec.system.files import write_file

PROGRAM = "diffcodec"
LITERAL = "\b\n"  # how click marks a paragraph whose lines stay as they are


def manual_pages() -> Iterator[tuple[str, str]]:
    """The name and the text of each page, that of the program first, for section 1."""
    top = click.Context(cli, info_name=PROGRAM, **cli.context_settings)
    yield f"{PROGRAM}.1", _page(top, cli)
    for name, command in sorted(cli.commands.items()):
        context = click.Context(command, parent=top, info_name=name)
        yield f"{PROGRAM}-{name}.1", _page(context, command)


def _page(context: click.Context, command: click.Command) -> str:
    name = context.command_path.replace(" ", "-")
    summary = command.get_short_help_str(100).rstrip(".")
    usage = " ".join(command.collect_usage_pieces(context))
    paragraphs = (command.help or "").split("\n\n")
    lines = [
        f'.TH "{name.upper()}" 1 "" "{PROGRAM} {__version__}"',
        *(".SH NAME", f"{_text(name)} \\- {_text(summary)}"),
        *(".SH SYNOPSIS", f"\\fB{_text(context.command_path)}\\fR {_text(usage)}"),
        *(".SH DESCRIPTION", *_paragraphs(paragraphs)),
    ]
    if isinstance(command, Command):
        for title, rows in command.option_groups(context):
            lines += [f'.SH "{title.upper()}"', *_entries(rows)]
    others = [PROGRAM]
    if isinstance(command, click.Group):
        others = [f"{PROGRAM}-{other}" for other in sorted(command.commands)]
        commands = sorted(command.commands.items())
        rows = [(f"{PROGRAM} {n}", c.get_short_help_str(100)) for n, c in commands]
        lines += [".SH COMMANDS", *_entries(rows)]
    if command.epilog:
        title, _, rest = command.epilog.removeprefix(LITERAL).partition("\n")
        lines += [f".SH {title.rstrip(':').upper()}", *_paragraphs([LITERAL + rest])]
    references = ", ".join(f"\\fB{_text(other)}\\fR(1)" for other in others)
    return "\n".join([*lines, ".SH SEE ALSO", references, ""])


def _paragraphs(paragraphs: list[str]) -> Iterator[str]:
    for paragraph in paragraphs:
        yield ".PP"
        if paragraph.startswith(LITERAL):
            yield ".nf"
            yield from (_text(line) for line in paragraph.removeprefix(LITERAL).splitlines())
            yield ".fi"
        else:
            yield _text(" ".join(paragraph.split()))


def _entries(rows: list[tuple[str, str]]) -> Iterator[str]:
    for term, description in rows:
        yield from (".TP", f"\\fB{_text(term)}\\fR", _text(description))


def _text(text: str) -> str:
    """Text for roff: nothing of it is a request or an escape, and hyphens can be copied."""
    escaped = text.strip().replace("\\", "\\e").replace("-", "\\-")
    return "\\&" + escaped if escaped.startswith((".", "'")) else escaped


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path, file_okay=False))
def main(folder: Path) -> None:
    """Write the manual pages of diffcodec into DIR, such as ~/.local/share/man/man1."""
    with failing_as(str(folder)):
        make_folder(folder)
        for name, text in manual_pages():
            write_file(folder / name, text.encode(), force=True)


if __name__ == "__main__":
    main()
