"""Commands in odd hands: files of every kind, names that no file can have, full disks."""

from pathlib import Path

import pytest
from commands import done
from damage import GOLDEN

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


# --- unpack ---------------------------------------------------------------------------------------
