"""Commands in odd hands: files of every kind, names that no file can have, full disks."""

import io
import os
import shutil
import subprocess
import sys
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


def test_an_array_that_lies_nowhere_is_named(tmp_path: Path) -> None:
    packed(tmp_path / "x.dfca", ["a"])
    (tmp_path / "file").touch()
    for target in (f"{tmp_path}/missing/x.npy", f"{tmp_path}/file/x.npy"):
        result = run(f"unpack {tmp_path}/x.dfca {target}")
        assert result.exit_code == 1 and result.stderr.startswith(f"diffcodec: {target}: ")


def test_an_array_does_not_fit_on_the_disk(tmp_path: Path) -> None:
    mount = 'mount -t tmpfs -o size=128k none "$0" && exec "$@"'
    disk = tmp_path / "disk"
    disk.mkdir()
    inside = ["unshare", "--mount", "sh", "-c", mount, str(disk)]
    if shutil.which("unshare") is None or subprocess.call(
        [*inside, "true"], stderr=subprocess.DEVNULL
    ):
        pytest.skip("file systems cannot be mounted here")
    with open_archive(tmp_path / "x.dfca", "x", plan="fast") as archive:
        archive.extend(Image.new("LA", (300, 300), (k, 9)) for k in range(3))
    unpack = [sys.executable, "-m", "diffcodec", "unpack", tmp_path / "x.dfca", disk / "x.npy"]
    shown = ["sh", "-c", '"$@"; echo "$?"; ls -A "$0"', str(disk), *map(str, unpack)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [*inside, *shown], env=environment, capture_output=True, text=True, check=False
    )
    assert result.stdout == "1\n" and "No space left on device" in result.stderr


@pytest.mark.parametrize("mode", ["LA", "1", "I;16", "RGB"])
def test_arrays_are_those_of_numpy(tmp_path: Path, mode: str) -> None:
    path, images = tmp_path / "x.dfca", [make_image(mode, (5, 1), seed=k) for k in range(3)]
    with open_archive(path, "x", plan="fast") as archive:
        archive.extend(images)
    done(f"unpack {path} {tmp_path}/x.npy")
    expected = np.stack([np.asarray(image) for image in images])
    found = np.load(tmp_path / "x.npy")
    assert found.dtype == expected.dtype and np.array_equal(found, expected)
    with io.BytesIO() as stream:
        np.save(stream, expected)
        assert (tmp_path / "x.npy").read_bytes() == stream.getvalue()
