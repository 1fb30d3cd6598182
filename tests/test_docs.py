"""The documentation: the site builds, links lead somewhere, and the commands of its guides work."""

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from html import unescape
from pathlib import Path
from urllib.parse import unquote

import click
import pytest
from commands import done
from PIL import Image

from bench.__main__ import main as bench
from diffcodec.cli import cli

ROOT = Path(__file__).parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "SECURITY.md", "examples/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "diffcodec/models/zoo").glob("*.md")),
]
FETCHED = re.compile(r'(?:\ssrc|<link[^>]*\shref)="(?:https?:)?//[^"]*"|url\(["\']?(?:https?:)?//')


def anchors(page: Path) -> set[str]:
    """As code hosts make them of headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
    words = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {word.replace(" ", "-") for word in words}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere_in_the_repository(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)", page.read_text()):
        if not target.startswith("https://"):
            there = page.parent / target if target else page
            assert there.exists(), target
            assert not anchor or anchor in anchors(there), f"{target}#{anchor}"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for library in ("mkdocs", "material", "mkdocstrings_handlers", "latex2mathml"):
        if not importlib.util.find_spec(library):
            pytest.skip(f"{library} is missing")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=False)
    assert built.returncode == 0, built.stderr.decode()
    return folder


def test_the_site_fetches_nothing(site: Path) -> None:
    pages = [*site.rglob("*.html"), *site.rglob("*.css")]
    assert len(pages) > 25
    assert not [found for page in pages for found in FETCHED.findall(page.read_text())]


def test_the_site_shows_its_pictures_and_equations(site: Path) -> None:
    shown = 0
    for page in site.rglob("*.html"):
        text = page.read_text()
        assert 'class="arithmatex"' not in text and ":func:" not in text
        for source in re.findall(r'<img[^>]* src="([^"]*)"', text):
            shown += 1
            assert (page.parent / unquote(unescape(source))).is_file(), source
    assert shown > 10
    assert "<msqrt>" in (site / "tutorial/1-forward-process.html").read_text()


CALL = re.compile(r"^(?: {4}|  )?(diffcodec|python -m bench) +((?:[^#\n\\]|\\\n)*)", re.M)


def written_calls() -> list[tuple[str, str]]:
    """The program and its arguments, wherever pages or the help of commands show a call.

    Numbers may be letters there; where options or inputs stand for others, it is no example.
    """
    texts = [page.read_text() for page in PAGES]
    texts += [command.epilog or "" for command in cli.commands.values()]
    calls = [call for text in texts for call in CALL.findall(text)]
    plain = [(call, re.sub(r"\b[NSX]\b", "2", words.replace("\\\n", ""))) for call, words in calls]
    return [(call, words) for call, words in plain if not re.search(r"\[|\.\.\.", words)]


def test_calls_that_pages_and_help_show_are_understood() -> None:
    """No command, option or value that is not there; they are parsed, not run."""
    calls = written_calls()
    assert len(calls) > 100
    for program, arguments in calls:
        name, *words = shlex.split(arguments)
        commands = cli if program == "diffcodec" else bench
        with click.Context(commands, **commands.context_settings) as context:
            command = commands.get_command(context, name)
            assert command is not None, arguments
            try:
                command.make_context(name, words, parent=context)
            except click.UsageError as error:
                assert "does not exist" in error.message, f"{arguments}: {error.message}"


def guide_commands(name: str) -> list[str]:
    """Those of a guide but for checks of the installation, training, and what takes its results."""
    blocks = re.findall(r"^```\n(.*?)^```", (ROOT / "docs" / name).read_text(), re.M | re.S)
    lines = [line.split("#")[0] for line in "".join(blocks).splitlines()]
    others = re.compile(r"diffcodec (doctor|train)|run/model")
    return [line for line in lines if line.startswith("diffcodec ") and not others.search(line)]


def test_commands_of_the_guides_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with Image.open(ROOT / "examples/kodim23.png") as photo:
        picture = photo.crop((400, 180, 432, 212))
    for place in ("photo.png", "photos/1.png", "thumbnails/1.png", "more/2.png"):
        Path(place).parent.mkdir(exist_ok=True)
        picture.save(place)
    for name, count in (("start.md", 9), ("howto.md", 15)):
        commands = guide_commands(name)
        assert len(commands) >= count
        for command in commands:
            done(command.removeprefix("diffcodec ").replace("400,200,256,256", "16,8,16,24"))
        for copy in ("damaged.dfc", "upload.dfc"):
            shutil.copy("photo.dfc", copy)
