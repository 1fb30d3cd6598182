"""Training: the loss falls, a run goes on where it stopped, and it leaves a model that codes."""

import io
import json
import math
import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from double import train_in_double, train_in_single
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load, load_file
from tiny import tiny_model

from diffcodec.cli.program import cli
from diffcodec.codec import decoding, encoding, tiles
from diffcodec.container.parts import PLAN_NAMES
from diffcodec.container.reader import parse
from diffcodec.diffusion import plan
from diffcodec.diffusion.losses import Share
from diffcodec.diffusion.plan import geometric_plan
from diffcodec.diffusion.variances import VARIANCES
from diffcodec.errors import DiffcodecError, ModelMismatchError
from diffcodec.models.export import quantize_model, serialise_float_model
from diffcodec.models.model import load_model, load_weights
from diffcodec.networks.config import PRESETS, NetworkConfig, UNetConfig
from diffcodec.networks.experts import split_experts
from diffcodec.networks.unet import UNet
from diffcodec.training import crops, validation
from diffcodec.training import steps as steps_module
from diffcodec.training import trainer as trainer_module
from diffcodec.training.config import INIT_WARMUP, TrainConfig
from diffcodec.training.crops import CropSampler, calibration_images, domain_batch
from diffcodec.training.data import find_images, split_held_out
from diffcodec.training.log import BOARD, LOG, Log, read_log
from diffcodec.training.pictures import draw_curve
from diffcodec.training.trainer import (
    CHECKPOINT,
    CONFIG,
    CURVE,
    FLOAT_MODEL,
    MODEL,
    SPLIT,
    Trainer,
)

SHAPE = UNetConfig(channels=(8, 8), blocks=(1, 1), patch=2, embedding=16)


def of_one(shape):
    return NetworkConfig(((math.inf, shape),))


NETWORK = of_one(SHAPE)
COUNT, SIDE, CROP = 25, 24, 16


@pytest.fixture(autouse=True)
def small_validation(monkeypatch):
    monkeypatch.setattr(validation, "CROPS", 16)
    monkeypatch.setattr(validation, "BATCH", 8)
    monkeypatch.setattr(crops, "CALIBRATION_CROPS", 4)
    monkeypatch.setattr(trainer_module, "plans_from", lambda _: {"default": geometric_plan(4)})


@pytest.fixture
def double():
    train_in_double()
    yield
    train_in_single()


