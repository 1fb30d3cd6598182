"""Training on an emulated GPU: the same steps as on the CPU, and nothing waited for."""

import contextlib
import math
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from emulated_gpu import GPU, emulated_gpu

from diffcodec import DiffcodecError, load_model
from diffcodec.diffusion.plan import geometric_plan
from diffcodec.networks.config import NetworkConfig, PhasesConfig, UNetConfig
from diffcodec.networks.experts import ExpertDenoisers
from diffcodec.training import budget, crops, resident, steps, trainer, validation
from diffcodec.training.budget import Budget, expected_seconds
from diffcodec.training.config import TrainConfig
from diffcodec.training.crops import CropSampler
from diffcodec.training.log import read_log
from diffcodec.training.optimizers import load_optimizer, make_optimizers
from diffcodec.training.resident import DeviceCrops
from diffcodec.training.trainer import CHECKPOINT, MODEL, Trainer

UNET = UNetConfig(channels=(8, 8), blocks=(1, 1))
PLAIN = NetworkConfig(((math.inf, UNET),))
PHASED = NetworkConfig(
    ((2.75, UNET), (9.5, UNET), (math.inf, UNET)), phases=PhasesConfig(channels=8, blocks=1)
)


@pytest.fixture
def config(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (30, 24, 20, 3), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    return TrainConfig(
        str(tmp_path / "images.npy"),
        batch=16,
        crop=16,
        steps=4,
        compile=False,
        precision="float32",
        device="cpu",
        network=PLAIN,
    )


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(validation, "CROPS", 8)
    monkeypatch.setattr(validation, "BATCH", 8)
    monkeypatch.setattr(crops, "CALIBRATION_CROPS", 2)
    monkeypatch.setattr(trainer, "plans_from", lambda _: {"default": geometric_plan(4)})


@pytest.fixture
def gpu(monkeypatch):
    """Trainers within a test are on it."""
    monkeypatch.setattr(steps, "find_device", lambda name: GPU)
    for module in (steps, validation):
        monkeypatch.setattr(module, "autocast", lambda *_: contextlib.nullcontext())
    with emulated_gpu() as emulated:
        yield emulated


@pytest.mark.parametrize(
    "change",
    [
        {"network": PHASED},
        {"accumulate": 2, "variance": "fixed-small"},
        {"loss": "hybrid"},
        {"loss": "flow"},
        {"loss": "v"},
    ],
)
def test_steps_are_those_of_a_cpu_and_nothing_is_waited_for(request, config, tmp_path, change):
    config = replace(config, **change)
    here = Trainer(config, tmp_path, quiet=True)
    expected = [here.train_step() for _ in range(2)]
    gpu = request.getfixturevalue("gpu")
    there = Trainer(config, tmp_path, quiet=True)
    assert there.crops.are_resident
    gpu.waits.clear()
    losses = [there.train_step() for _ in range(2)]
    assert not gpu.waits
    assert there.numbers(losses) == pytest.approx(expected, rel=1e-6)
    assert gpu.waits == [wait for wait in gpu.waits if "steps.py" in wait]


def test_a_run_is_waited_for_at_its_lines_alone(gpu, config, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "LOG_EVERY", 3)
    run = Trainer(replace(config, steps=7), tmp_path, quiet=True)
    waits, numbers = [], run.numbers
    monkeypatch.setattr(run, "numbers", lambda x: waits.append(len(x)) or numbers(x))
    run.run()
    assert waits == [3, 2, 1, 1]  # also for the time of the sixth step
    assert [line["step"] for line in read_log(tmp_path)] == [3, 6, 7]
    assert load_model(tmp_path / MODEL, device="cpu").info.answers


@pytest.mark.filterwarnings("ignore:.*a non-meta parameter")  # it has numbers all the same
def test_a_run_goes_on_on_a_gpu(request, config, tmp_path):
    here = Trainer(config, tmp_path, quiet=True)
    here.train_step()
    here.save()
    expected = here.train_step()
    request.getfixturevalue("gpu")
    there = Trainer(config, tmp_path, quiet=True)
    there.resume()
    assert there.step == 1 and next(iter(there.ema.values())).device == GPU
    assert there.numbers([there.train_step()]) == pytest.approx([expected], rel=1e-6)


def test_what_is_not_finite_there_is_told_and_not_saved(gpu, config, tmp_path):
    run = Trainer(replace(config, learning_rate=1e30, warmup=1, steps=60), tmp_path, quiet=True)
    with pytest.raises(DiffcodecError, match=r"the loss is not finite at step \d+; lower"):
        run.run()
    with pytest.raises(DiffcodecError, match="the loss is not finite"):
        run.save()
    assert not (tmp_path / CHECKPOINT).exists()


@pytest.mark.parametrize("augment", ["all", "mirror", "none"])
def test_crops_of_a_gpu_are_those_of_a_cpu(tmp_path, monkeypatch, augment):
    rng = np.random.default_rng(1)
    shapes = [(19, 16), (16, 40), (23, 31)]
    images = [rng.integers(0, 256, (3, *shape), dtype=np.uint8) for shape in shapes]
    sampler = CropSampler(images, 16, augment, quiet=True)
    expected = sampler.batch(40, 5, 6, slice(1, None, 3))
    for share in (1.0, 0.0):
        monkeypatch.setattr(resident, "MEMORY_SHARE", share)
        with emulated_gpu() as gpu:
            cut = DeviceCrops(sampler, GPU)
            assert cut.are_resident == bool(share)
            gpu.waits.clear()
            found = cut.batch(40, 5, 6, slice(1, None, 3))
            assert not gpu.waits and found.device == GPU
            assert torch.equal(found.cpu().short(), expected)


def test_optimizers_of_a_gpu_do_the_same_and_take_up_each_others_state():
    torch.manual_seed(0)
    networks = [ExpertDenoisers(PHASED) for _ in range(2)]
    networks[1].load_state_dict(networks[0].state_dict())
    settings = TrainConfig("", learning_rate=1e-2)
    kinds = [make_optimizers(networks[i], settings, on_gpu=bool(i)) for i in (0, 1)]
    for turn in range(4):
        gradients = [torch.randn_like(p) for p in networks[0].parameters()]
        for network, optimizers in zip(networks, kinds, strict=True):
            for p, gradient in zip(network.parameters(), gradients, strict=True):
                p.grad = gradient.clone()
            for optimizer in optimizers:
                optimizer.step()
        if turn == 1:  # each goes on from the other's
            states = [[o.state_dict() for o in optimizers] for optimizers in kinds]
            for optimizers, saved in zip(kinds, states[::-1], strict=True):
                for optimizer, state in zip(optimizers, saved, strict=True):
                    load_optimizer(optimizer, state)
    assert kinds[1][0].param_groups[0]["fused"] and not kinds[0][0].param_groups[0]["fused"]
    for a, b in zip(*(network.parameters() for network in networks), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=3e-4)


def test_a_time_budget_is_kept_as_steps_get_slower(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(budget.time, "monotonic", lambda: now[0])
    kept = Budget(end=160.0, step_seconds=0.5, validation_seconds=10.0)
    assert kept.steps_left() == 120 and kept.has_time_to_validate()
    done = 0
    while kept.steps_left():
        now[0] += 1.0
        kept.note(1, 1.0)
        done += 1
    assert 58 <= done <= 61 and not kept.has_time_to_validate()
    taken = iter([0, 5, 5, 13])  # eight crops take 5 s, sixteen 8 s
    monkeypatch.setattr(budget.time, "monotonic", lambda: next(taken))
    assert expected_seconds(lambda crops: None, 64) == 8 + 48 * 3 / 8


def test_a_run_ends_within_its_minutes_with_its_model(config, tmp_path):
    begin = time.monotonic()
    run = Trainer(config, tmp_path, quiet=True)
    run.finish_within(minutes=0.25)
    run.run()
    assert 5 < time.monotonic() - begin < 15
    assert load_model(tmp_path / MODEL) and (tmp_path / CHECKPOINT).exists()
    assert run.step == run.config.steps > 20
