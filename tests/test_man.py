"""Manual pages: every command and option is in them, and man reads them without complaint."""

import re
import shutil
import subprocess
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from diffcodec.cli.man import _text, main
from diffcodec.cli.program import cli


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("share") / "man" / "man1"
    result = CliRunner().invoke(main, [str(folder)])
    assert (result.exit_code, result.output) == (0, "")
    return folder


def test_every_command_has_a_page(folder: Path) -> None:
    names = {"diffcodec.1", *(f"diffcodec-{name}.1" for name in cli.commands)}
    assert {path.name for path in folder.iterdir()} == names
    text = (folder / "diffcodec.1").read_text()
    for name, command in cli.commands.items():
        assert f".TP\n\\fBdiffcodec {name}\\fR\n{_text(command.get_short_help_str(100))}\n" in text
        assert f"\\fBdiffcodec\\-{name}\\fR(1)" in text


@pytest.mark.parametrize("name", cli.commands)
def test_every_option_is_in_the_page_once(folder: Path, name: str) -> None:
    command = cli.commands[name]
    text = (folder / f"diffcodec-{name}.1").read_text().replace("\\-", "-")
    shown = re.findall(r"^\.TP\n\\fB(?:-\w, )?(--[\w-]+)", text, re.M)
    options = [
        p
        for p in command.get_params(click.Context(command, help_option_names=["-h", "--help"]))
        if isinstance(p, click.Option)
    ]
    assert sorted(shown) == sorted(next(o for o in p.opts if o[:2] == "--") for p in options)
    example = (command.epilog or "").splitlines()[-1].strip()
    assert f"\n{example}\n" in text


def test_man_reads_them(folder: Path) -> None:
    groff = shutil.which("groff")
    if groff is None:
        pytest.skip("no groff here")
    for path in folder.iterdir():
        command = [groff, "-man", "-ww", "-z", "-Tutf8", str(path)]
        done = subprocess.run(command, capture_output=True, check=True)
        assert (done.stdout, done.stderr) == (b"", b"")


@pytest.mark.parametrize(
    ("text", "roff"),
    [
        (".so /etc/passwd", "\\&.so /etc/passwd"),
        ("'quoted'", "\\&'quoted'"),
        ("a \\n of --json", "a \\en of \\-\\-json"),
        ("", ""),
    ],
)
def test_no_text_is_a_request(text: str, roff: str) -> None:
    assert _text(text) == roff
