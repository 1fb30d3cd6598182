"""Commands in odd hands: files of every kind, names that no file can have, full disks."""

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from commands import done, run
from damage import GOLDEN
from PIL import Image
from samples import make_image

from diffcodec import open_archive
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


def packed(path: Path, names: list[str]) -> list[Image.Image]:
    images = [make_image("LA", (3, 2), seed=k) for k in range(len(names))]
    with open_archive(path, "x", plan="fast") as archive:
        for image, name in zip(images, names, strict=True):
            archive.append(image, name)
    return images


def test_a_name_that_no_file_can_have_costs_one_image(tmp_path: Path) -> None:
    path, out = tmp_path / "x.dfca", tmp_path / "out"
    packed(path, ["a", "\ud800", "x" * 300, "", "c\0d", "b"])
    result = run(f"unpack {path} {out}")
    assert result.exit_code == 1 and "4 of 6 inputs failed" in result.stderr
    assert sorted(each.name for each in out.iterdir()) == ["a.png", "b.png"]


@pytest.mark.parametrize("names", [["x", "x.2", "x"], ["a/b", "a//b", "./a/b", "a/b.2"]])
def test_names_of_one_file_come_out_as_several(tmp_path: Path, names: list[str]) -> None:
    path, out = tmp_path / "x.dfca", tmp_path / "out"
    images = packed(path, names)
    done(f"unpack {path} {out} --force")
    found = [np.asarray(Image.open(each)).tobytes() for each in out.rglob("*.png")]
    assert sorted(found) == sorted(image.tobytes() for image in images)
