"""Sections of results: as Markdown and JSON beside their pictures, and all of them as one page.

python -m bench report [--out results/bench] [--docs docs/benchmarks.md]

Every command leaves a section in its folder: ``section.json``, ``tables.md`` and pictures. The page
is self-contained. With --docs what is between ``<!-- results: FOLDER/NAME -->`` and
``<!-- end -->`` in a Markdown file is replaced by the table or picture of that name, or by
what was run (``run``) or with what (``environment``); pictures are copied to the folder
``pictures`` beside the file.
"""

import html
import json
import re
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import click

from bench.store import environment, write_json

OUT = Path("results/bench")
MARK = "<!-- results: "
BLOCK = re.compile(rf"({MARK}(\S+)/(\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 64rem; margin: 2rem auto;
  padding: 0 1rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 14px;
  margin: 1rem 0 }
caption { text-align: left; font-weight: 600; padding-bottom: .3rem }
th, td { padding: .15rem .7rem; text-align: right; border-bottom: 1px solid #ddd }
th:first-child, td:first-child { text-align: left }
pre { background: #f4f4f4; padding: .5rem 1rem; overflow-x: auto }
svg { max-width: 100%; height: auto }
nav a { margin-right: 1rem }
.small { color: #666; font-size: 13px }
"""


def markdown(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


@dataclass
class Table:
    """Rows of text; the first column is a label."""

    name: str
    caption: str
    columns: list[str]
    rows: list[list[str]]

    def markdown(self) -> str:
        """The table alone."""
        return markdown(self.columns, self.rows)

    def captioned(self) -> str:
        """The table in Markdown, under its caption."""
        return f"**{self.caption}**\n\n{self.markdown()}"

    def html(self) -> str:
        """The table in HTML, with its caption."""

        def row(cells: list[str], kind: str) -> str:
            return "<tr>" + "".join(f"<{kind}>{html.escape(c)}</{kind}>" for c in cells) + "</tr>"

        body = "\n".join(row(cells, "td") for cells in self.rows)
        caption = f"<caption>{html.escape(self.caption)}</caption>"
        return f"<table>{caption}\n{row(self.columns, 'th')}\n{body}</table>"


@dataclass
class Section:
    """What one run has to say; ``pictures`` are stems of SVG files in its folder."""

    title: str
    command: str
    paragraphs: list[str]
    tables: list[Table]
    pictures: list[str] = field(default_factory=list)
    environment: dict[str, Any] = field(default_factory=environment)

    def write(self, folder: Path) -> None:
        """Write the section into the folder of the run."""
        write_json(folder / "section.json", asdict(self))
        parts = [f"# {self.title}", f"    {self.command}", *self.paragraphs]
        parts += [table.captioned() for table in self.tables]
        parts += [f"![{picture}]({picture}.svg)" for picture in self.pictures]
        (folder / "tables.md").write_text("\n\n".join([*parts, describe(self.environment)]) + "\n")

    def publish(self, folder: Path) -> None:
        """Write the section into the folder of the run, and show it on the terminal."""
        self.write(folder)
        for paragraph in self.paragraphs:
            click.echo(paragraph)
        for table in self.tables:
            click.echo(f"\n{table.caption}\n\n{table.markdown()}")
        click.echo(f"\nwrote {folder}/")


def read_section(path: Path) -> Section:
    """Inverse of :meth:`Section.write`."""
    data = json.loads(path.read_text())
    return Section(**data | {"tables": [Table(**table) for table in data["tables"]]})


def describe(found: dict[str, Any]) -> str:
    """One line on machine and releases."""
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    return (
        f"{found['cpu']}; {versions}; source {found['source']}; peak memory of the process "
        f"{found['peak_memory_mb']} MB."
    )


def sections(out: Path) -> dict[str, Section]:
    """All sections by their folders, relative to ``out``."""
    paths = sorted(out.rglob("section.json"))
    return {p.parent.relative_to(out).as_posix(): read_section(p) for p in paths}


def page(out: Path, found: dict[str, Section]) -> str:
    """All sections as one HTML page, pictures inside."""
    links = "".join(f'<a href="#{name}">{html.escape(s.title)}</a>' for name, s in found.items())
    parts = [f"<h1>diffcodec: benchmark</h1><nav>{links}</nav>"]
    for name, section in found.items():
        parts.append(f'<h2 id="{name}">{html.escape(section.title)}</h2>')
        parts.append(f"<pre>{html.escape(section.command)}</pre>")
        parts += [f"<p>{html.escape(text)}</p>" for text in section.paragraphs]
        parts += [_inline_svg(out / name / f"{p}.svg") for p in section.pictures]
        parts += [table.html() for table in section.tables]
        parts.append(f'<p class="small">{html.escape(describe(section.environment))}</p>')
    head = f'<meta charset="utf-8"><title>diffcodec: benchmark</title><style>{STYLE}</style>'
    body = "\n".join(parts)
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>{body}</body></html>\n'


def _inline_svg(path: Path) -> str:
    """A picture without the XML head, its names made its own: those of two would collide."""
    svg = path.read_text()
    prefix = re.sub(r"\W", "-", path.as_posix()) + "-"
    svg = re.sub(r'\bid="', f'id="{prefix}', svg[svg.index("<svg") :])
    return re.sub(r'(href="#|url\(#)', rf"\g<1>{prefix}", svg)


def fill(document: Path, out: Path, found: dict[str, Section]) -> None:
    """Replace what is marked in a Markdown file; nothing is written on an error.

    Raises:
        click.ClickException: if a mark is not closed, or names no result.
    """
    text = document.read_text()
    if len(BLOCK.findall(text)) != text.count(MARK):
        raise click.ClickException(
            f"{document}: expected {MARK}FOLDER/NAME --> on a line of its own, and <!-- end --> "
            "before the next mark"
        )
    copies: dict[Path, Path] = {}

    def block(match: re.Match[str]) -> str:
        folder, name = match[2], match[3]
        texts: dict[str, str] = {}
        if section := found.get(folder):
            texts = {table.name: table.captioned() for table in section.tables}
            machine = section.environment
            memory = f"peak memory of the process {machine['peak_memory_mb']} MB."
            texts["run"] = f"{section.paragraphs[0]} {machine['cpu']}, {memory}"
            texts["environment"] = describe(machine)
            for picture in section.pictures:
                copy = Path("pictures") / f"{folder.replace('/', '-')}-{picture}.svg"
                texts[picture] = f"![{section.title}]({copy.as_posix()})"
                if picture == name:
                    copies[out / folder / f"{picture}.svg"] = document.parent / copy
        if name not in texts:
            raise click.ClickException(
                f"{document}: no {name!r} in the results of {folder}: found "
                f"{', '.join(texts) or 'none'}; run the command that makes it first"
            )
        return f"{match[1]}{texts[name]}\n{match[4]}"

    filled = BLOCK.sub(block, text)
    for source, copy in copies.items():
        copy.parent.mkdir(exist_ok=True)
        shutil.copyfile(source, copy)
    document.write_text(filled)


def write_page(out: Path) -> dict[str, Section]:
    """Make the page of all results, and return these.

    Raises:
        click.ClickException: if there are none.
    """
    found = sections(out)
    if not found:
        raise click.ClickException(f"{out}: no results; run `python -m bench all --quick` first")
    (out / "report.html").write_text(page(out, found))
    click.echo(f"wrote {out / 'report.html'}: {len(found)} sections")
    return found


@click.command()
@click.option("--out", default=OUT, type=click.Path(path_type=Path), help="Folder of results.")
@click.option("--docs", type=click.Path(exists=True, path_type=Path), help="Markdown to fill.")
def main(out: Path, docs: Path | None) -> None:
    """Make one page of all results, and fill marked tables and pictures of a document."""
    found = write_page(out)
    if docs:
        fill(docs, out, found)
        click.echo(f"filled {docs}")


if __name__ == "__main__":
    main()
