"""Commands in odd hands: files of every kind, names that no file can have, full disks."""

from pathlib import Path

import pytest
from click.testing import CliRunner
from commands import done
from damage import GOLDEN

from diffcodec.cli import man

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("lossy-part", "model"),
        ("lossy-grey", "model"),
        ("progressive-grey", "model"),
        ("phased-lossy-part", "phased"),
    ],
)
def test_files_with_previews_have_nothing_to_measure(name: str, model: str) -> None:
    path, by = GOLDEN / f"{name}.dfc", f"--model {GOLDEN / model}.safetensors"
    assert done(f"info --measure {path} {by}").stdout == done(f"info {path} {by}").stdout


def test_manual_pages_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = CliRunner().invoke(man.main, [str(tmp_path / "file" / "man1")])
    assert result.exit_code == 1 and result.stderr.count("\n") == 1
    assert result.stderr.startswith(f"diffcodec: {tmp_path}/file/man1: ")


# --- unpack ---------------------------------------------------------------------------------------
