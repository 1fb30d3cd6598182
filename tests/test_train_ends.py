"""Training as its user meets it: what it says, and what it leaves however it ends."""

import io
import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import train_command as command
from PIL import Image

import diffcodec
from diffcodec.models.model import load_model, load_weights
from diffcodec.networks.config import NetworkConfig, UNetConfig
from diffcodec.system.process import uninterrupted
from diffcodec.training import trainer
from diffcodec.training.config import TrainConfig
from diffcodec.training.log import LOG, read_log
from diffcodec.training.trainer import CHECKPOINT, FLOAT_MODEL, MODEL, Trainer

CROP = 16
SHAPE = UNetConfig(channels=(8,), blocks=(1,), patch=2, embedding=16)
OPTIONS = f"--batch 8 --crop {CROP} --channels 8 --blocks 1 --no-compile --device cpu".split()

pytestmark = pytest.mark.usefixtures("small_validation")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    random = np.random.default_rng(0)
    for i in range(21):
        Image.fromarray(random.integers(0, 256, (20, 20, 3), np.uint8)).save(folder / f"{i}.png")
    return folder


@pytest.fixture
def config(data: Path) -> TrainConfig:
    network = NetworkConfig(((float("inf"), SHAPE),))
    return TrainConfig(str(data), batch=8, crop=CROP, steps=5, compile=False, network=network)


