"""What a run finds: a run in its folder, or a damaged one to go on with; odd files in its data."""

import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result
from commands import train_command as command
from PIL import Image

import diffcodec
from diffcodec.errors import DiffcodecError, UnsupportedError
from diffcodec.networks.config import one_network
from diffcodec.training.data import find_images
from diffcodec.training.folder import CHECKPOINT, CONFIG, CURVE, FILES, LOG, MODEL, SPLIT
from diffcodec.training.log import Log, read_log

NETWORK = one_network(channels=(8,), blocks=(1,), patch=2, embedding=16)
SETTINGS: dict[str, Any] = {"batch": 8, "crop": 16, "compile": False, "network": NETWORK}
SHAPE = "--channels 8 --blocks 1"
OPTIONS = f"--batch 8 --crop 16 {SHAPE} --no-compile --device cpu --steps 1".split()

pytestmark = pytest.mark.usefixtures("small_validation")


def save_images(folder: Path, count: int = 3, side: int = 20) -> None:
    folder.mkdir(exist_ok=True)
    random = np.random.default_rng(0)
    for i in range(count):
        pixels = random.integers(0, 256, (side, side, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:02}.png")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    save_images(tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "run"


def fails(result: Result, message: str, code: int = 1) -> None:
    assert result.exit_code == code, result.output
    assert message in result.stderr.splitlines()[-1]


# --- the folder of a run --------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(set(FILES) - {CHECKPOINT}))
def test_no_file_of_a_run_is_replaced(data: Path, out: Path, name: str) -> None:
    out.mkdir()
    (out / name).write_bytes(b"mine")
    fails(command(data, out, *OPTIONS), f"it holds a run already, its {name}; give another folder")
    with pytest.raises(DiffcodecError, match=rf"holds a run already \({name}\); give another"):
        diffcodec.train(data, out, steps=1, **SETTINGS)
    assert [(p.name, p.read_bytes()) for p in out.iterdir()] == [(name, b"mine")]


@pytest.mark.parametrize(
    "torn", [b'{"step": 1, "tr', b"\xff\xfe\n", b'"foreign"\n{"step": "x"}\n[\n']
)
def test_a_torn_line_of_the_log_is_passed_over(data: Path, out: Path, torn: bytes) -> None:
    assert command(data, out, *OPTIONS).exit_code == 0
    with (out / LOG).open("ab") as f:
        f.write(torn)
    assert command(data, out, "--resume", "--steps", 2).exit_code == 0
    assert [record["step"] for record in read_log(out)] == [1, 2]
    assert json.loads((out / LOG).read_bytes().splitlines()[-1])["step"] == 2


class Full(io.StringIO):
    def write(self, _: str) -> int:
        raise OSError(28, "No space left on device")


def test_a_full_standard_output_costs_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    closed = io.StringIO()
    closed.close()
    for stream in (Full(), closed, None):
        with monkeypatch.context() as context:
            context.setattr(sys, "stdout", stream)
            log = Log(tmp_path)
            for step in (1, 2):
                log.write({"step": step})
    assert [record["step"] for record in read_log(tmp_path)] == [1, 2]
    assert len((tmp_path / LOG).read_text().splitlines()) == 6
    full, _ = capsys.readouterr().err.splitlines()  # once each
    assert full.startswith("standard output: No space left on device; the lines of the log are in")


# --- going on -------------------------------------------------------------------------------------


@pytest.fixture
def run(data: Path, out: Path) -> Path:
    assert command(data, out, *OPTIONS).exit_code == 0
    return out


@pytest.mark.parametrize(
    "change",
    [
        {"newer": 1},
        {"crop": "16"},
        {"batch": 0},
        {"loss": "zz"},
        {"accumulate": 0},
        {"labels": 5},
        {"augment": "zz"},
        {"learning_rate": None},
        {"network": {"experts": [[None, {"channels": ["8"], "blocks": [1]}]]}},
        {"network": 5},
    ],
)
def test_settings_that_no_run_can_have(data: Path, run: Path, change: dict[str, Any]) -> None:
    text = json.dumps(json.loads((run / CONFIG).read_text()) | change)
    (run / CONFIG).write_text(text)
    result = command(data, run, "--resume", "--steps", 2)
    fails(result, "its config.json is damaged (")
    assert "; start a new run" in result.stderr
    assert (run / CONFIG).read_text() == text


@pytest.mark.parametrize(
    "change",
    [
        None,
        {"ema": {}},
        {"ema": []},
        {"optimizers": [1, 2]},
        {"optimizers": []},
        {"step": "1"},
        {"step": -1},
        {"seconds": None},
        {"model": 3},
        {"network": 5},
    ],
)
def test_a_checkpoint_of_other_content(data: Path, run: Path, change: dict[str, Any]) -> None:
    state = torch.load(run / CHECKPOINT, weights_only=True)
    torch.save([1] if change is None else state | change, run / CHECKPOINT)
    fails(command(data, run, "--resume"), "its checkpoint.pt is damaged; start a new run")


@pytest.mark.parametrize("given", [("--color", "rgb"), ("--channels", 16), ("--expert", 2)])
def test_a_run_does_not_go_on_with_another_network(
    data: Path, run: Path, given: tuple[object, ...]
) -> None:
    before = (run / CONFIG).read_text()
    fails(command(data, run, "--resume", *given), "is of another network than the one to train")
    assert (run / CONFIG).read_text() == before
    assert command(data, run, "--resume", "--color", "ycocg", "--channels", 8).exit_code == 0


# --- data -----------------------------------------------------------------------------------------


def test_what_is_no_file_is_left_out(data: Path, tmp_path: Path) -> None:
    expected = find_images(data)
    for name in ("dir.png", "set.npy"):
        (data / name).mkdir()
    os.mkfifo(data / "pipe.png")
    (data / "link.png").symlink_to(tmp_path / "missing")  # named when it is read
    assert find_images(data) == [*expected, data / "link.png"]


def test_pictures_of_runs_are_no_data(data: Path) -> None:
    Image.new("RGB", (20, 20)).save(data / CURVE)  # of no run
    out = data / "run"
    out.mkdir()
    expected = find_images(data)
    for name in (CURVE, SPLIT):
        Image.new("RGB", (20, 20)).save(out / name)
    (out / CHECKPOINT).touch()
    assert find_images(data) == expected and data / CURVE in expected


def test_held_out_images_that_cannot_be_used(data: Path, out: Path) -> None:
    start = "no held-out image, every twentieth in the order of paths, is usable: "
    (data / "02.png").write_bytes(b"no image")
    fails(command(data, out, *OPTIONS), f"{start}{data / '02.png'}: not readable as an image")
    Image.new("RGB", (15, 20)).save(data / "02.png")
    fails(command(data, out, *OPTIONS), f"{start}no image is at least 16 pixels on each side; use")

    save_images(data, 31)
    (data / "10.png").write_bytes(b"no image")
    result = command(data, out, *OPTIONS)
    assert result.exit_code == 0
    assert f"left out: {data / '10.png'}: not readable as an image" in result.stderr


# --- settings -------------------------------------------------------------------------------------


def test_no_warming_up(data: Path, out: Path) -> None:
    assert diffcodec.train(data, out, steps=1, warmup=0, **SETTINGS) == out / MODEL


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (
            {"crop": 17},
            "crops of 17 pixels: expected a multiple of 2 for this network; give --crop 16",
        ),
        ({"batch": 7}, r"batch 7: expected 8 to"),
    ],
)
def test_settings_that_do_not_fit_are_named(
    data: Path, out: Path, setting: dict[str, Any], message: str
) -> None:
    settings = SETTINGS | {"steps": 1, "device": "cpu"} | setting
    with pytest.raises(DiffcodecError, match=message):
        diffcodec.train(data, out, **settings)
    assert not out.exists()


def test_settings_that_exclude_each_other(data: Path, out: Path) -> None:
    with pytest.raises(TypeError, match="both init and network, expected one; leave out network"):
        diffcodec.train(data, out, init="photo", **SETTINGS)
    with pytest.raises(TypeError, match="both minutes and steps, expected one; leave out steps"):
        diffcodec.train(data, out, minutes=1, steps=5, **SETTINGS)
    with pytest.raises(UnsupportedError, match=r"minutes 1e\+16: expected above 0 to 1,000,000"):
        diffcodec.train(data, out, minutes=1e16, **SETTINGS)
    assert not out.exists()