def picture(i, size=(SIDE, SIDE)):
    """Waves; red tells the number of the image."""
    y, x = np.mgrid[: size[1], : size[0]]
    green = 128 + 90 * np.sin(x / (3 + i % 4)) * np.cos(y / (4 + i % 3))
    return Image.fromarray(np.stack([np.full_like(x, 10 * i), green, 255 - green], -1).astype("u1"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    (folder / "nested").mkdir()
    for i in range(COUNT):
        picture(i).save(folder / ("nested" if i % 2 else ".") / f"{i:02}.png")
    (folder / "notes.txt").write_text("no image")
    return folder


@pytest.fixture
def config(data):
    return TrainConfig(
        str(data),
        steps=60,
        batch=8,
        crop=CROP,
        warmup=10,
        precision="float32",
        compile=False,
        network=NETWORK,
    )


def noisy_images():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 3, 16, 16, generator=generator) * 40 + 100, torch.tensor([1.0, 30.0])


def losses(trainer, count):
    return [trainer.train_step() for _ in range(count)]


def state(trainer):
    return {**trainer.model.state_dict(), **{f"ema {k}": v for k, v in trainer.ema.items()}}


def lines(folder):
    return [json.loads(line) for line in (folder / LOG).read_text().splitlines()]


def assert_same_weights(a, b, exact=False):
    assert a.keys() == b.keys()
    for name, t in a.items():
        tolerance = 0 if exact else 1e-9
        torch.testing.assert_close(t, b[name], rtol=tolerance, atol=tolerance)


# --- steps ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_the_loss_falls(config, tmp_path, optimizer):
    trainer = Trainer(replace(config, optimizer=optimizer), tmp_path)
    found = losses(trainer, 60)
    assert np.mean(found[-10:]) < np.mean(found[:10]) - 0.5
    assert len(trainer.optimizers) == (2 if optimizer == "muon" else 1)


@pytest.mark.parametrize(
    "change", [{"loss": "simple"}, {"loss": "hybrid"}, {"precision": "bfloat16"}]
)
def test_other_losses_and_precisions_run(config, tmp_path, change):
    trainer = Trainer(replace(config, **change), tmp_path)
    found = losses(trainer, 5)
    assert np.isfinite(found).all() and len(set(found)) == 5
    assert all(p.dtype == torch.float32 for p in trainer.model.parameters())


def test_the_seed_decides_everything(config, tmp_path):
    first, again, other = (Trainer(replace(config, seed=s), tmp_path) for s in (1, 1, 2))
    assert losses(first, 3) == losses(again, 3) != losses(other, 3)
    assert_same_weights(state(first), state(again), exact=True)


def test_every_step_of_every_seed_has_crops_and_noise_of_its_own(config, tmp_path, monkeypatch):
    seen = []

    def record(model, x, color, generator, share, variance, quantiser):
        seen.append((x.numpy().tobytes(), generator.initial_seed()))
        return model(x, torch.ones(len(x)))[0].mean()

    monkeypatch.setitem(steps_module.LOSSES, "vlb", record)
    for seed in (0, 1):
        losses(Trainer(replace(config, seed=seed), tmp_path), 3)
    crops, seeds = zip(*seen, strict=True)
    assert len(set(crops)) == len(set(seeds)) == 6


def test_learning_rate_rises_linearly_then_falls_as_a_cosine(config, tmp_path):
    trainer = Trainer(replace(config, steps=1000, learning_rate=0.5, warmup=100), tmp_path)
    rates = []
    for trainer.step in range(1001):
        rates.append(trainer.learning_rate())
    cosine = [0.01 + 0.99 * (1 + math.cos(math.pi * t / 1000)) / 2 for t in range(1001)]
    assert rates[99:] == pytest.approx([0.5 * c for c in cosine[99:]])
    assert rates[:100] == pytest.approx([0.005 * (t + 1) * cosine[t] for t in range(100)])
    assert rates[1000] == pytest.approx(0.005)

    trainer.step = 30
    losses(trainer, 1)
    groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
    assert [group["lr"] for group in groups] == [rates[30]] * 2


@pytest.mark.usefixtures("double")
def test_averaged_weights_follow_the_weights(config, tmp_path):
    trainer = Trainer(replace(config, ema=0.6), tmp_path)
    expected = {k: p.detach().clone() for k, p in trainer.model.named_parameters()}
    assert_same_weights(trainer.ema, expected, exact=True)
    decays = []
    for step in range(1, 15):
        losses(trainer, 1)
        decays.append(min(0.6, (1 + step) / (10 + step)))
        for name, p in trainer.model.named_parameters():
            expected[name] = decays[-1] * expected[name] + (1 - decays[-1]) * p.detach()
    assert decays[0] == 2 / 11 and decays[-1] == 0.6
    assert_same_weights(trainer.ema, expected)
    assert_same_weights(dict(trainer.averaged_network().named_parameters()), trainer.ema)


def test_gradients_are_clipped(config, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        torch.optim.AdamW, "step", lambda self: seen.extend(self.param_groups[0]["params"])
    )
    monkeypatch.setattr(torch.optim.AdamW, "zero_grad", lambda self, set_to_none: None)
    trainer = Trainer(replace(config, clip=1e-3, optimizer="adamw"), tmp_path)
    losses(trainer, 1)
    assert math.sqrt(sum(p.grad.square().sum() for p in seen)) == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize("field", ["value", "gradient"])
def test_a_loss_that_is_not_finite_stops_the_run(config, tmp_path, monkeypatch, field):
    def wrong(model, x, color, generator, share, variance, quantiser):
        mean, _ = model(x, torch.ones(len(x)))
        zero = (mean * 0).sum()
        return zero + torch.nan if field == "value" else zero.abs().sqrt()

    trainer = Trainer(config, tmp_path)
    losses(trainer, 3)
    before = {k: v.clone() for k, v in state(trainer).items()}
    monkeypatch.setitem(steps_module.LOSSES, "vlb", wrong)
    with pytest.raises(DiffcodecError, match="not finite at step 4; lower --learning-rate"):
        trainer.run()
    assert_same_weights(state(trainer), before, exact=True)
    assert [p.name for p in tmp_path.iterdir()] == [CONFIG]


def test_a_learning_rate_that_is_far_too_high_stops_the_run(config, tmp_path):
    trainer = Trainer(replace(config, learning_rate=1e12, warmup=1, clip=1e12), tmp_path)
    with pytest.raises(DiffcodecError, match="not finite"):
        trainer.run()


# --- a batch in shares ----------------------------------------------------------------------------


@pytest.mark.parametrize("loss", steps_module.LOSSES)
def test_a_batch_in_several_passes_gives_the_same_gradients(
    config, tmp_path, loss, monkeypatch, double
):
    gradients = []

    def record(parameters, clip):
        gradients.append([p.grad.clone() for p in parameters])
        return torch.tensor(1.0)

    monkeypatch.setattr(steps_module.nn.utils, "clip_grad_norm_", record)
    config = replace(config, loss=loss, batch=16)
    whole, parts = (Trainer(replace(config, accumulate=n), tmp_path) for n in (1, 4))
    assert losses(parts, 3) == pytest.approx(losses(whole, 3), rel=1e-9)
    for part, expected in zip(gradients[0], gradients[3], strict=True):
        torch.testing.assert_close(part, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("batch", "accumulate"), [(9, 2), (8, 16)])
def test_a_batch_that_cannot_be_divided(config, tmp_path, batch, accumulate):
    with pytest.raises(
        DiffcodecError, match=f"batch of {batch} cannot be divided into {accumulate}"
    ):
        Trainer(replace(config, batch=batch, accumulate=accumulate), tmp_path)


@pytest.mark.parametrize("expert", [0.0, 0.6])
def test_two_processes_of_torchrun_train_the_model_of_one(data, tmp_path, expert):
    """Through the command line, each process with two passes of its half of the batch.

    Only the first pass of the first process sees the noise levels of the lower expert.
    """
    command = (
        f"train --data {data} --steps 3 --batch 8 --crop {CROP} --channels 8,8 --blocks 1,1 "
        f"--expert {expert} --precision float32 --no-compile --device cpu"
    ).split()
    script = str(Path(__file__).with_name("torchrun_train.py"))
    alone, two = tmp_path / "alone", tmp_path / "two"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    for arguments in (
        [sys.executable, script, tmp_path, *command, "--out", alone],
        [*launch, script, tmp_path, *command, "--out", two, "--accumulate", "2"],
    ):
        done = subprocess.run(
            arguments, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr

    expected, *ranks = (torch.load(tmp_path / f"{name}.pt") for name in ("alone", "0", "1"))
    for rank in ranks:
        assert_same_weights(rank["model"], expected["model"])
        assert_same_weights(rank["ema"], expected["ema"])
    assert_same_weights(ranks[0]["model"], ranks[1]["model"], exact=True)
    for step in range(3):
        rows = [rows for rank in ranks for s, rows in rank["passes"] if s == step]
        assert [len(r) for r in rows] == [2] * 4
        assert sorted(row for part in rows for row in part) == list(range(8))
    assert {p.name for p in two.iterdir()} == {p.name for p in alone.iterdir()}
    [record], [of_two] = lines(alone), lines(two)  # written once, by the first process
    for key in ("train_bpd", "held_out_bpd", "step_bpd"):
        assert of_two[key] == pytest.approx(record[key], rel=1e-9)


def test_a_gpu_that_is_not_there(config, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert Trainer(config, tmp_path).device == torch.device("cpu")
    with pytest.raises(DiffcodecError, match=r"no GPU that this .*; give the device cpu"):
        Trainer(replace(config, device="cuda"), tmp_path)


# --- variance, labels, time -----------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["vlb", "simple", "hybrid", "flow"])
def test_a_fixed_variance_stays_that_of_gaussian_pixels(config, tmp_path, loss):
    learned = Trainer(config, tmp_path)
    losses(learned, 5)
    weights = learned.averaged_network().state_dict()
    trainer = Trainer(replace(config, loss=loss, variance="fixed-large"), tmp_path, weights)
    losses(trainer, 5)
    network, (z, sigma) = trainer.averaged_network(), noisy_images()
    _, v = network.posterior_x(z, sigma)
    [unet] = network.experts
    noise = unet.noise_of(sigma) ** 2
    expected = noise * unet.data_std**2 / (noise + unet.data_std**2)
    torch.testing.assert_close(v, expected.expand_as(v))
    _, v = learned.averaged_network().posterior_x(z, sigma)
    assert not torch.allclose(v, expected.expand_as(v))


def test_validation_takes_the_variance_of_the_run(config, tmp_path):
    found = {
        variance: Trainer(replace(config, variance=variance), tmp_path).validate()
        for variance in VARIANCES
    }
    # A new network predicts that of Gaussian pixels; the ends of the chain have it in any case.
    learned, small, large = (found[variance] for variance in VARIANCES)
    assert large["step_bpd"] == pytest.approx(learned["step_bpd"], rel=1e-5)
    assert large["held_out_bpd"] == pytest.approx(learned["held_out_bpd"], rel=1e-5)
    for key in ("remainder_bpd", "first_jump_bpd", "prior_bpd"):
        assert small[key] == large[key]
    assert all(s > t for s, t in zip(small["step_bpd"], large["step_bpd"], strict=True))


@pytest.fixture
def labels(data, tmp_path):
    """Of each picture its number, by three."""
    path = tmp_path / "labels.txt"
    path.write_text("\n".join(str(int(p.stem) // 3) for p in find_images(data)))
    return path


@pytest.fixture
def labelled(config, labels):
    classes = of_one(replace(SHAPE, classes=1 + (COUNT - 1) // 3))
    return replace(config, labels=str(labels), network=classes)


def test_labels_follow_the_images(labelled, tmp_path):
    trainer = Trainer(labelled, tmp_path)
    for sampler in (trainer.train_data, trainer.held_out):
        red = sampler.batch(40, 5, 6)[:, 0, 0, 0]
        assert torch.equal(sampler.labels(40, 5, 6), (red // 10 // 3).long())
    c = trainer.config = replace(labelled, batch=400)
    whole = trainer.train_labels(Share())
    known = trainer.train_data.labels(c.batch, c.seed, 0)
    dropped = whole == -1
    assert torch.equal(whole[~dropped], known[~dropped]) and 20 < dropped.sum() < 60
    parts = [trainer.train_labels(Share(i, 2)) for i in (0, 1)]
    assert torch.equal(torch.stack(parts, 1).flatten(), whole)


def test_labels_change_what_a_network_says_and_files_do_without(labelled, tmp_path):
    trainer = Trainer(labelled, tmp_path)
    losses(trainer, 10)
    network, (z, sigma) = trainer.averaged_network(), noisy_images()
    none = torch.tensor([-1, -1])
    assert torch.equal(network.posterior_x(z, sigma)[0], network.posterior_x(z, sigma, none)[0])
    vectors = network.experts[0].embed_label.weight.detach()
    assert vectors[0].eq(0).all()  # of no label
    assert len(vectors[1:].unique(dim=0)) == labelled.network.classes
    vectors *= 1000  # ten steps have moved them by no more than shows in the last bits of x
    first, second = (network.posterior_x(z, sigma, torch.tensor([i, i]))[0] for i in (0, 1))
    assert not torch.allclose(first, second)

    trainer.write_model({"held_out_bpd": 5.0})
    image = picture(7, (37, 21))
    for name, arithmetic in ((MODEL, "integer"), (FLOAT_MODEL, "float")):
        model = load_model(tmp_path / name, arithmetic)
        assert (
            decoding.decode(encoding.encode(image, model), model=model).tobytes() == image.tobytes()
        )
    network, weights = load_weights(tmp_path / MODEL)
    assert network == labelled.network and weights.keys() == trainer.ema.keys()


def test_labels_for_a_model_that_had_none(labelled, config, tmp_path):
    before = Trainer(config, tmp_path)
    losses(before, 2)
    after = Trainer(labelled, tmp_path, before.averaged_network().state_dict())
    assert after.validate() == before.validate()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0\n1\n", "2 labels for 25 images; give one for each"),
        ("9\n" * COUNT, "label 9 for a network of 9 classes; give labels from 0 to 8"),
        ("-1\n" * COUNT, "labels are integers from 0"),
        ("dog\n" * COUNT, "not readable as labels, one integer a line"),
        ("", "labels are integers from 0"),
    ],
)
def test_labels_that_do_not_fit(labelled, labels, tmp_path, text, message):
    labels.write_text(text)
    with pytest.raises(DiffcodecError, match=message):
        Trainer(labelled, tmp_path)


def test_labels_of_no_file(config, tmp_path):
    with pytest.raises(DiffcodecError, match="missing: No such file or directory; check the path"):
        Trainer(replace(config, labels=str(tmp_path / "missing")), tmp_path)


def test_a_time_budget_becomes_a_number_of_steps(config, tmp_path, monkeypatch):
    clock = iter(np.arange(1000.0) / 4)  # a quarter of a second for each step
    trainer = Trainer(config, tmp_path)
    losses(trainer, 2)
    before = {k: v.clone() for k, v in state(trainer).items()}
    with monkeypatch.context() as context:
        context.setattr(trainer_module.time, "monotonic", lambda: next(clock))
        trainer.plan_steps(minutes=2)
    assert trainer.config == replace(config, steps=480)
    assert trainer.step == 2
    assert_same_weights(state(trainer), before, exact=True)
    again = Trainer(config, tmp_path)
    losses(again, 2)
    again.config = trainer.config
    assert losses(trainer, 3) == losses(again, 3)  # optimisers too are as they were


# --- runs -----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(
    ("error", "save_every_seconds"),
    [(KeyboardInterrupt, math.inf), (SystemExit, math.inf), (OSError, math.inf), (RuntimeError, 0)],
)
def test_a_run_that_was_stopped_goes_on_as_if_it_was_not(
    config, tmp_path, monkeypatch, error, save_every_seconds
):
    """What ends it at once leaves the last checkpoint by the clock, other ends one of their own."""
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    for folder in (whole, stopped):
        folder.mkdir()
    uninterrupted = Trainer(config, whole)
    uninterrupted.run()

    first = Trainer(config, stopped)
    batch = first.train_data.batch

    def interrupt(size, seed, step, rows):
        if step == 55:
            raise error
        return batch(size, seed, step, rows)

    monkeypatch.setattr(first.train_data, "batch", interrupt)
    with pytest.raises(error):
        first.run(save_every_seconds=save_every_seconds)
    _, weights = load_weights(stopped / FLOAT_MODEL)
    for name, average in first.ema.items():
        assert torch.equal(weights[name].float(), average.float())
    second = Trainer(config, stopped)
    second.resume()
    assert second.step == 55

    step = second.train_step

    def slow_step():
        time.sleep(0.02)  # the log's seconds have one digit
        return step()

    monkeypatch.setattr(second, "train_step", slow_step)
    second.run()

    assert second.step == uninterrupted.step == 60
    assert_same_weights(state(second), state(uninterrupted))
    assert [r["step"] for r in lines(stopped)] == [r["step"] for r in lines(whole)] == [50, 60]
    for key in ("held_out_bpd", "learning_rate"):
        assert lines(stopped)[-1][key] == pytest.approx(lines(whole)[-1][key], rel=1e-9)
    assert lines(stopped)[-1]["seconds"] > lines(stopped)[0]["seconds"]


STEP_KEYS = {"step", "seconds", "train_bpd", "crops_per_second", "learning_rate"}
VALIDATION_KEYS = {
    *("held_out_bpd", "held_out_bpd_half_width"),
    *("remainder_bpd", "first_jump_bpd", "step_bpd", "prior_bpd"),
}


def test_files_of_a_run(config, tmp_path, capsys):
    config = replace(config, steps=110)
    trainer = Trainer(config, tmp_path)
    trainer.run(validate_every=100)
    written = {p.name for p in tmp_path.iterdir()} - {CURVE, SPLIT}
    assert written == {CHECKPOINT, CONFIG, LOG, MODEL, FLOAT_MODEL}

    saved = json.loads((tmp_path / CONFIG).read_text())
    assert TrainConfig(**saved | {"network": NetworkConfig.from_dict(saved["network"])}) == config

    log = lines(tmp_path)
    assert [r["step"] for r in log] == [50, 100, 110]
    keys = [set(r) for r in log]
    assert keys == [STEP_KEYS, STEP_KEYS | VALIDATION_KEYS, STEP_KEYS | VALIDATION_KEYS]
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == log
    assert log[-1]["train_bpd"] < log[0]["train_bpd"]
    assert all(r["crops_per_second"] > 0 and r["seconds"] > 0 for r in log)
    assert log[-1]["held_out_bpd_half_width"] > 0

    checkpoint = torch.load(tmp_path / CHECKPOINT, weights_only=True)
    assert checkpoint["step"] == 110 and checkpoint["network"] == config.network.to_dict()

    model = load_model(tmp_path / MODEL)
    assert model.plans == trainer_module.plans_from(2)
    assert model.info.about == {
        "images": COUNT - 1,
        "crops": 110 * 8,
        "crop": CROP,
        "steps": 110,
        "hours": round(trainer.seconds / 3600, 3),
        "held_out_bpd": round(log[-1]["held_out_bpd"], 4),
    }
    before = load_model(tmp_path / FLOAT_MODEL, "float")
    assert (before.plans, before.info.about) == (model.plans, model.info.about)
    _, weights = load_weights(tmp_path / FLOAT_MODEL)
    assert_same_weights(weights, checkpoint["ema"], exact=True)


@pytest.mark.parametrize("seed", [0, 3])
def test_the_float_model_of_a_run_becomes_its_integer_one(config, tmp_path, seed):
    trainer = Trainer(replace(config, seed=seed), tmp_path)
    losses(trainer, 5)
    trainer.write_model({"held_out_bpd": 5.0})
    before = load_model(tmp_path / FLOAT_MODEL, "float")
    crops = calibration_images(config.data, before.info.about["crop"], before.color)
    (tmp_path / "again.safetensors").write_bytes(quantize_model(before, crops))
    again, model = load_model(tmp_path / "again.safetensors"), load_model(tmp_path / MODEL)
    assert again.arithmetic == again.info.arithmetic == "integer"
    assert (again.plans, again.info.about) == (model.plans, model.info.about)
    found, expected = (load_file(tmp_path / name) for name in ("again.safetensors", MODEL))
    assert_same_weights(found, expected, exact=True)
    others = load(quantize_model(before, calibration_images(config.data, 8, before.color)))
    assert not others["conv_out.input"].equal(found["conv_out.input"])  # the crops do count


def test_a_float_model_that_cannot_be_quantised(config, tmp_path):
    trainer = Trainer(config, tmp_path)
    trainer.write_model({"held_out_bpd": 5.0})
    crops = calibration_images(config.data, CROP, NETWORK.color)
    with pytest.raises(ModelMismatchError, match="integer model already; give a float one"):
        quantize_model(load_model(tmp_path / MODEL), crops)
    network = trainer.averaged_network()
    with torch.no_grad():
        first = network.experts[0].conv_in
        first.weight.view(8, 9, 4, 9)[:, 3:6] = 3e38  # of the sines, 0 on loading
    (tmp_path / "huge.safetensors").write_bytes(serialise_float_model(network, plan.PLANS, {}))
    with pytest.raises(ModelMismatchError, match="this network cannot be quantised"):
        quantize_model(load_model(tmp_path / "huge.safetensors", "float"), crops)


def test_the_model_of_a_run_codes_an_image_exactly(config, tmp_path, monkeypatch):
    Trainer(replace(config, steps=2), tmp_path).run()
    model = load_model(tmp_path / MODEL)
    monkeypatch.setattr(tiles, "encode_fallback", lambda image, *_: ("raw", bytes(1 << 20)))
    image = picture(7, (37, 21))
    coded = encoding.encode(image, model)
    assert {tile.coder for tile in parse(coded).tiles} <= set(PLAN_NAMES)
    assert decoding.decode(coded, model=model).tobytes() == image.tobytes()


def test_l_simple_is_not_logged_as_bits(config, tmp_path):
    Trainer(replace(config, loss="simple", steps=2), tmp_path).run()
    [record] = lines(tmp_path)
    assert set(record) == STEP_KEYS - {"train_bpd"} | {"train_mse"} | VALIDATION_KEYS


def test_picture_of_the_log(tmp_path):
    figures = pytest.importorskip("matplotlib.figure")
    log = Log(tmp_path)
    for step, bpd in ((50, 9.0), (100, 7.0), (150, 6.0), (100, 7.5)):  # a resumed run repeats some
        log.write({"step": step, "train_bpd": bpd} | ({"held_out_bpd": 8.0} if step > 50 else {}))
    drawn = []
    with pytest.MonkeyPatch.context() as monkeypatch:
        save = figures.Figure.savefig
        monkeypatch.setattr(figures.Figure, "savefig", lambda f, *a, **k: drawn.append(f))
        draw_curve(read_log(tmp_path), 16, tmp_path / CURVE)
        [figure] = drawn
        save(figure, tmp_path / CURVE)
    [axes] = figure.axes
    curves = [line.get_xydata().tolist() for line in axes.lines]
    assert curves == [[[50, 9], [100, 7.5], [150, 6]], [[100, 8], [150, 8]]]
    assert axes.get_ylim() == pytest.approx((5.9, 8))
    with Image.open(tmp_path / CURVE) as curve:
        assert curve.format == "PNG" and np.ptp(np.asarray(curve.convert("L"))) > 100


def test_no_picture_without_matplotlib(config, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    Trainer(replace(config, steps=1), tmp_path).run()
    assert {p.name for p in tmp_path.iterdir()} == {CHECKPOINT, CONFIG, LOG, MODEL, FLOAT_MODEL}


def test_tensorboard_gets_the_log(config, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    Trainer(replace(config, steps=60, tensorboard=True), tmp_path).run(validate_every=50)
    events = EventAccumulator(str(tmp_path / BOARD)).Reload()
    for name in (STEP_KEYS | VALIDATION_KEYS) - {"step", "step_bpd"}:
        written = [(e.step, e.value) for e in events.Scalars(name)]
        expected = [(r["step"], r[name]) for r in lines(tmp_path)]
        assert written == [(step, pytest.approx(value, rel=1e-6)) for step, value in expected]
    [first, _] = lines(tmp_path)
    found = [events.Scalars(f"step_bpd/{t}")[0].value for t in (3, 4)]
    assert found == pytest.approx(first["step_bpd"])


def test_no_tensorboard(config, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(DiffcodecError, match=r"pip install 'diffcodec\[tensorboard\]'"):
        Trainer(replace(config, tensorboard=True), tmp_path).run()


def test_validation_is_repeatable_and_moves_nothing(config, tmp_path):
    trainer = Trainer(config, tmp_path)
    losses(trainer, 2)
    before = {k: v.clone() for k, v in state(trainer).items()}
    first = trainer.validate()
    assert trainer.validate() == first
    assert_same_weights(state(trainer), before, exact=True)
    losses(trainer, 40)
    later = trainer.validate()
    assert later["held_out_bpd"] < first["held_out_bpd"]
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.zero_()
    assert trainer.validate() == later  # it is the averaged weights that count


def test_training_on_from_a_float_model(config, tmp_path):
    first = Trainer(config, tmp_path)
    losses(first, 5)
    first.write_model({"held_out_bpd": 5.0})
    network, weights = load_weights(tmp_path / FLOAT_MODEL)
    assert network == NETWORK
    assert_same_weights(weights, first.ema, exact=True)
    second = Trainer(config, tmp_path, weights)
    losses(second, 1)
    _, again = load_weights(tmp_path / FLOAT_MODEL)
    assert_same_weights(again, first.ema, exact=True)  # training has left it alone


def test_training_on_from_a_model(config, tmp_path):
    first = Trainer(config, tmp_path)
    losses(first, 40)
    first.write_model({"held_out_bpd": 5.0})
    network, weights = load_weights(tmp_path / MODEL)
    assert network == NETWORK
    assert weights.keys() == first.ema.keys()
    for name, original in first.ema.items():
        error = (weights[name] - original).abs()
        if original.ndim == 2 and "affine" not in name and "embed" not in name:  # 8 bits
            step = original.abs().amax(1, keepdim=True) / 127
            # more than half a step where a weight makes up for the rounding of others
            assert (error <= 8 * step).all() and error.mean() < step.mean(), name
        else:
            assert (error <= original.abs() / 1024 + 1e-6).all(), name
    second = Trainer(config, tmp_path, weights)
    z, sigma = noisy_images()
    with torch.inference_mode():
        mean, v = first.averaged_network().posterior_x(z, sigma)
        for of in (second.model, second.averaged_network()):
            found_mean, found_v = of.posterior_x(z, sigma)
            assert ((found_mean - mean) / v.sqrt()).square().mean() < 0.02**2
            assert (found_v / v).log().abs().max() < 0.05


# --- data -----------------------------------------------------------------------------------------


@given(st.integers(2, 200))
def test_a_twentieth_is_held_out(count):
    paths = [Path(f"{i:03}") for i in range(count)]
    kept, held_out = split_held_out(paths)
    assert sorted(kept + held_out) == paths
    assert len(held_out) == max(1, (count + 9) // 20)


def test_a_single_image_is_both():
    assert split_held_out([Path("a")]) == ([Path("a")], [Path("a")])


def test_held_out_images_are_never_trained_on(config, tmp_path):
    trainer = Trainer(config, tmp_path)
    held_out = {int(p.stem) for p in trainer.held_out.paths}
    assert len(held_out) == 1
    trained = {
        int(red) // 10
        for step in range(60)
        for red in trainer.train_data.batch(8, 0, step)[:, 0, 0, 0]
    }
    assert trained == set(range(COUNT)) - held_out
    assert {int(r) // 10 for r in trainer.held_out.batch(32, 0, 0)[:, 0, 0, 0]} == held_out


def test_images_are_found_below_the_folder_in_order(data):
    paths = find_images(data)
    assert sorted(int(p.stem) for p in paths) == list(range(COUNT))
    assert paths == sorted(paths)


def all_crops(path, crop):
    """Every crop as bytes: as it is, and flipped or transposed."""
    with Image.open(path) as image:
        rgb = np.stack([np.asarray(image.getchannel(c)) for c in "RGB"])
    plain, changed = set(), set()
    for variant, found in ((rgb, plain), (rgb[:, :, ::-1], changed)):
        for top in range(rgb.shape[1] - crop + 1):
            for left in range(rgb.shape[2] - crop + 1):
                part = variant[:, top : top + crop, left : left + crop]
                found.add(part.tobytes())
                changed.add(part.transpose(0, 2, 1).tobytes())
    return plain, changed


def test_crops_are_parts_of_images(tmp_path):
    for i, size in enumerate([(9, 7), (7, 24), (30, 3)]):  # the last is too small
        picture(i + 1, size).save(tmp_path / f"{i}.png")
    paths = find_images(tmp_path)
    sampler = CropSampler(paths, 6, "all")
    possible = [all_crops(path, 6) for path in paths[:2]]
    counts, changed = [0, 0], 0
    for step in range(40):
        for crop in sampler.batch(8, 5, step).numpy().astype("u1"):
            [i] = [i for i in (0, 1) if any(crop.tobytes() in s for s in possible[i])]
            counts[i] += 1
            changed += crop.tobytes() not in possible[i][0]
    # In proportion to the area; three in four are flipped, transposed or both.
    assert counts[0] / 320 == pytest.approx(63 / (63 + 168), abs=0.05)
    assert changed / 320 == pytest.approx(3 / 4, abs=0.05)
    for crop in CropSampler(paths, 6, "none").batch(50, 0, 0).numpy().astype("u1"):
        assert crop.tobytes() in possible[0][0] | possible[1][0]


def test_crops_follow_from_seed_and_step_alone(data):
    paths = find_images(data)
    sampler, reading = CropSampler(paths, CROP), CropSampler(paths, CROP, memory_bytes=0)
    assert all(image is None for image in reading.images)
    first = sampler.batch(8, 1, 7)
    assert first.shape == (8, 3, CROP, CROP) and first.dtype == torch.int16
    assert torch.equal(first, sampler.batch(8, 1, 7))
    assert torch.equal(first, reading.batch(8, 1, 7))
    assert torch.equal(first[:3], sampler.batch(3, 1, 7))
    for seed, step in ((1, 8), (2, 7)):
        assert not torch.equal(first, sampler.batch(8, seed, step))
    x = domain_batch(first, "ycocg")
    assert x.is_contiguous(memory_format=torch.channels_last) and x.dtype == torch.float32
    assert torch.equal(x[:, 1], (first[:, 0] - first[:, 2]).float())


# --- what cannot be trained on --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": "missing"}, "missing: no such folder; --data takes a folder"),
        ({"data": "."}, r"holds no images \(\.bmp, "),
        ({"crop": 28}, r"no image is at least 28 pixels.*smaller --crop"),
    ],
)
def test_data_that_cannot_be_trained_on(config, tmp_path, monkeypatch, change, message):
    (tmp_path / "notes.txt").write_text("")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DiffcodecError, match=message):
        Trainer(replace(config, **change), tmp_path)


def damaged(kind):
    stream = io.BytesIO()
    picture(0, (60, 60)).save(stream, "PNG")
    data = stream.getvalue()
    return {
        "text": b"no image",
        "empty": b"",
        "cut": data[: len(data) // 2],
        "broken": data[:60] + bytes(40) + data[100:],
    }[kind]


@pytest.mark.parametrize("kind", ["text", "empty", "cut", "broken"])
def test_an_unreadable_image_is_named(config, tmp_path, kind, capsys):
    """And left out, if there are others: one damaged file of many costs no run."""
    picture(0).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(damaged(kind))
    named = r"b\.png: not readable as an image .*; get a whole copy, or take it away"
    with pytest.raises(DiffcodecError, match=named):
        Trainer(replace(config, data=str(tmp_path)), tmp_path)
    picture(0, (CROP - 1, 60)).save(tmp_path / "c.png")
    picture(1).save(tmp_path / "d.png")
    sampler = Trainer(replace(config, data=str(tmp_path)), tmp_path).train_data
    lines = capsys.readouterr().err.splitlines()
    assert any(re.search(f"left out: .*{named}", line) for line in lines)
    assert f"left out: 1 of 3 images, with a side below {CROP} pixels (--crop)" in lines
    assert {crop.image for crop in sampler.choose(50, 0, 0)} == {0}


# --- the command ----------------------------------------------------------------------------------


def command(*arguments):
    return CliRunner().invoke(cli, ["train", *map(str, arguments)])


def trained(*arguments):
    result = command(*arguments)
    assert result.exit_code == 0, result.output


@pytest.fixture
def arguments(data, tmp_path):
    common = f"--batch 8 --crop {CROP} --no-compile --precision float32 --device cpu"
    return ["--data", data, "--out", tmp_path / "run", *common.split()]


def saved_config(tmp_path):
    return json.loads((tmp_path / "run" / CONFIG).read_text())


NEW = ("labels", "accumulate", "variance", "device", "tensorboard")


def test_a_run_of_before_these_options_goes_on(arguments, tmp_path):
    trained(*arguments, "--channels", "8,8", "--blocks", "1,1", "--steps", 1)
    expected = saved_config(tmp_path)
    config = {k: v for k, v in saved_config(tmp_path).items() if k not in NEW}
    for _, shape in config["network"]["experts"]:
        del shape["classes"]
    (tmp_path / "run" / CONFIG).write_text(json.dumps(config))
    trained("--data", arguments[1], "--out", tmp_path / "run", "--resume", "--steps", 2)
    assert saved_config(tmp_path) == expected | {"steps": 2, "device": "auto"}


@pytest.mark.parametrize("given", [(), ("--learning-rate", "1e-3")])
def test_fine_tuning_warms_up_in_fewer_steps(arguments, tmp_path, tiny, given):
    trained(*arguments, "--init", tiny, "--steps", 1, *given)
    config = saved_config(tmp_path)
    assert config["learning_rate"] == (1e-3 if given else TrainConfig.learning_rate)
    assert config["warmup"] == INIT_WARMUP < TrainConfig.warmup


def test_minutes_set_the_number_of_steps(arguments, tmp_path, tiny):
    trained(*arguments, "--init", tiny, "--minutes", "0.001")
    steps = saved_config(tmp_path)["steps"]
    assert 0 < steps < TrainConfig.steps and lines(tmp_path / "run")[-1]["step"] == steps


def test_presets_are_shapes(arguments, tmp_path, monkeypatch):
    assert PRESETS["default"] == NetworkConfig().main
    sizes = [sum(p.numel() for p in UNet(shape).parameters()) for shape in PRESETS.values()]
    assert sizes[1] > 5 * sizes[0]
    monkeypatch.setitem(PRESETS, "large", SHAPE)
    trained(*arguments, "--preset", "large", "--blocks", "2,1", "--steps", 1)
    network = NetworkConfig.from_dict(saved_config(tmp_path)["network"])
    assert network == replace(of_one(replace(SHAPE, blocks=(2, 1))), self_ensemble="rotation")


@pytest.mark.parametrize(("augment", "up_to"), [("mirror", 7), ("none", 0)])
def test_self_ensemble_is_by_what_training_shows(arguments, tmp_path, tiny, augment, up_to):
    given = ("--augment", augment, "--self-ensemble-up-to", up_to)
    trained(*arguments, "--init", tiny, *given, "--steps", 1)
    shape = load_model(tmp_path / "run" / MODEL).info.network
    assert (shape.self_ensemble, shape.self_ensemble_up_to) == (augment, up_to)
    trained(*arguments[:2], *("--out", tmp_path / "run"), "--resume", "--steps", 2)
    assert load_model(tmp_path / "run" / MODEL).info.network == shape


def test_an_expert_starts_as_the_model_and_learns_by_itself(arguments, tmp_path, tiny):
    """A model that has several keeps them, unless told otherwise."""
    two, on, one = (tmp_path / name for name in ("two", "on", "one"))
    _, begin = load_weights(tiny)
    for out, init, change in (
        (two, tiny, ("--expert", 2)),
        (on, two / MODEL, ()),
        (one, two / MODEL, ("--expert", 0)),
    ):
        more = ("--out", out, "--init", init, "--steps", 2, *change)
        trained(*arguments[:2], *arguments[4:], *more)
    shape, weights = load_weights(two / FLOAT_MODEL)
    assert [up_to for up_to, _ in shape.experts] == [2, math.inf]
    low, high = split_experts(weights, 2)
    [first] = split_experts(begin, 1)
    assert low.keys() == high.keys() == first.keys()
    for name in ("conv_in.weight", "up.0.0.conv1.weight"):
        assert not torch.equal(low[name], high[name])
        for part in (low, high):
            torch.testing.assert_close(part[name], first[name], rtol=0.3, atol=0.03)
    assert load_model(on / MODEL).info.network == shape
    assert load_model(one / MODEL).info.network == replace(shape, experts=shape.experts[1:])


def test_training_sees_one_view(config, tmp_path):
    for kind in ("none", "mirror"):
        shape = replace(config.network, self_ensemble=kind, self_ensemble_up_to=999.0)
        (tmp_path / kind).mkdir()
        Trainer(replace(config, network=shape, steps=2), tmp_path / kind).run()
    none, mirror = (lines(tmp_path / kind)[-1] for kind in ("none", "mirror"))
    assert none["train_bpd"] == mirror["train_bpd"]
    assert none["held_out_bpd"] != mirror["held_out_bpd"]


def test_labels_make_classes(arguments, tmp_path, labels, tiny):
    trained(*arguments, "--init", tiny, "--labels", labels, "--steps", 1)
    experts = saved_config(tmp_path)["network"]["experts"]
    assert [shape["classes"] for _, shape in experts] == [9]
    assert load_model(tmp_path / "run" / MODEL).info.network.classes == 9


@pytest.mark.parametrize("way", [("--phases",), ("--init", "photo")])
def test_labels_do_not_go_with_phases(arguments, tmp_path, labels, way):
    result = command(*arguments, *way, "--labels", labels)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "a network in phases knows no classes" in result.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("more", "code", "message"),
    [
        (("--minutes", "1", "--steps", "5"), 2, "--minutes sets the number of steps"),
        (("--minutes", "0"), 2, "--minutes"),
        (("--accumulate", "3"), 1, "batch of 8 cannot be divided into 3 passes of 1 processes"),
        (("--labels", "missing"), 1, "missing: No such file or directory; check the path"),
        (("--variance", "none"), 2, "--variance"),
        (("--minutes", "1e16"), 2, "'--minutes': 1e+16 is not in the range 0<x<=1000000"),
        (("--augment", "none", "--self-ensemble-up-to", 5), 2, "neither with --augment none nor"),
        (("--phases", "--self-ensemble-up-to", 5), 2, "nor in phases; leave it out"),
        (("--expert", "2:"), 2, "--expert"),
        (("--expert", "2:1,1:8,8:1:1"), 2, "'--expert': '2:1,1:8,8:1:1' is no UP_TO[:BLOCKS"),
        (("--expert", "2:1"), 2, "and blocks (1,): one is shorter"),
        (("--expert", 2, "--expert", 2), 2, "experts up to [2.0, 2.0, inf]: expected increasing"),
    ],
)
def test_options_that_do_not_fit(arguments, more, code, message):
    result = command(*arguments, *more)
    assert result.exit_code == code
    assert message in " ".join(result.stderr.split())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--channels", "8,8"), "--init has a shape; leave out --preset, --backbone, --channels"),
        (("--blocks", "2,1"), "blocks 1,2 and patch 2; --blocks may only add blocks to each"),
        (("--blocks", "2,2,2"), "channels (8, 8) and blocks (2, 2, 2): one is shorter"),
        (("--expert", "2:2,1"), "blocks 1,2 and patch 2; --expert may only add blocks to each"),
        (("--expert", "2:2,2:8,9"), "--init has channels 8,8, blocks 1,2 and patch 2; --expert"),
    ],
)
def test_a_model_has_its_own_shape(arguments, tmp_path, given, message):
    model = tiny_model(tmp_path, blocks=(1, 2))
    result = command(*arguments, "--init", model, *given)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())


def test_more_blocks_than_the_model_has(arguments, tmp_path, tiny):
    trained(*arguments, "--init", tiny, "--blocks", "3,2", "--steps", 1)
    assert load_model(tmp_path / "run" / MODEL).info.network.main.blocks == (3, 2)


def test_more_blocks_of_one_expert_alone(arguments, tmp_path, tiny):
    trained(*arguments, "--init", tiny, "--expert", "2:3,2", "--steps", 1)
    shape, weights = load_weights(tmp_path / "run" / FLOAT_MODEL)
    assert load_model(tmp_path / "run" / MODEL).info.network == shape
    assert [s.blocks for _, s in shape.experts] == [(3, 2), load_weights(tiny)[0].main.blocks]
    for part, (_, one) in zip(split_experts(weights, 2), shape.experts, strict=True):
        found = {tuple(map(int, n.split(".")[1:3])) for n in part if n.startswith("up.")}
        assert found == {(i, k) for i, count in enumerate(one.blocks) for k in range(count)}
    one = ("--out", tmp_path / "one", "--init", tmp_path / "run" / MODEL, "--expert", 0)
    trained(*arguments[:2], *arguments[4:], *one, "--steps", 1)
    assert load_model(tmp_path / "one" / MODEL).info.network.experts == shape.experts[1:]


def test_experts_of_any_shape_train_and_code(arguments, tmp_path):
    """A list that the first format of model files cannot express."""
    experts = ("--expert", "20:1,1:16,8:1", "--expert", "0.6:2:8:1", "--steps", 1)
    trained(*arguments, *experts)
    model = load_model(tmp_path / "run" / MODEL)
    shapes = [(up_to, s.channels, s.blocks, s.patch) for up_to, s in model.info.network.experts]
    assert shapes[:2] == [(0.6, (8,), (2,), 1), (20, (16, 8), (1, 1), 1)]
    assert b"diffcodec-model-1" in (tmp_path / "run" / MODEL).read_bytes()
    image = picture(7, (13, 11))
    data = encoding.encode(image, model, progressive=True)
    assert decoding.decode(data, model=model).tobytes() == image.tobytes()
    assert load_weights(tmp_path / "run" / FLOAT_MODEL)[0] == model.info.network
    trained(*arguments[:2], *("--out", tmp_path / "run"), "--resume", "--steps", 2)


def test_added_blocks_do_nothing_at_first(config, tmp_path, tiny):
    shape, weights = load_weights(tiny)
    config = replace(config, network=of_one(replace(shape.main, blocks=(3, 2))))
    [grown] = Trainer(config, tmp_path / "run", weights).model.experts
    network = UNet(shape.main)
    network.load_state_dict(split_experts(weights, 1)[0])
    z, sigma = noisy_images()
    with torch.no_grad():
        for found, expected in zip(grown(z, sigma), network(z, sigma), strict=True):
            assert torch.equal(found, expected)