# --- ends -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_a_checkpoint_and_a_model(data: Path, tmp_path: Path, number: int) -> None:
    out = tmp_path / "my run"
    arguments = ["train", "--data", data, "--out", out, *OPTIONS, "--steps", "100000"]
    starting = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    starting += "from diffcodec.cli import main; main()"  # a background job starts without SIGINT
    process = subprocess.Popen(
        [sys.executable, "-c", starting, *map(str, arguments)],
        cwd=Path(diffcodec.__file__).parent.parent,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stderr is not None
        assert process.stderr.readline() == f"{data}: 20 images to train on, 1 held out\n"
        assert re.fullmatch(r"99,994 steps, about .* (minutes|hours)\n", process.stderr.readline())
        process.send_signal(number)
        last = process.communicate(timeout=60)[1]
    assert process.returncode == -number
    [step] = map(int, re.findall(r"^stopped after (\d+) of 100,000 steps; to go on: ", last))
    assert f"diffcodec train --data {data} --out '{out}' --resume; the model so far: {out}" in last

    load_weights(out / FLOAT_MODEL)
    assert torch.load(out / CHECKPOINT, weights_only=True)["step"] == step > 5
    assert command(data, out, "--resume", "--steps", step + 2).exit_code == 0
    assert read_log(out)[-1]["step"] == step + 2
    load_model(out / MODEL)


def test_a_signal_amid_an_update_waits_for_its_end(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, interrupted = (Trainer(config, tmp_path) for _ in range(2))
    whole.train_step()
    last = interrupted.optimizers[-1]
    step = last.step

    def interrupting_step() -> None:
        signal.raise_signal(signal.SIGINT)
        step()

    monkeypatch.setattr(last, "step", interrupting_step)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background
    try:
        with pytest.raises(KeyboardInterrupt):
            interrupted.train_step()
    finally:
        signal.signal(signal.SIGINT, before)
    assert interrupted.step == 1
    for name, average in whole.ema.items():
        assert torch.equal(interrupted.ema[name], average)
    weights = interrupted.model.state_dict()
    assert all(torch.equal(weights[k], v) for k, v in whole.model.state_dict().items())


def test_handlers_of_signals_are_as_before() -> None:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(n) for n in numbers]
    with uninterrupted():
        assert [signal.getsignal(n) for n in numbers] != before
    assert [signal.getsignal(n) for n in numbers] == before


def test_ended_while_the_model_was_made(
    config: TrainConfig, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def end(*_: Any) -> bytes:
        raise SystemExit(130)

    with monkeypatch.context() as context:
        context.setattr(trainer, "serialise_model", end)
        assert command(data, tmp_path / "run", *OPTIONS, "--steps", 3).exit_code == 130
    assert not (tmp_path / "run" / MODEL).exists()
    assert command(data, tmp_path / "run", "--resume").exit_code == 0
    assert load_model(tmp_path / "run" / MODEL).info.about["steps"] == 3
    [record] = read_log(tmp_path / "run")
    assert {"train_bpd", "held_out_bpd"} <= set(record)


def test_ended_before_the_first_step(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in compiling: there is nothing to go on from, and the same command starts again."""

    def end(_: Trainer) -> float:
        raise SystemExit(130)

    for more in ((), ("--minutes", 1)):
        with monkeypatch.context() as context:
            context.setattr(Trainer, "train_step", end)
            result = command(data, tmp_path / "run", *OPTIONS, *more)
        assert result.exit_code == 130
        assert not (tmp_path / "run" / CHECKPOINT).exists()
    assert command(data, tmp_path / "run", *OPTIONS, "--steps", 1).exit_code == 0


# --- what it says ---------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("is_piped", [False, True])
def test_a_bar_with_loss_bound_and_time_left(
    config: TrainConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    is_piped: bool,
) -> None:
    terminal, out = Terminal(), io.StringIO() if is_piped else Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(trainer, "FIRST_VALIDATION_SECONDS", 0)
    Trainer(config, tmp_path).run()
    [first, last] = read_log(tmp_path)
    shown = terminal.getvalue()
    bars = re.findall(r"5/5 \[\d\d:\d\d<00:00, .*, loss \d+\.\d\d\d, held out (.*) bpd\]", shown)
    assert f"{first['held_out_bpd']:.3f}" in bars
    # The bar says it all, but where lines go into a file, they do so.
    assert out.getvalue() == ((tmp_path / LOG).read_text() if is_piped else "")
    assert (first["step"], last["step"]) == (1, 5)


def test_it_says_what_it_does(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    path = diffcodec.train(data, out, minutes=0.001, **RECIPE)
    said = capsys.readouterr().err.splitlines()
    steps = read_log(out)[-1]["step"]
    patterns = (
        f"{data}: 20 images to train on, 1 held out",
        "timing a few steps",
        "rehearsing what follows the last step",
        rf"{steps:,} steps, about \d seconds",
        rf"all {steps:,} steps done; measuring the held-out bound",
        "quantising the model, which may take some minutes",
        rf"{path}: a model with a held-out bound of \d+\.\d\d\d bits per dimension",
    )
    for line, pattern in zip(said, patterns, strict=True):
        assert re.fullmatch(pattern, line)


RECIPE = {
    "batch": 8,
    "crop": CROP,
    "compile": False,
    "network": NetworkConfig(((float("inf"), SHAPE),)),
}


def test_compiling_is_spoken_of(
    config: TrainConfig,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.nn.Module, "compile", lambda _: None)
    Trainer(TrainConfig(config.data, **RECIPE | {"compile": True}), tmp_path).train_step()
    assert capsys.readouterr().err.endswith("compiling the network, which may take some minutes\n")


def test_quiet_is_quiet(data: Path, tmp_path: Path) -> None:
    result = command(data, tmp_path / "run", *OPTIONS, "--steps", 1, "--quiet")
    assert (result.exit_code, result.output) == (0, "")
    [line] = (tmp_path / "run" / LOG).read_text().splitlines()
    assert json.loads(line)["step"] == 1


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 seconds"), (89, "89 seconds"), (1680, "28 minutes"), (33500, "9.3 hours")],
)
def test_times_are_told_in_two_digits(seconds: float, text: str) -> None:
    assert trainer._duration(seconds) == text


def test_timing_takes_a_tenth_of_the_time(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = 0

    def step(_: Trainer) -> float:
        nonlocal steps
        steps += 1
        return 0.0

    for minutes, count in ((0.1, 3), (1, 6), (10, 20)):
        clock = iter(range(1000))
        with monkeypatch.context() as context:
            context.setattr(Trainer, "train_step", step)
            context.setattr(trainer.time, "monotonic", lambda: next(clock))  # noqa: B023
            steps = 0
            Trainer(config, tmp_path).plan_steps(minutes)
        assert steps == trainer.UNTIMED_STEPS + 1 + count
